"""N-gram language model: interpolated modified Kneser–Ney (Chen & Goodman 1998), as KenLM's lmplz has it.

An order's n-grams are sorted by (index of their first n - 1 tokens, last token), so the continuations of a context are
one slice and every look-up is a binary search; nothing is a Python object, and a table is a handful of numpy arrays.
V vocabulary, N order.
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
from cutaway.settings import Settings

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


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
    them (each ``(count,)``), and where each one's continuations begin one order above ``(count + 1,)``."""

    words: NDArray[np.int32]
    logs: NDArray[np.float32]
    backoffs: NDArray[np.float32]
    starts: Ints


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
        tokens = checked(tokens, self.vocab_size)
        offsets = offsets_of(len(tokens), starts)
        logs = self.base[tokens]
        grams = self._find(0, np.zeros(len(tokens), np.int64), tokens)
        for n in range(2, self.config.order + 1):
            before = np.concatenate([[-1], grams[:-1]])
            before[offsets < n - 1] = -1
            grams = self._find(n - 1, before, tokens)
            seen = before >= 0
            logs[seen] += self.tables[n - 2].backoffs[before[seen]]
            found = grams >= 0
            logs[found] = self.tables[n - 1].logs[grams[found]]
        logs[offsets == 0] = 0.0
        return logs

    def _find(self, level: int, contexts: Ints, words: Ints) -> Ints:
        """Index of (context, word) among the n-grams of ``level + 1`` tokens, -1 where there is none."""
        table = self.tables[level]
        if level == 0:
            low, high = np.zeros(len(words), np.int64), np.full(len(words), len(table.words), np.int64)
        else:
            below = self.tables[level - 1].starts
            known = np.maximum(contexts, 0)
            low, high = below[known].copy(), below[known + 1].copy()
            high[contexts < 0] = low[contexts < 0]
        end = high.copy()
        for _ in range(int((high - low).max(initial=0)).bit_length()):
            middle = (low + high) // 2
            less = (low < high) & (table.words[np.minimum(middle, len(table.words) - 1)] < words)
            low, high = np.where(less, middle + 1, low), np.where(less | (low >= high), high, middle)
        hit = (low < end) & (table.words[np.minimum(low, len(table.words) - 1)] == words)
        return np.where(hit, low, -1)

    def _next(self, last: Sequence[int]) -> Floats:
        """``log p`` of every token ``(V,)`` after these last tokens, -1 first where there are fewer."""
        logs = self.base.copy()
        tokens = np.array([t for t in last if t >= 0], np.int64)
        for n in range(2, self.config.order + 1):
            if len(tokens) < n - 1:
                break
            context = -1
            for level, word in enumerate(tokens[len(tokens) - n + 1 :]):
                context = int(self._find(level, np.array([context]), np.array([word]))[0])
                if context < 0:
                    break
            if context < 0:
                break
            below, table = self.tables[n - 2], self.tables[n - 1]
            children = slice(int(below.starts[context]), int(below.starts[context + 1]))
            logs += below.backoffs[context]
            logs[table.words[children]] = table.logs[children]
        return logs

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Everything but the configuration, by name."""
        out: dict[str, NDArray[Any]] = {"base": self.base}
        for n, table in enumerate(self.tables, start=1):
            out |= {f"{n}.{f.name}": getattr(table, f.name) for f in fields(Table)}
        return out

    @classmethod
    def from_tensors(cls, config: NGramConfig, tensors: Mapping[str, NDArray[Any]]) -> NGram:
        """The inverse of ``tensors``. Raises ModelError for one that is missing or does not fit the others."""
        try:
            tables = [Table(*(tensors[f"{n}.{f.name}"] for f in fields(Table))) for n in range(1, config.order + 1)]
            base = tensors["base"]
        except KeyError as error:
            raise ModelError(f"an n-gram model of order {config.order} without {error}") from None
        for n, table in enumerate(tables, start=1):
            count, above = len(table.words), len(tables[n].words) if n < len(tables) else 0
            whole = len(table.logs) == len(table.backoffs) == len(table.starts) - 1 == count
            inside = not np.any(np.diff(table.starts) < 0) and int(table.starts[-1]) == above
            if not (whole and inside and len(base) == config.vocab_size):
                raise ModelError(f"the table of {n}-grams does not fit the others")
        return cls(config, tables, base)

    def new_state(self, rows: int, *, capacity: int) -> NGramState:
        """``rows`` sequences of which nothing was read."""
        if capacity > self.context_length:
            raise RequestError(f"{capacity} tokens are more than the context of {self.context_length}")
        last = torch.full((rows, max(self.config.order - 1, 1)), -1, dtype=torch.long)
        return NGramState(last, torch.zeros(rows, dtype=torch.long), capacity)

    def logits(self, tokens: Tensor, state: NGramState, *, counts: Tensor | None = None,
               every: bool = False) -> Tensor:
        """Log-probabilities of what follows ``tokens (B, T)`` behind ``state``: after each row's last one ``(B, V)``,
        or after each ``(B, T, V)``. The state moves on."""
        rows, steps = tokens.shape
        real = torch.full((rows,), steps) if counts is None else counts
        longest = int((state.lengths + real).max())
        if longest > state.capacity:
            raise RequestError(f"{longest} tokens do not fit a state of {state.capacity}",
                               way_out="start the state with a larger capacity")
        out = torch.zeros((rows, steps, self.vocab_size) if every else (rows, self.vocab_size), dtype=torch.float32)
        width = state.last.shape[1]
        for row in range(rows):
            line = torch.cat([state.last[row], tokens[row, : int(real[row])]])
            if every:
                for t in range(int(real[row])):
                    out[row, t] = torch.from_numpy(self._next(line[t + 1 : t + 1 + width].tolist()))
            else:
                out[row] = torch.from_numpy(self._next(line[-width:].tolist()))
            state.last[row] = line[-width:]
        state.lengths = state.lengths + real
        return out


def checked(tokens: NDArray[Any], vocab_size: int) -> Ints:
    """The ids as int64; DataError for one outside the vocabulary, or for none at all."""
    ids: Ints = np.asarray(tokens, np.int64)
    if not len(ids):
        raise DataError("there are no tokens")
    if ids.min() < 0 or ids.max() >= vocab_size:
        raise DataError(f"token {int(ids.max() if ids.max() >= vocab_size else ids.min())} is not in a vocabulary of "
                        f"{vocab_size}", way_out="encode the text with this model's own tokenizer")
    return ids


def offsets_of(count: int, starts: NDArray[Any]) -> Ints:
    """How many tokens of its document stand before each token."""
    starts = np.asarray(starts, np.int64)
    first: Ints = np.repeat(starts[:-1], np.diff(starts))
    if len(first) != count or np.any(np.diff(starts) < 0):
        raise DataError(f"documents of {len(first):,} tokens in all do not cover {count:,} tokens")
    return np.arange(count, dtype=np.int64) - first
