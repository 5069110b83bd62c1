"""Gaps in a stream: masked tokens (Devlin 2018, arXiv 1810.04805; all masks at 30 % as ModernBERT, arXiv 2412.13663),
span corruption and prefixes (Raffel 2020, arXiv 1910.10683).

Each is a source of rows over another one, so mixtures take it, and what becomes of a row depends on (seed, the row's
global number) alone: every epoch has new gaps, and a resumed run or more ranks see the same ones. B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from cutaway.batch import Batch, Example, lay
from cutaway.data.loader import Source, Span
from cutaway.data.order import share as numbers_of
from cutaway.data.order import uniform
from cutaway.errors import DataError, SettingsError
from cutaway.text.tokenizer import Tokenizer

Ids = NDArray[np.int64]
Weights = NDArray[np.float32]


@dataclass(frozen=True)
class Masked:
    """Rows in which about ``share`` of the tokens is hidden; the targets stand where the tokens do and have a weight
    only where one was chosen. Control tokens, padding and what ``source`` does not learn are never chosen.

    ``mixed``: shares of the chosen tokens that become the mask, become any other token, and stay (Devlin: 0.8, 0.1,
    0.1). ``trace`` names the source's places, which are the same here.
    """

    source: Source
    tokenizer: Tokenizer
    rows: int
    share: float = 0.3
    mixed: tuple[float, float, float] = (1.0, 0.0, 0.0)
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self.share, self.rows)
        if min(self.mixed) < 0 or abs(sum(self.mixed) - 1) > 1e-6:
            raise SettingsError(f"mixed = {list(self.mixed)} must be three shares that sum to 1")
        assert self.tokenizer.mask_id >= 0  # raises where the vocabulary has none

    @property
    def epoch_rows(self) -> int:
        """Rows until everything was seen once, under one choice of gaps."""
        return self.source.epoch_rows

    def batch(self, step: int, *, rank: int = 0, world: int = 1) -> Batch:
        """This rank's rows of the batch at ``step``."""
        return self.take(numbers_of(step, self.rows, rank=rank, world=world))

    def trace_rows(self, numbers: NDArray[np.int64]) -> list[Span]:
        """Where these rows come from."""
        return self.source.trace_rows(numbers)

    @cached_property
    def _ordinary(self) -> Ids:
        return np.setdiff1d(np.arange(self.tokenizer.vocab_size), self.tokenizer.control_ids)

    def take(self, numbers: NDArray[np.int64]) -> Batch:
        """The rows with these global numbers."""
        batch = self.source.take(numbers)
        tokens = batch.tokens.numpy()
        width = tokens.shape[1]
        chosen_by, become, other = np.split(uniform(numbers, 3 * width, seed=self.seed), 3, axis=1)
        learned = _learned(batch)
        chosen = (learned > 0) & (chosen_by < self.share) & ~np.isin(tokens, self.tokenizer.control_ids)
        strange = self._ordinary[(other * len(self._ordinary)).astype(np.int64)]
        mask, random, _ = self.mixed
        hidden = np.where(become < mask, self.tokenizer.mask_id, np.where(become < mask + random, strange, tokens))
        return replace(batch, tokens=torch.from_numpy(np.where(chosen, hidden, tokens)), targets=batch.tokens,
                       weights=torch.from_numpy(np.where(chosen, learned, 0).astype(np.float32)))


@dataclass(frozen=True)
class Spans:
    """T5's span corruption: ``share`` of each document's tokens is cut out in spans of ``mean_length``, each marked by
    a sentinel in the source; the target names each sentinel and what stood there, between beginning and end.

    A span ends before a control token, so a document has a few gaps less where it holds some. Raises SettingsError
    where a row has more spans than the vocabulary has sentinels. A source may be one token (its end) longer than the
    row it comes from, for each document of it.
    """

    source: Source
    tokenizer: Tokenizer
    rows: int
    share: float = 0.15
    mean_length: float = 3.0
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self.share, self.rows)
        if self.mean_length < 1:
            raise SettingsError(f"mean_length = {self.mean_length} must be at least 1")
        assert self.tokenizer.span_ids  # raises where the vocabulary has none

    @property
    def epoch_rows(self) -> int:
        """Rows until everything was seen once, under one choice of gaps."""
        return self.source.epoch_rows

    def batch(self, step: int, *, rank: int = 0, world: int = 1) -> Batch:
        """This rank's rows of the batch at ``step``."""
        return self.take(numbers_of(step, self.rows, rank=rank, world=world))

    def trace_rows(self, numbers: NDArray[np.int64]) -> list[Span]:
        """Where these rows come from, in the places of the source's own rows."""
        return self.source.trace_rows(numbers)

    def take(self, numbers: NDArray[np.int64]) -> Batch:
        """The rows with these global numbers."""
        rows = [[self._example(tokens, weights, np.random.default_rng([self.seed, int(number), d]))
                 for d, (tokens, weights) in enumerate(documents)]
                for number, documents in zip(numbers, _documents(self.source.take(numbers), self.tokenizer),
                                             strict=True)]
        return _laid(rows, self.tokenizer)

    def _example(self, tokens: Ids, weights: Weights, draw: np.random.Generator) -> Example:
        control = np.isin(tokens, self.tokenizer.control_ids)
        source: list[ArrayLike] = []
        target: list[ArrayLike] = [[self.tokenizer.bos_id]]
        learned: list[ArrayLike] = [[0.0]]
        at = 0
        for (start, stop), sentinel in zip(self._spans(control, draw), self._sentinels(), strict=False):
            source += [tokens[at:start], [sentinel]]
            target += [[sentinel], tokens[start:stop]]
            learned += [[1.0], weights[start:stop]]
            at = stop
        ids = np.concatenate([np.concatenate(target), [self.tokenizer.eos_id]]).astype(np.int64)
        read = np.concatenate([*source, tokens[at:]]).astype(np.int64)
        return Example(ids, np.concatenate([*learned, [1.0]]).astype(np.float32), _ended(read, self.tokenizer))

    def _sentinels(self) -> Iterator[int]:
        yield from self.tokenizer.span_ids
        raise SettingsError(f"a row needs more gaps than the {len(self.tokenizer.span_ids)} that the vocabulary names",
                            way_out="raise tokenizer.masks, the mean length, or shorten the rows")

    def _spans(self, control: NDArray[np.bool_], draw: np.random.Generator) -> Iterator[tuple[int, int]]:
        """Where spans begin and end: as T5, what is kept and what goes are cut alike at random, in turns."""
        length = len(control)
        gone = min(max(1, round(length * self.share)), length - 1)
        count = min(max(1, round(gone / self.mean_length)), length - gone) if gone else 0
        if not count:
            return
        sizes = np.stack([_parts(length - gone, count, draw), _parts(gone, count, draw)], 1)
        edges = np.cumsum(sizes).reshape(-1, 2)
        for start, stop in edges.tolist():
            first = control[start:stop].argmax() if control[start:stop].any() else stop - start
            if first:
                yield start, start + int(first)


