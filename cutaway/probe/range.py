"""``probe range``: the table "speed, memory, best for" of recurrent, convolutional and attention models, measured.

Each architecture at the same number of parameters learns the same tasks from the same batches; what it then recalls
from how far, how much context it uses on real text, and what it costs in time and memory are Measurements of one
result.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator

from cutaway.batch import Batch
from cutaway.data.documents import AnyDataSettings, DataSettings, StdlibSettings, read
from cutaway.errors import DataError, TokenizerError
from cutaway.models.kneser_ney import fit
from cutaway.models.model import LanguageModel, build
from cutaway.models.ngram import NGramConfig
from cutaway.models.presets import sized
from cutaway.probe.context import loss_by_context, windows
from cutaway.probe.learn import Course, Learned, learn
from cutaway.probe.recall import CopySettings, RecallSettings, copy_accuracy, recall_accuracy
from cutaway.probe.scaling import memory_by_length, read_by_length, train_by_length
from cutaway.records import Measurement, Screen
from cutaway.settings import Settings
from cutaway.text.tokenizer import Tokenizer, train
from cutaway.text.vocabulary import SubwordSettings

Kind = Literal["recurrent", "convolution", "transformer"]
NAMES: dict[str, str] = {"recurrent": "RNN", "convolution": "CNN", "transformer": "transformer", "ngram": "n-gram"}


class Sizes(Settings):
    """The architectures compared: ``parameters`` of each outside embedding and head. ``head_size`` is attention's."""

    kinds: tuple[Kind, ...] = Field(default=("recurrent", "convolution", "transformer"), min_length=1)
    parameters: int = Field(default=100_000, ge=1000)
    num_layers: int = Field(default=2, ge=1)
    cell: Literal["vanilla", "gru", "lstm"] = "lstm"
    convolution_layers: int = Field(default=4, ge=1)
    kernel_size: int = Field(default=3, ge=2)
    heads: int = Field(default=8, ge=1)

    def config(self, kind: Kind, *, vocab_size: int, context_length: int) -> Any:
        """The configuration of one kind at this size."""
        options: dict[str, dict[str, Any]] = {
            "recurrent": {"cell": self.cell}, "convolution": {"kernel_sizes": [self.kernel_size]},
            "transformer": {"num_heads": self.heads, "num_kv_heads": self.heads}}
        layers = self.convolution_layers if kind == "convolution" else self.num_layers
        return sized(kind, self.parameters, vocab_size, context_length, num_layers=layers, options=options[kind])


class TextSettings(Settings):
    """A language model of each kind on real text, and what it makes of 1, 2, 4 … tokens of context."""

    vocab_size: int = Field(default=512, ge=300)
    train_bytes: int = Field(default=3_000_000, ge=1000)
    context: int = Field(default=128, ge=2)
    rows: int = Field(default=32, ge=1)
    steps: int = Field(default=600, ge=1)
    questions: int = Field(default=2000, ge=2)  # held-out tokens that are predicted from each context
    ngram_order: int = Field(default=5, ge=0, le=16)  # 0: none beside them


class ScalingSettings(Settings):
    """Lengths at which time and memory are measured."""

    lengths: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)
    train_lengths: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)
    tokens: int = Field(default=2048, ge=16)  # of a training step
    repeats: int = Field(default=5, ge=1)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if min(*self.lengths, *self.train_lengths, 99) < 2:
            raise ValueError("lengths must be 2 or more")
        return self


class RangeSettings(Settings):
    """Everything that ``probe range`` does. ``seconds`` bounds the whole: courses are made shorter to keep it."""

    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    seeds: tuple[int, ...] = Field(default=(0, 1), min_length=1)
    seconds: float = Field(default=570.0, gt=0)
    dtype: Literal["float32", "bfloat16"] = "float32"
    data: DataSettings = StdlibSettings.model_validate({})
    sizes: Sizes = Sizes()
    course: Course = Course()
    recall: RecallSettings = RecallSettings()
    copying: CopySettings = CopySettings()
    text: TextSettings = TextSettings()
    scaling: ScalingSettings = ScalingSettings()

    @model_validator(mode="after")
    def _different(self) -> Self:
        for name, values in (("seeds", self.seeds), ("sizes.kinds", self.sizes.kinds)):
            if len(set(values)) < len(values):
                raise ValueError(f"{name} names something twice: {list(values)}")
        return self


@dataclass(frozen=True, slots=True)
class Contender:
    """One architecture: ``parameters`` outside embedding and head; how far it can see, None for all that it reads."""

    kind: str
    name: str
    parameters: int
    config: dict[str, Any]
    receptive_field: int | None
    state_values: int
    kv_values: int


