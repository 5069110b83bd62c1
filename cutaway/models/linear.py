"""Linear classifiers fitted by scikit-learn: logistic regression, the linear SVM (Joachims 1998), NB-SVM (Wang and
Manning 2012), and the two numbers that make an SVM's margins probabilities (Platt 1999; Guo et al., arXiv 1706.04599).

N rows, F features, C classes, K columns of weights: C, or 1 where there are two classes and each text has one.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Truth = Ints  # (N,) class of each row, or (N, C) zeros and ones

_STEEPEST = 5.0  # |ln| of the slope: beyond e^5 the held-out part was separated, and more says nothing


@dataclass(frozen=True, slots=True)
class How:
    """Which classifier, and its settings."""

    classifier: Literal["logistic", "svm", "nbsvm"]
    C: float
    balanced: bool
    beta: float
    seed: int


class Plane(NamedTuple):
    """Weights ``(F, K)``, intercepts ``(K,)``, and what the solver had to say."""

    weights: Floats
    intercept: Floats
    notes: tuple[str, ...]


def fit_plane(matrix: csr_matrix, truth: Truth, how: How) -> Plane:
    """Weights whose decisions ``matrix @ weights + intercept`` are positive for a class's own rows.

    A class that all rows or no row has (only ever in a part of the data) decides ±1 by its intercept alone.
    """
    if how.classifier == "nbsvm":
        return _columns(matrix, truth if truth.ndim == 2 else _one_hot(truth), how)
    if truth.ndim == 2:
        return _columns(matrix, truth, how)
    return _solve(matrix, truth, how)


def _one_hot(truth: Ints) -> Ints:
    """``(N, K)``: one column a class, or the second class's alone where there are two."""
    classes = int(truth.max()) + 1
    columns = np.arange(classes) if classes > 2 else np.array([1])
    return np.asarray(truth[:, None] == columns, np.int64)


def _columns(matrix: csr_matrix, truth: Ints, how: How) -> Plane:
    planes = [_column(matrix, truth[:, k], how) for k in range(truth.shape[1])]
    notes = dict.fromkeys(note for p in planes for note in p.notes)
    return Plane(np.concatenate([p.weights for p in planes], 1), np.concatenate([p.intercept for p in planes]),
                 tuple(notes))


def _column(matrix: csr_matrix, positive: Ints, how: How) -> Plane:
    if positive.min() == positive.max():
        return Plane(np.zeros((matrix.shape[1], 1)), np.array([1.0 if positive[0] else -1.0]), ())
    if how.classifier != "nbsvm":
        return _solve(matrix, positive, how)
    ratio = log_count_ratio(matrix, positive)
    weights, intercept, notes = _solve(matrix.multiply(ratio).tocsr(), positive, how)
    mean = np.abs(weights).mean()
    return Plane(ratio[:, None] * ((1 - how.beta) * mean + how.beta * weights), intercept, notes)


def log_count_ratio(matrix: csr_matrix, positive: Ints) -> Floats:
    """r ``(F,)`` = ln of each feature's share of the positive rows' counts over its share of the others', both
    smoothed by one."""
    up = 1.0 + np.asarray(matrix[positive == 1].sum(0)).ravel()
    down = 1.0 + np.asarray(matrix[positive == 0].sum(0)).ravel()
    return np.asarray(np.log((up / up.sum()) / (down / down.sum())))


def estimator_of(how: How) -> Any:
    """scikit-learn's estimator of the same meaning."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    weight = "balanced" if how.balanced else None
    if how.classifier == "logistic":
        return LogisticRegression(C=how.C, class_weight=weight, max_iter=1000)
    return LinearSVC(C=how.C, class_weight=weight, random_state=how.seed)


def _solve(matrix: csr_matrix, truth: Ints, how: How) -> Plane:
    from sklearn.exceptions import ConvergenceWarning

    estimator = estimator_of(how)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", ConvergenceWarning)
        estimator.fit(matrix, truth)
    for w in said:
        if not issubclass(w.category, ConvergenceWarning):
            warnings.warn_explicit(w.message, w.category, w.filename, w.lineno)
    late = any(issubclass(w.category, ConvergenceWarning) for w in said)
    notes = (f"the solver of {how.classifier} stopped before it had converged",) if late else ()
    return Plane(np.ascontiguousarray(estimator.coef_.T, np.float64), np.array(estimator.intercept_, np.float64), notes)


def log_scores(decisions: Floats, slope: float, offset: float, *, multi_label: bool) -> Floats:
    """``(N, C)`` from decisions ``(N, K)``: log-probabilities, or with ``multi_label`` log-odds."""
    z = slope * decisions + offset
    if multi_label:
        return z
    if z.shape[1] == 1:
        return np.concatenate([-np.logaddexp(0.0, z), -np.logaddexp(0.0, -z)], 1)
    top = z - z.max(1, keepdims=True)
    return np.asarray(top - np.log(np.exp(top).sum(1, keepdims=True)))


def held_part(truth: Truth, share: float, seed: int) -> NDArray[np.bool_]:
    """Which rows are held out: ``share`` of each class's, rounded down, so that every class is still learned."""
    draw = np.random.default_rng(seed)
    held = np.zeros(len(truth), bool)
    groups = [np.arange(len(truth))] if truth.ndim == 2 else [np.flatnonzero(truth == c) for c in np.unique(truth)]
    for rows in groups:
        held[draw.permutation(rows)[: int(share * len(rows))]] = True
    return held


def calibrate(decisions: Floats, truth: Truth) -> tuple[float, float]:
    """Slope and offset that make ``log_scores`` likeliest on rows the weights were not fitted on: one temperature for
    several classes, Platt's two numbers (with his smoothed targets) for two classes and for labels by themselves."""
    from scipy.optimize import minimize

    several = decisions.shape[1] > 1 and truth.ndim == 1

    def loss(x: Floats) -> float:
        if several:
            logs = log_scores(decisions, float(np.exp(x[0])), 0.0, multi_label=False)
            return -float(logs[np.arange(len(truth)), truth].mean())
        z = np.exp(x[0]) * decisions.ravel() + x[1]
        return float(-(targets * -np.logaddexp(0.0, -z) + (1 - targets) * -np.logaddexp(0.0, z)).mean())

    on = truth.ravel() if not several else np.zeros(0)
    targets = np.where(on == 1, (on.sum() + 1) / (on.sum() + 2), 1 / (len(on) - on.sum() + 2))
    bounds = [(-_STEEPEST, _STEEPEST)] + ([] if several else [(-20.0, 20.0)])
    best = minimize(loss, np.zeros(len(bounds)), method="L-BFGS-B", bounds=bounds).x
    return float(np.exp(best[0])), 0.0 if several else float(best[1])
