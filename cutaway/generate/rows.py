"""The bookkeeping of generation, without a tensor: which requests run together, and which row has come to its end.

Separate from the arithmetic as in nano-vllm's scheduler, and tested with a model that is a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cutaway.generate.request import FinishReason, Request
from cutaway.generate.sample import keys

FINISH: tuple[FinishReason | None, ...] = (None, "stop", "length")
COMPACT = 0.75  # leave the finished rows in place until a quarter is idle: a selection copies the whole cache


def waves(requests: Sequence[Request], rows: int) -> list[list[int]]:
    """Which requests run together: at most ``rows``, neighbours in the lengths of source and prompt, so that little is
    padded."""
    sizes = [(len(r.source or ()), len(r.tokens)) for r in requests]
    order = sorted(range(len(sizes)), key=lambda i: sizes[i])
    return [order[i : i + rows] for i in range(0, len(order), rows)]


def unique(requests: Sequence[Request]) -> tuple[list[int], list[int]]:
    """Places of the first request with each (source, prompt), and which of those each row begins as: a group of answers
    reads its source and its prompt once."""
    place: dict[tuple[tuple[int, ...] | None, tuple[int, ...]], int] = {}
    where = [place.setdefault((r.source, r.tokens), len(place)) for r in requests]
    firsts = dict(zip(reversed(where), reversed(range(len(where))), strict=True))
    return [firsts[i] for i in range(len(place))], where


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of one wave, ``(R,)`` each; all stand at the same ``position`` of their answers."""

    request: NDArray[np.int64]
    prompt: NDArray[np.int64]  # tokens
    limit: NDArray[np.int64]  # tokens the answer may have
    stops: NDArray[np.int64]  # (R, S), -1 where a row has fewer
    streams: NDArray[np.uint64]
    live: NDArray[np.bool_]
    position: int = 0

    @classmethod
    def of(cls, indices: Sequence[int], requests: Sequence[Request]) -> Rows:
        """The rows of ``requests[i]`` for each index."""
        mine = [requests[i] for i in indices]
        stops = np.full((len(mine), max(len(r.stop_ids) for r in mine)), -1, np.int64)
        for row, r in zip(stops, mine, strict=True):
            row[: len(r.stop_ids)] = r.stop_ids
        return cls(np.array(indices), np.array([len(r.tokens) for r in mine]), np.array([r.max_tokens for r in mine]),
                   stops, keys([r.seed for r in mine]), np.ones(len(mine), np.bool_))

    @property
    def capacity(self) -> int:
        """Tokens the longest row may come to hold."""
        return int((self.prompt + self.limit).max())

    def noted(self, tokens: NDArray[np.int64]) -> tuple[Rows, NDArray[np.int8]]:
        """Behind one token a row: the rows, and of each the index in ``FINISH``."""
        finish = np.where(self.position + 1 >= self.limit, np.int8(2), np.int8(0))
        if self.stops.shape[1]:
            finish = np.where((tokens[:, None] == self.stops).any(1), np.int8(1), finish)
        return replace(self, live=self.live & (finish == 0), position=self.position + 1), finish

    def without(self, request: int) -> Rows:
        """The rows with one request ended from outside."""
        return replace(self, live=self.live & (self.request != request))

    def crowded(self, capacity: int) -> bool:
        """Whether the finished rows should be taken out now: too many idle, or one of them about to overflow."""
        alive = int(self.live.sum())
        full = (self.prompt + self.position)[~self.live].max(initial=0) > capacity
        return alive <= COMPACT * len(self.live) or bool(full)

    def select(self, keep: NDArray[np.int64]) -> Rows:
        """Some rows."""
        return replace(self, request=self.request[keep], prompt=self.prompt[keep], limit=self.limit[keep],
                       stops=self.stops[keep], streams=self.streams[keep], live=self.live[keep])
