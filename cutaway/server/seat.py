"""An engine and the calls that it writes for. A worker has one; two while those of an older engine are written to their
end beside a newer one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from cutaway.generate.request import Event, Request, StepFailed
from cutaway.nn.kernels import without
from cutaway.server.body import Gone
from cutaway.server.problem import Problem
from cutaway.server.served import Figures, Served

log = logging.getLogger("cutaway.server")
FAILURES = 3  # in a row, after which an engine is made again

# a choice's number, its token and when it was there; or why there is no more
Said = tuple[int, Event, float] | Problem | Gone


@dataclass(eq=False, slots=True)
class Call:
    """What one HTTP request wants written, a ticket a choice; the event loop's side of it is ``inbox``."""

    requests: tuple[Request, ...]
    salt: str = ""
    submitted: float = field(default_factory=time.perf_counter)
    seat: Seat | None = None  # who writes it, from when it is submitted to its end
    started: float | None = None  # when the engine began to read it
    first: float | None = None  # when its first token was there
    inbox: deque[Said] = field(default_factory=deque)
    awake: asyncio.Event = field(default_factory=asyncio.Event)
    tickets: list[int | None] = field(default_factory=list)  # the worker's alone; None: ended
    open: bool = True  # the event loop's: it still wants to hear of it

    @property
    def prompt_tokens(self) -> int:
        """Tokens that are read for it."""
        return sum(len(r.tokens) + len(r.source or ()) for r in self.requests)

    @property
    def plain(self) -> bool:
        """Whether it is written without kernels."""
        return self.seat is not None and self.seat.plain

    @property
    def exact(self) -> bool:
        """Whether what is written depends on it alone, and on nothing that runs beside it."""
        return self.seat is not None and self.seat.exact

    def put(self, item: Said) -> None:
        """Tell the waiting side; on the event loop."""
        self.inbox.append(item)
        self.awake.set()


class Seat:
    """``make``'s engine, once it is begun; where ``plain`` its model was opened without kernels, and whatever is there
    by now it is not read with them. ``exact`` as ``Served`` says. But for these two all of it is the worker's
    thread's."""

    def __init__(self, make: Callable[[], Served], *, plain: bool = False, exact: bool = True) -> None:
        self.plain, self.exact = plain, exact
        self._make = make
        self._engine: Served | None = None
        self._failures = 0  # steps of the model that failed, one after another
        self._owners: dict[int, tuple[Call, int]] = {}  # two engines may give out equal tickets

    def begin(self) -> None:
        """Make the engine, or make it again."""
        self.end()
        with without(self.plain):
            self._engine = self._make()

    def end(self) -> None:
        """Let the engine go, and those it was writing for."""
        self._engine, self._owners, self._failures = None, {}, 0

    def close(self) -> None:
        """Let it all go, the model too: it is not made again."""
        self.end()
        del self._make

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return self._engine is None or self._engine.idle

    @property
    def figures(self) -> Figures:
        """Where the engine stands."""
        return self._begun.stats()

    def submit(self, call: Call) -> None:
        """Take a call in. Raises CutawayError for what cannot be served; what was taken of it before goes on."""
        with without(self.plain):
            for i, request in enumerate(call.requests):
                number = self._begun.submit(request, salt=call.salt)
                call.tickets.append(number)
                self._owners[number] = (call, i)

    def cancel(self, call: Call, choices: Iterable[int]) -> None:
        """Write no more of some choices."""
        for i in choices:
            ticket = call.tickets[i] if i < len(call.tickets) else None
            if ticket is not None and self._owners.get(ticket) == (call, i):  # and not of an engine that failed since
                with without(self.plain):
                    self._begun.cancel(ticket)
                call.tickets[i] = None
                del self._owners[ticket]

    def step(self) -> list[tuple[Call, int, Event]]:
        """One step of the engine: what came of it for whom. A step of the model that failed ends what was in it, with
        StepFailed; of several in a row the last is raised, for that engine is to be made again."""
        with without(self.plain):
            events = self._begun.step()
        failed = next((event.error for event in events if isinstance(event.error, StepFailed)), None)
        self._failures = 0 if failed is None else self._failures + 1
        if failed is not None:
            if self._failures == FAILURES:
                raise failed
            log.error("%s", failed, exc_info=failed)
        told: list[tuple[Call, int, Event]] = []
        for event in events:
            call, index = self._owners[event.request]
            told.append((call, index, event))
            if event.finish is not None or event.error is not None:
                call.tickets[index] = None
                del self._owners[event.request]
        return told

    @property
    def _begun(self) -> Served:
        assert self._engine is not None, "the seat has an engine"
        return self._engine


@dataclass(frozen=True, slots=True)
class Sum:
    """Figures of several engines as if they were one."""

    running: int
    waiting: int
    pages_used: int
    pages_cached: int
    pages_free: int
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    preemptions: int


def summed(now: Iterable[Figures], before: Iterable[Figures]) -> Figures:
    """The figures of engines that there are now; counts go on from those of engines that were before them."""
    there, gone = list(now), list(before)
    if len(there) == 1 and not gone:
        return there[0]
    every = [*there, *gone]
    return Sum(sum(f.running for f in there), sum(f.waiting for f in there), sum(f.pages_used for f in there),
               sum(f.pages_cached for f in there), sum(f.pages_free for f in there),
               sum(f.prompt_tokens for f in every), sum(f.cached_tokens for f in every),
               sum(f.generated_tokens for f in every), sum(f.preemptions for f in every))
