"""A runner whose next token is a hash of the tokens it finds in its pages: a wrong page, a stale page or a wrong start
changes the answer; and who asks an engine over it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from tables import VOCAB, Table, row
from torch import Tensor

from cutaway.errors import RequestError
from cutaway.generate.engine import Engine
from cutaway.generate.request import Completion, Event, Request, Sampling
from cutaway.generate.track import Part

GREEDY = Sampling(temperature=0)


class PageTape:
    """Pages of tokens, each with all that it stood behind when it was read, as keys and values are. What a part stands
    on is read before anything of the step is written: a page that another part fills in the same step is not there yet.
    """

    vocab_size, shares_pages, exact, reads_source = VOCAB, True, True, False

    def __init__(self, *, pages: int, size: int, context: int = 24) -> None:
        self.page_size, self.num_pages, self.context_length = size, pages, context
        self.slots: dict[tuple[int, int], tuple[int, ...]] = {}  # (page, place) -> the tokens up to there
        self.steps: list[list[Part]] = []
        self.forgotten: list[int] = []
        self.fails = False

    def run(self, parts: Sequence[Part], *, every: bool = False) -> Tensor:
        self.steps.append(list(parts))
        if self.fails:
            self.fails, self.slots = False, {}
            raise RuntimeError("out of memory")
        assert len({p.sequence for p in parts}) == len(parts)
        size, out, before_of = self.page_size, [], dict[int, tuple[int, ...]]()
        for part in parts:
            assert part.tokens and part.like is None and part.source is None
            assert len(part.pages) * size >= part.start + len(part.tokens) <= self.context_length
            assert len(set(part.pages)) == len(part.pages) and all(0 <= p < self.num_pages for p in part.pages)
            found = [self.slots[part.pages[i // size], i % size] for i in range(part.start)]
            before = [tokens[-1] for tokens in found]
            assert all(tokens == tuple(before[: i + 1]) for i, tokens in enumerate(found))
            before_of[part.sequence] = tuple(before)
            ends = range(1, len(part.tokens) + 1) if every else [len(part.tokens)] if part.samples else []
            out += [torch.from_numpy(row((*before, *part.tokens[:end]))) for end in ends]
        for part in parts:
            whole = (*before_of[part.sequence], *part.tokens)
            for i in range(part.start, len(whole)):
                self.slots[part.pages[i // size], i % size] = whole[: i + 1]
        return torch.stack(out) if out else torch.zeros(0, VOCAB)

    def forget(self, sequence: int) -> None:
        self.forgotten.append(sequence)


class Wide(Table):
    """The same with a longer context."""

    context_length = 400


class Guessed:
    """The likeliest tokens, but now and then another."""

    def __init__(self, wrong: int = 4) -> None:
        self.wrong, self.before, self.notes = wrong, list[int](), list[tuple[int, int]]()

    def propose(self, tokens: Sequence[int], most: int) -> tuple[int, ...]:
        assert most > 0 and tokens[: len(self.before)] == self.before
        self.before, tape = list(tokens), list(tokens)
        for _ in range(most):
            tape.append((int(row(tape).argmax()) + (sum(tape) % self.wrong == 0)) % VOCAB)
        return tuple(tape[len(tokens) :])

    def note(self, proposed: int, kept: int) -> None:
        assert 0 <= kept <= proposed > 0
        self.notes.append((proposed, kept))


@dataclass
class Desk:
    """Who asked what, and what came."""

    engine: Engine
    asked: dict[int, tuple[Request, str]] = field(default_factory=dict)
    events: dict[int, list[Event]] = field(default_factory=dict)
    gone: set[int] = field(default_factory=set)

    def submit(self, request: Request, salt: str = "") -> int | None:
        try:
            ticket = self.engine.submit(request, salt=salt)
        except RequestError as error:
            assert "all pages together" in str(error)
            return None
        self.asked[ticket], self.events[ticket] = (request, salt), []
        return ticket

    def cancel(self, which: int) -> None:
        if self.asked:
            ticket = which % len(self.asked)
            self.engine.cancel(ticket)
            self.gone |= set() if self.done(ticket) else {ticket}

    def step(self) -> None:
        for event in self.engine.step():
            assert event.request not in self.gone and not self.done(event.request)
            self.events[event.request].append(event)

    def done(self, ticket: int) -> bool:
        last = self.events[ticket][-1] if self.events[ticket] else None
        return last is not None and (last.finish is not None or last.error is not None)

    def check(self) -> None:
        stats, runner = self.engine.stats(), self.engine.runner
        assert stats.pages_free + stats.pages_cached + stats.pages_used == runner.num_pages
        if self.engine.idle:
            assert stats.pages_used == stats.running == stats.waiting == 0

    def finish(self) -> None:
        for _ in range(2000):
            if self.engine.idle:
                break
            self.step()
            self.check()
        assert self.engine.idle and self.engine.step() == []
        assert all(self.done(t) for t in self.asked if t not in self.gone)


def alone(request: Request) -> Completion:
    done, = Engine(Table()).generate([request])
    return done


def compare(desk: Desk) -> None:
    """Every answer is the request's own, and what was cached had been said under the same salt."""
    for ticket, (request, salt) in desk.asked.items():
        events, wanted = desk.events[ticket], alone(request)
        assert tuple(e.token for e in events) == wanted.tokens[: len(events)]
        if ticket not in desk.gone:
            assert len(events) == len(wanted.tokens) and events[-1].finish == wanted.finish_reason
            assert tuple(e.logprob for e in events if e.logprob is not None) == pytest.approx(wanted.logprobs)
        if events:
            assert events[0].prompt == wanted.prompt or np.allclose(events[0].prompt.logprobs, wanted.prompt.logprobs)
            shared, apart = request.tokens[: events[0].cached], desk.engine.runner.shares_pages
            assert len(shared) < len(request.tokens) or not apart
            assert not shared or (request.prompt_logprobs is None and any(
                (*r.tokens, *(e.token for e in desk.events[t]))[: len(shared)] == shared
                for t, (r, s) in desk.asked.items() if t != ticket and s == salt))
        assert not any(e.cached or e.prompt for e in events[1:])
