"""Requests answered in one go: their tokens as ticks, as events, or as whole completions."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from cutaway.errors import CutawayError
from cutaway.generate.draw import Live, Tick
from cutaway.generate.gather import completions, event_of
from cutaway.generate.loop import Loop
from cutaway.generate.request import Completion, Event, Request, StepFailed


class Session:
    """Requests being answered: iterate over ticks or events, once; ``stop`` ends one of them from outside. Left before
    its end, it takes the others out too. An error of one of them is raised."""

    def __init__(self, loop: Loop, requests: Sequence[Request]) -> None:
        self.requests = requests
        self._loop = loop
        sizes = [(len(r.source or ()), len(r.tokens)) for r in requests]
        # neighbours in length are read together, and little is padded
        self._order = np.array(sorted(range(len(sizes)), key=lambda i: sizes[i]), np.int64)
        self._tickets: list[int] = []  # one after another, in that order, once it has begun
        self._open: set[int] = set()
        self._stopped: set[int] = set()
        self._ticks: deque[Tick] = deque()
        self._opened: dict[int, Live] = {}
        self._failed: Exception | None = None

    def stop(self, request: int) -> None:
        """Take a request out: nothing more comes of it."""
        self._stopped.add(request)
        if self._tickets:
            ticket = self._tickets[0] + int(np.flatnonzero(self._order == request)[0])
            self._open.discard(ticket)
            self._loop.cancel(ticket)

    def take(self, tick: Tick, lives: Sequence[Live]) -> None:
        """Its rows of a step."""
        self._opened |= {int(self._order[live.track.number - self._tickets[0]]): live for live in lives
                         if not live.opened}
        self._open.difference_update(tick.request[tick.finish > 0].tolist())
        self._ticks.append(replace(tick, request=self._order[tick.request - self._tickets[0]]))

    def fail(self, live: Live, error: Exception) -> None:
        """One of them came to nothing."""
        self._failed = self._failed or error

    def __iter__(self) -> Iterator[Tick]:
        self._tickets = [self._loop.submit(self.requests[i], self, patient=True) for i in self._order.tolist()]
        self._open = set(self._tickets)
        try:
            for request in list(self._stopped):
                self.stop(request)
            while self._ticks or self._open:
                if self._failed is not None:
                    raise self._failed
                if self._ticks:
                    yield self._unstopped(self._ticks.popleft())
                else:
                    self._loop.step()
        finally:
            for ticket in self._open:
                self._loop.cancel(ticket)

    def _unstopped(self, tick: Tick) -> Tick:
        if not self._stopped:
            return tick
        return tick.select((~np.isin(tick.request, list(self._stopped))).nonzero()[0])

    def events(self) -> Iterator[Event]:
        """The ticks, token by token."""
        for tick in self:
            for row, request in enumerate(tick.request.tolist()):
                if request not in self._stopped:
                    yield event_of(tick, row, self.requests[request], self._opened.pop(request, None))

    def completions(self) -> list[Completion]:
        """The whole answers, in the order of the requests."""
        ticks = list(self)
        prompts = {i: live.prompt for i, live in self._opened.items() if live.prompt is not None}
        return completions(ticks, self.requests, prompts)


class Outbox:
    """Events of requests that somebody waits for."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def take(self, tick: Tick, lives: Sequence[Live]) -> None:
        """Rows of a step."""
        self.events += [event_of(tick, row, live.request, None if live.opened else live)
                        for row, live in enumerate(lives)]

    def fail(self, live: Live, error: Exception) -> None:
        """One came to nothing."""
        known = error if isinstance(error, CutawayError) else StepFailed(f"{type(error).__name__}: {error}",
                                                                         where="a step of the model failed")
        if known is not error:
            known.__cause__ = error
        self.events.append(Event(live.track.number, -1, error=known))
