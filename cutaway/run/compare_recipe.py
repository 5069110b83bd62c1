"""What ``cutaway compare`` does, as one tree of frozen values: a task, its systems, and a budget equal for all.

Systems are told apart by ``kind``; each says by ``rank`` how simple it is, for the sentence that names the simplest one
that is as good as the best.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from cutaway.data.documents import DataSettings
from cutaway.errors import SettingsError
from cutaway.models.architectures import AnyConfig, decode_config
from cutaway.run.recipe import RECIPES, SecondsBudget, StepsBudget, find, resolve_machine
from cutaway.settings import Settings, decode, override, read_toml
from cutaway.text.tokenizer import TokenizerSettings
from cutaway.train.optimizer import OptimizerSettings
from cutaway.train.schedule import Schedule

FOLDER = RECIPES / "compare"


class FlopsBudget(Settings):
    """So many FLOPs of training, as ``cost`` counts them."""

    kind: Literal["flops"] = "flops"
    flops: float = Field(gt=0)


Budget = Annotated[SecondsBudget | StepsBudget | FlopsBudget, Field(discriminator="kind")]


class NGramSystem(Settings):
    """Interpolated modified Kneser-Ney; it counts the text once, whatever the budget."""

    kind: Literal["ngram"] = "ngram"
    order: int = Field(default=5, ge=1, le=16)
    prune: tuple[int, ...] = ()

    @property
    def rank(self) -> int:
        """How simple it is; 0 is simplest."""
        return 1

    @property
    def seeded(self) -> bool:
        """Whether another seed gives another model."""
        return False


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


System = Annotated[NGramSystem | NeuralSystem, Field(discriminator="kind")]
AnySystem = NGramSystem | NeuralSystem


class LanguageTask(Settings):
    """Bits per byte of held-out text; ``bytes`` of it, ``written`` tokens a system writes to be timed."""

    kind: Literal["language"] = "language"
    bytes: int = Field(default=400_000, ge=1)
    written: int = Field(default=48, ge=2)
    suited: tuple[str, ...] = Field(default=("ngram", "neural"), exclude=True)


Task = LanguageTask


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
    data: DataSettings
    tokenizer: TokenizerSettings
    task: Task
    budget: Budget
    price: Price = Price()
    systems: dict[str, System]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(set(self.seeds)) < max(1, len(self.seeds)):
            raise ValueError(f"seeds must be different and at least one, got {list(self.seeds)}")
        if len(self.systems) < 2:
            raise ValueError(f"a comparison needs two systems, got {len(self.systems)}")
        for name, system in self.systems.items():
            if system.kind not in self.task.suited:
                raise ValueError(f"systems.{name}: a {system.kind} cannot do {self.task.kind}; what can is "
                                 f"{', '.join(self.task.suited)}")
        return self


def load(name: str, assignments: Sequence[str] = ()) -> Comparison:
    """A comparison by name or path with ``a.b=value`` laid over it, every ``auto`` resolved for this machine.

    ``systems.NAME=false`` leaves a system out.
    """
    path = find(name, FOLDER)
    tree = override({"name": path.stem, **read_toml(path, search=[FOLDER, RECIPES])}, assignments)
    if isinstance(tree.get("systems"), dict):
        tree["systems"] = {k: v for k, v in tree["systems"].items() if v is not False}
    where = " ".join([str(name), *assignments])
    return decode(Comparison, resolve_machine(tree, where), where=where)


def reload(path: Path) -> Comparison:
    """The comparison a folder wrote down."""
    return decode(Comparison, read_toml(path), where=path)
