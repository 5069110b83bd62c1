"""Search by words as a system of a comparison: tf-idf beside BM25, and both saved without pickle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cutaway.models.features import Block, WordGrams, fit_block
from cutaway.records import atomic_write


@dataclass(frozen=True)
class Tfidf:
    """Cosines of tf-idf rows."""

    words: Block
    weights: Any  # csr_matrix (D, F)

    def scores(self, queries: Sequence[str]) -> NDArray[np.float64]:
        """``(Q, D)``."""
        return np.asarray((self.words.matrix(queries) @ self.weights.T).toarray())


def tfidf(documents: Sequence[str]) -> Tfidf:
    """The index of some documents, single words and marks."""
    block, matrix = fit_block(WordGrams(high=1, tokens="all"), documents)
    return Tfidf(block, matrix)


def save_words(folder: Path, words: Any, targets: Sequence[str] = ()) -> int:
    """The index as numbers and the texts beside it; returns the bytes that serve it."""
    from safetensors.numpy import save

    matrix = words.weights
    arrays = {"data": matrix.data, "indices": matrix.indices, "indptr": matrix.indptr}
    folder.mkdir()
    atomic_write(folder / "index.safetensors", save(arrays))
    atomic_write(folder / "index.json", json.dumps({"words": words.words.names, "targets": list(targets)},
                                                   ensure_ascii=False))
    return int(sum(a.nbytes for a in arrays.values()) + sum(len(t.encode()) for t in targets))
