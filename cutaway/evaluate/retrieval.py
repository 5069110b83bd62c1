"""Scores of search: recall@k, mean reciprocal rank and nDCG@k (Järvelin & Kekäläinen 2002) with intervals over queries,
by exact search in blocks. Q queries, D documents, W width of an embedding.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from cutaway.errors import DataError
from cutaway.evaluate.resample import mean_of
from cutaway.records import Measurement

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]
Relevant = Sequence[Collection[int]] | Sequence[Mapping[int, float]]
_BLOCK = 16_000_000  # scores held at once


def top_of(scores: Floats, count: int) -> Ints:
    """The best documents of each row of scores ``(Q, D)``, best first ``(Q, count)``; of equals the earlier one."""
    count = min(count, scores.shape[1])
    if count < scores.shape[1]:
        edge = np.partition(scores, scores.shape[1] - count, axis=1)[:, -count, None]
        out = np.empty((len(scores), count), np.int64)
        for i, row in enumerate(scores):
            better = np.flatnonzero(row > edge[i])
            chosen = np.concatenate([better, np.flatnonzero(row == edge[i])[: count - len(better)]])
            out[i] = chosen[np.lexsort((chosen, -row[chosen]))]
        return out
    return np.argsort(-scores, axis=1, kind="stable").astype(np.int64)


def search(queries: Floats, documents: Floats, *, count: int = 100, cosine: bool = True) -> Ints:
    """The documents of highest dot product (of cosine, unless told otherwise) with each query ``(Q, count)``, exactly.

    Raises DataError for embeddings of two widths, that are not finite, or of length 0 where the cosine is asked for.
    """
    if queries.ndim != 2 or documents.ndim != 2 or queries.shape[1] != documents.shape[1] or not len(documents):
        raise DataError(f"embeddings {queries.shape} and {documents.shape} cannot be compared")
    left, right = (_ready(x, name, cosine=cosine) for x, name in ((queries, "query"), (documents, "document")))
    step = max(1, _BLOCK // len(documents))
    blocks = [top_of(left[at:at + step] @ right.T, count) for at in range(0, len(left), step)]
    return np.concatenate(blocks) if blocks else np.zeros((0, min(count, len(documents))), np.int64)


def _ready(vectors: Floats, name: str, *, cosine: bool) -> Floats:
    if not np.isfinite(vectors).all():
        raise DataError(f"the embedding of a {name} is not finite",
                        where=f"{name} {int(np.flatnonzero(~np.isfinite(vectors).all(1))[0]) + 1}")
    if not cosine:
        return vectors
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if (lengths == 0).any():
        raise DataError(f"the embedding of a {name} is 0 and has no direction",
                        where=f"{name} {int(np.flatnonzero(lengths[:, 0] == 0)[0]) + 1}")
    return np.asarray(vectors / lengths)


def retrieval(found: Ints, relevant: Relevant, *, at: Sequence[int] = (1, 10, 100), seed: int = 0,
              conditions: Mapping[str, object] | None = None) -> dict[str, Measurement]:
    """``recall@k`` and ``ndcg@k`` for each k that the rows of ``found (Q, K)`` reach, and ``mrr`` over the whole row.

    ``relevant``: for each query its documents, or a gain for each of them (above 0). Raises DataError for a query
    without a relevant document, or a k longer than the rows.
    """
    if len(found) != len(relevant) or not len(found):
        raise DataError(f"{len(found):,} results and {len(relevant):,} queries", way_out="give one row a query")
    gains = [{int(d): float(g) for d, g in r.items() if g > 0} if isinstance(r, Mapping) else {int(d): 1.0 for d in r}
             for r in relevant]
    if not all(gains):
        raise DataError("has no relevant document", where=f"query {gains.index({}) + 1}", way_out="leave it out")
    if max(at) > found.shape[1]:
        raise DataError(f"results of {found.shape[1]} have no recall@{max(at)}", way_out=f"search with count={max(at)}")
    got = np.array([[g.get(int(d), 0.0) for d in row] for row, g in zip(found, gains, strict=True)])
    told = {**(conditions or {}), "searched": found.shape[1]}
    out: dict[str, Measurement] = {}
    for k in at:
        hits = (got[:, :k] > 0).sum(1) / np.array([len(g) for g in gains])
        out[f"recall@{k}"] = mean_of(f"recall@{k}", hits, conditions=told).measure(seed=seed)
        discount = 1 / np.log2(np.arange(2, k + 2))
        best = np.array([np.dot(s := sorted(g.values(), reverse=True)[:k], discount[:len(s)]) for g in gains])
        out[f"ndcg@{k}"] = mean_of(f"ndcg@{k}", got[:, :k] @ discount / best, conditions=told).measure(seed=seed)
    ranks = np.where((got > 0).any(1), 1 / ((got > 0).argmax(1) + 1), 0.0)
    out["mrr"] = mean_of("mrr", ranks, conditions=told).measure(seed=seed)
    return out
