"""What a report says, read from the run folder's files alone, so that any run can be reported anywhere, later.

Everything may be missing, because a run may have been stopped: what is missing is None and is shown as not measured.
"""

from __future__ import annotations

import json
import math
import tomllib
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cutaway.errors import DataError, RunError
from cutaway.records import Measurement, read_journal

MODELS = ("random", "base", "finetuned", "aligned")
NAMES = {"random": "Random", "base": "Base", "finetuned": "Fine-tuned", "aligned": "Aligned"}
STAGE_NAMES = {
    "tokenizer": "Text and tokenizer",
    "pretrain": "Pre-training",
    "finetune": "Fine-tuning",
    "preferences": "Preferences",
    "reward": "Reward model",
    "align": "Alignment",
}
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One model on the held-out text and requests."""

    model: str
    measured: dict[str, Measurement]  # bits_per_byte, forgetting, proxy_reward, kl …
    answers: dict[str, Measurement]  # the share that meets each demand, and all of them: satisfies
    samples: tuple[Row, ...]  # request, answer, verdict


@dataclass(frozen=True, slots=True)
class Stage:
    """What one stage cost, measured beside predicted; None where it does not apply or is not known."""

    key: str
    name: str
    facts: Row
    seconds: float | None
    predicted_seconds: float | None  # from the configuration and the measured machine alone
    calibrated_seconds: float | None  # promised after a few timed steps, where the budget is in seconds
    steps: int | None
    tokens: float | None
    flops: float | None
    predicted_flops: float | None
    share_of_peak: float | None
    peak_memory: float | None
    skipped: int
    done: bool

    @property
    def tokens_per_second(self) -> float | None:
        """Over the whole stage, calibration and evaluation on the way included."""
        return self.tokens / self.seconds if self.tokens and self.seconds else None


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything a report shows."""

    folder: Path
    recipe: Row
    lineage: Row
    evaluations: dict[str, Evaluation]
    compression: dict[str, Measurement]
    reward: Row
    stages: tuple[Stage, ...]
    log: dict[str, tuple[Row, ...]]
    preferences: tuple[Row, ...]
    text: Row
    parameters: int | None
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """The run's name."""
        return str(self.recipe.get("name") or self.folder.resolve().name)

    @property
    def machine(self) -> Row:
        """The machine of the last session, as measured."""
        hardware: Row = self._session().get("hardware") or {}
        return hardware

    @property
    def vocab_size(self) -> int | None:
        """Entries of the run's vocabulary."""
        found = (self.lineage.get("tokenizer") or {}).get("vocab_size")
        return None if found is None else int(found)

    def _session(self) -> Row:
        sessions = self.lineage.get("sessions") or [{}]
        last: Row = sessions[-1]
        return last

    @property
    def versions(self) -> Row:
        """Versions of the last session, with the commit and the system."""
        session = self._session()
        found: Row = {k: v for k, v in (session.get("versions") or {}).items() if v}
        return found | {k: session[k] for k in ("commit", "system") if session.get(k)}

    @property
    def began(self) -> str | None:
        """The model that was there before the run, if it began with one."""
        model = self.recipe.get("model") or {}
        return Path(str(model.get("path"))).name if model.get("kind") == "folder" else None

    def has(self, stage: str) -> bool:
        """Whether the run's recipe has a stage."""
        return self.began is None or stage in self.recipe

    @property
    def models(self) -> tuple[str, ...]:
        """The models that the run is to measure."""
        stages = {"random": "pretrain", "finetuned": "finetune", "aligned": "align"}
        return tuple(m for m in MODELS if m not in stages or self.has(stages[m]))

    def measured(self, model: str, name: str) -> Measurement | None:
        """One figure of one model, an answers' share included."""
        found = self.evaluations.get(model)
        return None if found is None else found.measured.get(name) or found.answers.get(name)

    @property
    def reward_accuracy(self) -> Measurement | None:
        """Share of held-out pairs the reward model orders as the judge did."""
        return measurement(self.reward.get("accuracy"), self.folder)

    @property
    def judge(self) -> str:
        """Who judged, in words that leave no doubt."""
        kind = (self.recipe.get("judge") or {}).get("kind", "program")
        return "a person" if kind == "person" else "a program standing in for people"

    @property
    def stand_in(self) -> str:
        """What stands beside every verdict: answers are always counted by a program, whoever ranked them."""
        return "a program standing in for people"

    @property
    def seconds(self) -> float | None:
        """Seconds of all finished stages together, or what the run itself says."""
        total = [s.facts["elapsed"] for s in self.stages if isinstance(s.facts.get("elapsed"), int | float)]
        return max(total, default=None)

    @property
    def memory(self) -> float | None:
        """Largest resident memory any stage saw, in bytes."""
        return max((s.peak_memory for s in self.stages if s.peak_memory), default=None)


def read(folder: str | Path) -> Evidence:
    """Read a run folder. Raises RunError if it is none, or naming the file that is damaged."""
    folder = Path(folder)
    if not (folder / "recipe.toml").is_file():
        raise RunError(
            "not a run: it holds no recipe.toml",
            where=folder,
            way_out="name a folder that `cutaway run` made",
        )
    notes: list[str] = []
    recipe = _toml(folder / "recipe.toml")
    lineage = _json(folder / "lineage.json")
    log: dict[str, list[Row]] = {}
    for row in _journal(folder / "log.jsonl", notes):
        log.setdefault(str(row.get("stage")), []).append(row)
    evaluations = {m: found for m in MODELS if (found := _evaluation(folder, m)) is not None}
    compressed = {
        k: m
        for k, v in _json(folder / "evals" / "compression.json").items()
        if (m := measurement(v, folder)) is not None
    }
    stages = _stages(_journal(folder / "stages.jsonl", notes), log, recipe, lineage)
    return Evidence(
        folder,
        recipe,
        lineage,
        evaluations,
        compressed,
        _json(folder / "evals" / "reward.json"),
        stages,
        {k: tuple(v) for k, v in log.items()},
        tuple(_journal(folder / "preferences.jsonl", notes)),
        _json(folder / "data" / "text.json"),
        _parameters(folder),
        tuple(notes),
    )


