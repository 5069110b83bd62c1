"""Stage 4, preferences: the fine-tuned model answers each request several times, and the judge ranks the answers."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from cutaway.data.rows import Column, Skip, read_rows
from cutaway.errors import DataError
from cutaway.evaluate.answers import answer_of
from cutaway.generate.engine import Engine
from cutaway.generate.request import Request, Sampling
from cutaway.models.light import for_sampling
from cutaway.models.model import Model
from cutaway.records import Journal
from cutaway.run.preferences import Preference, hold_out, pairs_from, write_preferences
from cutaway.run.preferences import answer_of as answer_of_row
from cutaway.run.recipe import (
    FilePreferences,
    PersonJudgeSettings,
    Preferences,
    RequestsBudget,
    SecondsBudget,
)
from cutaway.run.work import Work
from cutaway.train.judge import Judge, PersonJudge
from cutaway.train.reward import Answer, prompt
from cutaway.train.rollout import row_seed

STAGE = "preferences"
_CHUNK = 32  # requests answered together; a stop loses at most these


def preferences_stage(work: Work) -> None:
    """Write preferences.jsonl."""
    with work.alone() as mine:
        if not mine:
            return
        began = time.perf_counter()
        settings = work.recipe.preferences
        if isinstance(settings, FilePreferences):
            preferences, ties, label, stand_in = _given(work, settings), 0, Path(settings.path).name, False
        else:
            judge = _judge(work)
            preferences, ties = _rank(work, judge, _answer_all(work, _requests(work)))
            label, stand_in = judge.label, judge.stand_in
        write_preferences(work.run, preferences, judge=label, stand_in=stand_in)
        pairs, held = sum(len(p.pairs) for p in preferences), sum(len(p.pairs) for p in preferences if p.held_out)
        work.note(f"{pairs:,} pairs from {len(preferences):,} requests ranked by {label}; {ties:,} ties dropped; "
                  f"{held:,} pairs held out")
        work.event(STAGE, "done", {
            "seconds": time.perf_counter() - began, "requests": len(preferences), "pairs": pairs,
            "held_out_pairs": held, "ties": ties, "judge": label, "stand_in": stand_in,
            "answer_tokens": sum(len(a.tokens) for p in preferences for a in p.answers)})


def _given(work: Work, settings: FilePreferences) -> list[Preference]:
    """The pairs of a file, those that do not fit the context left out and counted. Raises DataError for none."""
    path = Path(settings.path)
    columns = [Column(name, "preferences.path", name) for name in ("prompt", "chosen", "rejected")]
    room, out, left = work.recipe.model.context_length, list[Preference](), Counter[str]()
    for row in read_rows(path, path.name, columns):
        if isinstance(row, Skip):
            left[row.reason] += 1
            continue
        request, *texts = row.values
        answers = tuple(Answer(text, tuple(work.tokenizer.encode(text)), True) for text in texts)
        if len(prompt(request, work.tokenizer)) + max(len(a.tokens) for a in answers) >= room:
            left[f"longer than the context of {room}"] += 1
            continue
        out.append(Preference(request, answers, (1.0, 0.0), ((0, 1),)))
    if left:
        work.note(f"left out of {path}: " + ", ".join(f"{n:,} {why}" for why, n in sorted(left.items())))
    if len(out) < 2:
        raise DataError(f"holds {len(out)} usable preferences", where=path, way_out="give more, or raise the context")
    return hold_out(out, settings.held_out, work.recipe.seed)


def _settings(work: Work) -> Preferences:
    assert isinstance(work.recipe.preferences, Preferences)
    return work.recipe.preferences


def _requests(work: Work) -> list[str]:
    """Distinct training requests in an order made from the seed."""
    fitting = work.fitting(work.text.train, _settings(work).max_tokens)
    order = np.random.default_rng([work.recipe.seed, 4]).permutation(len(fitting))
    return [fitting[i] for i in order]


def _answer_all(work: Work, requests: Sequence[str]) -> list[tuple[str, tuple[Answer, ...]]]:
    """Answers in chunks, kept as they come, so that a stopped stage goes on where it was."""
    kept = Journal(work.run.folder / "answers.jsonl")
    rows = work.run.rows(kept)
    done = [(r["request"], tuple(answer_of_row(a) for a in r["answers"])) for r in rows]
    model, budget = work.load(work.recipe.tuned), _settings(work).budget
    total = budget.requests if isinstance(budget, RequestsBudget) else None
    if total is not None:
        _plan(work, total := min(total, len(requests)), "requests")
    while total is None or len(done) < total:
        began, at = time.perf_counter(), len(done)
        chunk = requests[at : min(at + _CHUNK, len(requests) if total is None else total)]
        for row in _answer(work, model, chunk, first=at):
            done.append(row)
            kept.append({"request": row[0], "answers": [asdict(a) for a in row[1]]})
        if total is None:
            total = _promise(work, time.perf_counter() - began, len(requests))
        work.check()
    return done


def _plan(work: Work, total: int, basis: str, seconds: float | None = None) -> None:
    work.event(STAGE, "plan", {"requests": total, "basis": basis, **({} if seconds is None else {"seconds": seconds})})


def _promise(work: Work, took: float, available: int) -> int:
    """How many requests the seconds allow, judged by the first chunk; written down as the stage's length."""
    budget = _settings(work).budget
    assert isinstance(budget, SecondsBudget)
    seconds = work.allowance(STAGE, budget.seconds)
    total = max(_CHUNK, min(available, int(seconds / took) * _CHUNK))
    _plan(work, total, "calibration", total / _CHUNK * took)
    work.with_budget(STAGE, RequestsBudget(requests=total))
    return total


def _answer(work: Work, model: Model, requests: Sequence[str], *, first: int) -> list[tuple[str, tuple[Answer, ...]]]:
    settings, tokenizer = _settings(work), work.tokenizer
    sampling = Sampling(temperature=settings.temperature)
    asked = [Request(tokens=tuple(prompt(r, tokenizer)), max_tokens=settings.max_tokens, sampling=sampling,
                     seed=row_seed(work.recipe.seed, first + i, k), stop_ids=(tokenizer.end_id,))
             for i, r in enumerate(requests) for k in range(settings.samples)]
    answers = [answer_of(c, tokenizer) for c in Engine(for_sampling(model)).generate(asked)]
    size = settings.samples
    return [(r, tuple(answers[i * size : (i + 1) * size])) for i, r in enumerate(requests)]


def _judge(work: Work) -> Judge:
    if isinstance(work.recipe.judge, PersonJudgeSettings):
        return PersonJudge(work.run.folder / "judgements.jsonl", seed=work.recipe.seed)
    return work.judge


def _rank(work: Work, judge: Judge, answered: Sequence[tuple[str, tuple[Answer, ...]]]) -> tuple[list[Preference], int]:
    settings, out, ties = _settings(work), [], 0
    for request, answers in answered:
        scores = judge.rank(request, answers)
        if not scores:
            continue  # the person had no opinion; the judge's own file says so
        pairs, tied = pairs_from(scores, settings.pairs)
        ties += tied
        out.append(Preference(request, answers, tuple(scores), pairs))
    return hold_out(out, settings.held_out, work.recipe.seed), ties
