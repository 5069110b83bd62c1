"""Loaders: a batch is a pure function of (seed, step), so a resumed run and any number of ranks see the same data.

Nothing is kept between steps; ``data/order.py`` says which row comes when. Within an epoch every token is a target
exactly once (a document's bos is context only). ``trace`` names the document and the place of everything in a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from cutaway.batch import Batch, Example, lay
from cutaway.data.order import share, shuffled
from cutaway.data.shards import Shards
from cutaway.errors import DataError


class Span(NamedTuple):
    """Tokens ``start:stop`` of ``row`` come from ``name``, beginning at its token ``offset``."""

    row: int
    start: int
    stop: int
    name: str
    offset: int


class Source(Protocol):
    """What a mixture draws from: numbered rows without end, every ``epoch_rows`` of them an epoch."""

    @property
    def epoch_rows(self) -> int:
        """Rows until everything was seen once."""

    def take(self, numbers: NDArray[np.int64]) -> Batch:
        """The rows with these global numbers."""

    def trace_rows(self, numbers: NDArray[np.int64]) -> list[Span]:
        """Where these rows come from."""


@dataclass(frozen=True)
class Loader:
    """Rows of ``length`` tokens cut from a split's one long stream of documents, in a new order each epoch.

    ``mask_documents`` numbers the documents in each row (attention stays inside them, positions restart); without it a
    row is plain text with ``documents = None``, the fast causal case. The last row of the stream overlaps the one
    before it, with weight 0 on what that one learned.
    """

    shards: Shards
    rows: int
    length: int
    seed: int = 0
    mask_documents: bool = False

    def __post_init__(self) -> None:
        if self.rows < 1 or self.length < 1:
            raise DataError(f"a batch of {self.rows} rows of {self.length} tokens is empty")
        if len(self.shards.tokens) <= self.length:
            raise DataError(f"the {self.shards.split} split has {len(self.shards.tokens):,} tokens, a row needs "
                            f"{self.length + 1:,}", where=self.shards.folder,
                            way_out="give more text, a larger share, or a shorter context")

    @property
    def epoch_rows(self) -> int:
        """Rows until every token was a target once."""
        return -(-(len(self.shards.tokens) - 1) // self.length)

    def batch(self, step: int, *, rank: int = 0, world: int = 1) -> Batch:
        """This rank's rows of the batch at ``step``."""
        return self.take(share(step, self.rows, rank=rank, world=world))

    def trace(self, step: int, *, rank: int = 0, world: int = 1) -> list[Span]:
        """Where every token of that batch comes from."""
        return self.trace_rows(share(step, self.rows, rank=rank, world=world))

    def take(self, numbers: NDArray[np.int64]) -> Batch:
        """The rows with these global numbers."""
        wanted, starts = self._places(numbers)
        drawn = self.shards.tokens[starts[:, None] + np.arange(self.length + 1)].astype(np.int64)
        tokens, targets = np.ascontiguousarray(drawn[:, :-1]), np.ascontiguousarray(drawn[:, 1:])
        weights = (targets != self.shards.manifest.bos_id).astype(np.float32)
        for row in np.flatnonzero(starts < wanted):
            weights[row, : wanted[row] - starts[row]] = 0
        batch = Batch(torch.from_numpy(tokens), torch.from_numpy(targets), torch.from_numpy(weights))
        return self._masked(batch, tokens) if self.mask_documents else batch

    def _places(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where each row begins to learn, and where it begins to read (earlier for the stream's last row)."""
        wanted = shuffled(numbers, self.epoch_rows, seed=self.seed) * self.length
        return wanted, np.minimum(wanted, len(self.shards.tokens) - 1 - self.length)

    def _masked(self, batch: Batch, tokens: NDArray[np.int64]) -> Batch:
        begins = tokens == self.shards.manifest.bos_id
        begins[:, 0] = True
        documents = begins.cumsum(1, dtype=np.int32) - np.int32(1)
        columns = np.arange(self.length)
        positions = columns - np.maximum.accumulate(np.where(begins, columns, 0), axis=1)
        return Batch(batch.tokens, batch.targets, batch.weights, torch.from_numpy(documents),
                     torch.from_numpy(positions))

    def trace_rows(self, numbers: NDArray[np.int64]) -> list[Span]:
        """Where these rows come from, one Span for each document in each row."""
        _, starts = self._places(numbers)
        spans = []
        for row, start in enumerate(starts.tolist()):
            at = start
            while at < start + self.length:
                number = self.shards.document_of(at)
                begin, end = (int(x) for x in self.shards.starts[number : number + 2])
                stop = min(end, start + self.length)
                spans.append(Span(row, at - start, stop - start, self.shards.name(number), at - begin))
                at = stop
        return spans


@dataclass(frozen=True, eq=False)
class ExampleLoader:
    """Whole examples in rows of ``length``: packed several to a row, kept apart by ``documents``, or padded one a row.

    Examples are packed once (best fit, longest first) and the packed rows are shuffled each epoch.
    Raises DataError for an example that does not fit, with both numbers: nothing is cut.
    """

    examples: Sequence[Example]
    rows: int
    length: int
    pad_id: int
    seed: int = 0
    packed: bool = True
    names: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not self.examples:
            raise DataError("there are no examples to learn from")
        longest = max(len(e) for e in self.examples) - 1
        if longest > self.length:
            count = sum(len(e) - 1 > self.length for e in self.examples)
            raise DataError(f"{count} of {len(self.examples)} examples do not fit {self.length} tokens, the longest "
                            f"needs {longest}", way_out="raise the context length or leave those examples out")

    @cached_property
    def bins(self) -> list[list[int]]:
        """The numbers of the examples that share a row."""
        lengths = [len(e) - 1 for e in self.examples]
        return best_fit(lengths, self.length, seed=self.seed) if self.packed else [[i] for i in range(len(lengths))]

    @property
    def epoch_rows(self) -> int:
        """Rows until every example was seen once."""
        return len(self.bins)

    def batch(self, step: int, *, rank: int = 0, world: int = 1) -> Batch:
        """This rank's rows of the batch at ``step``."""
        return self.take(share(step, self.rows, rank=rank, world=world))

    def trace(self, step: int, *, rank: int = 0, world: int = 1) -> list[Span]:
        """Which examples lie where in that batch."""
        return self.trace_rows(share(step, self.rows, rank=rank, world=world))

    def take(self, numbers: NDArray[np.int64]) -> Batch:
        """The rows with these global numbers."""
        places = shuffled(numbers, self.epoch_rows, seed=self.seed)
        return lay([[self.examples[i] for i in self.bins[p]] for p in places], pad_id=self.pad_id, width=self.length)

    def trace_rows(self, numbers: NDArray[np.int64]) -> list[Span]:
        """Where these rows come from, by ``names`` or by the example's number."""
        spans = []
        for row, place in enumerate(shuffled(numbers, self.epoch_rows, seed=self.seed)):
            start = 0
            for i in self.bins[place]:
                stop = start + len(self.examples[i]) - 1
                spans.append(Span(row, start, stop, self.names[i] if self.names else f"example {i}", 0))
                start = stop
        return spans


def best_fit(lengths: Sequence[int], size: int, *, seed: int) -> list[list[int]]:
    """Items to bins of ``size``, longest first, each into the fullest bin that still takes it (Johnson 1973).

    Equal lengths are taken in a random order, so that bins mix.
    """
    order = shuffled(np.arange(len(lengths)), max(1, len(lengths)), seed=seed)
    bins: list[list[int]] = []
    by_room: dict[int, list[int]] = {}
    rooms = 0  # bit r is set while some bin has room for exactly r
    for i in sorted(order.tolist(), key=lambda i: -lengths[i]):
        fits = rooms >> lengths[i]
        if fits:
            room = lengths[i] + (fits & -fits).bit_length() - 1
            chosen = by_room[room].pop()
            if not by_room[room]:
                rooms &= ~(1 << room)
        else:
            room, chosen = size, len(bins)
            bins.append([])
        bins[chosen].append(i)
        left = room - lengths[i]
        by_room.setdefault(left, []).append(chosen)
        rooms |= 1 << left
    return bins
