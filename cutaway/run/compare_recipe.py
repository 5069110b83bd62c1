"""What ``cutaway compare`` does, as one tree of frozen values: a task, its systems, and a budget equal for all.

Systems are told apart by ``kind``; each says by ``rank`` how simple it is, for the sentence that names the simplest one
that is as good as the best.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from cutaway.data.documents import PathSettings, StdinSettings, StdlibSettings
from cutaway.data.table import LabelledSettings, PairsSettings
from cutaway.data.tasks import TaskSettings
from cutaway.errors import SettingsError
from cutaway.models.architectures import AnyConfig, decode_config
from cutaway.models.bag import BagConfig
from cutaway.run.recipe import RECIPES, SecondsBudget, StepsBudget, find, resolve_machine
from cutaway.settings import Settings, decode, nearest, override, read_toml
from cutaway.text.tokenizer import TokenizerSettings
from cutaway.train.optimizer import OptimizerSettings
from cutaway.train.schedule import Schedule

FOLDER = RECIPES / "compare"
NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9 ._-]{0,98}[A-Za-z0-9._-])?")


class FlopsBudget(Settings):
    """So many FLOPs of training, as ``cost`` counts them."""

    kind: Literal["flops"] = "flops"
    flops: float = Field(gt=0)


Budget = Annotated[SecondsBudget | StepsBudget | FlopsBudget, Field(discriminator="kind")]


class _Counted(Settings):
    """A system that is fitted once, whatever the budget; another seed gives the same."""

    @property
    def seeded(self) -> bool:
        """Whether another seed gives another model."""
        return False


class ConstantSystem(_Counted):
    """Says the most frequent label, whatever the text: what knowing nothing of it comes to."""

    kind: Literal["constant"] = "constant"

    @property
    def rank(self) -> int:
        """How simple it is; 0 is simplest."""
        return 0


class NGramSystem(_Counted):
    """Interpolated modified Kneser-Ney."""

    kind: Literal["ngram"] = "ngram"
    order: int = Field(default=5, ge=1, le=16)
    prune: tuple[int, ...] = ()

    @property
    def rank(self) -> int:
        """How simple it is; 0 is simplest."""
        return 1


class BagSystem(_Counted):
    """Sparse features of a text under a linear classifier."""

    kind: Literal["bag"] = "bag"
    bag: BagConfig = BagConfig()

    @property
    def rank(self) -> int:
        """Hand-made features and single words before n-grams of characters."""
        return 1 if all(f.kind == "hand" for f in self.bag.features) else 2


class NearestSystem(_Counted):
    """Finds by words: the target of the most similar source seen in training, or the documents most like a query."""

    kind: Literal["nearest"] = "nearest"
    by: Literal["bm25", "tfidf"] = "bm25"

    @property
    def rank(self) -> int:
        """How simple it is; 0 is simplest."""
        return 1


class NeuralSystem(Settings):
    """A network trained within the budget; ``architecture`` is its configuration without the vocabulary, which is the
    tokenizer's."""

    kind: Literal["neural"] = "neural"
    architecture: dict[str, Any]
    rows: int = Field(default=32, ge=1)
    length: int = Field(default=256, ge=2)  # most tokens of a row in training
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: Schedule = Schedule()
    clip: float | None = Field(default=1.0, gt=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    word_dropout: float = Field(default=0.0, ge=0, lt=1)  # of classified texts

    @field_validator("architecture")
    @classmethod
    def _buildable(cls, value: dict[str, Any]) -> dict[str, Any]:
        if "vocab_size" in value:
            raise ValueError("vocab_size is the tokenizer's and cannot be set here")
        try:
            decode_config({**value, "vocab_size": 512})
        except SettingsError as error:
            raise ValueError(f"{error.what}; {error.way_out}" if error.way_out else error.what) from None
        return value

    def config(self, vocab_size: int) -> AnyConfig:
        """The architecture over a vocabulary."""
        return decode_config({**self.architecture, "vocab_size": vocab_size})

    @property
    def rank(self) -> int:
        """Convolution before recurrence before attention."""
        return {"convolution": 3, "recurrent": 4}.get(str(self.architecture.get("kind")), 5)

    @property
    def seeded(self) -> bool:
        """Whether another seed gives another model."""
        return True


AnySystem = ConstantSystem | NGramSystem | BagSystem | NearestSystem | NeuralSystem
System = Annotated[AnySystem, Field(discriminator="kind")]
Text = StdlibSettings | PathSettings | StdinSettings
AnyData = Text | TaskSettings | LabelledSettings | PairsSettings


class LanguageTask(Settings):
    """Bits per byte of held-out text; ``bytes`` of it, ``written`` tokens a system writes to be timed."""

    kind: Literal["language"] = "language"
    bytes: int = Field(default=400_000, ge=1)
    written: int = Field(default=48, ge=2)


class ClassificationTask(Settings):
    """The label of a text, or with several labels a text all of them."""

    kind: Literal["classification"] = "classification"


class TransformationTask(Settings):
    """A text written for a text: ROUGE-L, with BLEU, chrF and exact match beside it. ``items`` held-out pairs at most,
    ``beam`` hypotheses (1 is greedy), ``max_tokens`` an answer."""

    kind: Literal["transformation"] = "transformation"
    items: int = Field(default=300, ge=2)
    beam: int = Field(default=1, ge=1)
    max_tokens: int = Field(default=48, ge=1)


class RetrievalTask(Settings):
    """The document that a query belongs to, among all of the held-out part: mean reciprocal rank."""

    kind: Literal["retrieval"] = "retrieval"


AnyTask = LanguageTask | ClassificationTask | TransformationTask | RetrievalTask
# what each task reads, and what can do it
DATA: dict[str, tuple[str, ...]] = {
    "language": ("python-stdlib", "path", "stdin"), "classification": ("python-docstrings", "labelled"),
    "transformation": ("python-docstrings", "pairs"), "retrieval": ("python-docstrings", "pairs")}
SUITED: dict[str, tuple[str, ...]] = {
    "language": ("ngram", "neural"), "classification": ("constant", "bag", "neural"),
    "transformation": ("nearest", "neural"), "retrieval": ("nearest", "neural")}


# settings of a network that mean something for some tasks only
MEANT: dict[str, tuple[str, ...]] = {
    "length": ("language",), "label_smoothing": ("classification", "transformation"),
    "word_dropout": ("classification",)}


class Price(Settings):
    """What an hour of this machine costs, as the person says."""

    per_hour: float = Field(default=0.10, ge=0)
    currency: str = "USD"


class Comparison(Settings):
    """Every system of ``systems`` on the same split, tokenizer and budget; ``seeds`` runs of each that draws."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = (0, 1, 2)
    device: str
    dtype: Literal["float32", "bfloat16"]
    threads: int = Field(ge=1)
    data: Annotated[AnyData, Field(discriminator="kind")]
    tokenizer: TokenizerSettings
    task: Annotated[AnyTask, Field(discriminator="kind")]
    budget: Budget
    price: Price = Price()
    systems: dict[str, System]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(set(self.seeds)) < max(1, len(self.seeds)):
            raise ValueError(f"seeds must be different and at least one, got {list(self.seeds)}")
        if len(self.systems) < 2:
            raise ValueError(f"a comparison needs two systems, got {len(self.systems)}")
        task = self.task.kind
        if self.data.kind not in DATA[task]:
            raise ValueError(f"data.kind = {self.data.kind} is nothing for {task}; what is is {', '.join(DATA[task])}")
        for name, system in self.systems.items():
            if not NAME.fullmatch(name):  # it names a folder
                raise ValueError(f"systems.{name!r} cannot be a name: write at most 100 letters, digits, spaces and "
                                 "'._-', beginning with a letter, a digit or '_'")
            if system.kind not in SUITED[task]:
                raise ValueError(f"systems.{name}: a {system.kind} cannot do {task}; what can is "
                                 f"{', '.join(SUITED[task])}")
            if isinstance(system, NeuralSystem):
                self._meant(name, system)
        if task != "language" and isinstance(self.budget, FlopsBudget):
            raise ValueError(f"a budget in FLOPs is for language only: rows of {task} differ in length")
        return self

    def _meant(self, name: str, system: NeuralSystem) -> None:
        for setting, tasks in MEANT.items():
            given = getattr(system, setting)
            if self.task.kind not in tasks and given != NeuralSystem.model_fields[setting].default:
                raise ValueError(f"systems.{name}.{setting} = {given} means nothing for {self.task.kind}; it is for "
                                 f"{' and '.join(tasks)}")
        if isinstance(self.task, TransformationTask):
            config = system.config(512)
            # an answer stands behind its beginning; a decoder's also behind a source of one token at least, and its end
            room = config.context_length - (1 if config.traits.reads_source else 3)
            if self.task.max_tokens > room:
                raise ValueError(f"task.max_tokens = {self.task.max_tokens} does not fit systems.{name}: a context of "
                                 f"{config.context_length} holds answers of {room} tokens at most")


def load(name: str, assignments: Sequence[str] = ()) -> Comparison:
    """A comparison by name or path with ``a.b=value`` laid over it, every ``auto`` resolved for this machine.

    ``systems.NAME=false`` leaves a system out.
    """
    path = find(name, FOLDER)
    tree = override({"name": path.stem, **read_toml(path, search=[FOLDER, RECIPES])}, assignments, of=Comparison)
    where = " ".join([str(name), *assignments])
    if isinstance(tree.get("systems"), dict):
        _known(tree["systems"], _named(path), where)
        tree["systems"] = {k: v for k, v in tree["systems"].items() if v is not False}
    return decode(Comparison, resolve_machine(tree, where), where=where)


def _named(path: Path) -> list[str]:
    """The systems that a file which was read, or one that it extends, writes down whole.

    The merged tree does not tell: a system left out by its right name and by a wrong one look alike in it.
    """
    tree = tomllib.loads(path.read_text("utf-8"))
    systems, parent = tree.get("systems"), tree.get("extends")
    found = [k for k, v in systems.items() if isinstance(v, dict) and "kind" in v] if isinstance(systems, dict) else []
    tries = (f / file for f in (path.parent, FOLDER, RECIPES) for file in (str(parent), f"{parent}.toml"))
    above = next((t for t in tries if t.is_file()), None) if parent else None
    return found if above is None else list(dict.fromkeys([*_named(above), *found]))


def _known(systems: Mapping[str, object], known: Sequence[str], where: str) -> None:
    """Raises SettingsError where a system that nobody wrote down is left out, or changed: its name is misspelt."""
    for name, system in systems.items():
        changed = isinstance(system, Mapping) and "kind" not in system
        if known and name not in known and (system is False or changed):
            near = nearest(name, known)
            raise SettingsError(f"no system is called {name!r}", where=where, way_out=f"did you mean {near!r}?" if near
                                else f"there are {', '.join(known)}; a new one needs a kind")


def reload(path: Path) -> Comparison:
    """The comparison a folder wrote down."""
    return decode(Comparison, read_toml(path), where=path)
