"""Bag of words: sparse features and a linear classifier, the baseline that networks have to beat (Joachims 1998; Wang &
Manning 2012).

Fitted by scikit-learn, kept and applied without it. Because it is linear, every score can be taken apart into what
each feature added. N texts, C labels, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from cutaway.errors import DataError, RequestError
from cutaway.models.features import Block, CharGrams, Feature, HandMade, WordGrams, fit_block
from cutaway.models.linear import How, Truth, calibrate, fit_plane, held_part, log_scores
from cutaway.settings import Settings

Floats = NDArray[np.float64]
Labels = Sequence[str] | Sequence[tuple[str, ...]]
_ROWS = 4096  # texts scored at once: bounds memory, changes no score


class BagConfig(Settings):
    """Features, side by side, and the classifier on them. ``C``: how much an error on a training text costs.

    ``calibration_share``: the part held out to make an SVM's margins probabilities; 0 leaves margins as they are.
    ``beta``: how far NB-SVM trusts the SVM over the counts (1 = the SVM alone).
    """

    kind: Literal["bag"] = "bag"
    features: tuple[Feature, ...] = Field(default=(WordGrams(), CharGrams()), min_length=1)
    classifier: Literal["logistic", "svm", "nbsvm"] = "svm"
    C: float = Field(default=1.0, gt=0.0)
    class_weight: Literal["none", "balanced"] = "none"
    beta: float = Field(default=0.25, ge=0.0, le=1.0)
    calibration_share: float = Field(default=0.2, ge=0.0, lt=0.5)

    @model_validator(mode="after")
    def _counts(self) -> Self:
        if self.classifier == "nbsvm" and any(isinstance(f, HandMade) or f.weight != "binary" for f in self.features):
            raise ValueError('nbsvm compares counts: every feature must be n-grams with weight = "binary"')
        return self

    def how(self, seed: int) -> How:
        """The part of it that the linear classifier sees."""
        return How(self.classifier, self.C, self.class_weight == "balanced", self.beta, seed)


@dataclass(frozen=True, slots=True)
class Moved:
    """What one feature added to the decision for a label: ``value`` in the text × ``weight``."""

    feature: str
    value: float
    weight: float
    added: float


@dataclass(frozen=True)
class Bag:
    """A ``Classifier``. ``weights (F, K)``, blocks one below the other; K = C, or 1 where each text has one of two."""

    config: BagConfig
    labels: tuple[str, ...]
    multi_label: bool
    blocks: tuple[Block, ...]
    weights: Floats
    intercept: Floats
    slope: float = 1.0
    offset: float = 0.0
    notes: tuple[str, ...] = ()

    def scores(self, texts: Sequence[str]) -> Floats:
        """``(N, C)`` log-probabilities; log-odds with ``multi_label``. A text without a known feature gets the
        intercepts' scores."""
        return log_scores(self.decisions(texts), self.slope, self.offset, multi_label=self.multi_label)

    def decisions(self, texts: Sequence[str]) -> Floats:
        """Margins ``(N, K)`` before calibration: the equal of scikit-learn's ``decision_function``."""
        if isinstance(texts, str):
            raise RequestError("one text was given where a list of texts is wanted", way_out="write [text]")
        out = np.tile(self.intercept, (len(texts), 1))
        for at in range(0, len(texts), _ROWS):
            part = texts[at:at + _ROWS]
            for block, weights in zip(self.blocks, self._slices, strict=True):
                out[at:at + len(part)] += block.matrix(part) @ weights
        return out

    @cached_property
    def _slices(self) -> list[Floats]:
        edges = np.cumsum([0, *(len(b.names) for b in self.blocks)])
        return [self.weights[a:b] for a, b in pairwise(edges)]

    @cached_property
    def features(self) -> list[str]:
        """Every feature's name, in the order of the weights."""
        return [name for block in self.blocks for name in block.names]

    def explain(self, text: str, label: str, *, top: int = 10) -> list[Moved]:
        """The features that moved the decision for ``label`` most, either way; all of them and the intercept sum to
        the decision. Raises RequestError for a label that it does not know."""
        if label not in self.labels:
            raise RequestError(f"there is no label {label!r}", way_out=f"choose one of {', '.join(self.labels[:20])}")
        column, sign = self.labels.index(label), 1.0
        if self.weights.shape[1] == 1 and not self.multi_label:
            column, sign = 0, 1.0 if column == 1 else -1.0
        from scipy.sparse import hstack

        row = hstack([block.matrix([text]) for block in self.blocks]).tocsr()
        weights = sign * self.weights[row.indices, column]
        added = row.data * weights
        order = np.argsort(-np.abs(added), kind="stable")[:top]
        return [Moved(self.features[row.indices[i]], float(row.data[i]), float(weights[i]), float(added[i]))
                for i in order]


def fit_bag(texts: Sequence[str], labels: Labels, config: BagConfig | None = None, *, seed: int = 0) -> Bag:
    """A bag fitted to texts and their labels (a tuple of labels each: any number of them a text).

    An SVM is fitted twice where it is calibrated: without the held-out part, whose margins give slope and offset, and
    then with it. Raises DataError for lists of unequal length, fewer than two labels, or texts without features.
    """
    config = config or BagConfig()
    names, truth = encoded(texts, labels)
    fitted = [fit_block(feature, texts) for feature in config.features]
    from scipy.sparse import hstack

    matrix = hstack([m for _, m in fitted]).tocsr() if len(fitted) > 1 else fitted[0][1]
    how, notes = config.how(seed), list[str]()
    slope, offset = 1.0, 0.0
    if config.classifier != "logistic":
        held = held_part(truth, config.calibration_share, seed)
        if held.any():
            plane = fit_plane(matrix[~held], truth[~held], how)
            slope, offset = calibrate(matrix[held] @ plane.weights + plane.intercept, truth[held])
            notes.append(f"calibrated on {int(held.sum()):,} of {len(texts):,} texts, then fitted on all")
        else:
            notes.append("not calibrated: margins stand for log-odds")
    plane = fit_plane(matrix, truth, how)
    return Bag(config, names, truth.ndim == 2, tuple(b for b, _ in fitted), plane.weights, plane.intercept, slope,
               offset, (*notes, *plane.notes))


def encoded(texts: Sequence[str], labels: Labels) -> tuple[tuple[str, ...], Truth]:
    """The sorted labels, and each text's class ``(N,)`` or, with several labels a text, zeros and ones ``(N, C)``."""
    if len(texts) != len(labels):
        raise DataError(f"{len(texts):,} texts and {len(labels):,} labels", way_out="give one label a text")
    multi = any(isinstance(label, tuple) for label in labels)
    rows = [label if isinstance(label, tuple) else (label,) for label in labels]
    if multi and not all(isinstance(label, tuple) for label in labels):
        raise DataError("some texts have a label and some a tuple of labels", way_out="give tuples to all")
    names = tuple(sorted({name for row in rows for name in row}))
    if len(names) < 2 and not (multi and names):
        raise DataError(f"{len(names)} label is no choice" if names else "there are no labels",
                        way_out="give examples of two labels or more")
    place = {name: i for i, name in enumerate(names)}
    if not multi:
        return names, np.array([place[row[0]] for row in rows], np.int64)
    truth = np.zeros((len(rows), len(names)), np.int64)
    for i, row in enumerate(rows):
        truth[i, [place[name] for name in row]] = 1
    constant = [n for n, k in zip(names, truth.min(0), strict=True) if k]
    if constant:
        raise DataError(f"every text has the label {constant[0]!r}", way_out="give texts without it, or leave it out")
    return names, truth
