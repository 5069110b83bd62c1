"""Scores of classifiers: accuracy, precision, recall and F1 (van Rijsbergen 1979) with intervals, calibration (Guo et
al., arXiv 1706.04599), what is out of scope (Larson et al., arXiv 1909.02027), and two systems on the same items.

A label is text, or a tuple of texts where an item may have several. A label that the classifier does not know counts as
missed. N items, C classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cutaway.data.table import Label, each
from cutaway.errors import DataError
from cutaway.evaluate.answers import paired_change
from cutaway.evaluate.resample import Statistics, ratio
from cutaway.records import Measurement, wilson

Floats = NDArray[np.float64]
Labels = Sequence[str] | Sequence[tuple[str, ...]]
Average = Literal["macro", "micro"]


def accuracy(right: Labels, given: Labels) -> Measurement:
    """The share of items whose label (or whole set of labels) was given, with Wilson's interval."""
    hits = _hits(right, given)
    return Measurement("accuracy", sum(hits) / len(hits), "share", len(hits), *wilson(sum(hits), len(hits)))


def _hits(right: Labels, given: Labels) -> list[bool]:
    if len(right) != len(given) or not right:
        raise DataError(f"{len(right):,} items and {len(given):,} answers cannot be scored",
                        way_out="give one answer an item, and an item or more")
    pairs: Iterable[tuple[Label, Label]] = zip(right, given, strict=True)
    return [set(each(r)) == set(each(g)) for r, g in pairs]


def _counts(right: Labels, given: Labels, classes: Sequence[str]) -> Any:
    """Sparse ``(N, 3C)``: true positives, given, and right, class by class."""
    from scipy.sparse import csr_matrix

    _hits(right, given)
    place = {c: i for i, c in enumerate(classes)}
    rows: list[int] = []
    columns: list[int] = []
    pairs: Iterable[tuple[Label, Label]] = zip(right, given, strict=True)
    for i, (r, g) in enumerate(pairs):
        truth, said = {place[x] for x in each(r)}, {place[x] for x in each(g)}
        found = [*(truth & said), *(len(place) + x for x in said), *(2 * len(place) + x for x in truth)]
        rows += [i] * len(found)
        columns += found
    return csr_matrix((np.ones(len(rows)), (rows, columns)), (len(right), 3 * len(place)))


def classes_of(*answers: Labels) -> tuple[str, ...]:
    """Every label that stands in any of them, sorted."""
    return tuple(sorted({one for labels in answers for label in labels for one in each(label)}))


def f1_statistics(right: Labels, given: Labels, *, average: Average = "macro",
                  classes: Sequence[str] | None = None) -> Statistics:
    """F1 as sums that can be resampled. ``micro``: of all decisions together; ``macro``: the mean over ``classes``
    (those that are right or given somewhere, unless named) of each class's F1, 0 where it has neither."""
    classes = tuple(classes or classes_of(right, given))
    count = len(classes)

    def figure(sums: Floats) -> Floats:
        hit, said, truth = sums[:, :count], sums[:, count:2 * count], sums[:, 2 * count:]
        if average == "micro":
            return ratio(2 * hit.sum(1), said.sum(1) + truth.sum(1))
        return np.asarray(np.nan_to_num(ratio(2 * hit, said + truth)).mean(1))

    return Statistics(f"{average}_f1", "share", _counts(right, given, classes), figure, {"classes": count})


def f1(right: Labels, given: Labels, *, average: Average = "macro", classes: Sequence[str] | None = None,
       seed: int = 0) -> Measurement:
    """F1 with a bootstrap interval over items (see ``f1_statistics``)."""
    return f1_statistics(right, given, average=average, classes=classes).measure(seed=seed)


@dataclass(frozen=True, slots=True)
class ClassScore:
    """One class: how many items have it, and its three shares. A precision of no answers is NaN."""

    label: str
    n: int
    precision: Measurement
    recall: Measurement
    f1: Measurement


def by_class(right: Labels, given: Labels, *, seed: int = 0, resamples: int = 1000) -> list[ClassScore]:
    """Precision, recall and F1 of every class that is right or given somewhere, with bootstrap intervals over items."""
    classes = classes_of(right, given)
    counts, size = _counts(right, given, classes), len(classes)
    parts = {"precision": lambda s: ratio(s[:, 0], s[:, 1]), "recall": lambda s: ratio(s[:, 0], s[:, 2]),
             "f1": lambda s: ratio(2 * s[:, 0], s[:, 1] + s[:, 2])}
    out = []
    for i, label in enumerate(classes):
        rows = counts[:, [i, size + i, 2 * size + i]]
        found = {name: Statistics(name, "share", rows, figure, {"label": label}).measure(seed=seed, resamples=resamples)
                 for name, figure in parts.items()}
        out.append(ClassScore(label, int(rows[:, 2].sum()), found["precision"], found["recall"], found["f1"]))
    return out


