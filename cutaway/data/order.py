"""Order: which row of an epoch comes when, as a pure function of (seed, number) without any stored permutation.

A Feistel network over the smallest even power of two, walked until it lands inside (Black and Rogaway 2002, "Ciphers
with arbitrary finite domains"): every epoch is a permutation, found in constant memory, the same on every rank.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cutaway.errors import DataError

_ROUNDS = 6
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def shuffled(numbers: NDArray[Any], size: int, *, seed: int) -> NDArray[np.int64]:
    """Where each of the numbers 0, 1, 2, … falls in ``0..size-1``: every run of ``size`` (an epoch) is a permutation.

    >>> sorted(shuffled(np.arange(10, 20), 10, seed=1).tolist())
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """
    if size < 1:
        raise DataError("nothing to put in order")
    epochs, places = np.divmod(np.asarray(numbers, np.int64), size)
    half = max(1, (size - 1).bit_length() + 1 >> 1)
    keys = _mix(_mix(epochs.astype(np.uint64) + np.uint64(1)) ^ np.uint64(seed % 2**64))
    out = _feistel(places.astype(np.uint64), keys, half)
    while (outside := out >= size).any():
        out[outside] = _feistel(out[outside], keys[outside], half)
    return out.astype(np.int64)


def uniform(numbers: NDArray[Any], width: int, *, seed: int) -> NDArray[np.float64]:
    """``width`` numbers of [0, 1) for each of ``numbers``, ``(len(numbers), width)``, by splitmix64 (Steele 2014)."""
    keys = _mix(_mix(np.asarray(numbers).astype(np.uint64) + np.uint64(1)) ^ _mix(np.full(1, seed % 2**64, np.uint64)))
    with np.errstate(over="ignore"):
        states = keys[:, None] + np.arange(1, width + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return np.asarray((_mix(states) >> np.uint64(11)) * 2.0**-53, np.float64)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finaliser (Steele 2014)."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * _MIX[0]
        x = (x ^ (x >> np.uint64(27))) * _MIX[1]
    return x ^ (x >> np.uint64(31))


def _feistel(x: NDArray[np.uint64], keys: NDArray[np.uint64], half: int) -> NDArray[np.uint64]:
    bits, low = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = x >> bits, x & low
    for turn in range(_ROUNDS):
        left, right = right, left ^ (_mix(right ^ keys ^ _mix(np.full(1, turn + 1, np.uint64))) & low)
    return (left << bits) | right


def share(step: int, rows: int, *, rank: int, world: int) -> NDArray[np.int64]:
    """The global row numbers of one rank at one step: ranks take contiguous parts, so their number does not matter."""
    if step < 0:
        raise DataError(f"step {step} does not exist")
    if not 0 <= rank < world:
        raise DataError(f"rank {rank} of {world} does not exist")
    if rows < world:
        raise DataError(f"{rows} rows cannot be shared by {world} ranks", way_out="raise the rows of a batch")
    return np.arange(step * rows + rows * rank // world, step * rows + rows * (rank + 1) // world)
