"""Stage 7, evaluation: the same held-out text and the same held-out requests for every model of the run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cutaway.data.conversations import Conversation
from cutaway.evaluate.answers import Answered, Asked, ask, difference
from cutaway.evaluate.bits import Scores, score, score_answers
from cutaway.evaluate.forgetting import forgetting
from cutaway.evaluate.proxy import kl, proxy_reward
from cutaway.generate.request import Sampling
from cutaway.models.light import for_sampling
from cutaway.records import Journal, Measurement, Stopwatch
from cutaway.run.folder import Run
from cutaway.run.preferences import answer_of
from cutaway.run.recipe import Recipe
from cutaway.run.stage_align import reward_of
from cutaway.run.stage_pretrain import fresh
from cutaway.run.work import Work, fitting
from cutaway.text.tokenizer import Tokenizer
from cutaway.train.judge import Verdict
from cutaway.train.reward import prompt


def evaluate_stage(work: Work, name: str) -> None:
    """Write evals/<name>.json and the model's answers into samples.jsonl."""
    stage = f"evaluate-{name}"
    with work.alone() as mine, Stopwatch() as watch:
        if not mine:
            return
        model = fresh(work) if name == "random" else work.load(name)
        light = for_sampling(model.eval())
        scores = score(light, work.tokenizer, work.text.held, context=work.recipe.model.context_length)
        settings = work.recipe.evaluate
        requests, left_out = chosen_requests(work.text.test, work.tokenizer, work.recipe)
        if left_out and name == work.recipe.models[0]:
            work.note(f"{left_out:,} held-out requests are left out: with an answer of {settings.max_tokens} tokens "
                      f"they do not fit the context of {work.recipe.model.context_length}")
        answered = ask(light, work.tokenizer, requests, work.judge, max_tokens=settings.max_tokens,
                       sampling=Sampling(temperature=settings.temperature), seed=work.recipe.seed)
        pairs, long = chosen_answers(work, requests)
        if long and name == work.recipe.models[0]:
            work.note(f"{long:,} of {len(requests):,} held-out answers are left out of their bits per byte: with their "
                      f"request they do not fit the context of {work.recipe.model.context_length}")
        told = score_answers(light, work.tokenizer, pairs) if pairs else None
        row = _measured(work, name, scores, answered, told)
        if name == "aligned":
            before = for_sampling(work.load(work.recipe.tuned).eval())
            per = kl(light, before, answered, work.tokenizer, temperature=settings.temperature or 1.0)
            row |= {"kl": per["per_answer"], "kl_per_token": per["per_token"]}
            if work.recipe.reward is not None:
                row["proxy_reward"] = proxy_reward(reward_of(work), answered)
        work.run.write_json(f"evals/{name}.json", row)
        work.event(stage, "done", {"seconds": watch.seconds})
        shown = [row["bits_per_byte"], row["answers"]["satisfies"]]
        work.note(f"{name}: " + " · ".join(str(m) for m in shown))


def chosen_requests(conversations: Sequence[Conversation], tokenizer: Tokenizer,
                    recipe: Recipe) -> tuple[list[str], int]:
    """Held-out requests in an order made from their number alone, so that no stage chooses its own; and how many do
    not fit the context."""
    settings = recipe.evaluate
    kept, left_out = fitting(conversations, tokenizer, recipe.model.context_length - settings.max_tokens)
    order = np.random.default_rng([0, len(kept)]).permutation(len(kept))
    return [kept[i] for i in order[: settings.requests]], left_out


def chosen_answers(work: Work, requests: Sequence[str]) -> tuple[list[tuple[str, str]], int]:
    """The requests with their own answers, as far as both fit the context; and how many do not."""
    answers = {c.request: c.answer for c in reversed(work.text.test)}
    room = work.recipe.model.context_length
    pairs = [(r, answers[r]) for r in requests
             if len(prompt(r, work.tokenizer)) + len(work.tokenizer.encode(answers[r])) < room]
    return pairs, len(requests) - len(pairs)


