"""Errors: one line with what, where and the way out; every kind has its own documented exit code."""

from __future__ import annotations

from pathlib import Path

import pytest

from cutaway import errors
from cutaway.errors import CutawayError

KINDS = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, CutawayError)]


def test_an_error_is_one_line_whatever_it_is_made_of() -> None:
    error = CutawayError("two\nlines", where=Path("a/b"), way_out="do\n  this")
    assert str(error) == "a/b: two lines; do this"
    assert (error.what, error.where, error.way_out) == ("two\nlines", Path("a/b"), "do\n  this")


def test_place_and_way_out_may_be_missing() -> None:
    assert str(CutawayError("what")) == "what"
    assert str(CutawayError("what", way_out="so")) == "what; so"


def test_exit_codes_are_distinct_small_and_documented() -> None:
    codes = {k.__name__: k.exit_code for k in KINDS}
    assert len(set(codes.values())) == len(codes) and all(0 < c < 126 for c in codes.values())
    documented = Path(__file__).parents[2].joinpath("docs/exit-codes.md").read_text()
    for name, code in codes.items():
        if name != "CutawayError":
            assert f"| {code} | `{name}` |" in documented


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_a_value_error(kind: type[CutawayError]) -> None:
    with pytest.raises(ValueError, match="what"):
        raise kind("what")
