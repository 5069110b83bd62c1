"""Scores of clusters: k-means on embeddings, then V-measure (Rosenberg & Hirschberg 2007) and the adjusted Rand index
(Hubert & Arabie 1985) against known labels, with intervals over items. N items, W width, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cutaway.errors import DataError
from cutaway.evaluate.resample import Statistics
from cutaway.records import Measurement

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def clusters(embeddings: NDArray[np.floating], count: int, *, seed: int = 0, starts: int = 10) -> Ints:
    """The cluster of each embedding ``(N, W)`` by k-means, the best of ``starts``. Raises DataError for fewer
    embeddings than clusters, or ones that are not finite."""
    if embeddings.ndim != 2 or not 1 <= count <= len(embeddings):
        raise DataError(f"embeddings {embeddings.shape} cannot be parted into {count} clusters")
    if not np.isfinite(embeddings).all():
        raise DataError("an embedding is not finite",
                        where=f"item {int(np.flatnonzero(~np.isfinite(embeddings).all(1))[0]) + 1}")
    from sklearn.cluster import KMeans

    return np.asarray(KMeans(count, n_init=starts, random_state=seed).fit_predict(embeddings), np.int64)


def agreement(labels: Sequence[str], found: Ints, *, seed: int = 0, resamples: int = 1000,
              conditions: Mapping[str, Any] | None = None) -> dict[str, Measurement]:
    """``v_measure`` and ``adjusted_rand`` of clusters against labels, with bootstrap intervals over items (the
    clusters stay as they are: the interval is of the score, not of k-means)."""
    if len(labels) != len(found) or not len(found):
        raise DataError(f"{len(labels):,} labels and {len(found):,} clusters", way_out="give one cluster an item")
    from scipy.sparse import csr_matrix

    truth, place = np.unique(np.asarray(labels), return_inverse=True)
    groups, group = np.unique(found, return_inverse=True)
    shape = (len(truth), len(groups))
    rows = csr_matrix((np.ones(len(found)), (np.arange(len(found)), place * shape[1] + group)),
                      (len(found), shape[0] * shape[1]))
    told = {**(conditions or {}), "labels": shape[0], "clusters": shape[1]}
    return {name: Statistics(name, "share" if name == "v_measure" else "", rows,
                             lambda sums, f=figure: np.array([f(s.reshape(shape)) for s in sums]),  # type: ignore[misc]
                             told).measure(seed=seed, resamples=resamples)
            for name, figure in (("v_measure", v_measure), ("adjusted_rand", adjusted_rand))}


def v_measure(table: Floats) -> float:
    """The harmonic mean of homogeneity and completeness of a table of counts (labels, clusters)."""
    both, labels, groups = _entropy(table), _entropy(table.sum(1)), _entropy(table.sum(0))
    shared = labels + groups - both
    return 1.0 if labels + groups == 0 else max(0.0, 2 * shared / (labels + groups))


def _entropy(counts: Floats) -> float:
    p = counts[counts > 0] / counts.sum()
    return max(0.0, float(-(p * np.log(p)).sum()))


def adjusted_rand(table: Floats) -> float:
    """The share of pairs of items on which labels and clusters agree, corrected for chance: 0 is chance, 1 perfect."""
    def pairs(counts: Floats) -> float:
        return float((counts * (counts - 1) / 2).sum())

    both, labels, groups, n = pairs(table), pairs(table.sum(1)), pairs(table.sum(0)), float(table.sum())
    chance = labels * groups / (n * (n - 1) / 2) if n > 1 else 0.0
    most = (labels + groups) / 2
    return 1.0 if most == chance else (both - chance) / (most - chance)