def _measured(work: Work, name: str, scores: Scores, answered: Answered,
              told: Scores | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "stage": name, "bits_per_byte": scores.measurement(), "answers": answered.measurements(), "forgetting": None,
        "change": None, "proxy_reward": None, "kl": None, "answer_bits": None, "answer_gain": None,
        "samples": [a.to_dict() for a in answered.items[: work.recipe.evaluate.samples]],
        "documents": _listed(scores)}
    if name in ("finetuned", "aligned"):
        row["forgetting"] = forgetting(_scores(work.run, "base"), scores)
    if told is not None:
        row |= {"answer_bits": told.measurement("answer_bits"), "told": _listed(told)}
    models = work.recipe.models
    if name != models[0]:
        before = models[models.index(name) - 1]
        row["change"] = difference(answers(work.run, before), answered)
        if told is not None and _eval(work.run, before).get("told") is not None:
            row["answer_gain"] = forgetting(_scores(work.run, before, "told", "answer_bits"), told, name="answer_gain")
    samples = Journal(work.run.folder / "samples.jsonl")
    work.run.keep(samples, lambda r: r["stage"] != name)
    for asked in answered.items:
        samples.append({"stage": name, **asked.to_dict(), "tokens": asked.answer.tokens,
                        "checks": dict(asked.verdict.checks), "score": asked.verdict.score})
    return row


def _listed(scores: Scores) -> dict[str, list[float]]:
    return {"nats": scores.nats.tolist(), "tokens": scores.tokens.tolist(), "bytes": scores.bytes.tolist()}


def _eval(run: Run, name: str) -> dict[str, Any]:
    row = run.read_json(f"evals/{name}.json")
    assert row is not None, name
    return row


def _scores(run: Run, name: str, kept: str = "documents", figure: str = "bits_per_byte") -> Scores:
    row = _eval(run, name)
    nats, tokens, size = (np.array(row[kept][k]) for k in ("nats", "tokens", "bytes"))
    return Scores(nats, tokens, size, row[figure]["conditions"])


def answers(run: Run, name: str) -> Answered:
    """What a model of the run answered, from samples.jsonl."""
    rows = [r for r in run.rows(Journal(run.folder / "samples.jsonl")) if r["stage"] == name]
    items = tuple(Asked(r["request"], answer_of({**r, "text": r["answer"]}), Verdict(r["score"], r["checks"]))
                  for r in rows)
    return Answered(items, _eval(run, name)["answers"]["satisfies"]["conditions"])


def proxy_stage(work: Work) -> None:
    """Once there is a reward model: what it thinks of the earlier models' answers."""
    with work.alone() as mine, Stopwatch() as watch:
        if not mine:
            return
        reward = reward_of(work)
        for name in (m for m in work.recipe.models if m != "aligned"):
            row = _eval(work.run, name)
            row["proxy_reward"] = proxy_reward(reward, answers(work.run, name))
            work.run.write_json(f"evals/{name}.json", row)
        work.event("evaluate-proxy", "done", {"seconds": watch.seconds})


def figures(run: Run) -> dict[str, Measurement]:
    """The headline figures of a run, as far as it has come, by ``model.figure``."""
    out: dict[str, Measurement] = {}
    for name in run.recipe.models:
        row = run.read_json(f"evals/{name}.json")
        if row is None:
            continue
        found = {"bits_per_byte": row["bits_per_byte"], "parses": row["answers"].get("parses"),
                 "satisfies": row["answers"]["satisfies"],
                 "answer_bits": row.get("answer_bits"), "forgetting": row["forgetting"],
                 "proxy_reward": row["proxy_reward"], "kl": row["kl"], "change": row["change"]}
        out |= {f"{name}.{k}": Measurement.from_dict(v) for k, v in found.items() if v is not None}
    reward = run.read_json("evals/reward.json")
    if reward is not None:
        out["reward.accuracy"] = Measurement.from_dict(reward["accuracy"])
    for tool, value in (run.read_json("evals/compression.json") or {}).items():
        out[f"{tool}.bits_per_byte"] = Measurement.from_dict(value)
    return out

