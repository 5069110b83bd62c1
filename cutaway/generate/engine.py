"""Engine: ids in, ids out, for anything that is a LanguageModel; many requests in one batch over one state.

Requests run in waves of neighbours in length; equal sources and prompts are read once; a row that is done leaves the
batch. The hot loop has no Python per row. R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cutaway.generate.prefill import checked, read
from cutaway.generate.request import Alternative, Completion, Event, Request
from cutaway.generate.rows import FINISH, Rows, waves
from cutaway.generate.sample import Chain, Seen, chain, penalised, uniforms
from cutaway.models.model import LanguageModel


@dataclass(frozen=True, slots=True)
class Tick:
    """One token of every row that was still alive, ``(R,)`` each: the unit in which answers arrive."""

    request: NDArray[np.int64]
    tokens: NDArray[np.int64]
    finish: NDArray[np.int8]  # index in FINISH
    logprobs: NDArray[np.float32] | None = None
    best: tuple[NDArray[np.int64], NDArray[np.float32]] | None = None  # (R, n) ids and log-probabilities

    def select(self, keep: NDArray[np.bool_]) -> Tick:
        """Some rows."""
        return Tick(self.request[keep], self.tokens[keep], self.finish[keep],
                    None if self.logprobs is None else self.logprobs[keep],
                    None if self.best is None else (self.best[0][keep], self.best[1][keep]))


class Engine:
    """Generates for ``model``, at most ``max_rows`` requests at once; no answer depends on the other requests."""

    def __init__(self, model: LanguageModel, *, max_rows: int = 256) -> None:
        self.model, self.max_rows = model, max_rows

    def start(self, requests: Sequence[Request]) -> Session:
        """Check all requests and begin. Raises RequestError for the first that cannot be served."""
        return Session(self.model, checked(self.model, requests), self.max_rows)

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """The whole answers, in the order of the requests."""
        session = self.start(requests)
        return _completions(list(session), session.requests)

    def stream(self, requests: Sequence[Request]) -> Iterator[Event]:
        """The tokens as they come; within a request in order, between requests as they happen."""
        return self.start(requests).events()


class Session:
    """Requests being answered: iterate over ticks or events; ``stop`` ends one of them from outside."""

    def __init__(self, model: LanguageModel, requests: Sequence[Request], max_rows: int) -> None:
        self.model, self.requests = model, requests
        self._waves = waves(requests, max_rows)
        self._wave: _Wave | None = None
        self._stopped: set[int] = set()

    def stop(self, request: int) -> None:
        """Take a request out of the batch: nothing more comes of it."""
        self._stopped.add(request)
        if self._wave is not None:
            self._wave.rows = self._wave.rows.without(request)

    def __iter__(self) -> Iterator[Tick]:
        for indices in self._waves:
            left = [i for i in indices if i not in self._stopped]
            if left:
                self._wave = _Wave(self.model, left, self.requests)
                while (tick := self._wave.tick()) is not None:
                    yield tick
                self._wave = None

    def events(self) -> Iterator[Event]:
        """The ticks, token by token."""
        for tick in self:
            for row, request in enumerate(tick.request.tolist()):
                if request not in self._stopped:
                    yield _event(tick, row, self.requests[request].logprobs)


class _Wave:
    """Rows that run together: what the model carries of them and how their tokens are drawn."""

    @torch.inference_mode()
    def __init__(self, model: LanguageModel, indices: Sequence[int], requests: Sequence[Request]) -> None:
        mine = [requests[i] for i in indices]
        self.model, self.rows = model, Rows.of(indices, requests)
        self.capacity = min(self.rows.capacity, model.context_length)
        self.logits, self.state = read(model, mine, self.capacity)
        device = self.logits.device
        self.chain: Chain = chain([r.sampling for r in mine], vocab_size=model.vocab_size, device=device)
        self.seen = _seen(mine, model.vocab_size, device) if any(penalised(r.sampling) for r in mine) else None
        self.best = max(-1 if r.logprobs is None else r.logprobs for r in mine)  # -1: no log-probabilities
        self.drawn: Tensor | None = None  # (R,) tokens the model has not read yet

    @torch.inference_mode()
    def tick(self) -> Tick | None:
        """One token of each live row; None when there is none left."""
        if not self.rows.live.any():
            return None
        if self.drawn is not None:
            self._advance(self.drawn)
        uniform = None
        if not self.chain.all_greedy:
            uniform = torch.from_numpy(uniforms(self.rows.streams, self.rows.position)).to(self.logits.device)
        self.drawn = tokens = self.chain(self.logits, uniform, self.seen)
        if self.seen is not None:
            self.seen.add(tokens)
        alive, host = self.rows.live, tokens.cpu().numpy()
        self.rows, finish = self.rows.noted(host)
        tick = replace(self._measured(tokens), finish=finish)
        return tick if alive.all() else tick.select(alive)

    def _advance(self, tokens: Tensor) -> None:
        """Let the model read what was drawn, after the finished rows have left if that pays."""
        if self.rows.crowded(self.capacity):
            keep = self.rows.live.nonzero()[0]
            at = torch.from_numpy(keep).to(tokens.device)
            self.rows, self.state, self.chain = self.rows.select(keep), self.state.select(at), self.chain.select(at)
            self.seen = None if self.seen is None else self.seen.select(at)
            tokens = tokens[at]
        self.logits = self.model.logits(tokens[:, None], self.state)

    def _measured(self, tokens: Tensor) -> Tick:
        """The tick with the log-probabilities that were asked for; its ``finish`` is still to be set."""
        plain = Tick(self.rows.request, tokens.cpu().numpy(), np.zeros(0, np.int8))
        if self.best < 0:
            return plain
        logs = torch.log_softmax(self.logits.float(), 1)
        chosen = logs.gather(1, tokens[:, None]).squeeze(1).cpu().numpy()
        if self.best == 0:
            return replace(plain, logprobs=chosen)
        values, ids = logs.topk(self.best, dim=1)
        return replace(plain, logprobs=chosen, best=(ids.cpu().numpy(), values.cpu().numpy()))


def _seen(requests: Sequence[Request], vocab_size: int, device: torch.device) -> Seen:
    anywhere = torch.zeros(len(requests), vocab_size, dtype=torch.bool)
    for row, request in zip(anywhere, requests, strict=True):
        row[torch.tensor(request.tokens)] = True
    return Seen(anywhere.to(device), torch.zeros_like(anywhere, device=device))


def _event(tick: Tick, row: int, wanted: int | None) -> Event:
    finish = FINISH[int(tick.finish[row])]
    token = int(tick.tokens[row])
    if wanted is None or tick.logprobs is None:
        return Event(int(tick.request[row]), token, finish)
    return Event(int(tick.request[row]), token, finish, float(tick.logprobs[row]), _best(tick, row, wanted))


def _best(tick: Tick, row: int, wanted: int) -> tuple[Alternative, ...]:
    if tick.best is None:
        return ()
    ids, values = tick.best
    return tuple(Alternative(int(i), float(v)) for i, v in zip(ids[row, :wanted], values[row, :wanted], strict=True))


def _completions(ticks: Sequence[Tick], requests: Sequence[Request]) -> list[Completion]:
    """Ticks are token by token; completions request by request."""
    if not requests:
        return []
    owner = np.concatenate([t.request for t in ticks])
    order = np.argsort(owner, kind="stable")
    edges = np.searchsorted(owner[order], np.arange(len(requests) + 1))
    tokens = np.concatenate([t.tokens for t in ticks])[order].tolist()
    finish = np.concatenate([t.finish for t in ticks])[order].tolist()
    places = [(t, row) for t in ticks for row in range(len(t.request))] if any(
        r.logprobs is not None for r in requests) else []
    out: list[Completion] = []
    for request, (start, end) in zip(requests, zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True), strict=True):
        reason = FINISH[finish[end - 1]]
        assert reason is not None
        done = Completion(tuple(tokens[start:end]), reason)
        if request.logprobs is not None:
            mine = [places[i] for i in order[start:end]]
            best = tuple(_best(t, row, request.logprobs) for t, row in mine) if request.logprobs else ()
            done = replace(done, alternatives=best,
                           logprobs=tuple(float(t.logprobs[row]) for t, row in mine if t.logprobs is not None))
        out.append(done)
    return out