@dataclass(frozen=True)
class Prefixes:
    """Each document of a row in two, at a place drawn evenly: the first part is read, the rest written.

    The target begins with bos and has no other end than the document's own; the source always ends.
    """

    source: Source
    tokenizer: Tokenizer
    rows: int
    seed: int = 0

    @property
    def epoch_rows(self) -> int:
        """Rows until everything was seen once, under one choice of places."""
        return self.source.epoch_rows

    def batch(self, step: int, *, rank: int = 0, world: int = 1) -> Batch:
        """This rank's rows of the batch at ``step``."""
        return self.take(numbers_of(step, self.rows, rank=rank, world=world))

    def trace_rows(self, numbers: NDArray[np.int64]) -> list[Span]:
        """Where these rows come from, in the places of the source's own rows."""
        return self.source.trace_rows(numbers)

    def take(self, numbers: NDArray[np.int64]) -> Batch:
        """The rows with these global numbers."""
        rows = []
        for number, documents in zip(numbers, _documents(self.source.take(numbers), self.tokenizer), strict=True):
            places = uniform(np.array([number]), len(documents), seed=self.seed)[0]
            rows.append([self._example(*each, place) for each, place in zip(documents, places, strict=True)])
        return _laid(rows, self.tokenizer)

    def _example(self, tokens: Ids, weights: Weights, place: float) -> Example:
        cut = int(place * len(tokens))
        target = np.concatenate([[self.tokenizer.bos_id], tokens[cut:]]).astype(np.int64)
        learned = np.concatenate([[0.0], weights[cut:]]).astype(np.float32)
        return Example(target, learned, np.append(tokens[:cut], self.tokenizer.eos_id).astype(np.int64))


def _check(share: float, rows: int) -> None:
    if not 0 < share < 1:
        raise SettingsError(f"share = {share} must lie between 0 and 1")
    if rows < 1:
        raise DataError(f"a batch of {rows} rows is empty")


def _learned(batch: Batch) -> Weights:
    """How much each token is learned where it stands, ``(B, T)``: as the source learns it as the target of the place
    before; a document's first token as its second one; padding not at all."""
    shape = batch.tokens.shape
    weights = np.ones(shape, np.float32) if batch.weights is None else batch.weights.numpy()
    documents = np.zeros(shape, np.int32) if batch.documents is None else batch.documents.numpy()
    learned = weights.copy()
    learned[:, 1:] = np.where(documents[:, 1:] == documents[:, :-1], weights[:, :-1], weights[:, 1:])
    learned[documents < 0] = 0
    return learned


def _documents(batch: Batch, tokenizer: Tokenizer) -> Iterator[list[tuple[Ids, Weights]]]:
    """For each row, the tokens of each of its documents, and how much each is learned; a beginning is not."""
    tokens, learned = batch.tokens.numpy(), _learned(batch)
    learned[tokens == tokenizer.bos_id] = 0
    for r, row in enumerate(tokens):
        if batch.documents is None:
            yield [(row, learned[r])]
            continue
        numbers = batch.documents[r].numpy()
        yield [(row[numbers == d], learned[r][numbers == d]) for d in np.unique(numbers[numbers >= 0])]


def _parts(total: int, count: int, draw: np.random.Generator) -> Ids:
    """``total`` in ``count`` parts of at least one, every way of cutting it equally likely."""
    cuts = np.sort(draw.choice(total - 1, count - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], cuts, [total]])).astype(np.int64)


def _ended(tokens: Ids, tokenizer: Tokenizer) -> Ids:
    return tokens if tokens[-1] == tokenizer.eos_id else np.append(tokens, tokenizer.eos_id)


def _laid(rows: Sequence[Sequence[Example]], tokenizer: Tokenizer) -> Batch:
    width = max(sum(len(e) - 1 for e in row) for row in rows)
    return lay(rows, pad_id=tokenizer.pad_id, width=max(1, width))
