"""The thread that owns an engine: requests and cancellations come to it through a queue, tokens go back to the event
loop in one call a step. An engine that fails is replaced; what it was writing ends in an error.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from cutaway.errors import CutawayError
from cutaway.generate.request import Event, Request
from cutaway.server.body import Gone
from cutaway.server.limits import Limits
from cutaway.server.problem import Problem, later, problem_of
from cutaway.server.served import Figures, Served

log = logging.getLogger("cutaway.server")
State = Literal["ready", "restarting", "closed"]
AGAIN, SLOWEST = 0.1, 30.0  # seconds until a failed engine is made again, doubled up to this


# a choice's number, its token and when it was there; or why there is no more
Said = tuple[int, Event, float] | Problem | Gone


@dataclass(eq=False, slots=True)
class Call:
    """What one HTTP request wants written, a ticket a choice; the event loop's side of it is ``inbox``."""

    requests: tuple[Request, ...]
    salt: str = ""
    submitted: float = field(default_factory=time.perf_counter)
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

    def put(self, item: Said) -> None:
        """Tell the waiting side; on the event loop."""
        self.inbox.append(item)
        self.awake.set()


_Command = tuple[Literal["submit", "cancel", "drop"], Call, int]


class Worker:
    """Runs ``make()``'s engine in a thread of its own. All methods are for the event loop that ``start`` was called
    from."""

    def __init__(self, name: str, make: Callable[[], Served], limits: Limits) -> None:
        self.name = name
        self.state: State = "ready"
        self._make, self._limits = make, limits
        self._commands: queue.SimpleQueue[_Command | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"engine {name}", daemon=True)
        self._calls: set[Call] = set()  # the event loop's: that may still be told something
        self._unread: deque[Call] = deque()  # without a first token, in order
        self._figures: Figures | None = None
        self.restarts = 0

    def start(self) -> None:
        """Begin; the engine is made in the thread."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    @property
    def figures(self) -> Figures | None:
        """Where the engine stood after its last step; None before the first."""
        return self._figures

    @property
    def active(self) -> int:
        """Calls that are not over."""
        return len(self._calls)

    @property
    def waiting(self) -> int:
        """Calls without a token yet."""
        return len(self._unread)

    def submit(self, call: Call) -> None:
        """Have it written. Raises Problem 429 where too much waits already, and 503 for an engine that is not there."""
        if self.state != "ready":
            raise later("the engine is being restarted", status=503, code="engine_restarting", seconds=2)
        tokens = sum(c.prompt_tokens for c in self._unread)
        if len(self._unread) >= self._limits.waiting or tokens + call.prompt_tokens > self._limits.waiting_tokens:
            raise later(f"{len(self._unread)} requests of {tokens:,} tokens are waiting, and the queue takes "
                        f"{self._limits.waiting} of {self._limits.waiting_tokens:,}; come again")
        self._calls.add(call)
        self._unread.append(call)
        self._commands.put(("submit", call, 0))

    def cancel(self, call: Call, index: int) -> None:
        """Write no more of one choice."""
        self._commands.put(("cancel", call, index))

    def drop(self, call: Call) -> None:
        """It is over, or nobody wants it any more: what is still being written of it is given up."""
        call.open = False
        self._calls.discard(call)
        if call in self._unread:
            self._unread.remove(call)
        self._commands.put(("drop", call, 0))

    def fail(self, problem: Problem) -> None:
        """Tell every call that it ends here."""
        for call in [*self._calls]:
            call.put(problem)

    async def close(self) -> None:
        """End the thread; what is running is told."""
        self.state = "closed"
        self.fail(later("the model is being closed", status=503))
        self._commands.put(None)
        await asyncio.to_thread(self._thread.join)

    # ------------------------------------------------------------------ the thread

    def _run(self) -> None:
        pause = AGAIN
        while True:
            owners: dict[int, tuple[Call, int]] = {}
            began = time.monotonic()
            try:
                self._drive(self._make(), owners)
                return
            except Exception:
                log.exception("the engine of %s failed and is made again", self.name)
                if self.state == "closed" or not self._tell(self._failed):
                    return
            del owners
            pause = AGAIN if time.monotonic() - began > SLOWEST else min(2 * pause, SLOWEST)
            time.sleep(pause)

    def _drive(self, engine: Served, owners: dict[int, tuple[Call, int]]) -> None:
        """Steps until the queue says None."""
        self._tell(self._ready)
        while True:
            while engine.idle or not self._commands.empty():
                command = self._commands.get()
                if command is None:
                    return
                self._obey(engine, command, owners)
                if engine.idle:  # by a cancellation, perhaps: nothing else would say that its pages are free
                    self._tell(self._stand, engine.stats())
            step = time.perf_counter()
            events = engine.step()
            told: list[tuple[Call, int, Event]] = []
            for event in events:
                call, index = owners[event.request]
                told.append((call, index, event))
                if event.finish is not None or event.error is not None:
                    call.tickets[index] = None
                    del owners[event.request]
            figures = engine.stats()
            self._tell(self._deliver, told, figures, (step, time.perf_counter()))

    def _obey(self, engine: Served, command: _Command, owners: dict[int, tuple[Call, int]]) -> None:
        what, call, index = command
        if what == "submit":
            try:
                for i, request in enumerate(call.requests):
                    number = engine.submit(request, salt=call.salt)
                    call.tickets.append(number)
                    owners[number] = (call, i)
            except CutawayError as error:  # what cannot be served ends itself alone
                self._tell(call.put, problem_of(error))
        ended = range(len(call.tickets)) if what != "cancel" else (index,)
        for i in ended if what != "submit" else ():
            ticket = call.tickets[i] if i < len(call.tickets) else None
            if ticket is not None and owners.get(ticket) == (call, i):  # and not of an engine that failed since
                engine.cancel(ticket)
                call.tickets[i] = None
                del owners[ticket]

    def _tell(self, what: Callable[..., object], *about: object) -> bool:
        """Call back on the event loop; False where it is gone."""
        try:
            self._loop.call_soon_threadsafe(what, *about)
        except RuntimeError:
            return False
        return True

    # ------------------------------------------------------------------ back on the event loop

    def _ready(self) -> None:
        if self.state != "closed":
            self.state = "ready"

    def _failed(self) -> None:
        self.restarts += 1
        if self.state != "closed":
            self.state = "restarting"
        self.fail(Problem(500, "the engine failed while it was writing; it is being restarted", code="engine_failed"))

    def _stand(self, figures: Figures) -> None:
        """Where an engine stands that has nothing to do."""
        self._figures = figures

    def _deliver(self, told: Sequence[tuple[Call, int, Event]], figures: Figures, step: tuple[float, float]) -> None:
        """What came of a step that lasted from when to when."""
        begun, when = step
        self._figures = figures
        self._note_started(figures.waiting, begun)
        for call, index, event in told:
            if not call.open:
                continue
            if call.first is None:
                call.first = when
                call.started = begun if call.started is None else call.started
                if call in self._unread:
                    self._unread.remove(call)
            call.put((index, event, when) if event.error is None else self._lost(call.requests[index], event.error))

    @staticmethod
    def _lost(request: Request, error: CutawayError) -> Problem:
        """Why one request cannot go on: what it is held to cannot be followed."""
        problem = problem_of(error)
        if problem.status == 400 and request.constraint is not None:
            problem.code = "invalid_json_schema"
        return problem

    def _note_started(self, waiting: int, when: float) -> None:
        """The engine takes requests in order: all but the last ``waiting`` of those without a token began in this
        step, if they were there when it began."""
        left = waiting
        for call in reversed([c for c in self._unread if c.started is None and c.submitted <= when]):
            if left >= len(call.requests):
                left -= len(call.requests)
            else:
                call.started = when
                left = 0
