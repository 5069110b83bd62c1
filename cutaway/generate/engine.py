"""Engine: ids in, ids out, for anything that is a LanguageModel; continuous batching over pages, one step at a time.

In one go (``generate``, ``stream``, ``start``) or as a service (``submit``, ``step``, ``cancel``), or both at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from cutaway.errors import RequestError
from cutaway.generate.draw import Guess
from cutaway.generate.loop import Loop, Stats
from cutaway.generate.paged import PagedRunner
from cutaway.generate.prefill import adapters_of, checked
from cutaway.generate.request import Completion, Event, Request
from cutaway.generate.runner import Runner, runner_for
from cutaway.generate.session import Outbox, Session
from cutaway.generate.speculate import PromptLookup
from cutaway.generate.track import Work
from cutaway.models.model import LanguageModel
from cutaway.models.recurrent import RecurrentConfig

MAX_ROWS = 256  # requests at once
PAGED_STEP = 2.5  # what a step of one token takes beside itself, in tokens more (135M, int4 and int8, two cores, AVX2)


class Engine:
    """Generates for ``model``, at most ``max_rows`` requests at once; no answer depends on the other requests. It
    belongs to one thread.

    A step reads at most ``step_tokens`` of prompts, and beside answers that somebody waits for no more ``work`` than
    those are themselves: see ``Scheduler``. What it keeps of prompts holds for the weights that the model has: make
    another engine when they have changed, or ``clear`` it. With a ``guess`` made for each request, which says what may
    follow, several tokens can come of one step; they are the same tokens. Raises ModelError where that cannot be.
    Keys and values, those of prompts that may come again too, take at most ``cache_bytes`` where the model has pages
    for them (a decoder has, on a CPU with weights laid out and on a GPU); if not given, a quarter of the machine's
    memory, or half of what is free on the GPU. Raises MachineError where a context does not fit.
    """

    def __init__(self, model: LanguageModel, *, max_rows: int = MAX_ROWS, runner: Runner | None = None,
                 step_tokens: int = 2048, work: Work | None = None,
                 guess: Callable[[], Guess] | None = None, cache_bytes: int | None = None) -> None:
        self.model, self.max_rows = model, max_rows
        self.runner = runner_for(model, max_rows=max_rows, cache_bytes=cache_bytes) if runner is None else runner
        self._loop = Loop(self.runner, max_rows=max_rows, step_tokens=step_tokens,
                          work=_work(model, self.runner) if work is None else work, guess=guess,
                          adapters=adapters_of(model))
        self._outbox = Outbox()

    def start(self, requests: Sequence[Request]) -> Session:
        """Check all requests; they begin when the session is iterated. Raises RequestError for the first that cannot
        be served."""
        ready = checked(self.model, requests)
        for i, request in enumerate(ready):
            self._loop.check(request, f"request {i}" if len(ready) > 1 else "request")
        return Session(self._loop, ready)

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """The whole answers, in the order of the requests."""
        return self.start(requests).completions()

    def stream(self, requests: Sequence[Request]) -> Iterator[Event]:
        """The tokens as they come; within a request in order, between requests as they happen."""
        return self.start(requests).events()

    def submit(self, request: Request, *, salt: str = "") -> int:
        """Take a request in; its ticket, which its events bear. Only requests of equal ``salt`` share what was read of
        their prompts. Raises RequestError for what cannot be served."""
        ready, = checked(self.model, [request])
        self._loop.check(ready, "request")
        return self._loop.submit(ready, self._outbox, salt=salt)

    def cancel(self, ticket: int) -> None:
        """Nothing more comes of a request, and its pages are free at once; one that has ended is left alone. Raises
        RequestError for a ticket that was never given."""
        self._loop.cancel(ticket)
        self._outbox.events = [event for event in self._outbox.events if event.request != ticket]

    def step(self) -> list[Event]:
        """One step of the model, and the tokens that came of it; empty where it only read prompts, or when idle.

        A request that fails ends in an event with an ``error``. If the step itself fails, that is the end of all that
        were running; those that wait go on.
        """
        if not self._outbox.events and not self._loop.idle:
            self._loop.step()
        events, self._outbox.events = self._outbox.events, []
        return events

    @property
    def exact(self) -> bool:
        """Whether what a request gives depends on it alone: not on its company, its order, or what was read before."""
        return self.runner.exact

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do and nothing to be fetched."""
        return self._loop.idle and not self._outbox.events

    def stats(self) -> Stats:
        """The counts of now and so far."""
        return self._loop.stats()

    def clear(self) -> None:
        """Forget what was kept of prompts. Raises RequestError while requests run, which hold some of it."""
        if not self._loop.idle:
            raise RequestError("an engine that has requests under way keeps what they have read",
                               way_out="wait until it is idle, or cancel them")
        self._loop.pages.clear()


def engine_for(model: LanguageModel, *, cache_bytes: int | None = None) -> Engine:
    """The engine that verbs and the server have: it proposes from the prompt what may follow (``speculate``), where
    what was read of a proposal can be taken back. ``cache_bytes`` as ``Engine`` says."""
    runner = runner_for(model, max_rows=MAX_ROWS, cache_bytes=cache_bytes)
    return Engine(model, runner=runner, guess=PromptLookup if runner.shares_pages else None)


def _work(model: LanguageModel, runner: Runner) -> Work:
    work, kernels = work_of(model), isinstance(runner, PagedRunner) and runner.exact
    return replace(work, step=PAGED_STEP) if kernels else work


def work_of(model: LanguageModel) -> Work:
    """What reading costs a model beside writing; where there is attention, a token also pays for those it looks back
    at. An LSTM reads a token in a sixth of the time of a step (256 wide, 2 layers, one core), a transformer in less."""
    config = getattr(model, "config", None)
    if isinstance(config, RecurrentConfig):
        return Work(step=6.0)
    bill = None if config is None or not hasattr(config, "cost") else config.cost()
    return Work(depth=2 * bill.matrix / bill.attention) if bill is not None and bill.attention else Work()
