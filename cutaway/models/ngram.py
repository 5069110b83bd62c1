"""N-gram language model: interpolated modified Kneser–Ney (Chen & Goodman 1998), as KenLM's lmplz has it.

An order's n-grams are sorted by (index of their first n - 1 tokens, label of the last), so the continuations of a
context are one slice and a look-up computes its place in it; a table is a handful of numpy arrays, all plain.
B rows, T tokens, V vocabulary, N order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from cutaway.errors import DataError, ModelError, RequestError
from cutaway.models.grams import Index, Ints, label_bits, labels, lengths_of
from cutaway.models.model import Sources, State
from cutaway.settings import Settings

Floats = NDArray[np.float64]
PIECE = 1 << 15  # tokens scored at once: what lies between two steps stays in the processor's cache
SCORES = 1 << 23  # log-probabilities computed at once
ROUNDING = 1e-6  # a probability of one, rounded to float32 on its way


class NGramConfig(Settings):
    """``prune[n - 1]``: n-grams seen at most that often are left out, their probability to what backs off."""

    kind: Literal["ngram"] = "ngram"
    vocab_size: int = Field(ge=2)
    order: int = Field(default=5, ge=1, le=16)
    context_length: int = Field(default=1 << 20, ge=2)
    bos_id: int = Field(ge=0)
    prune: tuple[Annotated[int, Field(ge=0)], ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if list(self.prune) != sorted(self.prune) or (self.prune and self.prune[0]):
            raise ValueError(f"prune must begin with 0, for single tokens, and never fall, got {list(self.prune)}")
        if self.bos_id >= self.vocab_size:
            raise ValueError(f"bos_id {self.bos_id} is not in a vocabulary of {self.vocab_size}")
        return self

    def threshold(self, n: int) -> int:
        """Counts up to this are pruned at order ``n``; the last threshold given holds for higher orders."""
        return self.prune[min(n, len(self.prune)) - 1] if self.prune else 0


@dataclass(frozen=True, slots=True)
class Table:
    """The n-grams of one order: their last tokens, interpolated log-probabilities, log-weights of backing off from
    them (each ``(count,)``), and where each one's continuations begin one order above ``(count + 1,)``. The highest
    order has neither weights nor continuations."""

    words: NDArray[np.int32]
    logs: NDArray[np.float32]
    backoffs: NDArray[np.float32]
    starts: Index


class NGramState:
    """The last N - 1 tokens of each row, -1 before its first; ``lengths (B,)`` counts all that were read."""

    def __init__(self, last: Tensor, lengths: Tensor, capacity: int) -> None:
        self.last, self.lengths, self._capacity = last, lengths, capacity

    @property
    def capacity(self) -> int:
        """Tokens a row may read."""
        return self._capacity

    def select(self, rows: Tensor) -> NGramState:
        """The state of some rows, in the order given."""
        return NGramState(self.last[rows], self.lengths[rows], self._capacity)

    def join(self, others: Sequence[NGramState], *, capacity: int) -> NGramState:
        """The rows of this state, then those of others; ``capacity`` tokens may be read, or as many as before."""
        last, lengths = (torch.cat(parts) for parts in zip(*((s.last, s.lengths) for s in (self, *others)),
                                                           strict=True))
        return NGramState(last, lengths, max(capacity, self._capacity))

    def truncate(self, lengths: Tensor) -> None:
        """Only to the length it has: what a row read before its last tokens is not kept."""
        if not torch.equal(lengths, self.lengths):
            raise RequestError("an n-gram's state keeps its last tokens only and cannot be truncated")

    def copy(self) -> NGramState:
        """An independent copy."""
        return NGramState(self.last.clone(), self.lengths.clone(), self._capacity)


class NGram:
    """A LanguageModel of counts; ``fit`` instead of training."""

    def __init__(self, config: NGramConfig, tables: Sequence[Table], base: Floats) -> None:
        self.config, self.tables, self.base = config, tuple(tables), base  # base (V,): log p of single tokens
        single = self.tables[0]
        self._first = np.full(config.vocab_size, -1, np.int64)  # a token's index among the 1-grams
        self._first[single.words] = np.arange(len(single.words))
        self._bits = label_bits(config.vocab_size)
        self._buckets = [_buckets(below.starts, table.words, self._bits)
                         for below, table in zip(self.tables, self.tables[1:], strict=False)]

    @property
    def vocab_size(self) -> int:
        """Entries of the vocabulary."""
        return self.config.vocab_size

    @property
    def context_length(self) -> int:
        """Most tokens a sequence may have; what is read is bounded by the order."""
        return self.config.context_length

    @property
    def reads_source(self) -> bool:
        """It writes beside no source."""
        return False

    def score(self, tokens: NDArray[Any], starts: NDArray[Any]) -> Floats:
        """``log p`` of every token ``(T,)``, given the tokens before it in its document; 0 for a document's first.

        ``starts``: where each document begins in ``tokens``, and the end, ``(documents + 1,)``.
        """
        tokens, starts = checked(tokens, self.vocab_size), np.asarray(starts, np.int64)
        lengths_of(len(tokens), starts)
        logs, back = np.empty(len(tokens)), self.config.order - 1
        for low in range(0, len(tokens), PIECE):
            high, from_ = min(low + PIECE, len(tokens)), max(low - back, 0)
            offsets = offsets_of(starts, from_, high)
            logs[low:high] = self._score(tokens[from_:high], offsets)[low - from_ :]
        return logs

    def _score(self, tokens: NDArray[Any], offsets: Ints) -> Floats:
        words = tokens.astype(np.int64)
        logs: Floats = self.base.take(words)
        grams = self._first.take(words)  # the n-grams found: which, and where they end
        words[offsets == 0] = -1  # no n-gram goes on into the next document
        places = labels(words, self._bits)
        at = np.flatnonzero(grams >= 0)
        grams = grams.take(at)
        for n in range(2, self.config.order + 1):
            at += 1
            if len(at) and at[-1] == len(words):
                at, grams = at[:-1], grams[:-1]
            found = self._find(n - 1, grams, words.take(at), places.take(at))
            missed = np.flatnonzero(found < 0)
            logs[at.take(missed)] += self.tables[n - 2].backoffs.take(grams.take(missed))
            hit = np.flatnonzero(found >= 0)
            at, grams = at.take(hit), found.take(hit)
            logs[at] = self.tables[n - 1].logs.take(grams)
        logs[offsets == 0] = 0.0
        return logs

    def _find(self, level: int, contexts: Ints, words: Ints, places: Ints) -> Ints:
        """Index of (context, word) among the n-grams of ``level + 1 >= 2`` tokens, -1 where there is none; ``places``
        are the words' labels, and are written over."""
        starts, buckets, table = self.tables[level - 1].starts, self._buckets[level - 1], self.tables[level].words
        if not len(table):
            return np.full(len(words), -1, np.int64)
        low = starts.take(contexts)
        size = starts[1:].take(contexts)
        size -= low
        places *= size
        places >>= self._bits
        places += low
        at = buckets.take(places)
        room = buckets[1:].take(places, mode="clip")  # how many to look at
        room -= at
        room[size == 0] = 0  # the bucket is another context's
        hit = table.take(at, mode="clip") == words
        hit &= room > 0
        out = np.where(hit, at, -1).astype(np.int64)
        rest = np.flatnonzero((room > 1) & ~hit)
        step = 1
        while len(rest):
            hit = table.take(at.take(rest) + step) == words.take(rest)
            out[rest[hit]] = at[rest[hit]] + step
            step += 1
            rest = rest[~hit & (room.take(rest) > step)]
        return out

    def _next(self, last: Ints) -> Tensor:
        """``log p`` of every token after each row of last tokens, ``(B, V)`` of ``(B, N - 1)``, -1 where there are
        fewer: base and weights once for all tokens, then what was seen behind each context, shortest first."""
        contexts = self._contexts(last)
        levels = contexts.shape[1]
        weights = np.zeros((levels + 1, len(last)))  # [n]: of backing off from every context longer than n tokens
        for n in range(levels, 0, -1):
            known = contexts[:, n - 1] >= 0
            weights[n - 1] = weights[n]
            weights[n - 1, known] += self.tables[n - 1].backoffs[contexts[known, n - 1]]
        out = self.base + weights[0][:, None]
        for n in range(1, levels + 1):
            rows = np.flatnonzero(contexts[:, n - 1] >= 0)
            at, starts, above = contexts[rows, n - 1], self.tables[n - 1].starts, self.tables[n]
            lengths = (starts[at + 1] - starts[at]).astype(np.int64)
            children = np.arange(int(lengths.sum())) + np.repeat(starts[at] - np.cumsum(lengths) + lengths, lengths)
            rows = np.repeat(rows, lengths)
            out[rows, above.words[children]] = above.logs[children] + weights[n][rows]
        return torch.from_numpy(out.astype(np.float32))

    def _contexts(self, last: Ints) -> Ints:
        """Index of the last n tokens among the n-grams, ``(B, N - 1)`` for n = 1 .. N - 1, -1 where there is none."""
        width = self.config.order - 1
        out = np.full((len(last), width), -1, np.int64)
        if not width:
            return out
        grams = np.where(last >= 0, self._first[last], -1)  # (B, N - 1): what begins at each place, n tokens long
        out[:, 0] = grams[:, -1]
        for n in range(2, width + 1):
            grams, words = grams[:, :-1].copy(), last[:, n - 1 :]
            known = grams >= 0
            grams[known] = self._find(n - 1, grams[known], words[known], labels(words[known], self._bits))
            out[:, n - 1] = grams[:, -1]
        return out

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Everything but the configuration, by name."""
        out: dict[str, NDArray[Any]] = {"base": self.base}
        for n, table in enumerate(self.tables, start=1):
            out |= {f"{n}.{f.name}": getattr(table, f.name) for f in fields(Table)}
        return out

    @classmethod
    def from_tensors(cls, config: NGramConfig, tensors: Mapping[str, NDArray[Any]]) -> NGram:
        """The inverse of ``tensors``. Raises ModelError for one that is missing, left over, out of bounds, or does not
        fit the others: nothing that is accepted can lead a look-up astray."""
        names = ["base", *(f"{n}.{f.name}" for n in range(1, config.order + 1) for f in fields(Table))]
        for name in names:
            if name not in tensors:
                raise ModelError(f"an n-gram model of order {config.order} without {name!r}")
        for name in sorted(set(tensors) - set(names)):
            raise ModelError(f"an n-gram model of order {config.order} has no place for {name!r}")
        tables = [Table(*(tensors[f"{n}.{f.name}"] for f in fields(Table))) for n in range(1, config.order + 1)]
        base = tensors["base"]
        if base.shape != (config.vocab_size,) or base.dtype != np.float64 or not np.all(base <= ROUNDING):
            raise ModelError(f"the log-probabilities of single tokens are not {config.vocab_size} float64 up to 0")
        contexts = np.array([0, len(tables[0].words)])
        for n, table in enumerate(tables, start=1):
            wrong = _wrong(table, contexts, config.vocab_size, tables[n] if n < len(tables) else None)
            if wrong:
                raise ModelError(f"the table of {n}-grams does not fit the others: {wrong}")
            contexts = table.starts
        return cls(config, tables, base)

    def new_state(self, rows: int, *, capacity: int, sources: Sources | None = None) -> NGramState:
        """``rows`` sequences of which nothing was read. Raises RequestError for ``sources``, which it cannot read."""
        if sources is not None:
            raise RequestError("an n-gram model reads no source", way_out="put the text into the prompt")
        if capacity > self.context_length:
            raise RequestError(f"{capacity} tokens are more than the context of {self.context_length}")
        last = torch.full((rows, max(self.config.order - 1, 1)), -1, dtype=torch.long)
        return NGramState(last, torch.zeros(rows, dtype=torch.long), capacity)

    def logits(self, tokens: Tensor, state: State, *, counts: Tensor | None = None,
               every: bool = False) -> Tensor:
        """Log-probabilities of what follows ``tokens (B, T)`` behind ``state``: after each row's last one ``(B, V)``,
        or after each ``(B, T, V)``, 0 where a row has none. The state moves on."""
        assert isinstance(state, NGramState)
        rows, steps = tokens.shape
        real = torch.full((rows,), steps) if counts is None else counts
        longest = int((state.lengths + real).max())
        if longest > state.capacity:
            raise RequestError(f"{longest} tokens do not fit a state of {state.capacity}",
                               way_out="start the state with a larger capacity")
        width = state.last.shape[1]
        behind = torch.cat([state.last, tokens], 1).unfold(1, width, 1)  # (B, T + 1, N - 1): what each step stands on
        state.last = behind[torch.arange(rows), real].clone()
        state.lengths = state.lengths + real
        if not every:
            return self._next(state.last.numpy())
        out = torch.zeros(rows, steps, self.vocab_size)
        row, step = torch.nonzero(torch.arange(steps) < real[:, None], as_tuple=True)
        for some in torch.arange(len(row)).split(max(1, SCORES // self.vocab_size)):
            out[row[some], step[some]] = self._next(behind[row[some], step[some] + 1].numpy())
        return out


def _buckets(starts: Index, words: Index, bits: int) -> Index:
    """Where in ``words`` each bucket begins, and the end. A context with n continuations has n buckets, numbered like
    them; a label's share of all labels says which bucket it is in, and most buckets hold one or two."""
    counts = np.zeros(len(words), np.int32)
    for low in range(0, len(starts) - 1, PIECE):
        edges = starts[low : low + PIECE + 1].astype(np.int64)
        sizes = np.diff(edges)
        inside = labels(words[edges[0] : edges[-1]], bits) * np.repeat(sizes, sizes) >> bits
        inside += np.repeat(edges[:-1] - edges[0], sizes)
        counts[edges[0] : edges[-1]] = np.bincount(inside, minlength=len(inside))
    out = np.zeros(len(words) + 1, starts.dtype)
    np.cumsum(counts, out=out[1:])
    return out


