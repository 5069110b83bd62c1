"""Fitting an n-gram model: counts, discounts and interpolation of modified Kneser–Ney, as KenLM's lmplz estimates them.

Chen & Goodman 1998; Heafield et al. 2013 (adjusted counts, pruning). a(g) is the count of an n-gram of the highest
order or at the beginning of a document, and for any other the number of different tokens seen before it.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cutaway.errors import DataError
from cutaway.models.ngram import Floats, Ints, NGram, NGramConfig, Table, checked, offsets_of

MOST = 3  # counts of three and more share a discount
FALLBACK = (0.5, 1.0, 1.5)  # lmplz's own, where a corpus has too few n-grams of some count to estimate a discount
IMPOSSIBLE = -99 * np.log(10)  # of the token that begins a document; ARPA files write it so


@dataclass(frozen=True, slots=True)
class _Order:
    """All n-grams of one length, sorted by (prefix, word)."""

    prefixes: Ints
    words: Ints
    suffixes: Ints
    counts: Ints
    begins: NDArray[np.bool_]  # whether it begins a document


def fit(tokens: NDArray[Any], starts: NDArray[Any], config: NGramConfig) -> NGram:
    """The model of documents in ``tokens (T,)``, each from ``starts[i]`` to ``starts[i + 1]``, with its bos and eos.

    Raises DataError where there is nothing to count. A discount that cannot be estimated is warned about.
    """
    orders = _count(checked(tokens, config.vocab_size), np.asarray(starts), config)
    adjusted = [_adjusted(orders, n) for n in range(1, len(orders) + 1)]
    base, below = _single(orders[0], adjusted[0], config)
    kept = [np.ones(len(orders[0].words), bool)]
    logs, backoffs = [np.log(below)], []
    for n in range(2, len(orders) + 1):
        order, counts = orders[n - 1], adjusted[n - 1]
        keep = order.counts > config.threshold(n)
        discount = _discounts(counts, n)[np.minimum(counts, MOST)]
        size = len(orders[n - 2].words)
        whole = np.bincount(order.prefixes, counts, size)
        freed = np.bincount(order.prefixes, np.where(keep, discount, counts), size)
        weight = np.divide(freed, whole, out=np.ones(size), where=whole > 0)
        own = np.where(keep, (counts - discount) / whole[order.prefixes], 0.0)
        below = own + weight[order.prefixes] * below[order.suffixes]
        backoffs.append(np.log(weight))
        logs.append(np.log(below))
        kept.append(keep)
    backoffs.append(np.zeros(len(orders[-1].words)))
    return NGram(config, _tables(orders, logs, backoffs, kept), base)


def _count(tokens: Ints, starts: NDArray[Any], config: NGramConfig) -> list[_Order]:
    """The n-grams of every order; an order that no document is long enough for ends the list."""
    offsets = offsets_of(len(tokens), starts)
    words, grams, counts = np.unique(tokens, return_inverse=True, return_counts=True)
    none = np.zeros(len(words), np.int64)
    orders = [_Order(none, words, none, counts, words == config.bos_id)]
    for n in range(2, config.order + 1):
        at = np.flatnonzero(offsets >= n - 1)
        if not len(at):
            raise DataError(f"no document has {n} tokens", way_out=f"set order to {n - 1}, or give longer documents")
        keys = grams[at - 1] * config.vocab_size + tokens[at]
        found, first, which, counts = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
        prefixes, last = found // config.vocab_size, found % config.vocab_size
        orders.append(_Order(prefixes, last, grams[at[first]], counts, orders[-1].begins[prefixes]))
        grams = np.full(len(tokens), -1)
        grams[at] = which
    return orders


def _adjusted(orders: list[_Order], n: int) -> Ints:
    order = orders[n - 1]
    if n == len(orders):
        return order.counts
    before = np.bincount(orders[n].suffixes, minlength=len(order.words))
    return np.where(order.begins, order.counts, before)


def _discounts(counts: Ints, n: int) -> Floats:
    """``D(0), D(1), D(2), D(3+)``: Chen & Goodman 1998, equation 26."""
    t = [int((counts == k).sum()) for k in range(MOST + 2)]
    if all(t[1:]):
        y = t[1] / (t[1] + 2 * t[2])
        found = [k - (k + 1) * y * t[k + 1] / t[k] for k in range(1, MOST + 1)]
        if all(0 <= d <= k for k, d in enumerate(found, start=1)):
            return np.array([0.0, *found])
    warnings.warn(f"the discounts of {n}-grams cannot be estimated from counts of counts {t[1:]}; "
                  f"{', '.join(map(str, FALLBACK))} are used", stacklevel=3)
    return np.array([0.0, *FALLBACK])


def _single(order: _Order, counts: Ints, config: NGramConfig) -> tuple[Floats, Floats]:
    """``log p`` of every token of the vocabulary, and ``p`` of those that occur; bos itself is never predicted."""
    counts = np.where(order.begins, 0, counts)
    discount = _discounts(counts, 1)[np.minimum(counts, MOST)]
    whole = counts.sum()
    if not whole:
        raise DataError("the documents hold nothing but their beginnings")
    uniform = discount.sum() / whole / (config.vocab_size - 1)
    base = np.full(config.vocab_size, uniform)
    base[order.words] += (counts - discount) / whole
    base[config.bos_id] = np.exp(IMPOSSIBLE)
    return np.log(base), base[order.words]


def _tables(orders: list[_Order], logs: list[Floats], backoffs: list[Floats],
            kept: list[NDArray[np.bool_]]) -> list[Table]:
    """What stays, with its indices counted anew."""
    tables = []
    for n, (order, keep) in enumerate(zip(orders, kept, strict=True), start=1):
        size = int(keep.sum())
        starts = np.zeros(size + 1, np.int64)
        if n < len(orders):
            above, stays = orders[n], kept[n]
            renumbered = np.cumsum(keep) - 1
            np.cumsum(np.bincount(renumbered[above.prefixes[stays]], minlength=size), out=starts[1:])
        tables.append(Table(order.words[keep].astype(np.int32), logs[n - 1][keep].astype(np.float32),
                            backoffs[n - 1][keep].astype(np.float32), starts))
    return tables
