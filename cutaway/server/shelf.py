"""The models that a server may use: those on its list and no other, opened on first use and closed when idle.

A client sends a name, never a path: what is not on the list does not exist.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import torch
from starlette.types import Receive

from cutaway.errors import CutawayError, MachineError
from cutaway.models.adapted import open_tokenizer
from cutaway.models.classifier import Classifier
from cutaway.models.model import LanguageModel
from cutaway.models.open import Asked, open_classifier, open_embedder, open_language_model
from cutaway.models.text_classifier import TextEmbedder
from cutaway.server.body import Gone, until_gone
from cutaway.server.limits import Limits
from cutaway.server.problem import Problem, later, problem_of
from cutaway.server.served import Served
from cutaway.server.worker import Worker
from cutaway.settings import nearest
from cutaway.text.tokenizer import Tokenizer

log = logging.getLogger("cutaway.server")
Kind = Literal["text", "vectors", "labels"]
T = TypeVar("T")
R = TypeVar("R")


@dataclass(eq=False, slots=True)
class Language:
    """A model that writes, and the worker that has its engine."""

    name: str
    tokenizer: Tokenizer
    vocab_size: int
    context_length: int
    reads_source: bool
    worker: Worker
    used: float = field(default_factory=time.monotonic)

    @property
    def busy(self) -> bool:
        """Whether somebody waits for it."""
        return self.worker.active > 0

    @property
    def state(self) -> str:
        """ready, restarting or closed."""
        return self.worker.state

    async def close(self) -> None:
        """End its engine."""
        await self.worker.close()


@dataclass(eq=False, slots=True)
class Reader(Generic[T]):
    """A model that reads texts whole (an embedder, a classifier), one request at a time in a thread of its own."""

    name: str
    what: T
    limits: Limits
    used: float = field(default_factory=time.monotonic)
    pending: int = 0
    thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "reader"))

    @property
    def busy(self) -> bool:
        """Whether somebody waits for it."""
        return self.pending > 0

    @property
    def state(self) -> str:
        """Always ready: it has nothing that could stop."""
        return "ready"

    async def run(self, receive: Receive, work: Callable[[T], R]) -> tuple[R, float, float]:
        """What ``work`` makes of the model, and the seconds that it waited and took. Raises Problem 429 where too much
        waits already, 504 for what takes too long, and Gone where the client left, whose turn is then given up."""
        if self.pending > self.limits.waiting:
            raise later(f"{self.pending} requests are waiting, and the queue takes {self.limits.waiting}; come again")
        self.pending += 1
        asked = time.perf_counter()

        def timed() -> tuple[R, float, float]:
            begun = time.perf_counter()
            made = work(self.what)
            return made, begun - asked, time.perf_counter() - begun

        running = asyncio.get_running_loop().run_in_executor(self.thread, timed)
        left = asyncio.create_task(until_gone(receive))
        either: list[asyncio.Future[Any]] = [running, left]
        try:
            await asyncio.wait(either, timeout=self.limits.answer_seconds, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                return running.result()
            if left.done():
                raise Gone
            raise Problem(504, f"the answer took more than {self.limits.answer_seconds:g} seconds",
                          headers={"x-should-retry": "false"})
        finally:
            running.cancel()
            left.cancel()
            self.pending -= 1
            self.used = time.monotonic()

    async def close(self) -> None:
        """End its thread."""
        await asyncio.to_thread(self.thread.shutdown)


Opened = Language | Reader[TextEmbedder] | Reader[Classifier]


@dataclass(eq=False)
class Shelf:
    """``places``: names and where they lie. ``engine_for`` makes the engine of a language model."""

    places: Mapping[str, Path]
    limits: Limits
    engine_for: Callable[[LanguageModel], Served]
    precision: Asked = "stored"
    place: torch.device = field(default_factory=lambda: torch.device("cpu"))
    closed: Callable[[str], None] = lambda name: None
    opened: dict[str, Opened] = field(default_factory=dict)
    began: float = field(default_factory=time.time)
    _doors: dict[str, asyncio.Lock] = field(default_factory=dict)
    _unsuited: dict[tuple[str, Kind], Problem] = field(default_factory=dict)

    def known(self, name: str) -> Path:
        """Where a model lies. Raises Problem 404 for a name that is not on the list."""
        if name not in self.places:
            near = nearest(name, self.places)
            raise Problem(404, f"no model {name[:100]!r} is served; " + (f"did you mean {near!r}?" if near else
                          "GET /v1/models lists those that are"), code="model_not_found", param="model")
        return self.places[name]

    async def language(self, name: str) -> Language:
        """The model that writes under this name. Raises Problem 400 for one that does not write."""
        found = await self._open(name, "text")
        assert isinstance(found, Language)
        return found

    async def embedder(self, name: str) -> Reader[TextEmbedder]:
        """The model that gives vectors under this name. Raises Problem 400 for one that gives none."""
        found = await self._open(name, "vectors")
        assert isinstance(found, Reader) and isinstance(found.what, TextEmbedder)
        return found

    async def classifier(self, name: str) -> Reader[Classifier]:
        """The model that gives labels under this name. Raises Problem 400 for one that gives none."""
        found = await self._open(name, "labels")
        assert isinstance(found, Reader) and isinstance(found.what, Classifier)
        return found

    async def tokenizer(self, name: str) -> tuple[Tokenizer, int]:
        """A model's tokenizer and its context, whatever it does."""
        self.known(name)
        found = self.opened.get(name)
        for kind in ("text", "vectors", "labels") if found is None else ():
            try:
                found = await self._open(name, kind)
                break
            except Problem as problem:
                last = problem
        if isinstance(found, Language):
            return found.tokenizer, found.context_length
        what: Any = None if found is None else found.what
        if found is None:
            raise last
        if not hasattr(what, "tokenizer"):
            raise Problem(400, f"{name} cuts texts into words and has no tokens", param="model", code="model_unsuited")
        return what.tokenizer, what.model.context_length

    async def _open(self, name: str, kind: Kind) -> Opened:
        place = self.known(name)
        async with self._doors.setdefault(name, asyncio.Lock()):
            found = self.opened.get(name)
            if found is None:
                found = await self._made(name, place, kind)
            elif kind_of(found) != kind:
                raise Problem(400, f"{name} gives {kind_of(found)}, not {kind}", code="model_unsuited", param="model")
            found.used = time.monotonic()
            return found

    async def _made(self, name: str, place: Path, kind: Kind) -> Opened:
        if (name, kind) in self._unsuited:
            raise self._unsuited[name, kind]
        begun = time.perf_counter()
        try:
            found = await asyncio.to_thread(self._read, name, place, kind)
        except MachineError as error:
            raise problem_of(error) from None
        except CutawayError as error:  # without the place: where models lie is not a client's business
            way_out = f"; {error.way_out}" if error.way_out else ""
            problem = Problem(400, f"{name} {error.what}{way_out}", code="model_unsuited", param="model")
            self._unsuited[name, kind] = problem  # or whoever asks again would have it read again
            raise problem from None
        if isinstance(found, Language):
            found.worker.start()
        self.opened[name] = found
        log.info("opened %s in %.1f s", name, time.perf_counter() - begun)
        return found

    def _read(self, name: str, place: Path, kind: Kind) -> Opened:
        if kind == "vectors":
            return Reader(name, open_embedder(place, precision=self.precision), self.limits)
        if kind == "labels":
            return Reader(name, open_classifier(place), self.limits)
        model = open_language_model(place, precision=self.precision, place=self.place)
        made = [self.engine_for(model)]  # here, where what is wrong with it can be answered
        worker = Worker(name, lambda: made.pop() if made else self.engine_for(model), self.limits)
        return Language(name, open_tokenizer(place), model.vocab_size, model.context_length, model.reads_source, worker)

    async def close_idle(self) -> None:
        """Close what nobody used for a while."""
        now = time.monotonic()
        for name, found in [*self.opened.items()]:
            if found.busy:
                found.used = now
            elif now - found.used > self.limits.idle_seconds:
                await self._shut(name)

    async def close(self) -> None:
        """Close everything."""
        for name in [*self.opened]:
            await self._shut(name)

    async def _shut(self, name: str) -> None:
        found = self.opened.pop(name)
        await found.close()
        del found
        gc.collect()
        self.closed(name)
        log.info("closed %s", name)


def kind_of(found: Opened) -> Kind:
    """What a model gives."""
    if isinstance(found, Language):
        return "text"
    return "vectors" if isinstance(found.what, TextEmbedder) else "labels"