@dataclass(frozen=True, slots=True)
class Range:
    """The whole result: what was compared, every measurement, how each model was trained, and what to know."""

    contenders: tuple[Contender, ...]
    measured: tuple[Measurement, ...]
    courses: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]
    seconds: float
    text: dict[str, Any] = field(default_factory=dict)

    def named(self, name: str, *, architecture: str | None = None) -> list[Measurement]:
        """The measurements of that name, of one architecture or of all, in the order they were taken."""
        return [m for m in self.measured if m.name == name
                and architecture in (None, m.conditions.get("architecture"))]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {**{f.name: getattr(self, f.name) for f in fields(self)},
                "contenders": [asdict(c) for c in self.contenders], "measured": [m.to_dict() for m in self.measured],
                "courses": list(self.courses), "notes": list(self.notes)}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Range:
        """The inverse of ``to_dict``."""
        return cls(tuple(Contender(**c) for c in row["contenders"]),
                   tuple(Measurement.from_dict(m) for m in row["measured"]), tuple(row["courses"]),
                   tuple(row["notes"]), row["seconds"], row["text"])


@dataclass(slots=True)
class _Work:
    """What is gathered while the probe runs."""

    settings: RangeSettings
    screen: Screen
    began: float = field(default_factory=time.perf_counter)
    measured: list[Measurement] = field(default_factory=list)
    courses: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def dtype(self) -> torch.dtype:
        """The arithmetic of the products."""
        out: torch.dtype = getattr(torch, self.settings.dtype)
        return out

    def note(self, text: str) -> None:
        """Say it now, and in the report."""
        self.notes.append(text)
        self.screen.note(text)

    def learned(self, task: Any, what: str, kind: str, config: Any, *, seed: int, seconds: float) -> Learned:
        """One course, with its bar, its row in ``courses``, and a note where it had to be shortened."""
        name = f"{what} {NAMES[kind]} seed {seed}"
        with self.screen.progress(name, total=100.0, unit="%") as bar:
            done = learn(config, task, self.settings.course, seed=seed, dtype=self.dtype, seconds=seconds,
                         tick=lambda share: bar.advance(100 * share))
        self.courses.append({"task": what, "architecture": NAMES[kind], "seed": seed, **done.facts()})
        if done.steps < done.wanted:
            self.note(f"{name}: {done.steps:,} steps instead of {done.wanted:,}, to stay within {seconds:.0f} s")
        return done


# What each part may take of the time for everything; measuring, the tokenizer and the report take the rest.
SHARES = {"recall": 0.48, "copy": 0.12, "text": 0.22}


def measure(settings: RangeSettings, screen: Screen) -> Range:
    """Run the whole probe. Raises DataError where the text is too short for ``settings.text.context``."""
    work = _Work(settings, screen)
    text = prepare(settings.data, settings.text, note=work.note)
    kinds = settings.sizes.kinds
    _recall(work, kinds)
    models = _text(work, kinds, text)
    _scaling(work, kinds)
    return Range(tuple(_contender(settings, k) for k in kinds), tuple(work.measured), tuple(work.courses),
                 tuple(work.notes), time.perf_counter() - work.began, {**text.facts, "models": models})


def _contender(settings: RangeSettings, kind: Kind) -> Contender:
    config = settings.sizes.config(kind, vocab_size=settings.recall.alphabet.vocab_size,
                                   context_length=settings.recall.length)
    bill = config.cost()
    return Contender(kind, NAMES[kind], bill.blocks, config.model_dump(mode="json"),
                     getattr(config, "receptive_field", None), bill.state_values, bill.kv_values)


def _recall(work: _Work, kinds: Sequence[Kind]) -> None:
    """Both memory tasks, each seed of each architecture its own model."""
    settings = work.settings
    each = settings.seconds / (len(kinds) * len(settings.seeds))
    for what, task in (("recall", settings.recall), ("copy", settings.copying)):
        for kind in kinds:
            config = settings.sizes.config(kind, vocab_size=task.alphabet.vocab_size, context_length=task.length)
            for seed in settings.seeds:
                done = work.learned(task, what, kind, config, seed=seed, seconds=SHARES[what] * each)
                if isinstance(task, RecallSettings):
                    work.measured += recall_accuracy(done.model, task, name=NAMES[kind], seed=seed)
                else:
                    work.measured += copy_accuracy(done.model, task, name=NAMES[kind], seed=seed)


@dataclass(frozen=True)
class Text:
    """A corpus made ready: documents of tokens to learn from, to be scored on, and what they were made with."""

    tokenizer: Tokenizer
    train: tuple[NDArray[np.int64], ...]
    held: tuple[NDArray[np.int64], ...]
    facts: dict[str, Any]


