"""Prompt lookup: what followed the last few tokens the time before is proposed again (Saxena 2023).

No second model: an index of n-grams grows with the sequence, and the model checks what it proposes in one step.
``Pace`` says how many tokens are worth it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

LONGEST, SHORTEST = 4, 3  # of the n-grams; two tokens say too little about the next (docs/lab/serving.md)


@dataclass(slots=True)
class Lookup:
    """The n-grams of one sequence, which only grows: a constant number of look-ups for each new token."""

    _tokens: list[int] = field(default_factory=list)
    _after: dict[tuple[int, ...], int] = field(default_factory=dict)  # an n-gram -> what stood behind it the last time

    def propose(self, tokens: Sequence[int], most: int) -> tuple[int, ...]:
        """At most ``most`` tokens that may follow ``tokens``, as they followed the longest n-gram at their end when it
        stood there last; none if it is new. ``tokens`` must begin with those of the call before."""
        assert most >= 0
        self._read(tokens)
        at = self._found() if most else None
        if at is None:
            return ()
        known, count = self._tokens, len(self._tokens)
        out: list[int] = []
        for place in range(at, at + most):  # behind the end it goes on in what was just proposed: a loop stays a loop
            out.append(known[place] if place < count else out[place - count])
        return tuple(out)

    def _read(self, tokens: Sequence[int]) -> None:
        known = len(self._tokens)
        assert len(tokens) >= known and (not known or tokens[known - 1] == self._tokens[-1]), "a sequence only grows"
        for token in tokens[known:]:
            end = len(self._tokens)
            for size in range(SHORTEST, min(LONGEST, end) + 1):
                self._after[tuple(self._tokens[end - size:])] = end
            self._tokens.append(token)

    def _found(self) -> int | None:
        for size in range(min(LONGEST, len(self._tokens)), SHORTEST - 1, -1):
            at = self._after.get(tuple(self._tokens[-size:]))
            if at is not None:
                return at
        return None


@dataclass(slots=True)
class Pace:
    """How many tokens to propose next, from what the model has kept so far.

    ``cost`` is the time that one more token adds to a step, as a share of the step with one token alone (0: free, 1: as
    dear as a step of its own). With a share p of proposed tokens kept, k of them give 1 + p + ... + p**k tokens for
    1 + k * cost steps' time; the best k is proposed, which is 0 where none pays. After ``again`` steps without a
    proposal one is tried anyway, so that a text which begins to repeat itself is noticed.
    """

    cost: float
    most: int = 8
    again: int = 32
    _kept: float = 1.0  # a beginner's luck of one token in two, soon outweighed
    _lost: float = 1.0
    _idle: int = 0

    FADE = 0.95  # what a step's outcome still counts one proposal later

    def next(self) -> int:
        """The number of tokens to propose in the coming step; every call is a step."""
        best = self._best()
        if best or self._idle >= self.again:
            self._idle = 0
            return max(best, min(1, self.most))
        self._idle += 1
        return 0

    def note(self, proposed: int, kept: int) -> None:
        """The model kept the first ``kept`` of ``proposed`` tokens. Nothing proposed teaches nothing."""
        assert 0 <= kept <= proposed
        if proposed:
            self._kept = self.FADE * self._kept + kept
            self._lost = self.FADE * self._lost + (kept < proposed)

    @property
    def share(self) -> float:
        """The share of proposed tokens that are kept, each on the condition that those before it were."""
        return self._kept / (self._kept + self._lost)

    def _best(self) -> int:
        best, rate, gained, p = 0, 1.0, 1.0, self.share
        for count in range(1, self.most + 1):
            gained += p**count
            if gained / (1 + count * self.cost) > rate:
                best, rate = count, gained / (1 + count * self.cost)
        return best


@dataclass(slots=True)
class PromptLookup:
    """What an engine takes as its ``guess``: as many tokens of ``Lookup`` as ``Pace`` finds worth while."""

    cost: float = 0.3  # of a row more beside one, in int4 and int8 on two cores with AVX2
    lookup: Lookup = field(default_factory=Lookup)
    pace: Pace = field(init=False)

    def __post_init__(self) -> None:
        self.pace = Pace(self.cost)

    def propose(self, tokens: Sequence[int], most: int) -> tuple[int, ...]:
        """See ``draw.Guess``."""
        return self.lookup.propose(tokens, min(most, self.pace.next()))

    def note(self, proposed: int, kept: int) -> None:
        """See ``draw.Guess``."""
        self.pace.note(proposed, kept)
