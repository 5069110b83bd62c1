"""Figures of a whole corpus with their intervals: sums over items are resampled, not the items' texts (Efron 1979;
Koehn 2004 for BLEU), and two systems are compared on the same draws.

N items, S sums, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cutaway.errors import DataError
from cutaway.records import Measurement

Floats = NDArray[np.float64]
RESAMPLES = 1000
_CELLS = 4_000_000  # of the matrix of draws held at once


@dataclass(frozen=True)
class Statistics:
    """What each item adds, ``rows (N, S)`` (an array or a sparse matrix), and ``figure``: sums ``(R, S)`` → ``(R,)``.

    ``figure`` is NaN where it is not defined (no item of a class was drawn); such draws are left out and counted.
    """

    name: str
    unit: str
    rows: Any
    figure: Callable[[Floats], Floats]
    conditions: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.rows.shape[0]:
            raise DataError(f"there is no item to measure {self.name} on")

    @property
    def value(self) -> float:
        """The figure of all items together."""
        return float(self.figure(_sums(self.rows, np.ones((1, self.rows.shape[0]))))[0])

    def measure(self, *, seed: int = 0, resamples: int = RESAMPLES) -> Measurement:
        """The figure with its 95 % percentile interval over items."""
        found, value = self.drawn(seed=seed, resamples=resamples), self.value
        kept = found[np.isfinite(found)]
        conditions = {**self.conditions, "resamples": resamples, "seed": seed}
        if len(kept) < resamples:
            conditions["undefined_resamples"] = resamples - len(kept)
        low, high = map(float, np.quantile(kept, (0.025, 0.975))) if len(kept) else (None, None)
        return Measurement(self.name, value, self.unit, self.rows.shape[0], low, high, conditions)

    def drawn(self, *, seed: int, resamples: int) -> Floats:
        """The figure of each resample ``(R,)``; the draws depend on ``seed`` and the number of items alone."""
        n = self.rows.shape[0]
        draw, at, out = np.random.default_rng(seed), 0, np.empty(resamples)
        while at < resamples:
            count = min(resamples - at, max(1, _CELLS // n))
            times = np.stack([np.bincount(draw.integers(0, n, n), minlength=n) for _ in range(count)])
            out[at:at + count] = self.figure(_sums(self.rows, times.astype(np.float64)))
            at += count
        return out

    def change(self, after: Statistics, *, seed: int = 0, resamples: int = RESAMPLES) -> Measurement:
        """``after`` less this on the same items, both drawn together; ``bootstrap_p`` is two-sided: twice the share
        of draws on the other side of no change (one added, so that it is never 0)."""
        if self.rows.shape[0] != after.rows.shape[0] or self.name != after.name:
            raise DataError(f"{self.name} of {self.rows.shape[0]:,} items and {after.name} of "
                            f"{after.rows.shape[0]:,} are not paired", way_out="score both on the same items")
        moved = after.drawn(seed=seed, resamples=resamples) - self.drawn(seed=seed, resamples=resamples)
        moved = moved[np.isfinite(moved)]
        tail = min((moved <= 0).sum(), (moved >= 0).sum())
        low, high = map(float, np.quantile(moved, (0.025, 0.975))) if len(moved) else (None, None)
        return Measurement(f"{self.name}_change", after.value - self.value, self.unit, self.rows.shape[0], low, high, {
            **after.conditions, "paired": True, "resamples": resamples, "seed": seed,
            "bootstrap_p": min(1.0, 2 * (int(tail) + 1) / (len(moved) + 1))})


def _sums(rows: Any, times: Floats) -> Floats:
    return np.asarray(times @ rows) if isinstance(rows, np.ndarray) else np.asarray((rows.T @ times.T).T)


def ratio(top: Floats, bottom: Floats) -> Floats:
    """``top / bottom``, NaN where there is nothing below."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(bottom > 0, top / bottom, np.nan))


def mean_of(name: str, values: Any, unit: str = "share", conditions: Mapping[str, Any] | None = None) -> Statistics:
    """The mean of one number an item."""
    rows = np.stack([np.asarray(values, np.float64), np.ones(len(values))], 1) if len(values) else np.zeros((0, 2))
    return Statistics(name, unit, rows, lambda sums: sums[:, 0] / sums[:, 1], conditions or {})
