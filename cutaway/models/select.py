"""Hyper-parameters of a bag by cross-validation on the training texts alone (Stone 1974), the same on every run.

A fold's vocabulary comes from its other folds, as a test text's would. All choices are tried on the same folds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cutaway.errors import DataError
from cutaway.models.bag import BagConfig, Labels, encoded
from cutaway.models.features import fit_block
from cutaway.models.linear import Truth, fit_plane
from cutaway.records import Measurement, wilson

GRID = (0.1, 0.3, 1.0, 3.0, 10.0)


@dataclass(frozen=True, slots=True)
class Tried:
    """One choice and the share of training texts that it got right while they were held out."""

    config: BagConfig
    right: Measurement


@dataclass(frozen=True, slots=True)
class Selection:
    """The best choice, and all that were tried in the order they were given."""

    config: BagConfig
    tried: tuple[Tried, ...]

    def __str__(self) -> str:
        rows = [f"{'* ' if t.config is self.config else '  '}C = {t.config.C:g}, "
                f"{' + '.join(f.kind for f in t.config.features)}: {t.right}" for t in self.tried]
        return "\n".join(rows)


def folds_of(truth: Truth, folds: int, seed: int) -> NDArray[np.int64]:
    """The fold of each row: each class dealt out evenly, in an order drawn from ``seed``."""
    draw = np.random.default_rng(seed)
    order = draw.permutation(len(truth))
    keys = truth[order] if truth.ndim == 1 else truth[order].argmax(1)
    dealt = order[np.argsort(keys, kind="stable")]
    out = np.empty(len(truth), np.int64)
    out[dealt] = np.arange(len(truth)) % folds
    return out


def select(texts: Sequence[str], labels: Labels, configs: Sequence[BagConfig] = (BagConfig(),), *,
           grid: Sequence[float] = GRID, folds: int = 5, seed: int = 0) -> Selection:
    """The config and ``C`` of ``grid`` that is right on most held-out folds; the earlier config, and then the smaller
    C, of equals. With several labels a text, a text is right where all of them are.

    Costs folds × configs × grid fits. Raises DataError for an empty grid or fewer texts of a class than two.
    """
    names, truth = encoded(texts, labels)
    if not configs or not grid or folds < 2:
        raise DataError("there is nothing to choose from", way_out="give configs, a grid, and two folds or more")
    if truth.ndim == 1 and (rare := [n for n, c in zip(names, np.bincount(truth), strict=True) if c < 2]):
        raise DataError(f"the label {rare[0]!r} stands once and cannot be held out", way_out="leave such labels out")
    fold = folds_of(truth, folds, seed)
    right = np.zeros((len(configs), len(grid)), np.int64)
    for held in range(folds):
        for i, config in enumerate(configs):
            right[i] += _right(texts, truth, fold == held, [config.model_copy(update={"C": c}) for c in grid], seed)
    n = len(texts)
    tried = tuple(Tried(config.model_copy(update={"C": c}), Measurement(
        "accuracy", right[i, j] / n, "share", n, *wilson(int(right[i, j]), n), {"folds": folds, "seed": seed}))
        for i, config in enumerate(configs) for j, c in enumerate(grid))
    best = max(range(len(tried)), key=lambda t: (tried[t].right.value, -(t // len(grid)), -tried[t].config.C))
    return Selection(tried[best].config, tried)


def _right(texts: Sequence[str], truth: Truth, held: NDArray[np.bool_], configs: Sequence[BagConfig],
           seed: int) -> list[int]:
    """How many held-out rows each config gets right; they differ in C alone, so the features are made once."""
    from scipy.sparse import hstack

    learned, asked = ([t for t, h in zip(texts, held, strict=True) if h == side] for side in (False, True))
    fitted = [fit_block(feature, learned) for feature in configs[0].features]
    matrix = hstack([m for _, m in fitted]).tocsr()
    test = hstack([b.matrix(asked) for b, _ in fitted]).tocsr()
    known, place = (np.unique(truth[~held], return_inverse=True) if truth.ndim == 1
                    else (np.arange(truth.shape[1]), truth[~held]))
    out = []
    for config in configs:
        plane = fit_plane(matrix, place, config.how(seed))
        decisions = test @ plane.weights + plane.intercept
        if truth.ndim == 2:
            out.append(int(((decisions > 0) == truth[held]).all(1).sum()))
            continue
        best = decisions.argmax(1) if decisions.shape[1] > 1 else (decisions[:, 0] > 0).astype(np.int64)
        out.append(int((known[best] == truth[held]).sum()))
    return out
