"""A network with a head of classes or vectors and its tokenizer, as callers want them: texts in, scores or vectors
out. Any architecture serves: encoder, decoder, recurrent, convolution, and an encoder-decoder whose target only begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cutaway.errors import ModelError
from cutaway.models.heads import ClassHead, VectorHead
from cutaway.models.model import Model
from cutaway.models.reading import Ids, TooLong, averaged, averaged_rows, framed_rows, longer
from cutaway.text.tokenizer import Tokenizer

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class TextClassifier:
    """Scores texts by a model with a head of classes. N texts, C labels.

    A text longer than the context is refused with both numbers, or ``too_long`` reads its head ("cut") or averages
    the logits of its windows ("windows"); ``too_long_of`` says which texts that concerns.
    """

    model: Model
    tokenizer: Tokenizer
    too_long: TooLong = "refuse"

    def __post_init__(self) -> None:
        if not isinstance(self.model.head, ClassHead):
            raise ModelError("the model has no head of classes", way_out="train one, or give it one with with_head")
        _same_vocabulary(self.model, self.tokenizer)

    @property
    def labels(self) -> tuple[str, ...]:
        """What a column of the scores stands for."""
        assert isinstance(self.model.head, ClassHead)
        return self.model.head.classes.labels

    @property
    def multi_label(self) -> bool:
        """Whether a text may have any number of labels, and not exactly one."""
        assert isinstance(self.model.head, ClassHead)
        return self.model.head.classes.multi_label

    def scores(self, texts: Sequence[str]) -> Floats:
        """``(N, C)`` log-probabilities; with ``multi_label`` log-odds, above 0 where a label is given."""
        if not len(texts):
            return np.zeros((0, len(self.labels)))
        logits = averaged(self.model, texts, self.tokenizer, too_long=self.too_long)
        return logits if self.multi_label else log_softmax(logits)

    def too_long_of(self, texts: Sequence[str]) -> list[int]:
        """The numbers of the texts that the context does not hold whole."""
        return longer(framed_rows(texts, self.tokenizer), self.model.context_length)


@dataclass(frozen=True, eq=False)
class TextEmbedder:
    """Gives each text a vector by a model with a head of vectors; long texts as in ``TextClassifier``."""

    model: Model
    tokenizer: Tokenizer
    too_long: TooLong = "refuse"

    def __post_init__(self) -> None:
        if not isinstance(self.model.head, VectorHead):
            raise ModelError("the model has no head of vectors", way_out="train one, or give it one with with_head")
        _same_vocabulary(self.model, self.tokenizer)

    @property
    def width(self) -> int:
        """Numbers in a vector."""
        return int(self.model.config.hidden_size)

    def vectors(self, texts: Sequence[str]) -> Floats:
        """``(N, D)``, each of length 1 where the model's are."""
        return self.vectors_of_rows(framed_rows(texts, self.tokenizer))

    def vectors_of_rows(self, rows: Sequence[Ids]) -> Floats:
        """``vectors`` of texts that are ids already, framed as ``reading.framed_rows`` does it."""
        if not len(rows):
            return np.zeros((0, self.width))
        given = averaged_rows(self.model, rows, self.tokenizer, too_long=self.too_long)
        assert isinstance(self.model.head, VectorHead)
        if not self.model.head.vector.unit:
            return given
        return np.asarray(given / np.linalg.norm(given, axis=1, keepdims=True), np.float64)

    def cosines(self, texts: Sequence[str]) -> Floats:
        """How alike the texts are, each with each: ``(N, N)``."""
        vectors = self.vectors(texts)
        unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
        return np.asarray(unit @ unit.T, np.float64)

    def too_long_of(self, texts: Sequence[str]) -> list[int]:
        """The numbers of the texts that the context does not hold whole."""
        return longer(framed_rows(texts, self.tokenizer), self.model.context_length)


def log_softmax(logits: Floats) -> Floats:
    """Log-probabilities of each row, ``(N, C)``."""
    shifted = logits - logits.max(1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)), np.float64)


def _same_vocabulary(model: Model, tokenizer: Tokenizer) -> None:
    if model.vocab_size < tokenizer.vocab_size:
        raise ModelError(f"the model knows {model.vocab_size} tokens and the tokenizer has {tokenizer.vocab_size}",
                         way_out="use the tokenizer the model was trained with")
