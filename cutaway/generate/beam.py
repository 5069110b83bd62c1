"""Beam search with a length penalty (Graves 2012, arXiv 1211.3711; Wu et al. 2016, arXiv 1609.08144), for any
LanguageModel through ``State.select``; the rules are transformers', so that the same settings give the same texts.

All hypotheses of a wave are rows of one batch, and no Python runs for one of them. R requests, K hypotheses, V
vocabulary, L most tokens of an answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from cutaway.errors import RequestError
from cutaway.generate.prefill import adapters_of, checked, numbers, read, under, waves
from cutaway.generate.request import FinishReason, Request, Sampling
from cutaway.generate.sample import refuse_unless_finite
from cutaway.models.model import LanguageModel
from cutaway.nn.cache import KVCache
from cutaway.settings import Settings


class Beam(Settings):
    """How likely texts are searched: the ``width`` best beginnings are kept at every token, and the ``num_return`` best
    answers returned. A score is the sum of log-probabilities over ``length ** length_penalty``, the end token counted.

    ``early_stopping`` says when ``width`` finished answers are enough: "first", at once; "heuristic", when no live
    beginning scores better at its present length than the worst of them; "never", when none could at any length.
    """

    width: int = Field(default=4, ge=1)
    length_penalty: float = Field(default=1.0, allow_inf_nan=False)
    early_stopping: Literal["first", "heuristic", "never"] = "heuristic"
    num_return: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.num_return > self.width:
            raise ValueError(f"num_return {self.num_return} must not be above the width of {self.width}")
        return self


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """An answer that was found: ``logprob`` is the sum over its ``tokens``, the stop id that ended it included."""

    tokens: tuple[int, ...]
    finish_reason: FinishReason
    logprob: float
    score: float


def search(model: LanguageModel, requests: Sequence[Request], beam: Beam, *,
           max_rows: int = 256) -> list[tuple[Hypothesis, ...]]:
    """The best answers to each request, best first: ``num_return`` of them, fewer only where fewer exist.

    At most ``max_rows`` hypotheses run at once; no answer depends on the other requests. Nothing is drawn, so a
    request's seed has no part in it. Raises RequestError for a request that cannot be served or that asks for sampling.
    """
    ready = checked(model, requests)
    for i, request in enumerate(ready):
        if request.sampling not in (Sampling(), Sampling(temperature=0)) or request.logprobs is not None:
            raise RequestError("a beam search draws no tokens and gives scores instead of logprobs",
                               where=f"request {i}", way_out="leave sampling and logprobs at their defaults")
    found: dict[int, tuple[Hypothesis, ...]] = {}
    for number, some in _by_adapter(model, ready).items():
        with under(model, [number]):
            for indices in waves([ready[i] for i in some], max(1, max_rows // beam.width)):
                for place, answers in _Wave(model, [ready[some[i]] for i in indices], beam).run():
                    found[some[indices[place]]] = answers
    return [found[i] for i in range(len(ready))]


def _by_adapter(model: LanguageModel, requests: Sequence[Request]) -> dict[int, list[int]]:
    """Places of the requests that have each adapter, by its number, -1: none."""
    number_of, out = numbers(adapters_of(model)), dict[int, list[int]]()
    for place, request in enumerate(requests):
        out.setdefault(number_of[request.adapter], []).append(place)
    return out


@dataclass(frozen=True, slots=True)
class _Lines:
    """Hypotheses of R requests, best first; the ``totals`` of those that do not exist are -inf."""

    tokens: Tensor  # (R, K, L)
    totals: Tensor  # (R, K) float64, sums of log-probabilities
    scores: Tensor  # (R, K) float64, what they are ordered by
    lengths: Tensor  # (R, K)

    @classmethod
    def none(cls, rows: int, count: int, longest: int, device: torch.device) -> _Lines:
        """Room for ``count`` hypotheses a request."""
        empty = torch.full((rows, count), -torch.inf, dtype=torch.float64, device=device)
        tokens = torch.zeros(rows, count, longest, dtype=torch.long, device=device)
        return cls(tokens, empty, empty, torch.zeros_like(empty, dtype=torch.long))

    def rows(self, keep: Tensor) -> _Lines:
        """The hypotheses of some requests."""
        return _Lines(self.tokens[keep], self.totals[keep], self.scores[keep], self.lengths[keep])

    def best_with(self, other: _Lines) -> _Lines:
        """As many as there are, from these and the others; of equal ones, the earlier."""
        scores = torch.cat((self.scores, other.scores), 1)
        _, at = torch.sort(scores, dim=1, descending=True, stable=True)
        at = at[:, : self.scores.shape[1]]
        tokens = torch.cat((self.tokens, other.tokens), 1)
        return _Lines(tokens.gather(1, at[..., None].expand(-1, -1, tokens.shape[2])),
                      torch.cat((self.totals, other.totals), 1).gather(1, at), scores.gather(1, at),
                      torch.cat((self.lengths, other.lengths), 1).gather(1, at))


@dataclass(frozen=True, slots=True)
class _Candidates:
    """Every hypothesis worth a look, one token longer, ``(R, C)``; ``parents`` are places among the live ones."""

    totals: Tensor
    tokens: Tensor
    parents: Tensor
    ends: Tensor  # bool: behind this token nothing follows

    def best(self, totals: Tensor, count: int) -> tuple[Tensor, _Candidates]:
        """The ``count`` best by ``totals``, padded with -inf where there are fewer, and their totals."""
        values, at = totals.topk(min(count, totals.shape[1]), dim=1)
        missing = (0, count - values.shape[1])
        values, at = F.pad(values, missing, value=-torch.inf), F.pad(at, missing)
        return values, _Candidates(values, self.tokens.gather(1, at), self.parents.gather(1, at),
                                   self.ends.gather(1, at))


class _Wave:
    """Requests that are searched together; one that is done leaves."""

    @torch.inference_mode()
    def __init__(self, model: LanguageModel, requests: Sequence[Request], beam: Beam) -> None:
        limits = [int(r.max_tokens) for r in requests]
        capacity = max(len(r.tokens) + limit for r, limit in zip(requests, limits, strict=True))
        self.model, self.beam, self.length = model, beam, 0
        self.logits, self.state = read(model, requests, min(capacity, model.context_length))
        device = self.logits.device
        self.request = torch.arange(len(requests), device=device)
        self.limit = torch.tensor(limits, device=device)
        most = max(len(r.stop_ids) for r in requests)
        self.stops = torch.tensor([[*r.stop_ids, *[-1] * (most - len(r.stop_ids))] for r in requests],
                                  dtype=torch.long, device=device)  # (R, S)
        one = _Lines.none(len(requests), 1, max(limits), device)  # one live hypothesis each: nothing said yet
        self.live = replace(one, totals=torch.zeros_like(one.totals))
        self.kept = _Lines.none(len(requests), beam.width, max(limits), device)

    @torch.inference_mode()
    def run(self) -> Iterator[tuple[int, tuple[Hypothesis, ...]]]:
        """The place of each request and its answers, as they are found."""
        while len(self.request):
            candidates = self._candidates()
            self.length += 1
            self._keep(candidates)
            totals, next_ = candidates.best(candidates.totals.masked_fill(candidates.ends, -torch.inf),
                                            self.beam.width)
            done = self._done(totals[:, 0])
            if bool(done.any()):
                yield from self._answers(done.nonzero().squeeze(1))
            self._advance(next_, (~done).nonzero().squeeze(1))

    def _candidates(self) -> _Candidates:
        """Of each live hypothesis the likeliest continuations: ``width`` that go on, and all that could end it."""
        rows, live = self.live.totals.shape
        logits = self.logits.float()
        whole = torch.logsumexp(logits, 1, keepdim=True)
        refuse_unless_finite(whole)
        count = min(self.beam.width + self.stops.shape[1], logits.shape[1])
        best, tokens = logits.topk(count, dim=1)
        logs = (best - whole).double().view(rows, live, count)
        totals = (self.live.totals[:, :, None] + logs).view(rows, -1)
        tokens = tokens.view(rows, -1)
        parents = torch.arange(live, device=tokens.device).repeat_interleave(count).expand(rows, -1)
        ends = (tokens[:, :, None] == self.stops[:, None]).any(2) | (self.limit[:, None] <= self.length + 1)
        return _Candidates(totals, tokens, parents, ends)

    def _keep(self, candidates: _Candidates) -> None:
        """Of the ``width`` best, those that end are answers, if they are better than the ones there are."""
        totals, top = candidates.best(candidates.totals, self.beam.width)
        totals = totals.masked_fill(~top.ends, -torch.inf)
        if bool(totals.isfinite().any()):
            scores = totals / self.length**self.beam.length_penalty
            found = _Lines(self._said(top), totals, scores, torch.full_like(top.tokens, self.length))
            self.kept = self.kept.best_with(found)

    def _said(self, candidates: _Candidates) -> Tensor:
        """All tokens of some candidates, ``(R, K, L)``."""
        longest = self.live.tokens.shape[2]
        said = self.live.tokens.gather(1, candidates.parents[..., None].expand(-1, -1, longest))
        said[:, :, self.length - 1] = candidates.tokens
        return said

    def _done(self, best: Tensor) -> Tensor:
        """Whether each request has its answers, bool ``(R,)``; ``best (R,)`` is the total of its likeliest live one."""
        worst = self.kept.scores[:, -1]
        full, stuck = worst.isfinite(), ~best.isfinite()
        if self.beam.early_stopping == "first":
            return full | stuck
        penalty, reach = self.beam.length_penalty, torch.full_like(best, self.length)
        if self.beam.early_stopping == "never":  # a total never rises: a positive penalty is kindest to the longest
            reach = self.limit.double() if penalty > 0 else reach + 1
        return (full & (best / reach**penalty <= worst)) | stuck

    def _answers(self, done: Tensor) -> Iterator[tuple[int, tuple[Hypothesis, ...]]]:
        kept, count = self.kept.rows(done), self.beam.num_return
        ends = kept.tokens.gather(2, (kept.lengths - 1).clamp(min=0)[..., None])  # (R, K, 1)
        stopped = (ends == self.stops[done][:, None]).any(2).tolist()
        totals, scores, lengths = kept.totals.tolist(), kept.scores.tolist(), kept.lengths.tolist()
        for row, place in enumerate(self.request[done].tolist()):
            tokens = kept.tokens[row, :count].tolist()
            yield place, tuple(
                Hypothesis(tuple(tokens[k][: lengths[row][k]]), "stop" if stopped[row][k] else "length",
                           totals[row][k], scores[row][k])
                for k in range(count) if lengths[row][k])

    def _advance(self, candidates: _Candidates, keep: Tensor) -> None:
        """Let the model read one token more of each hypothesis of the requests that go on."""
        said, totals = self._said(candidates)[keep], candidates.totals[keep]
        rows = (keep[:, None] * self.live.totals.shape[1] + candidates.parents[keep]).flatten()
        self.live = _Lines(said, totals, totals, torch.full_like(candidates.tokens[keep], self.length))
        self.kept, self.request = self.kept.rows(keep), self.request[keep]
        self.limit, self.stops = self.limit[keep], self.stops[keep]
        if len(keep):
            self.state = self.state.reordered(rows) if isinstance(self.state, KVCache) else self.state.select(rows)
            self.logits = self.model.logits(candidates.tokens[keep].view(-1, 1), self.state)
