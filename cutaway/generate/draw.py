"""One more token of many rows at once: what each may be, which it is, what it was worth and whether it is the last.

What depends on the rows alone is made again only when other rows draw. R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cutaway.errors import RequestError
from cutaway.generate.request import Alternative, FinishReason, Request, Scores
from cutaway.generate.sample import Chain, Seen, chain, keys, not_finite, uniforms
from cutaway.generate.track import Track

FINISH: tuple[FinishReason | None, ...] = (None, "stop", "length")
Best = tuple[NDArray[np.int64], NDArray[np.float32]]  # (R, n) ids and log-probabilities


class Taker(Protocol):
    """Where the tokens of a request go."""

    def take(self, tick: Tick, lives: Sequence[Live]) -> None:
        """Rows of a step, and whose they are; those not yet ``opened`` have their first token."""

    def fail(self, live: Live, error: Exception) -> None:
        """A request has ended in an error."""


class Guess(Protocol):
    """Proposes what may follow the tokens of one request, whose answers do not depend on it."""

    def propose(self, tokens: Sequence[int], most: int) -> tuple[int, ...]:
        """At most ``most`` tokens that may follow ``tokens``, which begin with those of the call before."""

    def note(self, proposed: int, kept: int) -> None:
        """The first ``kept`` of ``proposed`` tokens came true."""


@dataclass(eq=False, slots=True)
class Live:
    """A request that is being answered."""

    request: Request
    track: Track
    taker: Taker
    prompt: Scores | None = None  # of its prompt, as far as it was read
    guess: Guess | None = None  # proposes what may follow
    opened: bool = False  # whether a token of it was handed out

    @property
    def said(self) -> int:
        """Tokens of the answer."""
        return len(self.track.tokens) - len(self.request.tokens)


@dataclass(frozen=True, slots=True)
class Tick:
    """One token of some rows, ``(R,)`` each: the unit in which answers arrive."""

    request: NDArray[np.int64]
    tokens: NDArray[np.int64]
    finish: NDArray[np.int8]  # index in FINISH
    logprobs: NDArray[np.float32] | None = None
    best: Best | None = None
    sampler: NDArray[np.float32] | None = None
    sampler_best: Best | None = None

    def select(self, keep: NDArray[np.int64]) -> Tick:
        """Some rows; itself where they are all, in their order."""
        if len(keep) == len(self.request):
            return self

        def some(best: Best | None) -> Best | None:
            return None if best is None else (best[0][keep], best[1][keep])

        return Tick(self.request[keep], self.tokens[keep], self.finish[keep],
                    None if self.logprobs is None else self.logprobs[keep], some(self.best),
                    None if self.sampler is None else self.sampler[keep], some(self.sampler_best))


class Draw:
    """The rows of ``lives``, which draw together; ``before`` are those that drew last and know some of them."""

    def __init__(self, lives: Sequence[Live], before: Draw | None, *, vocab_size: int, device: torch.device) -> None:
        self.lives, self.vocab_size, self.device = list(lives), vocab_size, device
        known = {} if before is None else {live: i for i, live in enumerate(before.lives)}
        old = [known[live] for live in lives if live in known]
        if before is not None and len(old) == len(lives):
            self._keep(before, old)
        else:
            self._make([live.request for live in lives])
        places: dict[Taker, list[int]] = {}
        for place, live in enumerate(lives):
            places.setdefault(live.taker, []).append(place)
        self.routes = [(taker, np.array(some)) for taker, some in places.items()]  # whose the rows are
        self.logprobs = _most([live.request.logprobs for live in lives])
        self.sampler_logprobs = _most([live.request.sampler_logprobs for live in lives])
        self.constrained = [i for i, live in enumerate(lives) if live.request.constraint is not None]
        self.seen = self._seen(before, old, known) if self.chain.penalises else None

    def _make(self, requests: Sequence[Request]) -> None:
        self.request = np.array([live.track.number for live in self.lives], np.int64)
        self.streams = keys([r.seed for r in requests])
        self.said = np.array([live.said for live in self.lives], np.int64)
        self.limit = np.array([r.max_tokens for r in requests], np.int64)
        self.stops = np.full((len(requests), max(len(r.stop_ids) for r in requests)), -1, np.int64)
        for row, r in zip(self.stops, requests, strict=True):
            row[: len(r.stop_ids)] = r.stop_ids
        self.chain: Chain = chain([r.sampling for r in requests], vocab_size=self.vocab_size, device=self.device)

    def _keep(self, before: Draw, rows: list[int]) -> None:
        """Of some of the rows that drew last nothing need be made again."""
        self.request, self.streams, self.said = before.request[rows], before.streams[rows], before.said[rows]
        self.limit, self.stops = before.limit[rows], before.stops[rows]
        self.chain = before.chain.select(torch.tensor(rows, dtype=torch.long, device=self.device))

    def _seen(self, before: Draw | None, old: Sequence[int], known: dict[Live, int]) -> Seen:
        if before is None or before.seen is None:
            known = {}
        new = [live for live in self.lives if live not in known]
        made = _read(new, self.vocab_size, self.device)
        if not known:
            return made
        assert before is not None and before.seen is not None
        both = before.seen.select(torch.tensor(old, dtype=torch.long, device=self.device)).join(made)
        place = {live: i for i, live in enumerate([*(live for live in self.lives if live in known), *new])}
        return both.select(torch.tensor([place[live] for live in self.lives], device=self.device))

    def __call__(self, logits: Tensor) -> tuple[Tick, dict[int, Exception]]:
        """A token of each row behind ``logits (R, V)``, float32, and the rows that can have none, whose token means
        nothing. What was drawn stands in the tracks and has been seen and accepted."""
        lost: dict[int, Exception] = {}
        shaped = self.chain.shaped(self._allowed(logits, lost), self.seen)
        uniform = None
        if not self.chain.all_greedy:
            uniform = torch.from_numpy(uniforms(self.streams, self.said)).to(logits.device, non_blocking=True)
        tokens, sound = self.chain.drawn(shaped, uniform)
        if self.seen is not None:
            self.seen.add(tokens)
        # the one wait of a step brings both: a row that can have no token, which must not spoil the others, is negative
        host = torch.where(sound, tokens, ~tokens).cpu().numpy()
        if (host < 0).any():
            lost |= dict.fromkeys((host < 0).nonzero()[0].tolist(), not_finite())
            host = np.where(host < 0, ~host, host)
        said = host.tolist()
        for live, token in zip(self.lives, said, strict=True):
            live.track.tokens.append(token)
        self.said += 1
        finish = self._finish(host)
        for i in self.constrained:
            constraint = self.lives[i].request.constraint
            assert constraint is not None
            if i not in lost:
                self._accept(i, said[i], finish, lost)
        raw, best = _measured(torch.log_softmax(logits, 1), tokens, self.logprobs) if self.logprobs >= 0 else _NEITHER
        of, of_best = _NEITHER
        if self.sampler_logprobs >= 0:
            of, of_best = _measured(self.chain.logs(shaped), tokens, self.sampler_logprobs)
        return Tick(self.request, host, finish, raw, best, of, of_best), lost

    def _finish(self, tokens: NDArray[np.int64]) -> NDArray[np.int8]:
        finish = np.where(self.said >= self.limit, np.int8(2), np.int8(0))
        if self.stops.shape[1]:
            finish = np.where((tokens[:, None] == self.stops).any(1), np.int8(1), finish)
        return finish

    def _allowed(self, logits: Tensor, lost: dict[int, Exception]) -> Tensor:
        """The logits of what constraints allow; rows whose constraint fails are lost."""
        masks: list[tuple[int, NDArray[np.uint32]]] = []
        for i in self.constrained:
            try:
                mask = self._mask(i)
            except RequestError as error:
                lost[i] = error
            else:
                masks += [] if mask is None else [(i, mask)]
        return _masked(logits, masks) if masks else logits

    def _mask(self, row: int) -> NDArray[np.uint32] | None:
        constraint = self.lives[row].request.constraint
        assert constraint is not None
        try:
            mask = constraint.mask()
        except Exception as error:
            raise RequestError(f"the constraint failed: {error}") from error
        words = -(-self.vocab_size // 32)
        if mask is not None and mask.shape != (words,):
            raise RequestError(f"the constraint's mask has the shape {mask.shape}, and a vocabulary of "
                               f"{self.vocab_size} takes ({words},)")
        if mask is not None and not _bits(mask[None], self.vocab_size).any():
            raise RequestError("the constraint allows no token here", way_out="loosen it")
        return mask

    def _accept(self, row: int, token: int, finish: NDArray[np.int8], lost: dict[int, Exception]) -> None:
        constraint = self.lives[row].request.constraint
        assert constraint is not None
        try:
            constraint.accept(token)
            if constraint.done:
                finish[row] = 1
        except Exception as error:
            lost[row] = RequestError(f"the constraint refuses token {token}, which it allowed: {error}")


_NEITHER: tuple[None, None] = (None, None)


def _most(counts: Sequence[int | None]) -> int:
    """The largest, -1 where there is none."""
    return max(-1 if c is None else c for c in counts)


def _read(lives: Sequence[Live], vocab_size: int, device: torch.device) -> Seen:
    anywhere = torch.zeros(len(lives), vocab_size, dtype=torch.bool)
    answered = torch.zeros(len(lives), vocab_size, dtype=torch.int32)
    for row, said, live in zip(anywhere, answered, lives, strict=True):
        row[torch.tensor(live.track.tokens)] = True
        own = torch.tensor(live.track.tokens[len(live.request.tokens) :], dtype=torch.long)
        said += torch.bincount(own, minlength=vocab_size)
    return Seen(anywhere.to(device), answered.to(device))


def _bits(words: NDArray[np.uint32], vocab_size: int) -> NDArray[np.bool_]:
    """``(k, ceil(V / 32))`` words -> ``(k, V)``."""
    flat = np.ascontiguousarray(words, "<u4").view(np.uint8)
    return np.unpackbits(flat, axis=1, count=vocab_size, bitorder="little").view(np.bool_)


def _masked(logits: Tensor, masks: Sequence[tuple[int, NDArray[np.uint32]]]) -> Tensor:
    bits = torch.from_numpy(_bits(np.stack([mask for _, mask in masks]), logits.shape[1]))
    allowed = bits.to(logits.device, non_blocking=True)
    rows = torch.tensor([row for row, _ in masks]).to(logits.device, non_blocking=True)
    out = logits.clone()
    out[rows] = logits[rows].masked_fill(~allowed, -torch.inf)
    return out


def _measured(logs: Tensor, tokens: Tensor, count: int) -> tuple[NDArray[np.float32], Best | None]:
    """Log-probabilities of ``tokens`` under ``logs (R, V)``, and the ``count`` largest of each row."""
    chosen = logs.gather(1, tokens[:, None]).squeeze(1).cpu().numpy()
    if not count:
        return chosen, None
    values, ids = logs.topk(count, dim=1)
    return chosen, (ids.cpu().numpy(), values.cpu().numpy())


def scored(logits: Tensor, tokens: Sequence[int], count: int) -> Scores:
    """What ``tokens`` were worth under the logits ``(T, V)`` before each."""
    chosen, best = _measured(torch.log_softmax(logits.float(), 1), torch.tensor(tokens, device=logits.device), count)
    if best is None:
        return Scores(tuple(chosen.tolist()))
    both = zip(best[0].tolist(), best[1].tolist(), strict=True)
    return Scores(tuple(chosen.tolist()), tuple(tuple(map(Alternative, ids, values)) for ids, values in both))
