"""Counting n-grams of every order by one sort of the corpus' positions (a suffix array cut off at N tokens).

Positions sorted by the N tokens from each on hold the n-grams of every order at once, as runs: no hashing, no
dictionary, no Python object. They are sorted in blocks, each of some first tokens, so the working memory does not grow.
T tokens, N order, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cutaway.errors import DataError

Ints = NDArray[np.int64]
Index = NDArray[Any]  # int32, or int64 where there is more to count than that
Flags = NDArray[np.bool_]
BLOCK = 1 << 22  # positions sorted at once, unless more begin with one token: 0.3 GB of working memory
LARGEST = (1 << 63) - 1
MIX = 0x9E3779B1  # odd, so that multiplying by it modulo a power of two can be undone (Knuth's multiplicative hashing)


@dataclass(slots=True)
class Order:
    """All n-grams of one length ``(count,)``, sorted by their tokens' ``labels``: the last ``words``, how often each
    occurs, and where its continuations begin one order above ``(count + 1,)``, nothing at the highest. ``begins``:
    those from a document's beginning, which stand together."""

    words: NDArray[np.int32]
    counts: Index
    starts: Index
    begins: slice


@dataclass(slots=True)
class Counted:
    """The orders; and, of every sorted position, how many tokens it shares with the one before, how many its document
    still has, and the rank of the position after it: what leads from an n-gram to its last n - 1 tokens."""

    orders: list[Order]
    shared: NDArray[np.uint8]
    left: NDArray[np.uint8]
    following: Index

    def suffixes(self, n: int) -> Index:
        """Index of the last n - 1 tokens of every n-gram among the (n - 1)-grams."""
        narrow = index_type(len(self.shared))
        of_rank = np.empty(len(self.shared), narrow)
        out = np.empty(len(self.orders[n - 1].words), narrow)
        seen = done = 0
        for part in _parts(len(self.shared)):
            np.cumsum(self._heads(n - 1, part), out=of_rank[part])
            of_rank[part] += seen - 1
            seen = int(of_rank[part.stop - 1]) + 1
        for part in _parts(len(self.shared)):
            found = self.following[part][self._heads(n, part)]
            out[done : done + len(found)] = of_rank[found]
            done += len(found)
        return out

    def _heads(self, n: int, part: slice) -> Flags:
        """Which ranks are the first of an n-gram."""
        return (self.shared[part] < n) & (self.left[part] >= n)


def count(tokens: NDArray[Any], starts: NDArray[Any], *, order: int, vocab_size: int, bos_id: int) -> Counted:
    """The n-grams up to ``order`` of the documents in ``tokens (T,)``, none across two documents.

    Some 40 bytes a token. Raises DataError where ``starts`` does not cover the tokens, or where no document is long
    enough.
    """
    longest = int(lengths_of(len(tokens), starts).max(initial=0))
    if longest < order:
        raise DataError(f"no document has {longest + 1} tokens",
                        way_out=f"set order to {longest}, or give longer documents")
    bits = label_bits(vocab_size)
    stream = _stream(tokens, np.asarray(starts, np.int64), order, bits)
    ranked = np.empty(len(tokens), index_type(len(stream)))
    shared, left = np.empty(len(tokens), np.uint8), np.empty(len(tokens), np.uint8)
    parts: list[list[tuple[Index, ...]]] = [[] for _ in range(order)]
    above = [0] * order
    done = 0
    for at in _blocks(stream):
        place = slice(done, done + len(at))
        ranked[place] = at = _sorted(stream, at, order, (1 << bits) + 1)
        runs = _runs(stream, at, order)
        shared[place], left[place] = runs[0], runs[1]
        for n, part in enumerate(runs[2]):
            parts[n].append((*part[:2], (part[2] + above[n]).astype(ranked.dtype)))
            above[n] += part[3]
        done = place.stop
    after = np.empty(len(stream), ranked.dtype)
    after[ranked] = np.arange(len(ranked), dtype=ranked.dtype)
    del stream
    for place in _parts(len(ranked)):
        ranked[place] = after[ranked[place] + 1]  # of a document's last token it is never asked
    return Counted(_orders(parts, above, bos_id, bits), shared, left, ranked)


def label_bits(vocab_size: int) -> int:
    """Bits that a token's label takes."""
    return (vocab_size - 1).bit_length()


def labels(tokens: NDArray[Any], bits: int) -> Ints:
    """Tokens as numbers below ``2 ** bits`` in an order that has nothing to do with how frequent they are: so a place
    among a context's continuations can be computed, not searched for."""
    out: Ints = tokens.astype(np.int64)
    out *= MIX
    out &= (1 << bits) - 1
    return out


def unlabelled(labelled: NDArray[Any], bits: int) -> NDArray[np.int32]:
    """The inverse of ``labels``."""
    return (labelled.astype(np.int64) * pow(MIX, -1, 1 << bits) & (1 << bits) - 1).astype(np.int32)


def index_type(largest: int) -> type[np.int32] | type[np.int64]:
    """What counts up to ``largest`` are kept as."""
    return np.int32 if largest < 1 << 31 else np.int64