def measurement(row: object, where: Path) -> Measurement | None:
    """A Measurement from its JSON, None from null. Raises RunError for anything else."""
    if row is None:
        return None
    try:
        assert isinstance(row, Mapping)
        found = Measurement(
            str(row["name"]),
            float(row["value"]),
            str(row["unit"]),
            row.get("n"),
            row.get("low"),
            row.get("high"),
            row.get("conditions") or {},
        )
    except (AssertionError, KeyError, TypeError, ValueError):
        raise RunError(
            "holds a measurement without name, value and unit",
            where=where,
            way_out="delete the file and resume the run",
        ) from None
    return found if math.isfinite(found.value) else None


def _parameters(folder: Path) -> int | None:
    """Parameters of the first model there is, from the header of its safetensors file: a length, then JSON."""
    for name in MODELS:
        path = folder / "models" / name / "model.safetensors"
        try:
            with path.open("rb") as file:
                header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            return sum(int(math.prod(t["shape"])) for k, t in header.items() if k != "__metadata__")
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
            raise RunError(f"damaged or unreadable ({error})", where=path, way_out="resume the run") from None
    return None


def _evaluation(folder: Path, model: str) -> Evaluation | None:
    path = folder / "evals" / f"{model}.json"
    row = _json(path)
    if not row:
        return None
    answers = {k: m for k, v in (row.get("answers") or {}).items() if (m := measurement(v, path)) is not None}
    measured = {
        k: m
        for k, v in row.items()
        if isinstance(v, Mapping) and "value" in v and (m := measurement(v, path)) is not None
    }
    return Evaluation(model, measured, answers, tuple(row.get("samples") or ()))


def _stages(
    events: Iterable[Row], log: Mapping[str, list[Row]], recipe: Row, lineage: Row
) -> tuple[Stage, ...]:
    """One Stage for each that began, in the order they began; a resumed stage's events lie over each other."""
    merged: dict[str, dict[str, Row]] = {}
    for event in events:
        if event.get("stage") == "run":  # the whole, not a stage: where it was stopped
            continue
        kinds = merged.setdefault(str(event.get("stage")), {})
        kind = str(event.get("event"))
        before = kinds.get(kind, {})
        kinds[kind] = (
            {**event, **before} if kind == "plan" else {**before, **event}
        )  # the first promise counts
    session = (lineage.get("sessions") or [{}])[-1]
    peak = (session.get("hardware") or {}).get(
        "gemm_bf16_flops" if recipe.get("dtype") == "bfloat16" else "gemm_fp32_flops"
    )
    return tuple(_stage(key, kinds, log.get(key, []), recipe, peak) for key, kinds in merged.items())


def _stage(key: str, kinds: Mapping[str, Row], rows: list[Row], recipe: Row, peak: float | None) -> Stage:
    plan, done = kinds.get("plan", {}), kinds.get("done", {})
    facts = {**kinds.get("stopped", {}), **done}
    seconds, flops = _number(facts, "seconds"), _number(facts, "flops")
    share = _number(facts, "share_of_peak")
    if share is None and flops and seconds and peak:
        share = flops / seconds / peak
    tokens = _number(facts, "tokens") or (_number(rows[-1], "tokens") if rows else None)
    steps = facts.get("steps") or (rows[-1].get("step") if rows else None)
    calibrated = _number(plan, "seconds") if plan.get("basis") == "calibration" else None
    return Stage(
        key,
        stage_name(key, recipe),
        facts,
        seconds,
        _number(plan, "seconds_by_configuration"),
        calibrated,
        steps,
        tokens,
        flops,
        _number(plan, "flops"),
        share,
        _number(facts, "peak_rss_bytes"),
        sum(bool(r.get("skipped")) for r in rows),
        bool(done),
    )


def stage_name(key: str, recipe: Row) -> str:
    """A stage's name for people; alignment says by what."""
    if key == "align":
        return f"Alignment ({str((recipe.get('align') or {}).get('kind', 'grpo')).upper()})"
    base, _, rest = key.partition("-")
    if base == "evaluate":
        return f"Evaluation: {NAMES.get(rest, rest).lower()}" if rest else "Evaluation"
    return STAGE_NAMES.get(key, key)


def _number(row: Mapping[str, Any], key: str) -> float | None:
    value = row.get(key)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _json(path: Path) -> Row:
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise RunError(
            f"damaged or unreadable ({error})", where=path, way_out="delete it and resume the run"
        ) from None
    if not isinstance(value, dict):
        raise RunError("holds no object", where=path, way_out="delete it and resume the run")
    return value


def _toml(path: Path) -> Row:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"damaged or unreadable ({error})", where=path) from None


def _journal(path: Path, notes: list[str]) -> list[Row]:
    """The rows of a journal, none if there is no such file; a torn line becomes a note in the report."""
    if not path.exists():
        return []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            rows = read_journal(path)
        except DataError as error:
            raise RunError(str(error), way_out="resume the run") from None
    notes += [str(w.message).replace(str(path), path.name) for w in caught]
    return rows
