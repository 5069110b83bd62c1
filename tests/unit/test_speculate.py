"""Prompt lookup: the index equals a search through the whole sequence, and the pace pays."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutaway.generate.speculate import LONGEST, SHORTEST, Lookup, Pace

TOKENS = st.lists(st.integers(0, 3), max_size=40)


def searched(tokens: list[int], most: int) -> tuple[int, ...]:
    """What the index must give, by looking at every place."""
    for size in range(min(LONGEST, len(tokens)), SHORTEST - 1, -1):
        for at in range(len(tokens) - 1, size - 1, -1):
            if tokens[at - size:at] == tokens[len(tokens) - size:]:
                out = list(tokens)
                for place in range(at, at + most):
                    out.append(out[place])
                return tuple(out[len(tokens):])
    return ()


@given(TOKENS, st.integers(0, 9))
def test_a_proposal_is_what_followed_the_longest_end_the_last_time(tokens: list[int], most: int) -> None:
    assert Lookup().propose(tokens, most) == searched(tokens, most)


@given(TOKENS, st.lists(st.integers(1, 5), max_size=12), st.integers(0, 6))
def test_the_index_does_not_depend_on_how_the_sequence_came(tokens: list[int], steps: list[int], most: int) -> None:
    lookup, at = Lookup(), 0
    for step in steps:
        at = min(at + step, len(tokens))
        assert lookup.propose(tokens[:at], most) == searched(tokens[:at], most)
    assert lookup.propose(tokens, most) == Lookup().propose(tokens, most)


def test_each_token_costs_a_constant_number_of_entries() -> None:
    lookup = Lookup()
    lookup.propose(list(range(10_000)), 0)
    assert len(lookup._after) <= (LONGEST - SHORTEST + 1) * 10_000


def test_a_loop_goes_on() -> None:
    assert Lookup().propose([7, 8, 9, 7, 8, 9], 7) == (7, 8, 9, 7, 8, 9, 7)
    assert Lookup().propose([7, 8, 9, 7, 8], 7) == ()  # two tokens are too few to say what follows
    assert Lookup().propose([1, 2, 3, 4], 4) == ()


def test_a_sequence_that_shrank_is_refused() -> None:
    lookup = Lookup()
    lookup.propose([1, 2, 3], 1)
    with pytest.raises(AssertionError, match="only grows"):
        lookup.propose([1, 2], 1)


def steps(pace: Pace, kept: float, count: int) -> list[int]:
    """What is proposed while the model keeps a share of it (1: all, 0: none)."""
    out = []
    for _ in range(count):
        out.append(pace.next())
        pace.note(out[-1], int(out[-1] * kept))
    return out


def test_all_that_is_kept_is_worth_the_most_and_nothing_kept_is_worth_almost_none() -> None:
    pace = Pace(cost=0.1)
    assert steps(pace, 1.0, 20)[-1] == pace.most
    rejected = steps(pace, 0.0, 400)
    assert sum(rejected[100:]) <= 300 // pace.again + 1
    assert steps(pace, 1.0, 200)[-1] == pace.most  # and it comes back


def test_what_is_never_cheaper_is_never_proposed_beyond_a_try() -> None:
    assert max(steps(Pace(cost=1.0), 1.0, 10)) == 0
    assert steps(Pace(cost=0.0), 1.0, 5)[0] == 8
    assert max(steps(Pace(cost=0.0, most=0), 1.0, 99)) == 0


@settings(max_examples=200)
@given(st.floats(0, 2), st.integers(0, 12), st.lists(st.floats(0, 1), max_size=60))
def test_the_pace_stays_in_its_bounds_and_repeats_itself(cost: float, most: int, shares: list[float]) -> None:
    one, two = Pace(cost, most), Pace(cost, most)
    for share in shares:
        count = one.next()
        assert 0 <= count <= most and two.next() == count and 0 < one.share < 1
        for pace in (one, two):
            pace.note(count, int(count * share))


@given(st.floats(0, 1), st.integers(0, 30), st.integers(0, 30))
def test_a_better_share_never_proposes_less(cost: float, kept: int, lost: int) -> None:
    worse, better = Pace(cost, _kept=1.0 + kept, _lost=2.0 + lost), Pace(cost, _kept=2.0 + kept, _lost=1.0 + lost)
    assert worse._best() <= better._best()