def confusions(right: Sequence[str], given: Sequence[str], *, top: int = 10) -> list[tuple[str, str, int]]:
    """The most frequent mistakes: (right, given, how often); of equals the first by name."""
    found = Counter((r, g) for r, g in zip(right, given, strict=True) if r != g)
    return [(r, g, n) for (r, g), n in sorted(found.items(), key=lambda item: (-item[1], item[0]))[:top]]


def calibration_error(scores: Floats, right: Sequence[str], labels: Sequence[str], *, bins: int = 15,
                      seed: int = 0) -> Measurement:
    """Expected calibration error of log-probabilities ``(N, C)``: the mean gap between the best label's probability
    and how often it is right, over equally wide bins.

    It is never 0 on few items: ``noise_floor`` in the conditions is what a perfectly calibrated classifier of the
    same confidences would show (mean of 200 draws), and ``noise_high`` its 97.5th percentile.
    """
    if len(scores) != len(right) or not len(right):
        raise DataError(f"{len(scores):,} scores and {len(right):,} labels", way_out="give one row of scores an item")
    sure = np.minimum(np.exp(scores.max(1)), 1.0)
    hit = np.array([labels[i] == r for i, r in zip(scores.argmax(1), right, strict=True)], np.float64)
    place = np.minimum((sure * bins).astype(int), bins - 1)
    rows = np.zeros((len(sure), bins))
    rows[np.arange(len(sure)), place] = sure - hit
    n = len(sure)
    found = Statistics("calibration_error", "share", rows, lambda sums: np.abs(sums).sum(1) / n).measure(seed=seed)
    draw = np.random.default_rng(seed)
    chance = [np.abs(np.bincount(place, sure - (draw.random(n) < sure), bins)).sum() / n for _ in range(200)]
    return Measurement(found.name, found.value, found.unit, n, found.low, found.high, {
        **found.conditions, "bins": bins, "noise_floor": float(np.mean(chance)),
        "noise_high": float(np.quantile(chance, 0.975))})


def scope_threshold(sure: Floats, hit: Sequence[bool], sure_outside: Floats, *, balanced: bool = False) -> float:
    """The confidence below which a text is held to be out of scope, chosen on validation texts: ``sure`` and ``hit``
    of those in scope, ``sure_outside`` of the others. The most texts are treated rightly (Larson et al.'s rule), or
    with ``balanced`` the mean of in-scope accuracy and out-of-scope recall is highest; the lowest such threshold."""
    inside, outside = np.asarray(sure, np.float64), np.asarray(sure_outside, np.float64)
    if not len(inside) or not len(outside) or len(inside) != len(hit):
        raise DataError("a threshold needs validation texts in scope and out of scope")
    edges = np.unique(np.concatenate([inside, outside]))
    tried = np.concatenate([[edges[0]], (edges[:-1] + edges[1:]) / 2, [np.nextafter(edges[-1], np.inf)]])
    kept = np.sort(inside[np.asarray(hit, bool)])
    accepted = len(kept) - np.searchsorted(kept, tried, side="left")
    refused = np.searchsorted(np.sort(outside), tried, side="left")
    value = accepted / len(inside) + refused / len(outside) if balanced else accepted + refused
    return float(tried[int(np.argmax(value))])


def scope(sure: Floats, hit: Sequence[bool], sure_outside: Floats, threshold: float) -> dict[str, Measurement]:
    """At a threshold: ``in_scope_accuracy`` (right and not refused) and ``out_of_scope_recall`` (refused)."""
    accepted = int((np.asarray(hit, bool) & (np.asarray(sure) >= threshold)).sum())
    refused = int((np.asarray(sure_outside) < threshold).sum())
    out = {}
    for name, count, n in (("in_scope_accuracy", accepted, len(sure)), ("out_of_scope_recall", refused,
                                                                        len(sure_outside))):
        if not n:
            raise DataError(f"there is no text to measure {name} on")
        out[name] = Measurement(name, count / n, "share", n, *wilson(count, n), {"threshold": threshold})
    return out


def compare(right: Labels, before: Labels, after: Labels, *, average: Average = "macro",
            seed: int = 0) -> dict[str, Measurement]:
    """Two systems on the same items, after less before: accuracy with McNemar's exact test, F1 with a paired
    bootstrap."""
    pairs = list(zip(_hits(right, before), _hits(right, after), strict=True))
    classes = classes_of(right, before, after)
    one, two = (f1_statistics(right, g, average=average, classes=classes) for g in (before, after))
    return {"accuracy": paired_change("accuracy_change", pairs, {}), f"{average}_f1": one.change(two, seed=seed)}
