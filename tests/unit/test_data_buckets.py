"""Buckets: every example once an epoch, any rank, little padding, and nothing cut that was not asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cutaway.batch import Example
from cutaway.data.buckets import AnyExample, BucketLoader
from cutaway.data.examples import Labelled, Pair, classify, pair, prefix, seq2seq
from cutaway.errors import DataError
from cutaway.text.tokenizer import ByteSettings, train

BYTE = train(ByteSettings(), ())


def labelled(lengths: list[int]) -> list[Labelled]:
    return [Labelled(np.full(n, i, np.int64), i) for i, n in enumerate(lengths)]


def drawn(count: int, *, seed: int = 0, mean: float = 3.0) -> list[int]:
    return (2 + np.random.default_rng(seed).lognormal(mean, 0.7, count)).astype(int).tolist()


@given(st.lists(st.integers(1, 60), min_size=1, max_size=50), st.integers(0, 9), st.booleans(), st.integers(1, 3))
@settings(max_examples=80, deadline=None)
def test_every_example_comes_once_an_epoch(lengths: list[int], seed: int, by_tokens: bool, size: int) -> None:
    loader = BucketLoader(labelled(lengths), 0, tokens=66 * size if by_tokens else None,
                          rows=None if by_tokens else size, seed=seed)
    for epoch in range(3):
        seen = []
        for step in range(epoch * loader.epoch_steps, (epoch + 1) * loader.epoch_steps):
            batch = loader.batch(step)
            assert batch.labels is not None and batch.documents is not None
            assert batch.tokens.numel() <= 66 * size if by_tokens else len(batch.tokens) <= size
            for row, label, own in zip(batch.tokens, batch.labels, batch.documents, strict=True):
                assert row[own >= 0].tolist() == [label] * lengths[label]
            seen += batch.labels.tolist()
        assert sorted(seen) == list(range(len(lengths))) and loader.epoch_rows == len(lengths)


def test_a_batch_is_a_function_of_its_step_and_epochs_differ() -> None:
    examples = labelled(drawn(300))
    loader, other = (BucketLoader(examples, 0, rows=16, seed=s) for s in (1, 2))
    first = [loader.numbers(s).tolist() for s in range(3 * loader.epoch_steps)]
    assert [BucketLoader(examples, 0, rows=16, seed=1).numbers(s).tolist() for s in (40, 3, 20)] == [
        first[40], first[3], first[20]]
    epochs = [first[i * loader.epoch_steps : (i + 1) * loader.epoch_steps] for i in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]
    assert {frozenset(b) for b in epochs[0]} != {frozenset(b) for b in epochs[1]}, "neighbours do not change"
    assert [other.numbers(s).tolist() for s in range(10)] != first[:10]


def test_ranks_take_parts_of_the_same_batch() -> None:
    loader = BucketLoader(labelled(drawn(100)), 0, rows=8)
    for step in (0, 5, 30):
        parts = [loader.batch(step, rank=r, world=3).labels for r in range(3)]
        assert all(p is not None and len(p) for p in parts)
        whole = loader.batch(step).labels
        assert whole is not None and torch.equal(torch.cat([p for p in parts if p is not None]), whole)
    with pytest.raises(DataError, match="a batch of 8 rows cannot be shared by 9 ranks; raise the rows"):
        loader.batch(0, world=9)


def test_neighbours_in_length_leave_little_padding() -> None:
    loader = BucketLoader(labelled(drawn(2_000)), 0, rows=32)
    assert loader.padding < 0.1
    assert BucketLoader(labelled(drawn(2_000)), 0, tokens=1_000).padding < 0.12
    area = real = 0
    for step in range(loader.epoch_steps):
        batch = loader.batch(step)
        area, real = area + batch.tokens.numel(), real + int(batch.lengths().sum())
    assert 1 - real / area == pytest.approx(loader.padding, abs=1e-12)


def test_sources_and_pairs_lie_as_their_models_read_them() -> None:
    texts = [("a" * n, "b" * (n // 2 + 1)) for n in drawn(40, mean=2.0)]
    loader = BucketLoader([seq2seq(s, t, BYTE) for s, t in texts], BYTE.pad_id, tokens=200)
    for step in range(loader.epoch_steps):
        batch = loader.batch(step)
        assert batch.source is not None and batch.source_documents is not None
        assert batch.targets is not None and batch.weights is not None
        assert batch.tokens.numel() + batch.source.numel() <= 200
        for r, i in enumerate(loader.numbers(step)):
            source, target = texts[i]
            assert batch.source[r][batch.source_documents[r] >= 0].tolist() == [*BYTE.encode(source), BYTE.eos_id]
            learned = batch.weights[r] > 0
            assert batch.targets[r][learned].tolist() == [*BYTE.encode(target), BYTE.eos_id]
            assert batch.tokens[r, 0] == BYTE.bos_id
    sides = BucketLoader([pair(s, t, BYTE) for s, t in texts], BYTE.pad_id, rows=7)
    batch = sides.batch(1)
    assert batch.pair is not None and batch.pair.documents is not None
    for r, i in enumerate(sides.numbers(1)):
        assert BYTE.decode(batch.tokens[r].tolist()) == texts[i][0]
        assert BYTE.decode(batch.pair.tokens[r].tolist()) == texts[i][1]


@pytest.mark.parametrize("kind", ["labelled", "seq2seq", "pair"])
def test_what_is_too_long_is_refused_left_out_or_cut_and_counted(kind: str) -> None:
    made: dict[str, list[AnyExample]] = {
        "labelled": [*labelled([4, 9, 30])],
        "seq2seq": [seq2seq("ab", "c" * n, BYTE) for n in (3, 8, 29)],
        "pair": [Pair(np.arange(2), np.arange(n)) for n in (4, 9, 30)]}
    examples = made[kind]
    with pytest.raises(DataError, match=r"2 of 3 examples do not fit 8 tokens.*the longest needs \[\d+, \d+\]; raise"):
        BucketLoader(examples, 0, rows=2, limit=8)
    skip = BucketLoader(examples, 0, rows=2, limit=8, too_long="skip")
    assert skip.left_out == [1, 2] and skip.cut == [] and skip.epoch_rows == 1 and skip.numbers(5).tolist() == [0]
    cut = BucketLoader(examples, 0, rows=3, limit=8, too_long="cut")
    assert cut.cut == [1, 2] and cut.left_out == [] and cut.epoch_rows == 3
    batch = cut.batch(0)
    widest = batch if batch.pair is None else batch.pair
    assert widest.tokens.shape[1] == 8
    ends = sorted(widest.tokens[widest.lengths() == 8, -1].tolist())
    assert ends == {"labelled": [1, 2], "seq2seq": BYTE.encode("cc"), "pair": [8, 29]}[kind]


def test_a_long_source_is_cut_before_its_end() -> None:
    loader = BucketLoader([seq2seq("x" * 50, "y", BYTE)], 0, rows=1, limit=9, source_limit=6, too_long="cut")
    batch = loader.batch(0)
    assert batch.source is not None and batch.source[0].tolist() == [*BYTE.encode("x" * 5), BYTE.eos_id]


def test_an_example_whose_prompt_alone_fills_the_limit_is_left_out() -> None:
    def asked(prompt: int) -> Example:
        return Example(np.arange(prompt + 2), (np.arange(prompt + 2) >= prompt).astype(np.float32))

    loader = BucketLoader([asked(3), asked(7), asked(8), asked(30)], 0, rows=1, limit=7, too_long="cut")
    assert (loader.left_out, loader.cut, loader.epoch_rows) == ([2, 3], [1], 2)
    assert all(loader.batch(step).total_weight() > 0 for step in range(loader.epoch_steps))
    with pytest.raises(DataError, match=r"none of 1 examples is left .*: cut to 7 tokens, none has a target"):
        BucketLoader([asked(8)], 0, rows=1, limit=7, too_long="cut")


def test_examples_say_what_is_learned() -> None:
    made = prefix("abcdef", BYTE, share=0.5)
    assert made.source is not None
    assert BYTE.decode(made.source.tolist()) == "abc" and BYTE.decode(made.tokens.tolist()) == "def"
    assert made.weights.tolist() == [0, 1, 1, 1, 1]
    assert classify("x", "b", BYTE, ["a", "b"]).label == 1
    both = classify("x", ["c", "a"], BYTE, ["a", "b", "c"])
    assert isinstance(both.label, np.ndarray) and both.label.tolist() == [1, 0, 1]
    with pytest.raises(DataError, match="no class is called 'positve'; did you mean 'positive'"):
        classify("x", "positve", BYTE, ["positive", "negative"])
    with pytest.raises(DataError, match=r"a share of 1\.5 cannot be read"):
        prefix("ab", BYTE, share=1.5)


def test_what_makes_no_batch_is_refused() -> None:
    for rows, tokens in ((None, None), (3, 3), (0, None)):
        with pytest.raises(DataError, match="cannot be made; give one of them"):
            BucketLoader(labelled([3]), 0, rows=rows, tokens=tokens)
    with pytest.raises(DataError, match="examples of different kinds"):
        BucketLoader([*labelled([3]), Example(np.arange(3), np.ones(3, np.float32))], 0, rows=1)
    with pytest.raises(DataError, match="an example of 9 places does not fit a batch of 8 tokens"):
        BucketLoader(labelled([3, 9]), 0, tokens=8)
    with pytest.raises(DataError, match="none of 1 examples is left"):
        BucketLoader(labelled([3]), 0, rows=1, limit=2, too_long="skip")
    with pytest.raises(DataError, match="does not exist"):
        BucketLoader(labelled([3]), 0, rows=1).batch(-1)
