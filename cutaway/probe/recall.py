"""Recall against distance: multi-query associative recall (Zoology, Arora 2023, arXiv 2312.04927) and copy memory
(Hochreiter & Schmidhuber 1997, as in Bai 2018, arXiv 1803.01271), with the distance of every question known.

Noise, or blanks, stand between what has to be remembered and where it is asked for; they are an alphabet of their own,
so that an answer can be known from one place alone. The answer itself is never shown: it is a target. A distance is
counted from the key (or the symbol) to the token where it is asked for: a model that sees its last R tokens, the
present one included, can see that key up to a distance of R - 1. B rows, T tokens, K pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator

from cutaway.batch import Batch
from cutaway.errors import DataError
from cutaway.models.model import Model
from cutaway.records import Measurement, wilson
from cutaway.settings import Settings

Ints = NDArray[np.int64]
ROWS = 128  # rows whose logits exist at once


class Alphabet(Settings):
    """Ids: 0 is the blank, 1 the sign "now repeat", then keys, values and noise, each with ids of their own."""

    keys: int = Field(default=64, ge=1)
    values: int = Field(default=64, ge=2)
    noise: int = Field(default=64, ge=1)

    @property
    def vocab_size(self) -> int:
        """Ids in all."""
        return self.first_noise + self.noise

    @property
    def first_value(self) -> int:
        """The first id that is an answer."""
        return 2 + self.keys

    @property
    def first_noise(self) -> int:
        """The first id that means nothing."""
        return self.first_value + self.values


@dataclass(frozen=True, slots=True)
class Asked:
    """Rows of questions, each array ``(B, T)``: what is read, what is right, and from how far. A distance of 0 means
    that nothing is asked there."""

    tokens: Ints
    targets: Ints
    distances: Ints

    def batch(self) -> Batch:
        """The same as one Batch; only what is asked for is learned."""
        weights = (self.distances > 0).astype(np.float32)
        return Batch(torch.from_numpy(self.tokens), torch.from_numpy(self.targets), torch.from_numpy(weights))


def recall_rows(draw: np.random.Generator, alphabet: Alphabet, *, length: int, pairs: Sequence[int],
                distance: int | None = None, density: float = 0.75) -> Asked:
    """One row of ``length`` tokens for each entry of ``pairs``: so many (key, value) pairs side by side in its first
    half, and behind them noise and, with a chance of ``density`` at each token, one of the keys, whose value is asked.

    With a ``distance`` a query stands exactly so far behind its key in each row, and only that one is asked for.
    Raises DataError for pairs that do not fit, and for a distance that cannot be had.
    """
    count, half = np.asarray(pairs, np.int64)[:, None], length // 2
    most = int(count.max(initial=0))
    if not len(count) or count.min() < 1 or 2 * most > half or most > alphabet.keys:
        raise DataError(f"{most} pairs do not fit the first half of {length} tokens and {alphabet.keys} keys",
                        way_out="ask for 1 pair or more, longer rows or more keys")
    if distance is not None and not 2 <= distance < length:
        raise DataError(f"a query cannot stand {distance} tokens behind its key in a row of {length}",
                        way_out=f"choose 2 to {length - 1}")
    rows, row, place = len(count), np.arange(len(count))[:, None], np.arange(length)[None]
    room, pair = half - 2 * count, np.zeros((rows, 1), np.int64)
    if distance is not None:  # any pair that is behind the block from there, and a start that leaves it inside the row
        nearest = np.maximum(count - distance // 2, 0)
        pair = draw.integers(nearest, np.minimum(count - 1, (length - 1 - distance) // 2) + 1)
        room = np.minimum(room, length - 1 - distance - 2 * pair)
    start = draw.integers(0, room + 1)
    which = draw.integers(0, count, (rows, length))  # the pair that a query at each place would ask for
    asks = (draw.random((rows, length)) < density) & (place >= start + 2 * count)
    if distance is not None:
        which[row, start + 2 * pair + distance], asks[row, start + 2 * pair + distance] = pair, True
    keys = 2 + np.argsort(draw.random((rows, alphabet.keys)), 1)[:, :most]
    values = alphabet.first_value + draw.integers(0, alphabet.values, (rows, most))
    tokens = np.where(asks, keys[row, which], draw.integers(alphabet.first_noise, alphabet.vocab_size, (rows, length)))
    r, p = np.nonzero(np.arange(most)[None] < count)
    tokens[r, start[r, 0] + 2 * p], tokens[r, start[r, 0] + 2 * p + 1] = keys[r, p], values[r, p]
    distances = np.where(asks, place - start - 2 * which, 0)
    if distance is not None:
        distances *= place == start + 2 * pair + distance
    return Asked(tokens, np.where(distances > 0, values[row, which], 0), distances)


def copy_rows(draw: np.random.Generator, alphabet: Alphabet, *, length: int, symbols: int,
              distances: Sequence[int]) -> Asked:
    """One row for each distance: ``symbols`` values, blanks, the sign to repeat, and blanks under which the values are
    asked for again in order, each exactly that far behind itself.

    Raises DataError for a distance at which they do not fit a row.
    """
    far = np.asarray(distances, np.int64)[:, None]
    if not len(far) or symbols < 1 or far.min() < symbols or far.max() + symbols > length:
        raise DataError(f"{symbols} symbols cannot be repeated from {int(far.min()) if len(far) else 0} to "
                        f"{int(far.max()) if len(far) else 0} tokens in a row of {length}",
                        way_out=f"choose distances from {symbols} to {length - symbols}")
    row, symbol = np.arange(len(far))[:, None], np.arange(symbols)[None]
    tokens = np.zeros((len(far), length), np.int64)
    targets, places = np.zeros_like(tokens), np.zeros_like(tokens)
    start = np.floor(draw.random((len(far), 1)) * (length - symbols - far + 1)).astype(np.int64)
    values = alphabet.first_value + draw.integers(0, alphabet.values, (len(far), symbols))
    tokens[row, start + symbol] = values
    tokens[row, start + far] = 1
    targets[row, start + far + symbol], places[row, start + far + symbol] = values, far
    return Asked(tokens, targets, places)


class Stage(Settings):
    """A part of a course: ``share`` of its steps, on rows of ``length`` tokens that hold one of ``pairs`` each."""

    share: float = Field(gt=0, le=1)
    length: int = Field(ge=4)
    pairs: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1)


class RecallSettings(Settings):
    """Multi-query associative recall: what is learned, from short rows to long ones, and what is asked.

    Each step reads about ``tokens`` tokens. ``distances`` are asked with ``pairs_held`` pairs in a row, and each of
    ``pairs`` from ``distance_held``; ``questions`` rows each, one question a row.
    """

    alphabet: Alphabet = Alphabet(keys=32, values=16, noise=8)
    stages: tuple[Stage, ...] = (
        Stage(share=0.4, length=8, pairs=(2,)), Stage(share=0.1, length=16, pairs=(2, 3, 4)),
        Stage(share=0.1, length=32, pairs=(2, 4, 8)), Stage(share=0.15, length=64, pairs=(2, 4, 8, 16)),
        Stage(share=0.25, length=128, pairs=(2, 4, 8, 16)))
    steps: int = Field(default=1600, ge=1)
    tokens: int = Field(default=2048, ge=16)
    distances: tuple[int, ...] = (8, 16, 24, 32, 48, 64, 96, 120)
    pairs: tuple[int, ...] = (1, 2, 4, 8, 16)
    pairs_held: int = Field(default=4, ge=1)
    distance_held: int = Field(default=64, ge=2)
    questions: int = Field(default=400, ge=1)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if abs(sum(s.share for s in self.stages) - 1) > 1e-6:
            raise ValueError(f"the shares of the stages add up to {sum(s.share for s in self.stages):g}, not to 1")
        for stage in self.stages:
            if 4 * max(stage.pairs) > stage.length or max(stage.pairs) > self.alphabet.keys:
                raise ValueError(f"{max(stage.pairs)} pairs do not fit the first half of {stage.length} tokens and "
                                 f"{self.alphabet.keys} keys")
        far = max(*self.distances, self.distance_held)
        if min(*self.distances, self.distance_held) < 2 or far >= self.length:
            raise ValueError(f"distances must be 2 to {self.length - 1}, the longest row that is learned, got {far}")
        if 4 * max(*self.pairs, self.pairs_held) > self.length or min(self.pairs) < 1:
            raise ValueError(f"{max(*self.pairs, self.pairs_held)} pairs do not fit the first half of {self.length} "
                             "tokens")
        return self

    @property
    def length(self) -> int:
        """Tokens of the longest rows learned, on which is asked."""
        return max(s.length for s in self.stages)

    def batch(self, step: int, *, total: int, seed: int) -> Batch:
        """What is learned at a step of a course of ``total``: a function of these numbers alone."""
        draw = np.random.default_rng([seed, step])
        at, done = (step + 0.5) / total, 0.0
        for stage in self.stages:
            done += stage.share
            if at < done + 1e-9 or stage is self.stages[-1]:
                break
        pairs = draw.choice(stage.pairs, max(1, self.tokens // stage.length))
        return recall_rows(draw, self.alphabet, length=stage.length, pairs=pairs.tolist()).batch()


class CopySettings(Settings):
    """Copy memory: ``symbols`` values repeated from any distance that fits a row; rows grow as the course goes on."""

    alphabet: Alphabet = Alphabet(keys=1, values=8, noise=1)
    symbols: int = Field(default=8, ge=1)
    lengths: tuple[int, ...] = Field(default=(24, 48, 128), min_length=1)
    steps: int = Field(default=800, ge=1)
    tokens: int = Field(default=2048, ge=16)
    distances: tuple[int, ...] = (8, 16, 24, 32, 48, 64, 96, 120)
    questions: int = Field(default=50, ge=1)  # rows; each asks for every symbol

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if min(self.lengths) < 2 * self.symbols:
            raise ValueError(f"{self.symbols} symbols cannot be repeated in a row of {min(self.lengths)}")
        if min(self.distances) < self.symbols or max(self.distances) > self.length - self.symbols:
            raise ValueError(f"distances must be {self.symbols} to {self.length - self.symbols}, got "
                             f"{min(self.distances)} to {max(self.distances)}")
        return self

    @property
    def length(self) -> int:
        """Tokens of the longest rows."""
        return max(self.lengths)

    def batch(self, step: int, *, total: int, seed: int) -> Batch:
        """What is learned at a step of a course of ``total``: a function of these numbers alone."""
        draw = np.random.default_rng([seed, step])
        length = self.lengths[min(len(self.lengths) * step // total, len(self.lengths) - 1)]
        rows = max(1, self.tokens // length)
        distances = draw.integers(self.symbols, length - self.symbols + 1, rows)
        return copy_rows(draw, self.alphabet, length=length, symbols=self.symbols,
                         distances=distances.tolist()).batch()


def accuracy(model: Model, asked: Asked, *, name: str, conditions: dict[str, Any]) -> Measurement:
    """The share of what is asked that the model answers right, the most likely of all ids being its answer."""
    right = n = 0
    batch = asked.batch()
    was = model.training
    model.eval()
    for at in range(0, len(asked.tokens), ROWS):
        part = batch.rows(at, min(at + ROWS, len(asked.tokens)))
        assert part.targets is not None and part.weights is not None
        with torch.inference_mode():
            answers = model(part).argmax(-1)
        where = part.weights > 0
        right, n = right + int((answers == part.targets)[where].sum()), n + int(where.sum())
    model.train(was)
    low, high = wilson(right, n)
    return Measurement(name, right / n, "share", n, low, high, {**conditions, "right": right})


def recall_accuracy(model: Model, task: RecallSettings, *, name: str, seed: int) -> list[Measurement]:
    """Accuracy by distance and by number of pairs, on rows that no course with a step below two billion contains."""
    draw = np.random.default_rng([seed, 2**31, 1])
    out = []
    for distance in task.distances:
        asked = recall_rows(draw, task.alphabet, length=task.length, pairs=[task.pairs_held] * task.questions,
                            distance=distance)
        out.append(accuracy(model, asked, name="recall_by_distance", conditions={
            "architecture": name, "seed": seed, "distance": distance, "pairs": task.pairs_held,
            "trained": task.length - 1}))
    for pairs in task.pairs:
        asked = recall_rows(draw, task.alphabet, length=task.length, pairs=[pairs] * task.questions,
                            distance=max(task.distance_held, 2 * pairs))
        out.append(accuracy(model, asked, name="recall_by_pairs", conditions={
            "architecture": name, "seed": seed, "distance": max(task.distance_held, 2 * pairs), "pairs": pairs}))
    return out


def copy_accuracy(model: Model, task: CopySettings, *, name: str, seed: int) -> list[Measurement]:
    """Accuracy of each repeated symbol by distance, on rows of their own."""
    draw = np.random.default_rng([seed, 2**31, 2])
    out = []
    for distance in task.distances:
        asked = copy_rows(draw, task.alphabet, length=task.length, symbols=task.symbols,
                          distances=[distance] * task.questions)
        out.append(accuracy(model, asked, name="copy_by_distance", conditions={
            "architecture": name, "seed": seed, "distance": distance, "symbols": task.symbols,
            "trained": task.length - task.symbols}))
    return out


def pooled(measured: Sequence[Measurement], key: str) -> dict[Any, Measurement]:
    """Seeds together: for each value of the condition ``key``, the share of all questions of all seeds."""
    out: dict[Any, Measurement] = {}
    for value in dict.fromkeys(m.conditions[key] for m in measured):
        same = [m for m in measured if m.conditions[key] == value]
        right, n = sum(m.conditions["right"] for m in same), sum(m.n or 0 for m in same)
        out[value] = Measurement(same[0].name, right / n, "share", n, *wilson(right, n), {
            **same[0].conditions, "seed": [m.conditions["seed"] for m in same], "right": right})
    return out
