"""Buckets: batches of examples of about one length, so that little of a batch is padding (as in tensor2tensor and
fairseq), for everything that is not packed: classes, sources and targets, pairs.

Lengths are put in bands, each a tenth wider than the one before. An epoch puts the examples of each band in a new
order, cuts the whole order, from short to long, into batches, and takes those in a random order. The cuts depend on
the bands alone, so every epoch has the same number of batches, and a batch is a pure function of (seed, step).
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from cutaway.batch import Batch, Example, pad, whole
from cutaway.data.examples import Labelled, Pair
from cutaway.data.loader import Span
from cutaway.data.order import shuffled
from cutaway.errors import DataError

AnyExample = Example | Labelled | Pair
_BAND = math.log(1.1)


@dataclass(frozen=True, eq=False)
class BucketLoader:
    """Whole examples of one kind, one a row, in batches of at most ``rows`` rows, or of at most ``tokens`` places
    (padding and sources counted).

    ``limit`` and ``source_limit`` are the most tokens that a model reads of an example (a pair: of each side) and of
    its source. A longer example is refused, or ``too_long`` leaves it out ("skip") or cuts it ("cut": off a target
    its end; off any other text what stands before its last token); ``left_out`` and ``cut`` are the numbers of those.
    An example that has nothing to learn once it is cut (its prompt alone fills the limit) is left out.
    ``names`` go into the trace.
    """

    examples: Sequence[AnyExample]
    pad_id: int
    rows: int | None = None
    tokens: int | None = None
    seed: int = 0
    limit: int | None = None
    source_limit: int | None = None
    too_long: Literal["refuse", "skip", "cut"] = "refuse"
    names: Sequence[str] = ()
    _orders: dict[int, NDArray[np.int64]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if (self.rows is None) == (self.tokens is None) or (self.rows or self.tokens or 0) < 1:
            raise DataError(f"a batch of rows = {self.rows} and tokens = {self.tokens} cannot be made",
                            way_out="give one of them, at least 1")
        if len({type(e) for e in self.examples}) > 1:
            raise DataError("examples of different kinds cannot lie in one batch")
        if self._long.any() and self.too_long == "refuse":
            raise DataError(f"{self._long.sum()} of {len(self.examples)} examples do not fit {self._limits}, the "
                            f"longest needs {self._sizes.max(0).tolist()}",
                            way_out="raise the context length, or ask for too_long = skip or cut")
        if not len(self._kept):
            why = f": cut to {self._limits}, none has a target" if self._empty.any() else ""
            raise DataError(f"none of {len(self.examples)} examples is left to learn from{why}",
                            way_out="raise the context length" if why else None)
        if self.tokens is not None and (most := int(self._widths.sum(1).max())) > self.tokens:
            raise DataError(f"an example of {most} places does not fit a batch of {self.tokens} tokens",
                            way_out="raise the tokens of a batch or set a limit")

    @property
    def _limits(self) -> str:
        return f"{self.limit} tokens" + (f" and a source of {self.source_limit}" if self.source_limit else "")

    @cached_property
    def _sizes(self) -> NDArray[np.int64]:
        """Places each example takes in the batch and in its second part, ``(N, 2)``."""
        return np.array([_size(e) for e in self.examples], np.int64).reshape(-1, 2)

    @cached_property
    def _most(self) -> tuple[int, int]:
        """The most places of each part."""
        pairs = bool(self.examples) and isinstance(self.examples[0], Pair)
        first, second = self.limit, self.limit if pairs else self.source_limit
        return sys.maxsize if first is None else first, sys.maxsize if second is None else second

    @cached_property
    def _long(self) -> NDArray[np.bool_]:
        return np.asarray((self._sizes > self._most).any(1), np.bool_)

    @cached_property
    def _empty(self) -> NDArray[np.bool_]:
        """Which examples have no target once they are cut."""
        out = np.zeros(len(self.examples), np.bool_)
        for i in np.flatnonzero(self._long).tolist() if self.too_long == "cut" else ():
            example = _shortened(self.examples[i], *self._most)
            out[i] = isinstance(example, Example) and not example.weights[1:].any()
        return out

    @property
    def left_out(self) -> list[int]:
        """The numbers of the examples that are too long and left out."""
        return np.flatnonzero(self._long if self.too_long == "skip" else self._empty).tolist()

    @property
    def cut(self) -> list[int]:
        """The numbers of the examples of which a part is cut off."""
        return np.flatnonzero(self._long & ~self._empty).tolist() if self.too_long == "cut" else []

    @cached_property
    def _fitting(self) -> NDArray[np.int64]:
        return np.asarray(np.minimum(self._sizes, self._most), np.int64)

    @cached_property
    def _bands(self) -> NDArray[np.int64]:
        """The band of each example by both lengths: neighbours in the first are then sorted by the second."""
        first, second = np.ceil(np.log(np.maximum(self._fitting, 1)) / _BAND).astype(np.int64).T
        return np.asarray(first * 1_000 + second, np.int64)

    @cached_property
    def _kept(self) -> NDArray[np.int64]:
        """The numbers of the examples that are used, from short to long."""
        numbers = np.setdiff1d(np.arange(len(self.examples)), self.left_out)
        return numbers[np.argsort(self._bands[numbers], kind="stable")]

    @cached_property
    def _widths(self) -> NDArray[np.int64]:
        """The most places that each part of an example of the same band takes, in that order, ``(n, 2)``."""
        _, starts, which = np.unique(self._bands[self._kept], return_index=True, return_inverse=True)
        return np.asarray(np.maximum.reduceat(self._fitting[self._kept], starts)[which], np.int64)

    @cached_property
    def _cuts(self) -> list[tuple[int, int]]:
        """Where in that order batches begin and end."""
        count = len(self._kept)
        if self.rows is not None:
            batches = -(-count // self.rows)  # as even as they go, so that no step is much smaller than others
            edges = [count * i // batches for i in range(batches + 1)]
        else:
            edges = [*_filled(self._widths, self.tokens or 0), count]
        return list(itertools.pairwise(edges))

    @property
    def epoch_rows(self) -> int:
        """Rows until every example was seen once."""
        return len(self._kept)

    @property
    def epoch_steps(self) -> int:
        """Batches until every example was seen once."""
        return len(self._cuts)

    def numbers(self, step: int, *, rank: int = 0, world: int = 1) -> NDArray[np.int64]:
        """Which examples this rank reads at ``step``. Raises DataError where the batch has fewer rows than ranks."""
        if step < 0 or not 0 <= rank < world:
            raise DataError(f"step {step} of rank {rank} of {world} does not exist")
        start, stop = self._cuts[int(shuffled(np.array([step]), self.epoch_steps, seed=self.seed)[0])]
        if stop - start < world:
            raise DataError(f"a batch of {stop - start} rows cannot be shared by {world} ranks",
                            way_out="raise the rows or tokens of a batch")
        order, count = self._order(step // self.epoch_steps), stop - start
        return order[start + count * rank // world : start + count * (rank + 1) // world]

    def _order(self, epoch: int) -> NDArray[np.int64]:
        """The examples of an epoch from short to long, those of a band in an order of its own; kept while it lasts."""
        if epoch not in self._orders:
            count = len(self._kept)
            mixed = self._kept[shuffled(np.arange(epoch * count, (epoch + 1) * count), count, seed=self.seed)]
            self._orders.clear()
            self._orders[epoch] = mixed[np.argsort(self._bands[mixed], kind="stable")]
        return self._orders[epoch]

    def batch(self, step: int, *, rank: int = 0, world: int = 1) -> Batch:
        """This rank's rows of the batch at ``step``."""
        return self.take(self.numbers(step, rank=rank, world=world))

    def take(self, numbers: NDArray[np.int64]) -> Batch:
        """The examples with these numbers, as one batch."""
        return laid([_shortened(self.examples[i], *self._most) if self._long[i] else self.examples[i] for i in numbers],
                    pad_id=self.pad_id)

    def trace(self, step: int, *, rank: int = 0, world: int = 1) -> list[Span]:
        """Which examples lie where in that batch."""
        numbers = self.numbers(step, rank=rank, world=world).tolist()
        return [Span(row, 0, int(self._fitting[i, 0]), self.names[i] if self.names else f"example {i}", 0)
                for row, i in enumerate(numbers)]

    @property
    def padding(self) -> float:
        """The share of an epoch's places that are padding."""
        real = all_of = 0
        for start, stop in self._cuts:
            sizes = self._fitting[self._order(0)[start:stop]]
            real, all_of = real + int(sizes.sum()), all_of + int(sizes.max(0).sum()) * (stop - start)
        return 1 - real / all_of


