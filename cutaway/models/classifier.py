"""What every text classifier is to a caller: texts in, scores of fixed labels out, bag of words or network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@runtime_checkable
class Classifier(Protocol):
    """Scores texts. N texts, C labels."""

    @property
    def labels(self) -> tuple[str, ...]:
        """What a column of the scores stands for; sorted, each once."""

    @property
    def multi_label(self) -> bool:
        """Whether a text may have any number of labels, and not exactly one."""

    def scores(self, texts: Sequence[str]) -> Floats:
        """``(N, C)``. One label a text: log-probabilities, each row's exponentials sum to one. ``multi_label``: the
        log-odds of each label by itself, which is given where they are above 0."""


def predicted(classifier: Classifier, texts: Sequence[str]) -> tuple[str, ...] | tuple[tuple[str, ...], ...]:
    """The best label of each text (the first of equals), or with ``multi_label`` those of log-odds above 0."""
    scores = classifier.scores(texts)
    if classifier.multi_label:
        return tuple(tuple(label for label, on in zip(classifier.labels, row, strict=True) if on) for row in scores > 0)
    return tuple(classifier.labels[i] for i in scores.argmax(1)) if len(scores) else ()
