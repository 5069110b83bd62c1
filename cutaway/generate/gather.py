"""Ticks are token by token over many requests; what people ask for is events, or whole completions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from cutaway.generate.draw import FINISH, Best, Live, Tick
from cutaway.generate.request import Alternative, Completion, Event, Request, Scores


def event_of(tick: Tick, row: int, request: Request, opened: Live | None) -> Event:
    """One row of a tick, with what was asked of it; ``opened`` where it is the request's first."""
    event = Event(int(tick.request[row]), int(tick.tokens[row]), FINISH[int(tick.finish[row])])
    if request.logprobs is not None and tick.logprobs is not None:
        event = replace(event, logprob=float(tick.logprobs[row]),
                        alternatives=best_of(tick.best, row, request.logprobs))
    if request.sampler_logprobs is not None and tick.sampler is not None:
        event = replace(event, sampler_logprob=float(tick.sampler[row]),
                        sampler_alternatives=best_of(tick.sampler_best, row, request.sampler_logprobs))
    return event if opened is None else replace(event, cached=opened.track.cached or 0, prompt=opened.prompt)


def best_of(best: Best | None, row: int, wanted: int) -> tuple[Alternative, ...]:
    """The likeliest of a row; none that cannot come."""
    if best is None:
        return ()
    ids, values = best
    return tuple(Alternative(int(i), float(v)) for i, v in zip(ids[row, :wanted], values[row, :wanted], strict=True)
                 if v > -np.inf)


def completions(ticks: Sequence[Tick], requests: Sequence[Request], prompts: Mapping[int, Scores]) -> list[Completion]:
    """All ticks of some requests, request by request."""
    if not requests:
        return []
    owner = np.concatenate([t.request for t in ticks])
    order = np.argsort(owner, kind="stable")
    edges = np.searchsorted(owner[order], np.arange(len(requests) + 1))
    tokens = np.concatenate([t.tokens for t in ticks])[order].tolist()
    finish = np.concatenate([t.finish for t in ticks])[order].tolist()
    asked = any(r.logprobs is not None or r.sampler_logprobs is not None for r in requests)
    places = [(t, row) for t in ticks for row in range(len(t.request))] if asked else []
    out: list[Completion] = []
    for i, request in enumerate(requests):
        start, end = int(edges[i]), int(edges[i + 1])
        reason = FINISH[finish[end - 1]]
        assert reason is not None
        done = Completion(tuple(tokens[start:end]), reason, prompt=prompts.get(i))
        out.append(_measured(done, request, [places[k] for k in order[start:end]] if asked else []))
    return out


def _measured(done: Completion, request: Request, mine: Sequence[tuple[Tick, int]]) -> Completion:
    """The completion with the log-probabilities that were asked for."""
    if request.logprobs is not None:
        best = tuple(best_of(t.best, row, request.logprobs) for t, row in mine) if request.logprobs else ()
        done = replace(done, alternatives=best,
                       logprobs=tuple(float(t.logprobs[row]) for t, row in mine if t.logprobs is not None))
    if request.sampler_logprobs is not None:
        count = request.sampler_logprobs
        best = tuple(best_of(t.sampler_best, row, count) for t, row in mine) if count else ()
        done = replace(done, sampler=Scores(tuple(float(t.sampler[row]) for t, row in mine if t.sampler is not None),
                                            best))
    return done
