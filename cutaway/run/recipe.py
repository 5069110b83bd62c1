"""Recipe: everything a run does, as one tree of small frozen values read from TOML (after nanochat's one dial a stage).

``auto`` (device, dtype) is resolved before the Recipe exists; a budget in seconds becomes a number of steps when its
stage is calibrated, and the run's recipe.toml is then written again, so that it repeats the very same run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, model_validator

from cutaway.data.documents import ConversationSettings, DataSettings
from cutaway.errors import SettingsError
from cutaway.models.adapter import Adapt, Full, Lora
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


class FolderModel(Settings):
    """A model that exists, with its tokenizer and its chat template: a name that was pulled, a model folder or file, a
    folder of adapters, or a run (its furthest stage). At most ``context_length`` tokens are read and learned at
    once."""

    kind: Literal["folder"] = "folder"
    path: str = Field(min_length=1)
    context_length: int = Field(default=512, ge=16)


AnyModel = Annotated[ModelSettings | FolderModel, Field(discriminator="kind")]


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
    """Answers to requests. ``replay`` is the share of rows that repeat text of the corpus, against forgetting."""

    budget: Budget
    rows: int = Field(default=16, ge=1)
    conversations: Literal["auto", "functions", "continuations"] = "auto"
    replay: float = Field(default=0.25, ge=0, lt=1)
    adapt: Adapt = Full()  # what of the model learns

    @property
    def replayed(self) -> int:
        """Rows of a step that repeat text of the corpus."""
        return min(round(self.rows * self.replay), self.rows - 1)


class Preferences(Settings):
    """``samples`` answers a request from the fine-tuned model, ranked by the judge; best against worst."""

    kind: Literal["sampled"] = "sampled"
    budget: RequestBudget
    samples: int = Field(default=4, ge=2)
    max_tokens: int = Field(default=128, ge=1)
    temperature: float = Field(default=1.0, gt=0)
    pairs: int = Field(default=3, ge=1)  # most pairs one request gives
    held_out: float = Field(default=0.2, gt=0, lt=1)  # share of requests whose pairs only test the reward model


class FilePreferences(Settings):
    """Preferences of your own: a jsonl, csv or parquet file with the columns prompt, chosen and rejected."""

    kind: Literal["file"] = "file"
    path: str = Field(min_length=1)
    held_out: float = Field(default=0.2, gt=0, lt=1)  # share of requests whose pairs only test the reward model


AnyPreferences = Annotated[Preferences | FilePreferences, Field(discriminator="kind")]


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


class Alignment(Learning):
    """What both kinds of alignment have."""

    budget: StepBudget
    adapt: Adapt = Full()  # what of the model learns


class GRPOStage(Alignment):
    """Reinforcement against a reward: the reward model's, which ``bounded`` squashes, or with ``judge`` the judge's own
    score, of 0 to 1, where a program can check what is wanted. ``kl`` is in reward per nat."""

    kind: Literal["grpo"] = "grpo"
    reward: Literal["model", "judge"] = "model"
    rollouts: RolloutSettings = RolloutSettings()
    clip_ratio: float = Field(default=0.2, gt=0, lt=1)
    clip_ratio_high: float = Field(default=0.28, gt=0)
    kl: float = Field(default=0.02, ge=0)
    bounded: float = Field(default=0.0, ge=0)
    unfinished: float = -1.0


class DPOStage(Alignment):
    """Direct preference optimisation on the same pairs, without a reward model."""

    kind: Literal["dpo"] = "dpo"
    rows: int = Field(default=32, ge=1)
    loss: Literal["dpo", "ipo"] = "dpo"
    beta: float = Field(default=0.1, gt=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)


Align = Annotated[GRPOStage | DPOStage, Field(discriminator="kind")]


class Evaluate(Settings):
    """What is measured after every stage, on the test split and its requests; bits per byte, and with them forgetting,
    on ``text`` where one is given: all of it is held out, for nothing of it is learned."""

    text: DataSettings | None = None
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
    """One run, from text to an aligned model or from a model that exists to an adapted one: the stages are those that
    are written. ``seconds`` bounds the whole: late stages are cut short to keep it."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    seed: int = Field(default=0, ge=0, lt=2**31)
    device: str
    dtype: Literal["float32", "bfloat16"]
    threads: int = Field(ge=1)
    seconds: float | None = Field(default=None, gt=0)
    data: DataSettings
    tokenizer: TokenizerSettings | None = None
    model: AnyModel
    pretrain: Pretrain | None = None
    finetune: Finetune | None = None
    preferences: AnyPreferences | None = None
    judge: Judge
    reward: RewardStage | None = None
    align: Align | None = None
    evaluate: Evaluate
    checkpoint: CheckpointSettings
    parallel: ParallelSettings

    @model_validator(mode="after")
    def _fits(self) -> Self:
        room = self.model.context_length
        wanted = {"evaluate": self.evaluate.max_tokens}
        if isinstance(self.preferences, Preferences):
            wanted["preferences"] = self.preferences.max_tokens
        if isinstance(self.align, GRPOStage):
            wanted["align.rollouts"] = self.align.rollouts.max_tokens
        for name, most in wanted.items():
            if most >= room:
                raise ValueError(f"{name}.max_tokens = {most} leaves no room for a request in "
                                 f"model.context_length = {room}")
        for share in ("valid_share", "test_share"):
            if not getattr(self.data, share):
                raise ValueError(f"data.{share} = 0 leaves a run nothing to measure on; the default is 0.05")
        given = isinstance(self.data, ConversationSettings)
        if given and self.finetune is not None and self.finetune.conversations != "auto":
            raise ValueError(f"finetune.conversations = {self.finetune.conversations} makes conversations of text that "
                             "holds none, and data.kind = conversations brings its own: leave it out")
        if self.pretrain and self.pretrain.compile and self.device == "cpu":
            raise ValueError("pretrain.compile is for a GPU; on the CPU our kernels do its work: set it to false")
        return self

    @model_validator(mode="after")
    def _stands(self) -> Self:
        """Every stage has what it begins with."""
        there = {name for name in STAGES if getattr(self, name) is not None}
        if isinstance(self.model, FolderModel):
            if own := [name for name in ("tokenizer", "pretrain") if name in there]:
                raise ValueError(f"a model that exists brings its tokenizer and is pre-trained: leave {own[0]} out")
            if not there & {"finetune", "align"}:
                raise ValueError("nothing learns: write finetune or align")
        elif lacking := [name for name in ("tokenizer", "pretrain") if name not in there]:
            raise ValueError(f"a model of random weights needs {lacking[0]}; one that exists is named by model.path")
        needs = {"reward": "preferences", "align": None}
        if isinstance(self.align, DPOStage):
            needs["align"] = "preferences"
        elif self.align is not None and self.align.reward == "model":
            needs["align"] = "reward"
        for name, needed in needs.items():
            if name in there and needed is not None and needed not in there:
                other = "; or set align.reward=judge" if needed == "reward" else ""
                raise ValueError(f"{name} needs {needed}, which is not written{other}")
        return self

    @model_validator(mode="after")
    def _adapts(self) -> Self:
        settings = [stage.adapt for stage in (self.finetune, self.align) if stage is not None]
        low = [s for s in settings if isinstance(s, Lora)]
        if len(low) == 2 and low[0] != low[1]:
            raise ValueError("align.adapt differs from finetune.adapt, whose adapters alignment goes on with")
        if self.parallel.kind == "fsdp2" and any(not isinstance(s, Full) for s in settings):
            raise ValueError("fsdp2 shards what learns; for a model of which only a part does there is ddp")
        return self

    @property
    def tuned(self) -> str:
        """The model that preferences, reward and alignment begin with."""
        return "base" if self.finetune is None else "finetuned"

    @property
    def models(self) -> tuple[str, ...]:
        """The models that are measured, in the order they come to be."""
        there = {"random": self.pretrain, "base": self.model, "finetuned": self.finetune, "aligned": self.align}
        return tuple(name for name, stage in there.items() if stage is not None)

    def check_ranks(self, world: int) -> None:
        """Raises SettingsError if a stage has fewer rows a step than there are ranks."""
        rows: dict[str, int] = {}
        if self.pretrain is not None:
            rows["pretrain.rows"] = self.pretrain.rows
        if self.finetune is not None:
            replayed = self.finetune.replayed
            rows |= {"finetune.rows": self.finetune.rows - replayed,
                     "finetune.rows x finetune.replay": replayed or world}
        if self.reward is not None:
            rows["reward.rows"] = self.reward.rows
        if isinstance(self.align, GRPOStage):
            rows["align.rollouts.prompts"] = self.align.rollouts.prompts
        elif self.align is not None:
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
    for name, kind in (("model", "transformer"), ("preferences", "sampled")):
        if isinstance(table := out.get(name), dict):
            out[name] = {"kind": kind, **table}
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
    # a run goes on from any folder
    for name, table in _tables(out):
        path = table.get("path")
        if not isinstance(path, str) or not path:  # an empty path is no name of this folder and is refused
            continue
        if name != "model" or Path(path).expanduser().exists():  # a model may go by a name
            table["path"] = os.path.abspath(Path(path).expanduser())  # noqa: PTH100  (may be a glob)
    return out


def _tables(tree: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Copies of the tables that may name a file, put in place of them."""
    for name in ("data", "model", "preferences"):
        if isinstance(tree.get(name), dict):
            tree[name] = dict(tree[name])
            yield name, tree[name]
    evaluate = tree.get("evaluate")
    if isinstance(evaluate, dict) and isinstance(evaluate.get("text"), dict):
        tree["evaluate"] = {**evaluate, "text": dict(evaluate["text"])}
        yield "evaluate.text", tree["evaluate"]["text"]
