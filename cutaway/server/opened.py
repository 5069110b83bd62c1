"""A model that a server has opened: one that writes and its engine, or one that reads texts whole and its thread."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

from starlette.types import Receive

from cutaway.device import release_memory
from cutaway.models.classifier import Classifier
from cutaway.models.text_classifier import TextEmbedder
from cutaway.nn.kernels import without
from cutaway.server.body import Gone, until_gone
from cutaway.server.limits import Limits
from cutaway.server.problem import Problem, later
from cutaway.server.worker import Worker
from cutaway.text.tokenizer import Tokenizer

Kind = Literal["text", "vectors", "labels"]
T = TypeVar("T")
R = TypeVar("R")


@dataclass(eq=False, slots=True)
class Language:
    """A model that writes, and the worker that has its engine, perhaps one of several that share it: a base, or an
    ``adapter`` of it."""

    name: str
    tokenizer: Tokenizer
    vocab_size: int
    context_length: int
    reads_source: bool
    worker: Worker
    adapter: str | None = None
    used: float = field(default_factory=time.monotonic)

    @property
    def busy(self) -> bool:
        """Whether somebody waits for it."""
        return self.worker.active > 0

    @property
    def state(self) -> str:
        """ready, restarting or closed."""
        return self.worker.state

    @property
    def plain(self) -> bool:
        """Whether it writes without kernels."""
        return self.worker.plain

    def fail(self, problem: Problem) -> None:
        """Tell all who wait for it that they wait in vain."""
        self.worker.fail(problem)

    async def close(self) -> None:
        """End its engine."""
        await self.worker.close()


@dataclass(eq=False, slots=True)
class Reader(Generic[T]):
    """A model that reads texts whole (an embedder, a classifier), one request at a time in a thread of its own, and
    without kernels where ``plain``."""

    name: str
    what: T
    limits: Limits
    plain: bool = False
    used: float = field(default_factory=time.monotonic)
    pending: int = 0
    refused: Problem | None = None  # what all are told from now on
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "reader"))

    @property
    def busy(self) -> bool:
        """Whether somebody waits for it."""
        return self.pending > 0

    @property
    def state(self) -> str:
        """Always ready: it has nothing that could stop."""
        return "ready"

    @contextmanager
    def attended(self) -> Iterator[None]:
        """While somebody waits for it. Raises Problem 429 where too many do already."""
        if self.pending > self.limits.waiting:
            raise later(f"{self.pending} requests are waiting, and the queue takes {self.limits.waiting}; come again")
        self.pending += 1
        try:
            yield
        finally:
            self.pending -= 1
            self.used = time.monotonic()

    async def run(self, receive: Receive, work: Callable[[T], R]) -> tuple[R, float, float]:
        """What ``work`` makes of the model, and the seconds that it waited and took. Raises Problem 504 for what takes
        too long, what ``fail`` says, and Gone where the client left, whose turn is then given up."""
        asked = time.perf_counter()

        def timed() -> tuple[R, float, float]:
            begun = time.perf_counter()
            with without(self.plain):
                made = work(self.what)
            return made, begun - asked, time.perf_counter() - begun

        running = asyncio.get_running_loop().run_in_executor(self.thread, timed)
        left, ended = asyncio.create_task(until_gone(receive)), asyncio.create_task(self.ended.wait())
        either: list[asyncio.Future[Any]] = [running, left, ended]
        try:
            await asyncio.wait(either, timeout=self.limits.answer_seconds, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                return running.result()
            if left.done():
                raise Gone
            if self.refused is not None:
                raise self.refused
            raise Problem(504, f"the answer took more than {self.limits.answer_seconds:g} seconds",
                          headers={"x-should-retry": "false"})
        finally:
            running.cancel()
            left.cancel()
            ended.cancel()

    def change(self, what: T) -> None:
        """Read with kernels from the next request on, by the same model opened for them."""
        def put() -> None:
            self.what, self.plain = what, False
            release_memory()

        self.thread.submit(put)

    def fail(self, problem: Problem) -> None:
        """Tell all who wait for it that they wait in vain."""
        self.refused = problem
        self.ended.set()

    async def close(self) -> None:
        """End its thread. What was waited for in vain is not waited for here; the process ends when it does."""
        if self.refused is not None:
            self.thread.shutdown(wait=False, cancel_futures=True)
        else:
            await asyncio.to_thread(self.thread.shutdown)


Opened = Language | Reader[TextEmbedder] | Reader[Classifier]


def kind_of(found: Opened) -> Kind:
    """What a model gives."""
    if isinstance(found, Language):
        return "text"
    return "vectors" if isinstance(found.what, TextEmbedder) else "labels"
