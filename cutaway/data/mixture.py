"""Mixture: rows drawn from several sources by weight, exactly and without randomness between steps.

Every block of 1,000 rows holds each source's share to the row (largest remainder, Hamilton 1792), in an order that
depends on (seed, block) alone; so which source a row has, and which of its rows, needs no memory of earlier steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from cutaway.batch import Batch
from cutaway.data.loader import Source, Span
from cutaway.data.order import share, shuffled
from cutaway.errors import DataError

_BLOCK = 1_000


def apportion(weights: Sequence[float], total: int) -> list[int]:
    """``total`` split into whole parts in proportion to ``weights``; the largest remainders get what is left."""
    exact = [w / sum(weights) * total for w in weights]
    parts = [int(e) for e in exact]
    by_remainder = sorted(range(len(parts)), key=lambda i: parts[i] - exact[i])
    for i in by_remainder[: total - sum(parts)]:
        parts[i] += 1
    return parts


@dataclass(frozen=True)
class Mixture:
    """Rows of several loaders of one length; ``weights`` count rows, so they count tokens."""

    sources: Sequence[Source]
    weights: Sequence[float]
    rows: int
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.sources) != len(self.weights) or not self.sources:
            raise DataError(f"{len(self.sources)} sources and {len(self.weights)} weights do not go together")
        if any(not w > 0 or w == float("inf") for w in self.weights):
            raise DataError(f"weights {list(self.weights)} must be positive numbers", way_out="leave a source of 0 out")
        if 0 in self.parts:
            raise DataError(f"a weight is below a {_BLOCK}th of the sum, so its source would never be seen",
                            way_out="raise it or leave the source out")

    @cached_property
    def parts(self) -> list[int]:
        """How many of every 1,000 rows come from each source."""
        return apportion(self.weights, _BLOCK)

    def batch(self, step: int, *, rank: int = 0, world: int = 1) -> Batch:
        """This rank's rows of the batch at ``step``."""
        return self.take(share(step, self.rows, rank=rank, world=world))

    def trace(self, step: int, *, rank: int = 0, world: int = 1) -> list[Span]:
        """Where every token of that batch comes from."""
        numbers = share(step, self.rows, rank=rank, world=world)
        spans = []
        for source, (rows, mine) in zip(self.sources, self._assigned(numbers), strict=True):
            spans += [span._replace(row=int(rows[span.row])) for span in source.trace_rows(mine)] if len(rows) else []
        return sorted(spans)

    def take(self, numbers: NDArray[np.int64]) -> Batch:
        """The rows with these global numbers, in their order."""
        parts, places = [], []
        for source, (rows, mine) in zip(self.sources, self._assigned(numbers), strict=True):
            if len(rows):
                parts.append(source.take(mine))
                places.append(rows)
        return _joined(parts, torch.from_numpy(np.argsort(np.concatenate(places))))

    def _assigned(self, numbers: NDArray[np.int64]) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """For each source: the rows of the batch it fills, and the numbers of its own rows that go there."""
        source, mine = np.empty_like(numbers), np.empty_like(numbers)
        for block in np.unique(numbers // _BLOCK):
            here = numbers // _BLOCK == block
            source[here], mine[here] = (found[numbers[here] % _BLOCK] for found in self._block(int(block)))
        rows = [np.flatnonzero(source == i) for i in range(len(self.parts))]
        return [(these, mine[these]) for these in rows]

    def _block(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For each place of a block: its source, and which of that source's rows it takes."""
        slots = shuffled(np.arange(number * _BLOCK, (number + 1) * _BLOCK), _BLOCK, seed=self.seed)
        source = np.searchsorted(np.cumsum(self.parts), slots, side="right")
        mine = np.empty(_BLOCK, np.int64)
        for i, part in enumerate(self.parts):
            mine[source == i] = number * part + np.arange(part)
        return source, mine


def _joined(parts: Sequence[Batch], order: torch.Tensor) -> Batch:
    joined: dict[str, torch.Tensor] = {}
    for f in fields(Batch):
        values = [getattr(part, f.name) for part in parts]
        if any(v is None for v in values):
            if not all(v is None for v in values):
                raise DataError(f"the sources of a mixture differ: some have {f.name} and some have not",
                                way_out="set mask_documents alike for all of them")
            continue
        joined[f.name] = torch.cat(values)[order]
    return Batch(**joined)  # type: ignore[arg-type]
