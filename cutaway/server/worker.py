"""The thread that owns an engine: requests and cancellations come to it through a queue, tokens go back to the event
loop in one call a step. An engine that fails is replaced; what it was writing ends in an error. An engine that a better
one comes for writes to the end what it has begun, step by step beside the other.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal

from cutaway.device import release_memory
from cutaway.errors import CutawayError, MachineError, RequestError
from cutaway.generate.request import Event, Request, StepFailed
from cutaway.server.limits import Limits
from cutaway.server.problem import Problem, later, problem_of
from cutaway.server.seat import Call, Seat, summed
from cutaway.server.served import Figures

log = logging.getLogger("cutaway.server")
State = Literal["ready", "restarting", "closed"]
AGAIN, SLOWEST = 0.1, 30.0  # seconds until a failed engine is made again, doubled up to this


_Command = tuple[Literal["submit", "cancel", "drop"], Call, int]


class Worker:
    """Runs a seat's engine in a thread of its own. All methods are for the event loop that ``start`` was called
    from."""

    def __init__(self, name: str, seat: Seat, limits: Limits) -> None:
        self.name = name
        self.state: State = "ready"
        self._limits = limits
        self._seat = seat  # the event loop's: whoever comes now gets it
        self._seats = [seat]  # the thread's: the newest is the last
        self._gone: list[Figures] = []  # the thread's: of engines that are let go
        self._commands: queue.SimpleQueue[_Command | Seat | None] = queue.SimpleQueue()
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

    @property
    def plain(self) -> bool:
        """Whether what is submitted now is written without kernels."""
        return self._seat.plain

    def change(self, seat: Seat) -> None:
        """Have what is submitted from now on written by another engine; what was before stays where it is."""
        self._seat = seat
        self._commands.put(seat)

    def submit(self, call: Call) -> None:
        """Have it written. Raises Problem 429 where too much waits already, and 503 for an engine that is not there."""
        if self.state != "ready":
            raise later("the engine is being restarted", status=503, code="engine_restarting", seconds=2)
        if call.prompt_tokens > self._limits.waiting_tokens:
            raise Problem(400, f"its prompts are {call.prompt_tokens:,} tokens, each choice's counted, and the queue "
                          f"takes {self._limits.waiting_tokens:,}; ask for fewer choices or prompts at once",
                          code="context_length_exceeded")
        tokens = sum(c.prompt_tokens for c in self._unread)
        if len(self._unread) >= self._limits.waiting or tokens + call.prompt_tokens > self._limits.waiting_tokens:
            raise later(f"{len(self._unread)} requests of {tokens:,} tokens are waiting, and the queue takes "
                        f"{self._limits.waiting} of {self._limits.waiting_tokens:,}; come again")
        call.seat = self._seat
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
            began = time.monotonic()
            try:
                self._seats[-1].begin()
                self._drive()
                return
            except Exception:
                log.exception("the engine of %s failed and is made again", self.name)
                if self.state == "closed" or not self._tell(self._failed):
                    return
            for seat in self._seats:
                seat.end()
            self._seats, self._gone = self._seats[-1:], []
            gc.collect()  # what an exception has seen holds the engine, and its pages, in a circle
            pause = AGAIN if time.monotonic() - began > SLOWEST else min(2 * pause, SLOWEST)
            time.sleep(pause)

    def _drive(self) -> None:
        """Steps until the queue says None."""
        self._tell(self._ready)
        while True:
            while not self._busy() or not self._commands.empty():
                command = self._commands.get()
                if command is None:
                    return
                self._obey(command)
                if not self._busy():  # by a cancellation, perhaps: nothing else would say that its pages are free
                    self._tell(self._stand, self._figures_now())
            for seat in [seat for seat in self._seats if not seat.idle]:
                begun = time.perf_counter()
                told, figures = seat.step(), self._figures_now()
                waiting = figures.waiting if len(self._seats) == 1 else seat.figures.waiting
                self._tell(self._deliver, told, seat, waiting, figures, (begun, time.perf_counter()))

    def _busy(self) -> bool:
        """Whether an engine has something to do. One that has not, and is not the newest, is let go."""
        done = [seat for seat in self._seats[:-1] if seat.idle]
        for seat in done:
            self._gone.append(seat.figures)
            self._seats.remove(seat)
            seat.close()
        if done:
            release_memory()  # of a whole model, which nothing else refers to
        return any(not seat.idle for seat in self._seats)

    def _figures_now(self) -> Figures:
        return summed([seat.figures for seat in self._seats], self._gone)

    def _obey(self, command: _Command | Seat) -> None:
        if isinstance(command, Seat):
            self._seats.append(command)
            command.begin()
            return
        what, call, index = command
        seat = call.seat
        if seat is None or seat not in self._seats:  # it failed, and the call was told; or it is done with it
            return
        if what == "submit":
            try:
                seat.submit(call)
            except CutawayError as error:  # what cannot be served ends itself alone
                self._tell(call.put, problem_of(error))
        else:
            seat.cancel(call, range(len(call.tickets)) if what == "drop" else (index,))

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

    def _deliver(self, told: Sequence[tuple[Call, int, Event]], seat: Seat, waiting: int, figures: Figures,
                 step: tuple[float, float]) -> None:
        """What came of a step that lasted from when to when, and how many requests wait in its engine."""
        begun, when = step
        self._figures = figures
        self._note_started(seat, waiting, begun)
        for call, index, event in told:
            if not call.open:
                continue
            if call.first is None:
                call.first = when
                call.started = begun if call.started is None else call.started
                if call in self._unread:
                    self._unread.remove(call)
            call.put((index, event, when) if event.error is None else self._lost(call.requests[index], event.error))

    def _lost(self, request: Request, error: CutawayError) -> Problem:
        """Why one request cannot go on: what it is held to cannot be followed; or a step failed, or the model gives no
        numbers, which is not the client's fault."""
        problem = problem_of(error)
        if isinstance(error, StepFailed):
            return Problem(500, "the engine failed while it was writing", code="engine_failed")
        if not isinstance(error, RequestError | MachineError):
            log.error("%s: %s", self.name, error)
            return Problem(500, f"{self.name} cannot go on with this text: {error}", code="model_failed")
        if problem.status == 400 and request.constraint is not None:
            problem.code = "invalid_json_schema"
        return problem

    def _note_started(self, seat: Seat, waiting: int, when: float) -> None:
        """The engine takes requests in order: all but the last ``waiting`` of those without a token began in this
        step, if they were there when it began."""
        left = waiting
        mine = [c for c in self._unread if c.seat is seat and c.started is None and c.submitted <= when]
        for call in reversed(mine):
            if left >= len(call.requests):
                left -= len(call.requests)
            else:
                call.started = when
                left = 0