def _wrong(table: Table, contexts: Index, vocab_size: int, above: Table | None) -> str | None:
    """What of a table, whose contexts' n-grams lie between ``contexts``, a look-up could stumble over."""
    words, starts = table.words, table.starts
    weights, edges = (len(words), len(words) + 1) if above is not None else (0, 0)
    kinds = (words.dtype == np.int32, table.logs.dtype == table.backoffs.dtype == np.float32,
             starts.dtype in (np.int32, np.int64))
    shapes = (words.ndim == 1, table.logs.shape == words.shape, table.backoffs.shape == (weights,),
              starts.shape == (edges,))
    if not all(kinds + shapes):
        return "an array is of another type or length"
    if len(words) and (int(words.min()) < 0 or int(words.max()) >= vocab_size):
        return f"a word is not in a vocabulary of {vocab_size}"
    rank = labels(words, label_bits(vocab_size))
    rising = rank[1:] > rank[:-1]
    inner = contexts[(contexts > 0) & (contexts < len(words))]
    rising[inner - 1] = True  # a new context begins
    if not rising.all():
        return "its words are not in order"
    if not np.all(table.logs <= ROUNDING) or np.any(np.isnan(table.backoffs)) or np.any(table.backoffs == np.inf):
        return "a logarithm is above 0 or none at all"
    if above is None:
        return None
    rises = not np.any(starts[1:] < starts[:-1]) and int(starts[0]) == 0 and int(starts[-1]) == len(above.words)
    return None if rises else "its starts are not in order"


def checked(tokens: NDArray[Any], vocab_size: int) -> NDArray[Any]:
    """The ids as they are; DataError for one outside the vocabulary, or for none at all."""
    ids = np.asarray(tokens)
    if not len(ids):
        raise DataError("there are no tokens")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocab_size:
        raise DataError(f"token {high if high >= vocab_size else low} is not in a vocabulary of {vocab_size}",
                        way_out="encode the text with this model's own tokenizer")
    return ids


def offsets_of(starts: Ints, low: int, high: int) -> Ints:
    """How many tokens stand in its document before each of the tokens ``low`` to ``high``."""
    begins = np.zeros(high - low, np.int64)
    first = int(np.searchsorted(starts, low, side="right"))
    begins[starts[first : np.searchsorted(starts, high)] - low] = starts[first : np.searchsorted(starts, high)]
    begins[0] = starts[first - 1]
    return np.arange(low, high) - np.maximum.accumulate(begins)
