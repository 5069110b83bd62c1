"""Recipe: everything a run does, as one tree of small frozen values read from TOML (after nanochat's one dial a stage).

``auto`` (device, dtype) is resolved before the Recipe exists; a budget in seconds becomes a number of steps when its
stage is calibrated, and the run's recipe.toml is then written again, so that it repeats the very same run.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, model_validator

from cutaway.data.documents import DataSettings
from cutaway.errors import SettingsError
from cutaway.models.transformer import TransformerConfig
from cutaway.settings import Settings, decode, nearest, override, read_toml
from cutaway.text.tokenizer import TokenizerSettings
from cutaway.train.optimizer import OptimizerSettings
from cutaway.train.rollout import RolloutSettings
from cutaway.train.schedule import Schedule

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
STAGES = ("tokenizer", "pretrain", "finetune", "preferences", "reward", "align")
S = TypeVar("S", bound=Settings)


class StepsBudget(Settings):
    """So many optimizer steps."""

    kind: Literal["steps"] = "steps"
    steps: int = Field(ge=1)


class TokensBudget(Settings):
    """So many tokens, rounded up to whole steps."""

    kind: Literal["tokens"] = "tokens"
    tokens: int = Field(ge=1)


class SecondsBudget(Settings):
    """As many steps as a timed calibration at the start of the stage promises in so many seconds."""

    kind: Literal["seconds"] = "seconds"
    seconds: float = Field(gt=0)


class RequestsBudget(Settings):
    """So many requests."""

    kind: Literal["requests"] = "requests"
    requests: int = Field(ge=2)


Budget = Annotated[StepsBudget | TokensBudget | SecondsBudget, Field(discriminator="kind")]
StepBudget = Annotated[StepsBudget | SecondsBudget, Field(discriminator="kind")]
RequestBudget = Annotated[RequestsBudget | SecondsBudget, Field(discriminator="kind")]


class ModelSettings(Settings):
    """The transformer's sizes; its vocabulary is the tokenizer's."""

    kind: Literal["transformer"] = "transformer"
    hidden_size: int = Field(default=128, ge=2)
    num_layers: int = Field(default=4, ge=1)
    num_heads: int = Field(default=4, ge=1)
    num_kv_heads: int = Field(default=2, ge=1)
    intermediate_size: int = Field(default=352, ge=1)
    context_length: int = Field(default=256, ge=16)
    rope_theta: float = Field(default=10_000.0, gt=1)
    tie_embeddings: bool = True

    @model_validator(mode="after")
    def _fits(self) -> Self:
        self.config(512)
        return self

    def config(self, vocab_size: int) -> TransformerConfig:
        """The architecture over a vocabulary."""
        return TransformerConfig(vocab_size=vocab_size, **self.model_dump())


class Learning(Settings):
    """What every training stage has: how it steps, and how often it looks at held-out data on the way."""

    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: Schedule = Schedule()
    clip: float | None = Field(default=1.0, gt=0)
    micro: int = Field(default=1, ge=1)  # micro-batches a step is cut into, to save memory
    looks: int = Field(default=4, ge=0)  # evaluations on the valid split, evenly over the stage


class Pretrain(Learning):
    """The next token of packed documents; ``rows`` sequences of ``model.context_length`` tokens a step."""

    budget: Budget
    rows: int = Field(default=32, ge=1)
    compile: bool = False  # torch.compile; auto: on a GPU, where the stage is long enough


class Finetune(Learning):
    """Answers to requests. ``replay`` is the share of rows that repeat pre-training text, against forgetting."""

    budget: Budget
    rows: int = Field(default=16, ge=1)
    conversations: Literal["auto", "functions", "continuations"] = "auto"
    replay: float = Field(default=0.25, ge=0, lt=1)

    @property
    def replayed(self) -> int:
        """Rows of a step that repeat pre-training text."""
        return min(round(self.rows * self.replay), self.rows - 1)


class Preferences(Settings):
    """``samples`` answers a request from the fine-tuned model, ranked by the judge; best against worst."""

    budget: RequestBudget
    samples: int = Field(default=4, ge=2)
    max_tokens: int = Field(default=128, ge=1)
    temperature: float = Field(default=1.0, gt=0)
    pairs: int = Field(default=3, ge=1)  # most pairs one request gives
    held_out: float = Field(default=0.2, gt=0, lt=1)  # share of requests whose pairs only test the reward model


class ProgramJudgeSettings(Settings):
    """A program stands in for people: labelled so everywhere."""

    kind: Literal["program"] = "program"


class PersonJudgeSettings(Settings):
    """A person at the terminal, blind and in random order."""

    kind: Literal["person"] = "person"


Judge = Annotated[ProgramJudgeSettings | PersonJudgeSettings, Field(discriminator="kind")]


class RewardStage(Learning):
    """Bradley-Terry on ``rows`` pairs a step."""

    budget: StepBudget
    rows: int = Field(default=32, ge=1)
    centring: float = Field(default=0.01, ge=0)


class GRPOStage(Learning):
    """Reinforcement against the reward model. ``bounded`` squashes its score; ``kl`` is in reward per nat."""

    kind: Literal["grpo"] = "grpo"
    budget: StepBudget
    rollouts: RolloutSettings = RolloutSettings()
    clip_ratio: float = Field(default=0.2, gt=0, lt=1)
    clip_ratio_high: float = Field(default=0.28, gt=0)
    kl: float = Field(default=0.02, ge=0)
    bounded: float = Field(default=0.0, ge=0)
    unfinished: float = -1.0


class DPOStage(Learning):
    """Direct preference optimisation on the same pairs, without a reward model."""

    kind: Literal["dpo"] = "dpo"
    budget: StepBudget
    rows: int = Field(default=32, ge=1)
    loss: Literal["dpo", "ipo"] = "dpo"
    beta: float = Field(default=0.1, gt=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)


Align = Annotated[GRPOStage | DPOStage, Field(discriminator="kind")]


class Evaluate(Settings):
    """What is measured after every stage, on the test split and its requests."""

    bytes: int = Field(default=400_000, ge=1)  # of held-out text
    requests: int = Field(default=250, ge=1)
    max_tokens: int = Field(default=128, ge=1)
    temperature: float = Field(default=0.7, ge=0)
    samples: int = Field(default=6, ge=1)  # requests shown in the report


class CheckpointSettings(Settings):
    """Saved every ``seconds`` of training and when interrupted; the newest ``keep`` and the best stay."""

    seconds: float = Field(default=60.0, gt=0)
    steps: int | None = Field(default=None, ge=1)
    keep: int = Field(default=2, ge=1)


class ParallelSettings(Settings):
    """How ranks share a training step; anything but single is started with torchrun."""

    kind: Literal["single", "ddp", "fsdp2"] = "single"


class Recipe(Settings):
    """One run from text to an aligned model. ``seconds`` bounds the whole: late stages are cut short to keep it."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    seed: int = Field(default=0, ge=0, lt=2**31)
    device: str
    dtype: Literal["float32", "bfloat16"]
    threads: int = Field(ge=1)
    seconds: float | None = Field(default=None, gt=0)
    data: DataSettings
    tokenizer: TokenizerSettings
    model: ModelSettings
    pretrain: Pretrain
    finetune: Finetune
    preferences: Preferences
    judge: Judge
    reward: RewardStage
    align: Align
    evaluate: Evaluate
    checkpoint: CheckpointSettings
    parallel: ParallelSettings

    @model_validator(mode="after")
    def _fits(self) -> Self:
        room = self.model.context_length
        align = self.align.rollouts.max_tokens if isinstance(self.align, GRPOStage) else 0
        for name, wanted in (("preferences", self.preferences.max_tokens), ("evaluate", self.evaluate.max_tokens),
                             ("align.rollouts", align)):
            if wanted >= room:
                raise ValueError(f"{name}.max_tokens = {wanted} leaves no room for a request in "
                                 f"model.context_length = {room}")
        for share in ("valid_share", "test_share"):
            if not getattr(self.data, share):
                raise ValueError(f"data.{share} = 0 leaves a run nothing to measure on; the default is 0.05")
        if self.pretrain.compile and self.device == "cpu":
            raise ValueError("pretrain.compile is for a GPU; on the CPU our kernels do its work: set it to false")
        return self

    def check_ranks(self, world: int) -> None:
        """Raises SettingsError if a stage has fewer rows a step than there are ranks."""
        replayed = self.finetune.replayed
        rows = {"pretrain.rows": self.pretrain.rows, "finetune.rows": self.finetune.rows - replayed,
                "finetune.rows x finetune.replay": replayed or world, "reward.rows": self.reward.rows}
        if isinstance(self.align, GRPOStage):
            rows["align.rollouts.prompts"] = self.align.rollouts.prompts
        else:
            rows["align.rows"] = self.align.rows
        for name, count in rows.items():
            if count < world:
                raise SettingsError(f"{name} = {count} cannot be shared by {world} ranks", way_out="raise it")

    def with_budget(self, stage: str, budget: Settings) -> Recipe:
        """The same recipe with one stage's budget replaced."""
        part: Settings = getattr(self, stage)
        return self.model_copy(update={stage: part.model_copy(update={"budget": budget})})


