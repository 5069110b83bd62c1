"""Recall against distance: multi-query associative recall (Zoology, Arora 2023, arXiv 2312.04927) and copy memory
(Hochreiter & Schmidhuber 1997, as in Bai 2018, arXiv 1803.01271), with the distance of every question known.

Noise, or blanks, stand between what has to be remembered and where it is asked for; they are an alphabet of their own,
so that an answer can be known from one place alone. The answer itself is never shown: it is a target. A distance is
counted from the key (or the symbol) to the token where it is asked for: a model that sees its last R tokens, the present
one included, can see that key up to a distance of R - 1. B rows, T tokens, K pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from cutaway.batch import Batch
from cutaway.errors import DataError
from cutaway.models.model import Model
from cutaway.records import Measurement, wilson
from cutaway.settings import Settings

Ints = NDArray[np.int64]
Task = Literal["recall", "copy"]
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
