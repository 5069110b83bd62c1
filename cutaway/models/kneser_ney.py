"""Fitting an n-gram model: discounts and interpolation of modified Kneser–Ney, as KenLM's lmplz estimates them.

Chen & Goodman 1998; Heafield et al. 2013 (adjusted counts, pruning). a(g) is the count of an n-gram of the highest
order or at the beginning of a document, and for any other the number of different tokens seen before it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cutaway.errors import DataError
from cutaway.models.grams import Flags, Index, Order, count, index_type, lengths_of
from cutaway.models.ngram import Floats, NGram, NGramConfig, Table, checked

MOST = 3  # counts of three and more share a discount
FALLBACK = (0.5, 1.0, 1.5)  # lmplz's own, where a corpus has too few n-grams of some count to estimate a discount
IMPOSSIBLE = -99 * np.log(10)  # of the token that begins a document; ARPA files write it so
STEP = 1 << 20  # contexts at once: bounds the working memory


def fit(tokens: NDArray[Any], starts: NDArray[Any], config: NGramConfig) -> NGram:
    """The model of documents in ``tokens (T,)``, each from ``starts[i]`` to ``starts[i + 1]``, with its bos and eos.

    Raises DataError where there is nothing to count. A discount that cannot be estimated is warned about.
    """
    tokens = checked(tokens, config.vocab_size)
    lengths_of(len(tokens), starts)
    counted = count(tokens, starts, order=config.order, vocab_size=config.vocab_size, bos_id=config.bos_id)
    del tokens
    orders, last = counted.orders, config.order
    suffixes = counted.suffixes(2) if last > 1 else None
    base, below = _single(orders[0], _adjusted(orders[0], suffixes), config)
    kept: list[Flags | None] = [None]
    with np.errstate(divide="ignore"):  # a discount of nothing leaves nothing to back off to
        tables = [Table(orders[0].words, np.log(below).astype(np.float32), _NONE, orders[0].starts)]
    for n in range(2, last + 1):
        assert suffixes is not None
        above = counted.suffixes(n + 1) if n < last else None
        order, adjusted = orders[n - 1], _adjusted(orders[n - 1], above)
        keep = order.counts > config.threshold(n) if config.threshold(n) else None
        below, logs, backoffs = _order(tables[-1].starts, adjusted, suffixes, keep, below, _discounts(adjusted, n))
        tables[-1] = _less(Table(tables[-1].words, tables[-1].logs, backoffs, tables[-1].starts), kept[-1], keep)
        tables.append(Table(order.words, logs, _NONE, order.starts))
        kept.append(keep)
        suffixes = above
        order.counts = order.counts[:0]  # not needed any more
    tables[-1] = _less(tables[-1], kept[-1], None)
    return NGram(config, tables, base)


_NONE = np.zeros(0, np.float32)


def _adjusted(order: Order, above: Index | None) -> Index:
    """a(g) of every n-gram, from the suffixes of those one order above."""
    if above is None:
        return order.counts
    found = np.bincount(above, minlength=len(order.words)).astype(order.counts.dtype)
    found[order.begins] = order.counts[order.begins]
    return found


def _discounts(counts: Index, n: int) -> Floats:
    """``D(0), D(1), D(2), D(3+)``: Chen & Goodman 1998, equation 26."""
    t = [int(np.count_nonzero(counts == k)) for k in range(MOST + 2)]
    if all(t[1 : MOST + 1]):  # of counts above three there may be none: lmplz asks no more either
        y = t[1] / (t[1] + 2 * t[2])
        found = [k - (k + 1) * y * t[k + 1] / t[k] for k in range(1, MOST + 1)]
        if all(0 <= d <= k for k, d in enumerate(found, start=1)):
            return np.array([0.0, *found])
    warnings.warn(f"the discounts of {n}-grams cannot be estimated from counts of counts {t[1:]}; "
                  f"{', '.join(map(str, FALLBACK))} are used", stacklevel=3)
    return np.array([0.0, *FALLBACK])


def _single(order: Order, counts: Index, config: NGramConfig) -> tuple[Floats, Floats]:
    """``log p`` of every token of the vocabulary, and ``p`` of those that occur; bos itself is never predicted."""
    counts = counts.copy()
    counts[order.begins] = 0
    discount = _discounts(counts, 1)[np.minimum(counts, MOST)]
    whole = int(counts.sum(dtype=np.int64))
    if not whole:
        raise DataError("the documents hold nothing but their beginnings")
    uniform = discount.sum() / whole / (config.vocab_size - 1)
    base = np.full(config.vocab_size, uniform)
    base[order.words] += (counts - discount) / whole
    base[config.bos_id] = np.exp(IMPOSSIBLE)
    return np.log(base), base[order.words]


def _order(starts: Index, counts: Index, suffixes: Index, keep: Flags | None, below: Floats,
           cuts: Floats) -> tuple[Floats, NDArray[np.float32], NDArray[np.float32]]:
    """``p`` of every n-gram, its logarithm, and the log-weight of backing off from every context: a context's n-grams
    are ``starts[i]`` to ``starts[i + 1]``, and ``below`` is ``p`` one order lower. Some contexts at a time."""
    p = np.empty(len(counts))
    logs, backoffs = np.empty(len(counts), np.float32), np.empty(len(starts) - 1, np.float32)
    for contexts in _pieces(starts):
        edges = starts[contexts.start : contexts.stop + 1].astype(np.int64)
        at, lengths = slice(int(edges[0]), int(edges[-1])), np.diff(edges)
        a = counts[at]
        cut = cuts[np.minimum(a, MOST)]
        freed = cut if keep is None else np.where(keep[at], cut, a)
        whole, free = _sums(a, edges, lengths), _sums(freed, edges, lengths)
        weight = np.divide(free, whole, out=np.ones(len(whole)), where=whole > 0)
        own = (a - cut) / np.repeat(whole, lengths)
        if keep is not None:
            own[~keep[at]] = 0.0
        p[at] = own + np.repeat(weight, lengths) * below[suffixes[at]]
        with np.errstate(divide="ignore"):
            logs[at], backoffs[contexts] = np.log(p[at]), np.log(weight)
    return p, logs, backoffs


def _pieces(starts: Index) -> Iterator[slice]:
    """Contexts in order, as many as have about ``STEP`` n-grams and no more than that many."""
    low, size = 0, len(starts) - 1
    while low < size:
        high = int(np.searchsorted(starts, int(starts[low]) + STEP, side="right")) - 1
        high = min(max(high, low + 1), low + STEP, size)
        yield slice(low, high)
        low = high


def _sums(values: NDArray[Any], edges: NDArray[np.int64], lengths: NDArray[np.int64]) -> Floats:
    """The sum of each context's values, 0 where it has none."""
    out = np.zeros(len(lengths))
    some = lengths > 0
    if some.any():
        out[some] = np.add.reduceat(values.astype(np.float64, copy=False), edges[:-1][some] - edges[0])
    return out


def _less(table: Table, keep: Flags | None, above: Flags | None) -> Table:
    """What stays of a table after pruning it by ``keep`` and the one above by ``above``."""
    words, logs, backoffs, starts = table.words, table.logs, table.backoffs, table.starts
    if above is not None:
        before = np.zeros(len(above) + 1, index_type(len(above)))
        np.cumsum(above, out=before[1:])
        starts = before[starts]
    if keep is not None:
        words, logs = words[keep], logs[keep]
        if len(starts):  # the highest order has neither
            backoffs = backoffs[keep]
            starts = np.concatenate([starts[:-1][keep], starts[-1:]])
    return Table(words, logs, backoffs, starts)