def names(folder: Path = RECIPES) -> list[str]:
    """The recipes that come with the package."""
    return sorted(p.stem for p in folder.glob("*.toml"))


def find(name: str, folder: Path = RECIPES) -> Path:
    """The file of a recipe given by name or path. Raises SettingsError with the nearest name."""
    path = Path(name)
    if path.suffix == ".toml" or path.is_file():
        return path
    known = names(folder)
    if name in known:
        return folder / f"{name}.toml"
    near = nearest(name, known)
    raise SettingsError(f"no recipe is called {name!r}", way_out=f"did you mean {near!r}?" if near else
                        f"there are {', '.join(known)}, or give a .toml file")


def load(name: str, assignments: Sequence[str] = ()) -> Recipe:
    """A recipe by name or path with ``a.b=value`` laid over it, every ``auto`` resolved for this machine."""
    path = find(name)
    tree = override({"name": path.stem, **read_toml(path, search=[RECIPES])}, assignments, of=Recipe)
    where = " ".join([str(name), *assignments])
    return decode(Recipe, resolve(tree, where), where=where)


def reload(path: Path) -> Recipe:
    """The recipe a run wrote down."""
    return decode(Recipe, read_toml(path), where=path)


def _seconds(budget: object) -> float:
    """What a budget in seconds says; 0 for any other."""
    seconds = budget.get("seconds") if isinstance(budget, dict) else None
    return float(seconds) if isinstance(seconds, int | float) else 0.0


