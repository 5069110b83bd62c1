"""Invariants of the data: nothing lost, nothing twice, and no memory of steps, ranks or sources."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cutaway.batch import Batch, Example
from cutaway.data.documents import SPLITS, Corpus, Document, PathSettings, cut
from cutaway.data.loader import ExampleLoader, Loader, best_fit
from cutaway.data.mixture import Mixture, apportion
from cutaway.data.order import share, shuffled
from cutaway.data.shards import Manifest, Shards, frame
from cutaway.records import digest

BOS, EOS = 1, 2


def stream(lengths: list[int], first: int = 10) -> Shards:
    """A split in memory: documents of these lengths, every text token another number."""
    total = sum(lengths)
    tokens, starts = frame(np.arange(first, first + total, dtype=np.uint32), np.array(lengths), BOS, EOS)
    manifest = Manifest("", "", "uint32", BOS, EOS, {}, {}, {}, None, {}, None)
    return Shards(Path(), "train", manifest, tokens, starts, np.zeros(0, np.int64))


def epoch(loader: Loader) -> list[Batch]:
    """Single rows, in order, until everything was seen once."""
    return [loader.take(np.array([i])) for i in range(loader.epoch_rows)]


LENGTHS = st.lists(st.integers(1, 30), min_size=2, max_size=12)


@given(size=st.integers(1, 300), seed=st.integers(0, 2**64 - 1), start=st.integers(0, 3))
def test_every_epoch_is_a_permutation(size: int, seed: int, start: int) -> None:
    numbers = np.arange(start * size, (start + 1) * size)
    assert sorted(shuffled(numbers, size, seed=seed)) == list(range(size))
    some = numbers[::3]
    assert (shuffled(some, size, seed=seed) == shuffled(numbers, size, seed=seed)[::3]).all()


def test_orders_differ_by_seed_and_epoch_and_are_even() -> None:
    first, second = shuffled(np.arange(2000), 1000, seed=1).reshape(2, 1000)
    other = shuffled(np.arange(1000), 1000, seed=2)
    assert (first == second).mean() < 0.02 and (first == other).mean() < 0.02
    assert abs(np.corrcoef(first, np.arange(1000))[0, 1]) < 0.1
    heads = np.array([shuffled(np.arange(1), 10, seed=s)[0] for s in range(2000)])
    assert np.bincount(heads, minlength=10).min() > 140  # 200 expected, five standard deviations


@given(rows=st.integers(1, 40), world=st.integers(1, 8), step=st.integers(0, 9))
def test_ranks_share_the_rows_of_a_step(rows: int, world: int, step: int) -> None:
    if rows < world:
        with pytest.raises(ValueError, match="cannot be shared"):
            share(step, rows, rank=0, world=world)
        return
    parts = [share(step, rows, rank=r, world=world) for r in range(world)]
    assert np.concatenate(parts).tolist() == list(range(step * rows, (step + 1) * rows))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(lengths=LENGTHS, length=st.integers(1, 20), seed=st.integers(0, 99), mask=st.booleans())
def test_in_an_epoch_every_token_is_learned_once(lengths: list[int], length: int, seed: int, mask: bool) -> None:
    shards = stream(lengths)
    if len(shards.tokens) <= length:
        with pytest.raises(ValueError, match="a row needs"):
            Loader(shards, rows=1, length=length)
        return
    learned: list[int] = []
    for batch in epoch(Loader(shards, rows=1, length=length, seed=seed, mask_documents=mask)):
        assert batch.targets is not None and batch.weights is not None
        assert batch.tokens.shape == (1, length)
        learned += batch.targets[batch.weights > 0].tolist()
    text = [t for t in learned if t != EOS]
    assert sorted(text) == list(range(10, 10 + sum(lengths)))
    assert learned.count(EOS) == len(lengths) and BOS not in learned


@given(lengths=LENGTHS, seed=st.integers(0, 99))
def test_masked_rows_know_their_documents(lengths: list[int], seed: int) -> None:
    shards = stream(lengths)
    length = len(shards.tokens) // 2
    plain, masked = (Loader(shards, rows=3, length=length, seed=seed, mask_documents=m).batch(2) for m in (False, True))
    assert plain.documents is None and plain.positions is None
    assert torch.equal(plain.tokens, masked.tokens) and torch.equal(plain.targets, masked.targets)
    assert torch.equal(plain.weights, masked.weights)
    assert masked.documents is not None and masked.positions is not None
    for tokens, documents, positions in zip(masked.tokens.tolist(), masked.documents.tolist(),
                                            masked.positions.tolist(), strict=True):
        assert (documents[0], positions[0]) == (0, 0)
        for t in range(1, length):
            new = tokens[t] == BOS
            assert documents[t] == documents[t - 1] + new
            assert positions[t] == (0 if new else positions[t - 1] + 1)


@given(lengths=LENGTHS, rows=st.integers(1, 6), world=st.integers(1, 6), step=st.integers(0, 5))
def test_the_number_of_ranks_does_not_matter(lengths: list[int], rows: int, world: int, step: int) -> None:
    loader = Loader(stream(lengths), rows=max(rows, world), length=3, seed=4, mask_documents=True)
    whole = loader.batch(step)
    parts = [loader.batch(step, rank=r, world=world) for r in range(world)]
    for name in ("tokens", "targets", "weights", "documents", "positions"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(p, name) for p in parts]))
    again = Loader(loader.shards, rows=loader.rows, length=3, seed=4, mask_documents=True).batch(step)
    assert torch.equal(whole.tokens, again.tokens)


EXAMPLES = st.lists(st.integers(2, 13), min_size=1, max_size=30)


def numbered(lengths: list[int]) -> list[Example]:
    """Examples whose tokens say which they are."""
    return [Example(np.full(n, i + 5), np.ones(n, np.float32)) for i, n in enumerate(lengths)]


@given(lengths=st.lists(st.integers(0, 12), max_size=60), seed=st.integers(0, 9))
def test_best_fit_loses_nothing_and_fits(lengths: list[int], seed: int) -> None:
    bins = best_fit(lengths, 12, seed=seed)
    assert sorted(i for b in bins for i in b) == list(range(len(lengths)))
    loads = [sum(lengths[i] for i in b) for b in bins]
    assert all(load <= 12 for load in loads)
    assert len(bins) <= 1.3 * (sum(lengths) / 12) + 2  # best fit decreasing needs at most 11/9 of the optimum + 1


@given(lengths=EXAMPLES, packed=st.booleans(), seed=st.integers(0, 9))
def test_in_an_epoch_every_example_comes_once_and_whole(lengths: list[int], packed: bool, seed: int) -> None:
    loader = ExampleLoader(numbered(lengths), rows=1, length=12, pad_id=0, seed=seed, packed=packed)
    seen: list[tuple[int, int]] = []
    for i in range(loader.epoch_rows):
        batch = loader.take(np.array([i]))
        assert batch.tokens.shape == (1, 12) and batch.documents is not None and batch.weights is not None
        for d in range(int(batch.documents.max()) + 1):
            mine = batch.documents == d
            assert batch.tokens[mine].unique().numel() == 1
            seen.append((int(batch.tokens[mine][0]) - 5, int(batch.weights[mine].sum())))
        assert (batch.documents < 0).sum() == 12 - batch.weights.sum()
    assert sorted(seen) == [(i, n - 1) for i, n in enumerate(lengths)]


@given(lengths=EXAMPLES, rows=st.integers(1, 5), step=st.integers(0, 7))
def test_traces_of_examples_are_true(lengths: list[int], rows: int, step: int) -> None:
    loader = ExampleLoader(numbered(lengths), rows=rows, length=12, pad_id=0, seed=3)
    batch = loader.batch(step)
    spans = loader.trace(step)
    assert sum(s.stop - s.start for s in spans) == (batch.documents >= 0).sum()  # type: ignore[operator]
    for span in spans:
        number = int(span.name.removeprefix("example "))
        assert (batch.tokens[span.row, span.start : span.stop] == number + 5).all()


@given(weights=st.lists(st.floats(0.1, 10), min_size=1, max_size=5), seed=st.integers(0, 9))
def test_a_mixture_keeps_its_proportions_and_the_order_of_each_source(weights: list[float], seed: int) -> None:
    loaders = [Loader(stream([20, 30], first=1000 * (i + 1)), rows=1, length=5, seed=i) for i in range(len(weights))]
    mixture = Mixture(loaders, weights, rows=50, seed=seed)
    drawn = mixture.take(np.arange(1000)).tokens
    which = drawn.max(1).values // 1000
    for i, (loader, weight) in enumerate(zip(loaders, weights, strict=True), start=1):
        rows = drawn[which == i]
        assert abs(len(rows) - 1000 * weight / sum(weights)) <= 1
        assert torch.equal(rows, loader.take(np.arange(len(rows))).tokens)
    halves = [mixture.batch(7, rank=r, world=2).tokens for r in (0, 1)]
    assert torch.equal(torch.cat(halves), mixture.batch(7).tokens)


@given(weights=st.lists(st.floats(0.001, 1000), min_size=1, max_size=9), total=st.integers(0, 1000))
def test_parts_sum_to_the_whole(weights: list[float], total: int) -> None:
    parts = apportion(weights, total)
    assert sum(parts) == total
    assert all(abs(p - w / sum(weights) * total) < 1 for p, w in zip(parts, weights, strict=True))


@given(text=st.text(st.sampled_from("ab \nö漢"), max_size=400), size=st.integers(4, 60))
def test_pieces_are_the_text_but_for_blank_ones(text: str, size: int) -> None:
    pieces = list(cut(Document(text, "f", "f", ""), size))
    assert all(len(p.text) <= size and p.digest == digest(p.text.encode()) for p in pieces)
    assert "".join("".join(p.text for p in pieces).split()) == "".join(text.split())
    places = [tuple(map(int, p.name[2:-1].split(":"))) for p in pieces]
    assert all(text.encode()[a:b].decode() == p.text for (a, b), p in zip(places, pieces, strict=True))
    assert all(a[1] <= b[0] for a, b in pairwise(places))


@given(texts=st.lists(st.text(min_size=1), unique=True, max_size=30), valid=st.floats(0, 0.4), test=st.floats(0, 0.4))
def test_a_split_depends_on_the_document_alone(texts: list[str], valid: float, test: float) -> None:
    corpus = Corpus(PathSettings(path="nowhere", valid_share=valid, test_share=test))
    documents = [Document(t, str(i), "", digest(t.encode("utf-8", "surrogatepass"))) for i, t in enumerate(texts)]
    splits = [corpus.split_of(d) for d in documents]
    assert splits == [Corpus(corpus.settings).split_of(Document(d.text, "other", "x", d.digest)) for d in documents]
    assert set(splits) <= set(SPLITS)
    if test == 0:
        assert "test" not in splits


def test_shares_are_kept() -> None:
    corpus = Corpus(PathSettings(path="nowhere", valid_share=0.1, test_share=0.05))
    splits = [corpus.split_of(Document("", "", "", digest(str(i).encode()))) for i in range(20_000)]
    assert abs(splits.count("valid") - 2000) < 5 * 45 and abs(splits.count("test") - 1000) < 5 * 32
