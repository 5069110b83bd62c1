"""Batch: padding and packing lay the same targets, and slicing never loses one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cutaway.batch import Batch, Example, pack, pad
from cutaway.errors import DataError

PAD = 99
rows = st.lists(st.lists(st.tuples(st.integers(0, 50), st.sampled_from([0.0, 0.5, 1.0])), min_size=2, max_size=9),
                min_size=1, max_size=12)


def examples(drawn: list[list[tuple[int, float]]]) -> list[Example]:
    return [Example(np.array([t for t, _ in r]), np.array([w for _, w in r], np.float32)) for r in drawn]


def triples(batch: Batch) -> list[tuple[int, int, float, int]]:
    """(token, target, weight, position) of everything that is not padding, in any order."""
    assert batch.targets is not None and batch.weights is not None
    assert batch.documents is not None and batch.positions is not None
    real = batch.documents >= 0
    fields = (batch.tokens, batch.targets, batch.weights, batch.positions)
    return sorted(zip(*(f[real].tolist() for f in fields), strict=True))


@given(rows)
def test_padded_and_packed_hold_the_same_targets(drawn: list[list[tuple[int, float]]]) -> None:
    made = examples(drawn)
    padded, packed = pad(made, pad_id=PAD), pack(made, pad_id=PAD, length=16)
    expected = sorted((int(e.tokens[i]), int(e.tokens[i + 1]), float(e.weights[i + 1]), i)
                      for e in made for i in range(len(e) - 1))
    assert triples(padded) == triples(packed) == expected
    assert padded.total_weight() == pytest.approx(packed.total_weight())


@given(rows)
def test_what_is_padding_has_no_weight_and_the_pad_token(drawn: list[list[tuple[int, float]]]) -> None:
    batch = pack(examples(drawn), pad_id=PAD, length=12, rows=len(drawn) + 1)
    assert batch.documents is not None and batch.weights is not None and batch.targets is not None
    empty = batch.documents < 0
    assert batch.tokens.shape == (len(drawn) + 1, 12)
    assert (batch.weights[empty] == 0).all() and (batch.tokens[empty] == PAD).all()
    assert batch.lengths().tolist() == (~empty).sum(1).tolist()


@given(rows, st.integers(1, 12))
def test_micro_batches_are_the_rows_in_order(drawn: list[list[tuple[int, float]]], parts: int) -> None:
    batch = pad(examples(drawn), pad_id=PAD)
    if parts > len(drawn):
        with pytest.raises(DataError, match="cannot be split"):
            batch.micro(parts)
        return
    pieces = batch.micro(parts)
    assert torch.equal(torch.cat([p.tokens for p in pieces]), batch.tokens)
    assert sum(p.total_weight() for p in pieces) == pytest.approx(batch.total_weight())
    sizes = [len(p.tokens) for p in pieces]
    assert max(sizes) - min(sizes) <= 1


def test_targets_follow_tokens_and_weights_follow_targets() -> None:
    batch = pad([Example(np.array([1, 2, 3]), np.array([9, 0, 1], np.float32))], pad_id=0, length=4)
    assert batch.tokens.tolist() == [[1, 2, 0, 0]]
    assert batch.targets is not None and batch.targets.tolist() == [[2, 3, 0, 0]]
    assert batch.weights is not None and batch.weights.tolist() == [[0, 1, 0, 0]]
    assert batch.documents is not None and batch.documents.tolist() == [[0, 0, -1, -1]]


def test_the_rejected_side_travels_with_the_chosen_one() -> None:
    one = Example(np.array([1, 2, 3]), np.ones(3, np.float32))
    side = pad([one, one], pad_id=0)
    batch = Batch(side.tokens, pair=side).rows(0, 1).to("cpu")
    assert batch.pair is not None and batch.pair.tokens.shape == (1, 2)


def test_a_batch_without_weights_counts_every_token() -> None:
    batch = Batch(torch.zeros(2, 3, dtype=torch.long))
    assert batch.total_weight() == 6.0
    assert batch.lengths().tolist() == [3, 3]


def test_examples_that_do_not_fit_are_refused_with_both_numbers() -> None:
    long = Example(np.arange(10), np.ones(10, np.float32))
    for lay in (pad, pack):
        with pytest.raises(DataError, match="9 targets does not fit a row of 8"):
            lay([long], pad_id=0, length=8)
    with pytest.raises(DataError, match="only 1 were given"):
        pack([long, long], pad_id=0, length=9, rows=1)


def test_malformed_examples_are_refused() -> None:
    with pytest.raises(DataError, match="one equal row"):
        Example(np.arange(3), np.ones(2, np.float32))
    with pytest.raises(DataError, match="needs two tokens"):
        Example(np.arange(1), np.ones(1, np.float32))
