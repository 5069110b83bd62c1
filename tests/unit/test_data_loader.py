"""Loaders: rows can be traced to their documents, and what cannot be loaded is refused with its numbers."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from cutaway.batch import Example
from cutaway.data.documents import PathSettings, read
from cutaway.data.loader import ExampleLoader, Loader
from cutaway.data.mixture import Mixture
from cutaway.data.shards import Shards, write_shards
from cutaway.errors import DataError
from cutaway.text.tokenizer import ByteSettings, train

BYTE = train(ByteSettings(), ())


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    folder = tmp_path_factory.mktemp("loader")
    for i in range(60):
        (folder / f"{i:02}.txt").write_text(f"number {i}: " + "some words " * (i % 7) + "\n")
    settings = PathSettings(path=str(folder), valid_share=0.0, test_share=0.0)
    write_shards(folder.parent / "loader-shards", read(settings), BYTE)
    return Shards.open(folder.parent / "loader-shards")


@pytest.mark.parametrize("mask", [False, True])
def test_a_trace_names_every_token_of_a_batch(shards: Shards, mask: bool) -> None:
    loader = Loader(shards, rows=4, length=50, seed=1, mask_documents=mask)
    by_name = {shards.name(i): shards.document(i) for i in range(len(shards))}
    for step in range(8):
        batch = loader.batch(step)
        spans = loader.trace(step)
        assert sum(s.stop - s.start for s in spans) == batch.tokens.numel()
        for span in spans:
            expected = by_name[span.name][span.offset : span.offset + span.stop - span.start]
            assert batch.tokens[span.row, span.start : span.stop].tolist() == expected.tolist()
        if batch.documents is not None:
            assert [len([s for s in spans if s.row == r]) for r in range(4)] == (batch.documents[:, -1] + 1).tolist()
    half = loader.trace(3, rank=1, world=2)
    assert half == [s._replace(row=s.row - 2) for s in loader.trace(3) if s.row >= 2]


def test_a_trace_of_a_mixture_names_the_sources(shards: Shards) -> None:
    talk = Example(np.arange(9), np.ones(9, np.float32))
    examples = ExampleLoader([talk], rows=1, length=50, pad_id=0, names=["talk"])
    mixture = Mixture([Loader(shards, rows=1, length=50, mask_documents=True), examples], [3, 1], rows=16)
    batch, spans = mixture.batch(0), mixture.trace(0)
    talks = [s for s in spans if s.name == "talk"]
    assert 0 < len(talks) < 16 and [s.row for s in spans] == sorted(s.row for s in spans)
    assert all(batch.tokens[s.row, :8].tolist() == list(range(8)) for s in talks)
    rows = {s.row for s in spans}
    assert rows == set(range(16))


def test_what_cannot_be_loaded_is_refused(shards: Shards) -> None:
    with pytest.raises(DataError, match=r"the train split has [\d,]+ tokens, a row needs 100,001"):
        Loader(shards, rows=1, length=100_000)
    with pytest.raises(DataError, match="0 rows of 5 tokens is empty"):
        Loader(shards, rows=0, length=5)
    loader = Loader(shards, rows=2, length=5)
    for wrong in (lambda: loader.batch(-1), lambda: loader.batch(0, rank=2, world=2), lambda: loader.batch(0, world=3)):
        with pytest.raises(DataError):
            wrong()
    long = [Example(np.arange(n), np.ones(n, np.float32)) for n in (4, 9, 12)]
    with pytest.raises(DataError, match="2 of 3 examples do not fit 7 tokens, the longest needs 11; raise the context"):
        ExampleLoader(long, rows=1, length=7, pad_id=0)
    with pytest.raises(DataError, match="no examples"):
        ExampleLoader([], rows=1, length=7, pad_id=0)


def test_a_mixture_that_makes_no_sense_is_refused(shards: Shards) -> None:
    loader = Loader(shards, rows=1, length=50)
    with pytest.raises(DataError, match="1 sources and 2 weights"):
        Mixture([loader], [1, 2], rows=4)
    with pytest.raises(DataError, match="must be positive"):
        Mixture([loader, loader], [1, 0], rows=4)
    with pytest.raises(DataError, match="never be seen"):
        Mixture([loader, loader], [1, 1e-6], rows=4)
    masked = Loader(shards, rows=1, length=50, mask_documents=True)
    with pytest.raises(DataError, match="some have documents and some have not; set mask_documents alike"):
        Mixture([loader, masked], [1, 1], rows=8).batch(0)


def test_seeds_and_epochs_change_the_order(shards: Shards) -> None:
    first = Loader(shards, rows=8, length=20, seed=0)
    assert not torch.equal(first.batch(0).tokens, Loader(shards, rows=8, length=20, seed=1).batch(0).tokens)
    assert not torch.equal(first.batch(0).tokens, first.take(np.arange(8) + first.epoch_rows).tokens)
    assert torch.equal(first.batch(5).tokens, first.batch(5).tokens)


def test_a_batch_is_ready_in_a_moment(shards: Shards) -> None:
    loader = Loader(shards, rows=32, length=64, mask_documents=True)
    loader.batch(0)
    best = min(_seconds(loader, step) for step in range(1, 30))
    assert best < 0.005, f"{1000 * best:.2f} ms; 0.3 ms is usual"


def _seconds(loader: Loader, step: int) -> float:
    start = time.perf_counter()
    loader.batch(step)
    return time.perf_counter() - start
