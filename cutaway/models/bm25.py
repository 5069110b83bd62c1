"""BM25 (Robertson et al. 1994), the word search that learned embeddings have to beat. Q queries, D documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cutaway.errors import DataError
from cutaway.models.features import Grams, Tokens, WordGrams, fit_block

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


@dataclass(frozen=True)
class BM25:
    """Documents as weights of their words ``(D, F)``: idf × tf saturated by ``k1``, long texts damped by ``b``."""

    words: Grams
    weights: csr_matrix

    def scores(self, queries: Sequence[str]) -> NDArray[np.float64]:
        """``(Q, D)``; 0 where no word is shared. A word counts as often as the query has it."""
        return np.asarray((self.words.matrix(queries) @ self.weights.T).toarray())


def fit_bm25(documents: Sequence[str], *, k1: float = 1.5, b: float = 0.75, tokens: Tokens = "words") -> BM25:
    """The index of some documents, idf as in Lucene: ln(1 + (D - df + ½) / (df + ½)). Raises DataError for none."""
    if not documents:
        raise DataError("there is no document to search in")
    block, counts = fit_block(WordGrams(high=1, weight="count", tokens=tokens), documents)
    assert isinstance(block, Grams)
    length = np.asarray(counts.sum(1)).ravel()
    df = np.bincount(counts.indices, minlength=counts.shape[1])
    idf = np.log1p((len(documents) - df + 0.5) / (df + 0.5))
    damp = np.repeat(k1 * (1 - b + b * length / max(length.mean(), 1e-9)), np.diff(counts.indptr))
    weights = counts.copy()
    weights.data = idf[counts.indices] * counts.data * (k1 + 1) / (counts.data + damp)
    return BM25(block, weights)
