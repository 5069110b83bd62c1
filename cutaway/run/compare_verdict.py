"""Which system is best, and which simpler one is as good: paired over the same held-out items and over seeds.

A two-level bootstrap (Efron 1979; Davison & Hinkley 1997, 3.8): every resample draws items, the same for all systems,
and seeds, each system's own. The interval of a difference that holds 0 does not show the two to be equal: it shows
that so many items cannot tell them apart, and how far apart they might be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cutaway.records import Measurement
from cutaway.run.compare_parts import Outcome, Yardstick

RESAMPLES = 1000


@dataclass(frozen=True)
class Standing:
    """A system's quality and its distance from the best one (positive is worse); the best has none."""

    name: str
    quality: Measurement
    behind: Measurement | None

    @property
    def apart(self) -> bool:
        """Whether it can be told from the best one."""
        return self.behind is not None and self.behind.low is not None and self.behind.low > 0


@dataclass(frozen=True)
class Verdict:
    """Standings from best to worst, the simplest system that cannot be told from the best, and the frontiers."""

    standings: tuple[Standing, ...]
    best: str
    simplest: str
    frontier: dict[str, tuple[str, ...]]  # cost -> names no other system beats on both


def qualities(outcomes: Sequence[Outcome], *, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Each system's figure ``(N,)`` and its resamples ``(N, RESAMPLES)``, drawn together."""
    draw = np.random.default_rng(seed)
    items = len(outcomes[0].weights)
    picked = draw.multinomial(items, np.full(items, 1 / items), RESAMPLES).astype(np.float64)  # how often each item
    values, resampled = [], []
    for o in outcomes:
        scores, weights = np.asarray(o.scores, np.float64), np.asarray(o.weights, np.float64)
        values.append(scores.mean(0).sum() / weights.sum())
        seeds = draw.integers(0, len(scores), (RESAMPLES, len(scores)))
        sums = picked @ scores.T  # (RESAMPLES, seeds)
        mean = np.take_along_axis(sums, seeds, 1).mean(1)
        resampled.append(mean / np.maximum(picked @ weights, np.finfo(np.float64).tiny))
    return np.array(values), np.array(resampled)


def verdict(outcomes: Sequence[Outcome], yardstick: Yardstick) -> Verdict:
    """Read off who is best, and who is simplest of those that cannot be told from it."""
    values, resampled = qualities(outcomes)
    sign = 1.0 if yardstick.better == "lower" else -1.0
    order = np.argsort(sign * values, kind="stable")
    best = int(order[0])
    standings = []
    for i in order:
        o, n = outcomes[i], len(outcomes[i].weights)
        low, high = np.quantile(resampled[i], (0.025, 0.975))
        facts = {"seeds": list(o.seeds), "resamples": RESAMPLES, "levels": "items and seeds"}
        quality = Measurement(yardstick.figure, float(values[i]), yardstick.unit, n, float(low), float(high), facts)
        behind = None
        if i != best:
            away = sign * (resampled[i] - resampled[best])
            low, high = np.quantile(away, (0.025, 0.975))
            behind = Measurement(f"{yardstick.figure}_behind", float(sign * (values[i] - values[best])), yardstick.unit,
                                 n, float(low), float(high), {**facts, "best": outcomes[best].name})
        standings.append(Standing(o.name, quality, behind))
    level = {s.name for s in standings if not s.apart}
    simplest = min((o for o in outcomes if o.name in level), key=lambda o: (o.rank, o.parameters))
    costs: dict[str, Sequence[float]] = {
        "latency": [float(np.median(o.latencies)) for o in outcomes],
        "training": [float(np.mean(o.train_seconds)) for o in outcomes], "size": [o.disk_bytes for o in outcomes]}
    edges = {name: frontier([o.name for o in outcomes], cost, sign * values) for name, cost in costs.items()}
    return Verdict(tuple(standings), outcomes[best].name, simplest.name, edges)


def frontier(names: Sequence[str], costs: Sequence[float],
             losses: Sequence[float] | NDArray[np.float64]) -> tuple[str, ...]:
    """Those that no other beats: none is at most as dear and at most as bad, and better in one. From cheap to dear."""
    kept = []
    for i in range(len(names)):
        beaten = any(costs[j] <= costs[i] and losses[j] <= losses[i] and (costs[j] < costs[i] or losses[j] < losses[i])
                     for j in range(len(names)) if j != i)
        if not beaten:
            kept.append(i)
    return tuple(names[i] for i in sorted(kept, key=lambda i: costs[i]))


Side = Literal["best", "level", "apart"]


def side_of(found: Verdict, name: str) -> Side:
    """Whether a system is the best one, cannot be told from it, or is apart."""
    standing = next(s for s in found.standings if s.name == name)
    return "best" if name == found.best else "apart" if standing.apart else "level"
