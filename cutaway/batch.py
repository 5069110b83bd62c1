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
    """One sequence: ``tokens (T,)`` and ``weights (T,)``; ``weights[t]`` is how much token t is learned."""

    tokens: NDArray[np.int64]
    weights: NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.tokens.ndim != 1 or self.tokens.shape != self.weights.shape:
            raise DataError(f"tokens {self.tokens.shape} and weights {self.weights.shape} must be one equal row")
        if len(self.tokens) < 2:
            raise DataError(f"an example needs two tokens to predict one from the other, got {len(self.tokens)}")

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, slots=True)
class Batch:
    """Tensors of one step, each ``(B, T)`` but ``pair``; ``targets[:, t]`` is what follows ``tokens[:, t]``.

    ``documents`` None means that each row is one document without padding; ``positions`` None means 0..T-1.
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


def pad(examples: Sequence[Example], *, pad_id: int, length: int | None = None) -> Batch:
    """One example a row, padded on the right to ``length`` (default: the longest); a longer example is refused."""
    width = max(len(e) for e in examples) - 1 if length is None else length
    return lay([[e] for e in examples], pad_id=pad_id, width=width)


def pack(examples: Sequence[Example], *, pad_id: int, length: int, rows: int | None = None) -> Batch:
    """Several examples a row, first fit in the order given; ``documents`` keeps them apart.

    ``rows`` pads the batch with empty rows to a fixed count; more rows than that is refused.
    """
    laid: list[list[Example]] = []
    room: list[int] = []
    for example in examples:
        need = len(example) - 1
        row = next((i for i, free in enumerate(room) if free >= need), None)
        if row is None:
            laid.append([])
            room.append(length)
            row = len(laid) - 1
        laid[row].append(example)
        room[row] -= need
    if rows is not None and len(laid) > rows:
        raise DataError(f"{len(examples)} examples need {len(laid)} rows of {length}, and only {rows} were given")
    laid += [[] for _ in range((rows or 0) - len(laid))]
    return lay(laid, pad_id=pad_id, width=length)


def lay(rows: Sequence[Sequence[Example]], *, pad_id: int, width: int) -> Batch:
    """Rows of examples as they are given, each padded on the right to ``width``; too many for a row are refused."""
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
    return Batch(laid[0], laid[1], laid[2], laid[3], laid[4])
