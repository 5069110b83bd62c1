"""What every task of a comparison gives of a system: scores item by item, costs, timings, examples."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal, Protocol

from cutaway.run.compare_recipe import AnySystem

Row = dict[str, Any]
LATENCIES, LATENCY_SECONDS = 200, 2.0


@dataclass(frozen=True)
class Trained:
    """One system after one training: ``model`` is whatever its task can judge."""

    model: Any
    seconds: float
    steps: int | None
    flops: float | None
    parameters: int
    disk_bytes: int
    serving_bytes: int  # weights and state behind one item
    folder: Path
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Judged:
    """``scores`` and ``weights`` of every held-out item, in one order for all systems: quality is their ratio of sums.
    ``more`` are other figures of the task; ``examples`` are shown a click away, worst first."""

    scores: Sequence[float]
    weights: Sequence[float]
    more: Mapping[str, Any] = field(default_factory=dict)
    examples: Sequence[Row] = ()


@dataclass(frozen=True)
class Timing:
    """Seconds of single items, one after another, and items a second all together."""

    latencies: Sequence[float]
    throughput: float


@dataclass(frozen=True)
class Yardstick:
    """How a task measures: the figure's name and unit, which direction is good, what is timed."""

    figure: str
    unit: str
    better: Literal["lower", "higher"]
    item: str  # what latency is measured on
    flow: str  # what throughput counts


class Bench(Protocol):
    """A task made ready: the same data, split and tokenizer for every system."""

    @property
    def yardstick(self) -> Yardstick: ...
    def train(self, system: AnySystem, seed: int, folder: Path) -> Trained: ...
    def judge(self, trained: Trained) -> Judged: ...
    def time(self, trained: Trained) -> Timing: ...


@dataclass(frozen=True)
class Outcome:
    """One system in the comparison, every seed of it."""

    name: str
    kind: str
    rank: int
    words: str
    seeds: tuple[int, ...]
    scores: tuple[tuple[float, ...], ...]  # a row a seed
    weights: tuple[float, ...]
    train_seconds: tuple[float, ...]
    steps: tuple[int | None, ...]
    flops: tuple[float | None, ...]
    parameters: int
    disk_bytes: int
    serving_bytes: int
    peak_bytes: int
    latencies: tuple[float, ...]
    throughput: float
    more: Mapping[str, Any]
    examples: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> Row:
        """Plain JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, row: Row) -> Outcome:
        """The inverse of ``to_dict``."""
        lists = {k: tuple(v) for k, v in row.items() if isinstance(v, list)}
        return cls(**{**row, **lists, "scores": tuple(map(tuple, row["scores"]))})


def timed(calls: Sequence[Callable[[], object]]) -> list[float]:
    """Seconds of each call, after three that are not counted, at most ``LATENCIES`` or ``LATENCY_SECONDS`` of them."""
    for call in calls[:3]:
        call()
    took: list[float] = []
    began = time.perf_counter()
    while len(took) < LATENCIES and time.perf_counter() - began < LATENCY_SECONDS:
        before = time.perf_counter()
        calls[len(took) % len(calls)]()
        took.append(time.perf_counter() - before)
    return took


def rate(call: Callable[[], object], count: float, *, rounds: int = 3) -> float:
    """``count`` over the median seconds of a call, the first not counted."""
    took = []
    for _ in range(rounds + 1):
        before = time.perf_counter()
        call()
        took.append(time.perf_counter() - before)
    return count / median(took[1:])


def bytes_in(folder: Path) -> int:
    """Bytes of every file below a folder."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
