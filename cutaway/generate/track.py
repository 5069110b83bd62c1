"""A sequence under way, what it does in a step, and what a step costs: the values that scheduler, engine and runners
speak of, without a tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from cutaway.generate.pages import NONE_BEFORE

Ids = tuple[int, ...]


class Part(NamedTuple):
    """What one sequence does in a step: it reads ``tokens`` behind the ``start`` tokens it holds."""

    sequence: int
    start: int
    tokens: Ids  # what is read now; none where a sequence is all of ``like`` and no more
    pages: Ids  # enough for start + len(tokens); shared ones are full and were filled in an earlier step
    samples: bool  # whether its last token's logits are wanted (False: a chunk that is not the last)
    most: int = 0  # tokens it may come to hold
    like: int | None = None  # begins as that sequence, which holds ``start`` tokens
    source: Ids | None = None  # what an encoder-decoder reads beside it, where it starts
    adapter: int = -1  # the number of the one it has


@dataclass(frozen=True, slots=True)
class Work:
    """What a step costs, in prompt tokens: ``step`` for itself (weights that have to be fetched, calls), 1 for each
    token, whoever's it is, and 1 for each ``depth`` tokens that a token looks back at.

    A decoder of 6 layers 256 wide takes 3.7 ms for one row of one token, 6.5 for 8, 11.2 for 32, and 7.2, 10.4 and 26.2
    for one row of 8, 32 and 128 (one core, float32): 0.2 a token, and 16 tokens are a step.
    """

    step: float = 16.0
    depth: float = math.inf

    def of(self, start: int, count: int) -> float:
        """``count`` tokens behind ``start``."""
        return count + count * (start + (count + 1) / 2) / self.depth

    def fits(self, start: int, room: float) -> int:
        """The most tokens behind ``start`` that cost no more than ``room``."""
        if room < 1 or self.depth == math.inf:
            return max(0, int(room))
        b = self.depth + start + 0.5  # of n * n / 2 + b * n <= room * depth
        n = int(math.sqrt(b * b + 2 * room * self.depth) - b) + 1
        while n and self.of(start, n) > room:
            n -= 1
        return n


@dataclass(eq=False, slots=True)
class Track:
    """A sequence under way. It reads while ``read`` is behind its ``tokens`` and then writes, one token a step.

    One with ``heirs`` is no request's: it is what several begin with, read once and kept until all of them have.
    """

    number: int
    tokens: list[int]  # the prompt and what was drawn
    most: int  # tokens it may come to hold
    salt: str = ""
    source: Ids | None = None
    adapter: int = -1  # the number of the one it has; ``salt`` is then another, too
    patient: bool = False  # nobody waits for its next token
    anew: int | None = None  # all of its prompt has to be read, at most so many tokens at once
    order: tuple[int, int] = (0, 0)  # the oldest first
    read: int = 0  # tokens its pages hold
    pages: list[int] = field(default_factory=list)
    owned: Ids = ()  # the same, made when they change
    writes: bool = False
    cached: int | None = None  # tokens of its prompt that had been read for another, since it was admitted first
    refused: int = 0  # proposed tokens that were read for nothing in this step
    like: Track | None = None  # what it begins as, until it has begun
    heirs: int | None = None  # how many have yet to begin as it
    kept: bool = False  # for them: it is read
    learnt: int = 0  # of its pages, how many the pool knows
    serial: int = NONE_BEFORE  # of the last of them

    @property
    def rows(self) -> int:
        """Rows that it takes, or that its heirs are going to."""
        return 1 if self.heirs is None else self.heirs

    def own(self, pages: list[int]) -> None:
        """Pages behind those it has."""
        self.pages += pages
        self.owned = tuple(self.pages)


def age(track: Track) -> tuple[int, int]:
    """What tracks are ordered by."""
    return track.order
