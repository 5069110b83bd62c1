"""The pool of pages against a plain account of who holds what."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutaway.generate.pages import NONE_BEFORE, Pages

SIZE = 2
texts = st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=9).map(tuple), st.sampled_from(["", "key"]))


class Account:
    """The texts that hold pages, and what each page says."""

    def __init__(self, count: int) -> None:
        self.pages, self.held = Pages(count, SIZE), dict[int, list[int]]()
        self.says: dict[int, tuple[str, tuple[int, ...]]] = {}  # a page: salt, and all tokens to its end
        self.made = 0

    def begin(self, tokens: tuple[int, ...], salt: str) -> None:
        """Hold what is known and take the rest, then fill it, as a prompt is read."""
        known, missing = self.pages.known(tokens, salt, most=len(tokens) - 1)
        assert len(known) * SIZE < len(tokens)
        for i, page in enumerate(known):
            assert self.says[page] == (salt, tokens[: (i + 1) * SIZE])
        most = (len(tokens) - 1) // SIZE
        assert (missing is None) == (len(known) == most)
        many = self.pages.need(len(tokens)) - len(known)
        if not self.pages.fits(many, held=known):
            return
        self.pages.hold(known)
        taken = self.pages.take(many)
        assert taken is not None and len(taken) == many and not set(taken) & {p for h in self.held.values() for p in h}
        mine, serial = known + taken, self.pages.after(known)
        for i in range(len(known), len(tokens) // SIZE):
            serial = self.pages.learn(mine[i], serial, salt, tokens[i * SIZE : (i + 1) * SIZE])
        for i, page in enumerate(mine):
            self.says[page] = salt, tokens[: (i + 1) * SIZE]
        self.held[self.made] = mine
        self.made += 1

    def end(self, which: int) -> None:
        """One of them is done."""
        if self.held:
            key = sorted(self.held)[which % len(self.held)]
            self.pages.release(self.held.pop(key))

    def check(self) -> None:
        """All pages are accounted for."""
        pages = self.pages
        assert pages.free + pages.cached + pages.used == pages.count
        assert pages.used == len({p for mine in self.held.values() for p in mine})
        assert min(pages.free, pages.cached, pages.used) >= 0


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 7), st.lists(texts | st.integers(0, 9) | st.none(), max_size=30))
def test_every_page_is_used_cached_or_free_and_says_what_it_is_known_for(
        count: int, moves: list[tuple[tuple[int, ...], str] | int | None]) -> None:
    account = Account(count)
    for move in moves:
        if isinstance(move, tuple):
            account.begin(*move)
        elif isinstance(move, int):
            account.end(move)
        else:
            account.pages.clear()
            assert not account.pages.cached
        account.check()
    while account.held:
        account.end(0)
    account.check()
    assert account.pages.used == 0


def _filled(pages: Pages, tokens: tuple[int, ...], salt: str = "") -> list[int]:
    mine, serial = pages.take(pages.need(len(tokens))) or [], NONE_BEFORE
    for i in range(len(tokens) // pages.size):
        serial = pages.learn(mine[i], serial, salt, tokens[i * pages.size : (i + 1) * pages.size])
    return mine


def test_a_page_is_found_behind_its_own_beginning_alone() -> None:
    pages = Pages(8, 2)
    mine = _filled(pages, (1, 2, 3, 4))
    assert pages.known((1, 2, 3, 4, 5), "", most=4) == (mine, None)
    assert pages.known((1, 2, 3, 4), "", most=3)[0] == mine[:1]
    assert pages.known((3, 4, 3, 4), "", most=4)[0] == []  # the same page of tokens, but another beginning
    assert pages.known((1, 2, 3, 4), "other", most=4)[0] == []


def test_a_chain_whose_beginning_was_written_over_is_not_found() -> None:
    pages = Pages(2, 2)
    first = _filled(pages, (1, 2))
    other = pages.take(1)
    assert other is not None
    pages.learn(other[0], pages.after(first), "", (3, 4))
    pages.release(first)
    assert _filled(pages, (7, 8)) == first  # the only page to be had
    pages.release(first)
    again = pages.known((1, 2, 3, 4), "", most=4)
    assert again[0] == []
    pages.release(other)
    assert pages.free + pages.cached == 2


def test_what_was_used_longest_ago_goes_first_and_the_end_of_a_chain_before_its_beginning() -> None:
    pages = Pages(3, 1)
    pages.release(_filled(pages, (1, 2)))
    pages.release(_filled(pages, (5,)))
    assert pages.cached == 3
    pages.take(1)
    assert [len(pages.known(t, "", most=9)[0]) for t in ((1, 2), (5,))] == [1, 1]
    pages.take(1)
    assert [len(pages.known(t, "", most=9)[0]) for t in ((1, 2), (5,))] == [0, 1]
    assert pages.take(2) is None and pages.take(1) is not None


@pytest.mark.parametrize("size", [1, 16])
def test_a_pool_of_any_size_costs_what_is_used_of_it(size: int) -> None:
    pages = Pages(10**12, size)
    assert pages.need(size + 1) == 2 and pages.free == 10**12
    assert pages.take(2) == [0, 1]
