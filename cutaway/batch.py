"""Batch: the one data shape every stage, architecture and objective shares (after nanochat's ``(ids, mask)``).

B rows, T tokens. ``weights`` says how much a target is learned: 0 is context. ``documents`` numbers the
documents packed into a row, so that attention can stay inside each; -1 is padding.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cutaway.errors import DataError


@dataclass(frozen=True, slots=True)
class Example:
    """One sequence: ``tokens (T,)`` and ``weights (T,)``; ``weights[t]`` is how much token t is learned. ``source``
    ``(S,)`` is what an encoder reads beside it."""

    tokens: NDArray[np.int64]
    weights: NDArray[np.float32]
    source: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        if self.tokens.ndim != 1 or self.tokens.shape != self.weights.shape:
            raise DataError(f"tokens {self.tokens.shape} and weights {self.weights.shape} must be one equal row")
        if len(self.tokens) < 2:
            raise DataError(f"an example needs two tokens to predict one from the other, got {len(self.tokens)}")
        if self.source is not None and (self.source.ndim != 1 or not len(self.source)):
            raise DataError("the source of an example is empty", way_out="leave the example out")

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, slots=True)
class Batch:
    """Tensors of one step, each ``(B, T)`` but ``pair``; ``targets[:, t]`` is what follows ``tokens[:, t]`` (or, behind
    an encoder, what stands there).

    ``documents`` None means that each row is one document without padding; ``positions`` None means 0..T-1.
    ``source (B, S)`` is what an encoder reads, numbered by ``source_documents`` as the target's own documents are.
    ``labels`` are the classes of each row, ``(B,)``, or ``(B, C)`` of 0 and 1 where several may hold.
    ``advantage``, ``old_logprob`` and ``reference_logprob`` stand beside ``targets``; ``pair`` is the rejected side.
    """

    tokens: Tensor
    targets: Tensor | None = None
    weights: Tensor | None = None
    documents: Tensor | None = None
    positions: Tensor | None = None
    advantage: Tensor | None = None
    old_logprob: Tensor | None = None
    reference_logprob: Tensor | None = None
    source: Tensor | None = None
    source_documents: Tensor | None = None
    labels: Tensor | None = None
    pair: Batch | None = None

    def _each(self, change: object) -> Batch:
        moved = {f.name: change(v) for f in fields(self) if (v := getattr(self, f.name)) is not None}  # type: ignore[operator]
        return replace(self, **moved)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return self._each(lambda v: v.to(device))

    def rows(self, start: int, stop: int) -> Batch:
        """Rows ``start:stop`` of every field, ``pair`` included."""
        return self._each(lambda v: v.rows(start, stop) if isinstance(v, Batch) else v[start:stop])

    def micro(self, parts: int) -> list[Batch]:
        """Split the rows into ``parts`` micro-batches, as evenly as they go (accumulation is exact for any split)."""
        count = len(self.tokens)
        if not 1 <= parts <= count:
            raise DataError(f"{count} rows cannot be split into {parts} micro-batches")
        edges = [count * i // parts for i in range(parts + 1)]
        return [self.rows(a, b) for a, b in itertools.pairwise(edges)]

    def lengths(self) -> Tensor:
        """Tokens of each row that are not padding, ``(B,)`` int64."""
        if self.documents is None:
            return torch.full((len(self.tokens),), self.tokens.shape[1], device=self.tokens.device)
        return (self.documents >= 0).sum(1)

    def total_weight(self) -> float:
        """Sum of the weights: the denominator of every mean over targets."""
        if self.weights is None:
            return float(self.tokens.numel())
        return float(self.weights.sum(dtype=torch.float64))


def pad(examples: Sequence[Example], *, pad_id: int, length: int | None = None,
        source_length: int | None = None) -> Batch:
    """One example a row, padded on the right to ``length`` (default: the longest); a longer example is refused."""
    width = max(len(e) for e in examples) - 1 if length is None else length
    return lay([[e] for e in examples], pad_id=pad_id, width=width, source_width=source_length)


def pack(examples: Sequence[Example], *, pad_id: int, length: int, source_length: int | None = None,
         rows: int | None = None) -> Batch:
    """Several examples a row, first fit in the order given; ``documents`` keeps them apart.

    ``rows`` pads the batch with empty rows to a fixed count; more rows than that is refused.
    """
    laid: list[list[Example]] = []
    room: list[tuple[int, int]] = []
    for example in examples:
        need, sources = len(example) - 1, 0 if example.source is None else len(example.source)
        row = next((i for i, (free, other) in enumerate(room) if free >= need and other >= sources), None)
        if row is None:
            laid.append([])
            room.append((length, source_length or 0))
            row = len(laid) - 1
        laid[row].append(example)
        room[row] = (room[row][0] - need, room[row][1] - sources)
    if rows is not None and len(laid) > rows:
        raise DataError(f"{len(examples)} examples need {len(laid)} rows of {length}, and only {rows} were given")
    laid += [[] for _ in range((rows or 0) - len(laid))]
    return lay(laid, pad_id=pad_id, width=length, source_width=source_length)


def lay(rows: Sequence[Sequence[Example]], *, pad_id: int, width: int, source_width: int | None = None) -> Batch:
    """Rows of examples as they are given, each padded on the right to ``width``, and their sources to ``source_width``
    (default: the longest row of them); too many for a row are refused."""
    shape = (len(rows), width)
    tokens = np.full(shape, pad_id, np.int64)
    targets = np.full(shape, pad_id, np.int64)
    weights = np.zeros(shape, np.float32)
    documents = np.full(shape, -1, np.int32)
    positions = np.zeros(shape, np.int64)
    for r, row in enumerate(rows):
        at = 0
        for d, example in enumerate(row):
            end = at + len(example) - 1
            if end > width:
                raise DataError(f"an example of {len(example) - 1} targets does not fit a row of {width}",
                                way_out="raise the context length or leave the example out")
            tokens[r, at:end], targets[r, at:end] = example.tokens[:-1], example.tokens[1:]
            weights[r, at:end], documents[r, at:end] = example.weights[1:], d
            positions[r, at:end] = np.arange(end - at)
            at = end
    laid = [torch.from_numpy(a) for a in (tokens, targets, weights, documents, positions)]
    batch = Batch(laid[0], laid[1], laid[2], laid[3], laid[4])
    sources = [[e.source for e in row] for row in rows]
    if not any(s is not None for row in sources for s in row):
        return batch
    source, numbers = lay_sources(sources, pad_id=pad_id, width=source_width)
    return replace(batch, source=source, source_documents=numbers)


def lay_sources(rows: Sequence[Sequence[NDArray[np.int64] | None]], *, pad_id: int,
                width: int | None = None) -> tuple[Tensor, Tensor]:
    """The sources of each row one behind another, padded on the right, and the number of each token's document;
    both ``(B, S)``, ``S = width`` or the longest row."""
    lengths = [sum(0 if s is None else len(s) for s in row) for row in rows]
    size = max(lengths) if width is None else width
    if max(lengths) > size:
        raise DataError(f"a source of {max(lengths)} tokens does not fit {size}",
                        way_out="raise the context length or leave the example out")
    tokens, documents = np.full((len(rows), size), pad_id, np.int64), np.full((len(rows), size), -1, np.int32)
    for r, row in enumerate(rows):
        at = 0
        for d, source in enumerate(row):
            if source is not None:
                end = at + len(source)
                tokens[r, at:end], documents[r, at:end] = source, d
                at = end
    return torch.from_numpy(tokens), torch.from_numpy(documents)


def full(rows: Sequence[NDArray[np.int64]], *, pad_id: int, width: int) -> tuple[Batch, list[int]]:
    """Rows that are read and not continued, several in a row of ``width`` so that little padding is read, and their
    numbers in the order they are laid. Raises DataError for one longer than ``width``."""
    numbers: list[list[int]] = []
    used: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: -len(rows[i])):
        at = next((r for r, taken in enumerate(used) if taken + len(rows[i]) <= width), len(used))
        if at == len(used):
            numbers.append([])
            used.append(0)
        numbers[at].append(i)
        used[at] += len(rows[i])
    tokens, documents = lay_sources([[rows[i] for i in row] for row in numbers], pad_id=pad_id,
                                    width=min(width, max(used)))
    return Batch(tokens, documents=documents), [i for row in numbers for i in row]


def whole(rows: Sequence[NDArray[np.int64]], *, pad_id: int, width: int | None = None) -> Batch:
    """Rows that are read and not continued: every token of each, padded on the right to ``width`` or the longest;
    no targets."""
    tokens, documents = lay_sources([[row] for row in rows], pad_id=pad_id, width=width)
    return Batch(tokens, documents=documents)


def end_to_end(rows: Sequence[NDArray[np.int64]]) -> Batch:
    """Rows that are read and not continued, all behind one another in a single one: no padding, ``(1, T)``."""
    lengths = [len(row) for row in rows]
    tokens = np.concatenate(rows).astype(np.int64)
    documents = np.repeat(np.arange(len(rows), dtype=np.int32), lengths)
    positions = np.arange(len(tokens)) - np.repeat(np.cumsum([0, *lengths[:-1]]), lengths)
    return Batch(torch.from_numpy(tokens)[None], documents=torch.from_numpy(documents)[None],
                 positions=torch.from_numpy(positions)[None])


def beside(batch: Batch, begin_id: int) -> Batch:
    """The batch as an encoder-decoder is asked about it: its tokens are the source, and the target only begins."""
    numbers = torch.zeros_like(batch.tokens, dtype=torch.int32) if batch.documents is None else batch.documents
    pair = None if batch.pair is None else beside(batch.pair, begin_id)
    return replace(batch, tokens=torch.full_like(batch.tokens[:, :1], begin_id), documents=None, positions=None,
                   source=batch.tokens, source_documents=numbers, pair=pair)
