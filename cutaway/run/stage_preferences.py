"""Stage 4, preferences: the fine-tuned model answers each request several times, and the judge ranks the answers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from cutaway.evaluate.answers import answer_of
from cutaway.generate.engine import Engine
from cutaway.generate.request import Request, Sampling
from cutaway.models.light import for_sampling
from cutaway.models.model import Model
from cutaway.records import Journal
from cutaway.run.preferences import Preference, hold_out, pairs_from, write_preferences
from cutaway.run.preferences import answer_of as answer_of_row
from cutaway.run.recipe import PersonJudgeSettings, RequestsBudget
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
        requests = _requests(work)
        answered = _answer_all(work, requests)
        judge = _judge(work)
        preferences, ties = _rank(work, judge, answered)
        write_preferences(work.run, preferences, judge=judge.label, stand_in=judge.stand_in)
        pairs, held = sum(len(p.pairs) for p in preferences), sum(len(p.pairs) for p in preferences if p.held_out)
        work.note(f"{pairs:,} pairs from {len(preferences):,} requests ranked by {judge.label}; {ties:,} ties dropped; "
                  f"{held:,} pairs held out")
        work.event(STAGE, "done", {
            "seconds": time.perf_counter() - began, "requests": len(preferences), "pairs": pairs,
            "held_out_pairs": held, "ties": ties, "judge": judge.label, "stand_in": judge.stand_in,
            "answer_tokens": sum(len(a.tokens) for p in preferences for a in p.answers)})


def _requests(work: Work) -> list[str]:
    """Distinct training requests in an order made from the seed."""
    fitting = work.fitting(work.text.train, work.recipe.preferences.max_tokens)
    order = np.random.default_rng([work.recipe.seed, 4]).permutation(len(fitting))
    return [fitting[i] for i in order]


def _answer_all(work: Work, requests: Sequence[str]) -> list[tuple[str, tuple[Answer, ...]]]:
    """Answers in chunks, kept as they come, so that a stopped stage goes on where it was."""
    kept = Journal(work.run.folder / "answers.jsonl")
    rows = work.run.rows(kept)
    done = [(r["request"], tuple(answer_of_row(a) for a in r["answers"])) for r in rows]
    model, budget = work.load("finetuned"), work.recipe.preferences.budget
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
    budget = work.recipe.preferences.budget
    assert not isinstance(budget, RequestsBudget)
    seconds = work.allowance(STAGE, budget.seconds)
    total = max(_CHUNK, min(available, int(seconds / took) * _CHUNK))
    _plan(work, total, "calibration", total / _CHUNK * took)
    work.with_budget(STAGE, RequestsBudget(requests=total))
    return total


def _answer(work: Work, model: Model, requests: Sequence[str], *, first: int) -> list[tuple[str, tuple[Answer, ...]]]:
    settings, tokenizer = work.recipe.preferences, work.tokenizer
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
    settings, out, ties = work.recipe.preferences, [], 0
    for request, answers in answered:
        scores = judge.rank(request, answers)
        if not scores:
            continue  # the person had no opinion; the judge's own file says so
        pairs, tied = pairs_from(scores, settings.pairs)
        ties += tied
        out.append(Preference(request, answers, tuple(scores), pairs))
    return hold_out(out, settings.held_out, work.recipe.seed), ties