def lengths_of(tokens: int, starts: NDArray[Any]) -> Ints:
    """Tokens of each document. Raises DataError where they do not cover ``tokens``."""
    starts = np.asarray(starts, np.int64)
    lengths: Ints = np.diff(starts)
    if np.any(lengths < 0) or not len(starts) or int(starts[0]) or int(starts[-1]) != tokens:
        raise DataError(f"documents of {int(lengths.sum()):,} tokens in all do not cover {tokens:,} tokens")
    return lengths


def _parts(size: int) -> Iterator[slice]:
    return (slice(a, min(a + BLOCK, size)) for a in range(0, size, BLOCK))


def _stream(tokens: NDArray[Any], starts: Ints, order: int, bits: int) -> NDArray[np.int32]:
    """The labels, one higher, with a 0 behind each document: a run of n tokens with no 0 is an n-gram."""
    whole = np.zeros(len(tokens) + len(starts) - 1 + order, np.int32)
    inside = np.ones(len(tokens) + len(starts) - 1, bool)
    inside[starts[1:] + np.arange(len(starts) - 1)] = False
    done = 0
    for part in _parts(len(inside)):
        here = inside[part]
        size = int(np.count_nonzero(here))
        whole[part][here] = labels(tokens[done : done + size], bits) + 1
        done += size
    return whole


def _blocks(stream: NDArray[np.int32]) -> Iterator[Ints]:
    """The positions of all tokens, a range of first tokens at a time."""
    size = 0
    low = 1
    counts = sum(np.bincount(stream[part], minlength=int(stream.max()) + 1) for part in _parts(len(stream)))
    assert isinstance(counts, np.ndarray)
    for token in range(1, len(counts)):
        size += int(counts[token])
        if token + 1 == len(counts) or size + int(counts[token + 1]) > BLOCK:
            if size:
                yield np.flatnonzero((stream >= low) & (stream <= token))
            low, size = token + 1, 0


def _sorted(stream: NDArray[np.int32], at: Ints, order: int, base: int) -> Ints:
    """Positions sorted by the ``order`` tokens from each on, as many at once as one number holds; after the first
    time only those that are not alone yet."""
    rest, group, known, where = at, np.zeros(len(at), np.int64), 0, slice(None)
    places: Ints | None = None
    while known < order and len(rest):
        key, room = group.copy(), LARGEST // (int(group.max()) + 1)
        while known < order and room >= base:
            key *= base
            key += stream[rest + known]
            known, room = known + 1, room // base
        by = np.argsort(key)
        rest, key = rest[by], key[by]
        at[where if places is None else places] = rest
        if known < order:
            equal = key[1:] == key[:-1]
            open_ = np.zeros(len(key), bool)
            open_[1:] |= equal
            open_[:-1] |= equal
            group = np.cumsum(np.concatenate([[0], ~equal]))[open_]
            places = np.flatnonzero(open_) if places is None else places[open_]
            rest = rest[open_]
            if len(group):
                group = group - group[0]
    return at


def _runs(stream: NDArray[np.int32], at: Ints, order: int,
          ) -> tuple[NDArray[np.uint8], NDArray[np.uint8], list[tuple[Any, ...]]]:
    """Of sorted positions: tokens shared with the one before, tokens to the document's end, both at most ``order``;
    and of each order its last tokens, counts, where the next order's begin, and how many those are."""
    shared, left = np.zeros(len(at), np.uint8), np.zeros(len(at), np.uint8)
    new, alive = np.zeros(len(at), bool), np.ones(len(at), bool)
    new[0] = True
    out: list[tuple[Any, ...]] = []
    heads = below = np.zeros(0, np.int64)
    for n in range(1, order + 1):
        words = stream[at + (n - 1)]
        new[1:] |= words[1:] != words[:-1]
        alive &= words > 0
        shared += ~new
        left += alive
        edges = np.flatnonzero(new)
        real = alive[edges]
        heads = edges[real]
        counts = np.diff(edges, append=len(at))[real]
        if n > 1:
            out[-1] = (*out[-1], np.searchsorted(heads, below).astype(np.int64), len(heads))
        out.append((words[heads] - 1, counts.astype(index_type(len(stream)))))
        below = heads
    out[-1] = (*out[-1], np.zeros(0, np.int64), 0)
    return shared, left, out


def _orders(parts: list[list[tuple[Index, ...]]], above: list[int], bos_id: int, bits: int) -> list[Order]:
    """The blocks' orders put together."""
    orders: list[Order] = []
    begins = slice(0, 0)
    for n, blocks in enumerate(parts):
        words, counts = np.concatenate([b[0] for b in blocks]), np.concatenate([b[1] for b in blocks])
        last = n + 1 == len(parts)
        ends = [] if last else [np.array([above[n]], counts.dtype)]
        starts = np.concatenate([*(b[2] for b in blocks), *ends])
        if not n:
            bos = int(labels(np.array([bos_id]), bits)[0])
            begins = slice(*np.searchsorted(words, [bos, bos + 1]).tolist())
        orders.append(Order(unlabelled(words, bits), counts, starts, begins))
        if not last:
            begins = slice(int(starts[begins.start]), int(starts[begins.stop]))
        blocks.clear()
    return orders