def resolve(tree: dict[str, Any], where: object) -> dict[str, Any]:
    """Every ``auto`` becomes what this machine has; tables appear."""
    from cutaway import device as machines

    out = resolve_machine({**{s: {} for s in ("evaluate", "checkpoint", "parallel", "model")},
                           "judge": {"kind": "program"}, **tree}, where)
    pretrain = out.get("pretrain")
    if isinstance(pretrain, dict) and pretrain.get("compile", "auto") == "auto":
        compiles = machines.pays_to_compile(machines.pick(out["device"]), _seconds(pretrain.get("budget")))
        out["pretrain"] = {**pretrain, "compile": compiles}
    return out


def resolve_machine(tree: dict[str, Any], where: object) -> dict[str, Any]:
    """``device``, ``dtype`` and ``threads`` of ``auto`` (or absent), and ``data.path`` as seen from any folder."""
    from cutaway import device as machines

    out = dict(tree)
    name = out.get("device", "auto")
    if not isinstance(name, str):
        raise SettingsError(f"device must be a name, got {name!r}", where=where, way_out="auto, cpu, cuda or mps")
    device = machines.pick(name)
    out["device"] = str(device)
    if out.get("dtype", "auto") == "auto":
        out["dtype"] = str(machines.compute_dtype("auto", device)).removeprefix("torch.")
    if out.get("threads", "auto") == "auto":
        out["threads"] = machines.set_threads(None)
    data = out.get("data")
    if isinstance(data, dict) and isinstance(data.get("path"), str) and data["path"]:
        # a run goes on from any folder; an empty path is no name of this one and is refused
        out["data"] = {**data, "path": os.path.abspath(Path(data["path"]).expanduser())}  # noqa: PTH100  (may be a glob)
    return out
