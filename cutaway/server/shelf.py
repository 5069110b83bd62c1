"""The models that a server may use: those on its list and no other, opened on first use and closed when idle.

A client sends a name, never a path: what is not on the list does not exist.

Where kernels are still to be compiled, a model that can answers by plain PyTorch meanwhile, and changes over to them.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cutaway.device import memory_bytes
from cutaway.errors import CutawayError, MachineError
from cutaway.generate.prefill import adapters_of
from cutaway.models.adapted import line_of, open_tokenizer
from cutaway.models.classifier import Classifier
from cutaway.models.folder import count_stored
from cutaway.models.model import LanguageModel, Model
from cutaway.models.open import Asked, open_classifier, open_embedder, open_language_model
from cutaway.models.text_classifier import TextClassifier, TextEmbedder
from cutaway.nn.kernels import begin, built, ready, stop, without
from cutaway.server.limits import Limits
from cutaway.server.lines import Line, lines
from cutaway.server.opened import Kind, Language, Opened, Reader, kind_of
from cutaway.server.problem import Problem, problem_of
from cutaway.server.seat import Seat
from cutaway.server.served import Served
from cutaway.server.worker import Worker
from cutaway.settings import nearest
from cutaway.text.tokenizer import Tokenizer

log = logging.getLogger("cutaway.server")


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
    lines: dict[str, Line] = field(init=False)
    _doors: dict[str, asyncio.Lock] = field(default_factory=dict)
    _unsuited: dict[tuple[str, Kind], Problem] = field(default_factory=dict)
    _changes: set[asyncio.Task[None]] = field(default_factory=set)
    _one: asyncio.Lock = field(default_factory=asyncio.Lock)  # changes over at a time

    def __post_init__(self) -> None:
        self.lines = lines(self.places)

    def known(self, name: str) -> None:
        """Raises Problem 404 for a name that is not on the list."""
        if name not in self.places:
            near = nearest(name, self.places)
            raise Problem(404, f"no model {name[:100]!r} is served; " + (f"did you mean {near!r}?" if near else
                          "GET /v1/models lists those that are"), code="model_not_found", param="model")

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
        self.known(name)
        async with self._doors.setdefault(self.lines[name].title, asyncio.Lock()):
            found = self.opened.get(name)
            if found is None:
                found = await self._made(name, kind)
            elif kind_of(found) != kind:
                raise Problem(400, f"{name} gives {kind_of(found)}, not {kind}", code="model_unsuited", param="model")
            found.used = time.monotonic()
            return found

    async def _made(self, name: str, kind: Kind) -> Opened:
        begun = time.perf_counter()
        try:
            if (name, kind) not in self._unsuited:
                plain = await asyncio.to_thread(self._meanwhile, self.lines[name].base, kind)
                made = await asyncio.to_thread(self._read, name, kind, plain=plain)
        except MachineError as error:
            raise problem_of(error) from None
        except CutawayError as error:
            self._refuse(name, kind, error)
        if (name, kind) in self._unsuited:
            raise self._unsuited[name, kind]
        found = made[name]
        if isinstance(found, Language):
            found.worker.start()
        self.opened |= made
        log.info("opened %s in %.1f s", ", ".join(made), time.perf_counter() - begun)
        if plain and found.plain:
            log.warning("%s answers by plain PyTorch while kernels are compiled", name)
            task = asyncio.create_task(self._change(found))
            self._changes.add(task)
            task.add_done_callback(self._changes.discard)
        return found

    def _refuse(self, name: str, kind: Kind, error: CutawayError) -> None:
        """Remember why a model is not there: whoever asks again would have it read again. Without the place: where
        models lie is not a client's business."""
        way_out = f"; {error.way_out}" if error.way_out else ""
        self._unsuited[name, kind] = Problem(400, f"{name} {error.what}{way_out}", code="model_unsuited", param="model")

    def _meanwhile(self, place: Path, kind: Kind) -> bool:
        """Whether a model is to answer without kernels until they are compiled: int8 and int4 have no such path, and
        there must be room for a second one."""
        if kind != "labels" and self.precision in ("int8", "int4"):
            return False
        return (kind != "text" or self.place.type == "cpu") and not ready() and _fits_twice(place)

    def _read(self, name: str, kind: Kind, *, plain: bool) -> Mapping[str, Opened]:
        """The model of a name; of one that writes all that share its engine, as far as they can."""
        place = self.places[name]
        if kind == "vectors":
            return {name: Reader(name, self._embedder(place, plain=plain), self.limits, plain)}
        if kind == "labels":
            classifier = self._classifier(place, plain=plain)
            return {name: Reader(name, classifier, self.limits, plain and isinstance(classifier, TextClassifier))}
        line = self.lines[name]
        model, seat = self._writer(line, plain=plain)
        worker, there = Worker(line.title, seat, self.limits), {line.name, *adapters_of(model)}
        made = dict[str, Opened]()
        for each in line.names:
            try:
                if each in there:
                    made[each] = Language(each, open_tokenizer(self.places[each]), model.vocab_size,
                                          model.context_length, model.reads_source, worker,
                                          each if each in line.adapters else None)
            except CutawayError as error:
                if each == name:
                    raise
                self._refuse(each, "text", error)
        return made

    def _embedder(self, place: Path, *, plain: bool) -> TextEmbedder:
        with without(plain):
            return open_embedder(place, precision=self._asked(plain=plain))

    def _classifier(self, place: Path, *, plain: bool) -> Classifier:
        with without(plain):
            return open_classifier(place)

    def _writer(self, line: Line, *, plain: bool) -> tuple[LanguageModel, Seat]:
        with without(plain):
            model = open_language_model(line.base, precision=self._asked(plain=plain), place=self.place,
                                        adapters=line.adapters,
                                        lost=lambda name, error: self._refuse(name, "text", error))
            made = [self.engine_for(model)]  # here, where what is wrong with it can be answered
        knows = isinstance(model, Model) and self.place.type == "cpu"  # knows kernels at all
        return model, Seat(lambda: made.pop() if made else self.engine_for(model),
                           plain=knows and (plain or built().library is None), exact=made[0].exact)

    def _asked(self, *, plain: bool) -> Asked:
        """The precision; float32 for a while, where the machine might be measured for seconds to know a better one."""
        return "float32" if plain and self.precision == "stored" else self.precision

    async def _change(self, found: Opened) -> None:
        """Wait for kernels, open the model with them, and let it go on so. Where that cannot be it stays as it is."""
        try:
            kernels = await asyncio.wrap_future(begin())
            if kernels.library is None:
                log.warning("%s stays on plain PyTorch: %s", found.name, kernels.reason)
                return
            async with self._one:
                if self.opened.get(found.name) is found:
                    put = await asyncio.to_thread(self._again, found)
                    if self.opened.get(found.name) is found:  # still: only this thread closes
                        put()
                        log.warning("%s answers with kernels from now on", found.name)
        except MachineError as error:
            log.warning("%s stays on plain PyTorch: %s", found.name, error)
        except Exception:
            log.exception("%s stays on plain PyTorch: it could not be opened with kernels", found.name)

    def _again(self, found: Opened) -> Callable[[], None]:
        """What puts the same model with kernels in the place of a plain one."""
        if isinstance(found, Language):
            worker, (_, seat) = found.worker, self._writer(self.lines[found.name], plain=False)
            return lambda: worker.change(seat)
        reader: Reader[Any] = found
        opened = self._embedder if isinstance(found.what, TextEmbedder) else self._classifier
        what = opened(self.places[found.name], plain=False)
        return lambda: reader.change(what)

    async def close_idle(self) -> None:
        """Close what nobody used for a while."""
        now = time.monotonic()
        for name in [*self.opened]:
            together = self._together(name)
            for found in together:
                found.used = now if found.busy else found.used
            if together and now - max(found.used for found in together) > self.limits.idle_seconds:
                await self._shut(name)

    async def close(self) -> None:
        """Close everything, and end a compiler that would work for nobody."""
        for task in self._changes:
            task.cancel()
        await asyncio.to_thread(stop)
        for name in [*self.opened]:
            await self._shut(name)

    def _together(self, name: str) -> list[Opened]:
        """What is open under a name, and what shares its engine; nothing where it is closed."""
        here = self.opened.get(name)
        if not isinstance(here, Language):
            return [] if here is None else [here]
        return [found for found in self.opened.values() if isinstance(found, Language) and found.worker is here.worker]

    async def _shut(self, name: str) -> None:
        names = [found.name for found in self._together(name)]
        if not names:  # it went with another
            return
        found, *_ = (self.opened.pop(each) for each in names)
        await found.close()
        title = found.worker.name if isinstance(found, Language) else found.name
        del found
        gc.collect()
        self.closed(title)
        log.info("closed %s", ", ".join(names))


def _fits_twice(place: Path) -> bool:
    """Whether a model in float32, as which it answers plainly, and the same with kernels, which is no larger, take no
    more than half of this machine's memory."""
    try:
        *_, root = line_of(place)
        return 2 * 4 * count_stored(root) <= memory_bytes() / 2
    except CutawayError:  # opening it will tell
        return False
