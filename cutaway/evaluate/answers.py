"""One sampled answer to every held-out request, judged: the share that meets each demand, and the paired change
between two stages (Wilson 1927; McNemar 1947; Bonett and Price 2012)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cutaway.errors import DataError
from cutaway.generate.engine import Engine
from cutaway.generate.request import Completion, Request, Sampling
from cutaway.models.model import LanguageModel
from cutaway.records import Measurement, digest, wilson
from cutaway.text.tokenizer import Tokenizer
from cutaway.train.judge import Checker, Verdict
from cutaway.train.reward import Answer, prompt

Z = 1.96


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, what the model answered, and what the judge found."""

    request: str
    answer: Answer
    verdict: Verdict

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON for a report."""
        return {"request": self.request, "answer": self.answer.text, "finished": self.answer.finished,
                "verdict": {**self.verdict.checks, "satisfies": self.verdict.satisfies,
                            "score": round(self.verdict.score, 4)}}


@dataclass(frozen=True, slots=True)
class Answered:
    """One answer to each request, in the requests' order."""

    items: tuple[Asked, ...]
    conditions: Mapping[str, Any]

    def outcomes(self, check: str) -> list[bool]:
        """Whether each answer met a demand, or all of them (``satisfies``)."""
        return [a.verdict.satisfies if check == "satisfies" else a.verdict.checks[check] for a in self.items]

    def measurements(self) -> dict[str, Measurement]:
        """The share that meets each demand and all (``satisfies``), with Wilson's interval."""
        n = len(self.items)
        out = {}
        for check in (*self.items[0].verdict.checks, "satisfies"):
            met = sum(self.outcomes(check))
            out[check] = Measurement(check, met / n, "share", n, *wilson(met, n), self.conditions)
        return out


def ask(model: LanguageModel, tokenizer: Tokenizer, requests: Sequence[str], judge: Checker, *, max_tokens: int,
        sampling: Sampling, seed: int = 0) -> Answered:
    """Sample and judge one answer a request. A request's seed is made of ``seed`` and its text, so two stages that
    are asked the same draw the same random numbers, whatever else is asked beside it.

    Raises DataError for a request whose answer might not fit the context (both numbers named), or for none.
    """
    if not requests:
        raise DataError("there is no held-out request to answer", way_out="give more documents to the held-out split")
    prompts = [prompt(r, tokenizer) for r in requests]
    for request, ids in zip(requests, prompts, strict=True):
        if len(ids) + max_tokens > model.context_length:
            raise DataError(f"the request {request[:40]!r} and an answer of {max_tokens} tokens need "
                            f"{len(ids) + max_tokens}, and the context is {model.context_length}",
                            way_out="leave the request out or lower max_tokens")
    completions = Engine(model).generate([
        Request(tokens=tuple(ids), max_tokens=max_tokens, sampling=sampling, seed=_own_seed(seed, r),
                stop_ids=(tokenizer.end_id,)) for r, ids in zip(requests, prompts, strict=True)])
    items = []
    for request, completion in zip(requests, completions, strict=True):
        answer = answer_of(completion, tokenizer)
        items.append(Asked(request, answer, judge.verdict(request, answer)))
    conditions = {"judge": judge.label, "stand_in": judge.stand_in, "seed": seed, "max_tokens": max_tokens,
                  "sampling": sampling.model_dump(), "requests_sha256": digest("\0".join(requests).encode())[:16]}
    return Answered(tuple(items), conditions)


def _own_seed(seed: int, request: str) -> int:
    return int(digest(f"{seed} {request}".encode())[:8], 16)


def answer_of(completion: Completion, tokenizer: Tokenizer) -> Answer:
    """The text and tokens before the turn's end."""
    finished = completion.finish_reason == "stop"
    tokens = tuple(t for t in completion.tokens if not (finished and t == tokenizer.end_id))
    return Answer(tokenizer.decode(tokens), tokens, finished)


def difference(before: Answered, after: Answered, check: str = "satisfies") -> Measurement:
    """Change of a share between two stages that answered the same requests, after less before.

    The interval is Bonett and Price's for paired shares (one added to each kind of change); ``mcnemar_p`` in the
    conditions is the exact two-sided test of no change.
    """
    if [a.request for a in before.items] != [a.request for a in after.items]:
        raise DataError("two stages can be compared only on the same requests", way_out="ask both the same list")
    pairs = list(zip(before.outcomes(check), after.outcomes(check), strict=True))
    return paired_change(f"{check}_change", pairs, after.conditions)


def paired_change(name: str, pairs: Sequence[tuple[bool, bool]], conditions: Mapping[str, Any]) -> Measurement:
    """Change of a share between two systems on the same items: (before, after) of each. Interval and test as in
    ``difference``."""
    if not pairs:
        raise DataError("there is no item to compare two systems on")
    won, lost, n = pairs.count((False, True)), pairs.count((True, False)), len(pairs)
    up, down = (won + 1) / (n + 2), (lost + 1) / (n + 2)
    half = Z * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    return Measurement(name, (won - lost) / n, "share", n, max(-1.0, up - down - half), min(1.0, up - down + half),
                       {**conditions, "paired": True, "won": won, "lost": lost, "mcnemar_p": mcnemar(won, lost)})


def mcnemar(won: int, lost: int) -> float:
    """Exact two-sided p-value that ``won`` and ``lost`` are flips of a fair coin."""
    n = won + lost
    tail = sum(math.comb(n, k) for k in range(min(won, lost) + 1))
    return float(min(1.0, 2 * tail / 2**n))