def prepare(data: AnyDataSettings, settings: TextSettings, *, note: Callable[[str], None]) -> Text:
    """At most ``train_bytes`` of the train split to learn from, a quarter of that of the test split to be scored on."""
    if not data.test_share:
        raise DataError("data.test_share = 0 leaves nothing to measure on", way_out="the default is 0.05")
    corpus = read(data)
    if corpus.note:
        note(corpus.note)
    texts: dict[str, list[str]] = {"train": [], "test": []}
    room = {"train": settings.train_bytes, "test": settings.train_bytes // 4}
    available = 0
    for document in corpus:
        split, size = corpus.split_of(document), len(document.text.encode())
        available += size
        if split in texts and room[split] > 0:
            texts[split].append(document.text)
            room[split] -= size
    try:
        tokenizer = train(SubwordSettings.model_validate({"vocab_size": settings.vocab_size}), texts["train"])
    except TokenizerError as error:
        raise TokenizerError(error.what, way_out="lower text.vocab_size, or give more text") from None
    encoded = {s: tuple(np.array([tokenizer.bos_id, *ids, tokenizer.eos_id], np.int64)
                        for ids in tokenizer.encode_documents(found)) for s, found in texts.items()}
    facts = {"data": data.kind, "available_bytes": available, "vocab_size": tokenizer.vocab_size,
             "tokenizer_sha256": tokenizer.digest, "left_out": str(corpus.skipped),
             **{f"{s}_documents": len(d) for s, d in texts.items()},
             **{f"{s}_bytes": sum(len(t.encode()) for t in d) for s, d in texts.items()},
             **{f"{s}_tokens": sum(map(len, d)) for s, d in encoded.items()}}
    note(f"text: {facts['train_bytes']:,} of {available:,} bytes to learn from, {facts['test_bytes']:,} held out, "
         f"{tokenizer.vocab_size} tokens")
    return Text(tokenizer, encoded["train"], encoded["test"], facts)


@dataclass(frozen=True)
class _Lines:
    """Rows of running text from anywhere: a batch is a function of (seed, step)."""

    tokens: NDArray[np.int64]
    rows: int
    context: int
    steps: int

    def batch(self, step: int, *, total: int, seed: int) -> Batch:
        starts = np.random.default_rng([seed, step]).integers(0, len(self.tokens) - self.context, self.rows)
        taken = torch.from_numpy(self.tokens[starts[:, None] + np.arange(self.context + 1)[None]])
        return Batch(taken[:, :-1].contiguous(), taken[:, 1:].contiguous(), torch.ones(self.rows, self.context))


def _text(work: _Work, kinds: Sequence[Kind], text: Text) -> dict[str, Any]:
    """A language model of each kind, and an n-gram model, on the same text, scored from more and more context."""
    settings = work.settings.text
    sizes = np.array([len(text.tokenizer.bytes_of([i])) for i in range(text.tokenizer.vocab_size)])
    asked = windows(text.held, sizes, context=settings.context, count=settings.questions)
    running = np.concatenate(text.train)
    if len(running) <= settings.context + 1:
        raise DataError(f"{len(running):,} tokens to learn from are no row of {settings.context}",
                        way_out="give more text, or lower text.context")
    seen = [2**i for i in range(settings.context.bit_length()) if 2**i <= settings.context]
    task = _Lines(running, settings.rows, settings.context, settings.steps)
    parameters: dict[str, Any] = {}
    each = SHARES["text"] * work.settings.seconds / len(kinds)
    for kind in kinds:
        config = work.settings.sizes.config(kind, vocab_size=text.tokenizer.vocab_size, context_length=settings.context)
        done = work.learned(task, "text", kind, config, seed=work.settings.seeds[0], seconds=each)
        work.measured += loss_by_context(done.model, asked, seen, name=NAMES[kind])
        parameters[NAMES[kind]] = config.cost().parameters
    if settings.ngram_order:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            counted = _ngram(text, settings)
        for warning in warned:
            work.note(f"n-gram: {warning.message}")
        work.measured += loss_by_context(counted, asked, seen, name=NAMES["ngram"])
    return parameters


def _ngram(text: Text, settings: TextSettings) -> LanguageModel:
    """Counts of the same training text."""
    starts = np.concatenate([[0], np.cumsum([len(d) for d in text.train])])
    config = NGramConfig(vocab_size=text.tokenizer.vocab_size, order=settings.ngram_order, bos_id=text.tokenizer.bos_id)
    made: Any = fit(np.concatenate(text.train), starts, config)  # its state is a kind of its own
    counted: LanguageModel = made
    return counted


def _scaling(work: _Work, kinds: Sequence[Kind]) -> None:
    """Time and memory of each architecture, untrained: neither depends on what the weights say."""
    settings = work.settings.scaling
    longest = max(*settings.lengths, *settings.train_lengths)
    with work.screen.progress("speed and memory", total=float(len(kinds)), unit="architectures") as bar:
        for kind in kinds:
            config = work.settings.sizes.config(kind, vocab_size=work.settings.text.vocab_size, context_length=longest)
            model = build(config, compute_dtype=work.dtype).eval()
            work.measured += memory_by_length(model, settings.lengths, name=NAMES[kind])
            work.measured += read_by_length(model, settings.lengths, name=NAMES[kind], repeats=settings.repeats)
            work.measured += train_by_length(config, settings.train_lengths, name=NAMES[kind], tokens=settings.tokens,
                                             dtype=work.dtype, repeats=settings.repeats)
            bar.advance(1.0)