def laid(examples: Sequence[AnyExample], *, pad_id: int) -> Batch:
    """Examples of one kind as the batch they make, one a row."""
    first = examples[0]
    if isinstance(first, Example):
        return pad([e for e in examples if isinstance(e, Example)], pad_id=pad_id)
    if isinstance(first, Labelled):
        rows = [e for e in examples if isinstance(e, Labelled)]
        return replace(whole([e.tokens for e in rows], pad_id=pad_id),
                       labels=torch.from_numpy(np.array([e.label for e in rows])))
    sides = [e for e in examples if isinstance(e, Pair)]
    return replace(whole([e.first for e in sides], pad_id=pad_id),
                   pair=whole([e.second for e in sides], pad_id=pad_id))


def _size(example: AnyExample) -> tuple[int, int]:
    if isinstance(example, Example):
        return len(example) - 1, 0 if example.source is None else len(example.source)
    return (len(example.tokens), 0) if isinstance(example, Labelled) else (len(example.first), len(example.second))


def _shortened(example: AnyExample, first: int, second: int) -> AnyExample:
    if isinstance(example, Example):
        keep = min(first, len(example) - 1) + 1
        source = None if example.source is None else _without_middle(example.source, second)
        return Example(example.tokens[:keep], example.weights[:keep], source)
    if isinstance(example, Labelled):
        return Labelled(_without_middle(example.tokens, first), example.label)
    return Pair(_without_middle(example.first, first), _without_middle(example.second, second))


def _without_middle(tokens: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    """At most ``limit`` tokens, the last of them the end that the text had."""
    return tokens if len(tokens) <= limit else np.append(tokens[: limit - 1], tokens[-1])


def _filled(widths: NDArray[np.int64], tokens: int) -> list[int]:
    """Where batches of at most ``tokens`` places begin, each row as wide as the widest of its batch."""
    begins, first, second = [0], 0, 0
    for at, (one, two) in enumerate(widths.tolist()):
        first, second = max(first, one), max(second, two)
        if (at + 1 - begins[-1]) * (first + second) > tokens:
            begins.append(at)
            first, second = one, two
    return begins
