"""Masking: what is hidden can be put back exactly, shares are as asked, control tokens stay, two ranks are one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cutaway.batch import Batch, Example
from cutaway.data.documents import PathSettings, read
from cutaway.data.examples import lm
from cutaway.data.loader import ExampleLoader, Loader
from cutaway.data.masking import Masked, Prefixes, Spans
from cutaway.data.mixture import Mixture
from cutaway.data.shards import Shards, write_shards
from cutaway.errors import SettingsError, TokenizerError
from cutaway.text.tokenizer import ByteSettings, train

BYTE = train(ByteSettings(masks=150), ())
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "runs", "away", "from", "it"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    folder = tmp_path_factory.mktemp("masking")
    for i in range(40):
        (folder / f"{i:02}.txt").write_text(f"number {i}: " + " ".join(WORDS[(i * j) % 13] for j in range(i % 9 + 1)))
    write_shards(folder.parent / "mask-shards", read(PathSettings(path=str(folder), valid_share=0, test_share=0)), BYTE)
    return Shards.open(folder.parent / "mask-shards")


def documents_of(batch: Batch) -> list[list[list[int]]]:
    """Tokens of every document of every row."""
    numbers = torch.zeros_like(batch.tokens) if batch.documents is None else batch.documents
    return [[row[which == d].tolist() for d in which.unique() if d >= 0]
            for row, which in zip(batch.tokens, numbers, strict=True)]


def sides(batch: Batch) -> list[list[tuple[list[int], list[int]]]]:
    """Source without its end, and target without its beginning, of every document of every row."""
    assert batch.source is not None and batch.source_documents is not None
    assert batch.targets is not None and batch.documents is not None
    out = []
    for r in range(len(batch.tokens)):
        row = []
        for d in batch.source_documents[r].unique().tolist():
            if d >= 0:
                source = batch.source[r][batch.source_documents[r] == d].tolist()
                assert source[-1] == BYTE.eos_id
                at = batch.documents[r] == d
                assert batch.tokens[r][at][0] == BYTE.bos_id
                row.append((source, batch.targets[r][at].tolist()))
        out.append(row)
    return out


def filled(source: list[int], target: list[int]) -> list[int]:
    """The document that a span-corrupted pair came from."""
    assert target[-1] == BYTE.eos_id
    gaps: dict[int, list[int]] = {}
    for token in target[:-1]:
        if token in BYTE.span_ids:
            last = gaps.setdefault(token, [])
        else:
            last.append(token)
    assert list(gaps) == list(BYTE.span_ids[: len(gaps)]) and all(gaps.values())
    assert [t for t in source if t in BYTE.span_ids] == list(gaps)
    return [t for token in source for t in gaps.get(token, [token])]


def cut_end(tokens: list[int]) -> list[int]:
    return tokens[:-1] if tokens[-1] == BYTE.eos_id else tokens


@pytest.mark.parametrize("documents", [False, True])
def test_masked_rows_are_the_rows_but_for_the_mask(shards: Shards, documents: bool) -> None:
    source = Loader(shards, rows=8, length=40, mask_documents=documents)
    masked = Masked(source, BYTE, rows=8, share=0.3, seed=3)
    hidden = able = 0
    for step in range(40):
        plain, batch = source.batch(step), masked.batch(step)
        assert batch.targets is not None and batch.weights is not None
        assert torch.equal(batch.targets, plain.tokens)
        where = batch.weights > 0
        assert torch.equal(batch.tokens[~where], plain.tokens[~where])
        assert (batch.tokens[where] == BYTE.mask_id).all()
        control = torch.isin(plain.tokens, torch.tensor(BYTE.control_ids))
        assert not (where & control).any()
        hidden, able = hidden + int(where.sum()), able + int((~control).sum())
        if documents:
            assert plain.documents is not None and batch.documents is not None
            assert torch.equal(batch.documents, plain.documents)
    assert abs(hidden - 0.3 * able) < 5 * math.sqrt(able * 0.3 * 0.7) + 40  # the overlapping last row hides less


def test_devlins_mixture_has_its_shares(shards: Shards) -> None:
    source = Loader(shards, rows=16, length=50)
    masked = Masked(source, BYTE, rows=16, share=0.15, mixed=(0.8, 0.1, 0.1), seed=1)
    counts = np.zeros(3)
    for step in range(60):
        batch = masked.batch(step)
        assert batch.targets is not None and batch.weights is not None
        where = batch.weights > 0
        now, was = batch.tokens[where], batch.targets[where]
        counts += [int((now == BYTE.mask_id).sum()), int(((now != BYTE.mask_id) & (now != was)).sum()),
                   int((now == was).sum())]
        assert not torch.isin(now[now != BYTE.mask_id], torch.tensor(BYTE.control_ids)).any()
    total = counts.sum()
    for count, share in zip(counts, (0.8, 0.1, 0.1), strict=True):
        assert abs(count - share * total) < 5 * math.sqrt(total * share * (1 - share))


def test_every_epoch_hides_other_tokens_and_every_token_in_time(shards: Shards) -> None:
    source = Loader(shards, rows=1, length=40)
    masked = Masked(source, BYTE, rows=1, share=0.3)
    epochs = [[masked.batch(e * source.epoch_rows + i) for i in range(source.epoch_rows)] for e in range(30)]
    seen: dict[bytes, torch.Tensor] = {}
    for batch in (b for epoch in epochs for b in epoch):
        assert batch.targets is not None and batch.weights is not None
        key = batch.targets.numpy().tobytes()
        seen[key] = seen.get(key, torch.zeros_like(batch.weights)) + batch.weights
    assert len(seen) == source.epoch_rows
    never = sum(int(((hits == 0) & (torch.frombuffer(bytearray(key), dtype=torch.int64) < 256)).sum())
                for key, hits in seen.items())
    assert never <= 40  # what the last row overlaps


@given(st.lists(st.text(max_size=40), min_size=1, max_size=12), st.integers(0, 99), st.floats(0.05, 0.8),
       st.floats(1, 6), st.booleans())
@settings(max_examples=60, deadline=None)
def test_corrupted_spans_can_be_put_back(texts: list[str], seed: int, share: float, mean: float, packed: bool) -> None:
    longest = max(len(t.encode()) for t in texts) + 2
    source = ExampleLoader([lm(t, BYTE) for t in texts], rows=3, length=longest, pad_id=BYTE.pad_id, packed=packed)
    spans = Spans(source, BYTE, rows=3, share=share, mean_length=mean, seed=seed)
    for step in range(2):
        plain, batch = documents_of(source.batch(step)), sides(spans.batch(step))
        again = [[cut_end(filled(s, t)) for s, t in row] for row in batch]
        assert again == [[cut_end(d) for d in row] for row in plain]
        prefixes = sides(Prefixes(source, BYTE, rows=3, seed=seed).batch(step))
        assert [[s[:-1] + t for s, t in row] for row in prefixes] == plain


def test_spans_of_whole_rows_have_their_share_and_their_length(shards: Shards) -> None:
    source = Loader(shards, rows=8, length=100)
    spans = Spans(source, BYTE, rows=8, share=0.15, mean_length=3)
    gone = count = 0
    for step in range(20):
        for (row,), tokens in zip(sides(spans.batch(step)), source.batch(step).tokens, strict=True):
            assert filled(*row)[: len(tokens)] == tokens.tolist()
            count += sum(t in BYTE.span_ids for t in row[0])
            gone += sum(t not in BYTE.span_ids for t in row[1][:-1])
    assert 0.12 < gone / (20 * 8 * 100) <= 0.15  # a span ends before a control token
    assert 2.5 < gone / count <= 3.1


@pytest.mark.parametrize("make", [Masked, Spans, Prefixes])
def test_two_ranks_are_one_and_a_step_is_a_function_of_its_number(shards: Shards, make: type) -> None:
    def source(rows: int) -> Masked | Spans | Prefixes:
        out: Masked | Spans | Prefixes = make(Loader(shards, rows=rows, length=40), BYTE, rows, seed=5)
        return out

    whole = source(6).batch(7)
    again = source(6).batch(7)
    assert whole.weights is not None and again.weights is not None and torch.equal(whole.weights, again.weights)
    for rank in range(2):
        part = source(6).batch(7, rank=rank, world=2)
        mine = whole.rows(3 * rank, 3 * rank + 3)
        width = part.tokens.shape[1]
        assert part.weights is not None and mine.weights is not None and not mine.weights[:, width:].any()
        assert torch.equal(part.tokens, mine.tokens[:, :width]) and torch.equal(part.weights, mine.weights[:, :width])
        if part.source is not None and mine.source is not None:
            assert torch.equal(part.source, mine.source[:, : part.source.shape[1]])
    other = make(Loader(shards, rows=6, length=40), BYTE, 6, seed=6).batch(7)
    assert other.tokens.shape != whole.tokens.shape or not torch.equal(other.tokens, whole.tokens)
    assert source(6).epoch_rows == Loader(shards, rows=6, length=40).epoch_rows
    assert source(6).trace_rows(np.arange(2)) == Loader(shards, rows=6, length=40).trace_rows(np.arange(2))


def test_what_a_source_does_not_learn_is_not_hidden() -> None:
    tokens = np.arange(20)
    examples = [Example(tokens, (tokens >= 10).astype(np.float32))]
    masked = Masked(ExampleLoader(examples, rows=1, length=30, pad_id=BYTE.pad_id), BYTE, rows=1, share=0.99)
    batch = masked.batch(0)
    assert batch.weights is not None
    assert batch.weights[0, 10:19].sum() > 5 and not batch.weights[0, :10].any() and not batch.weights[0, 19:].any()


def test_masked_rows_can_be_mixed_with_others(shards: Shards) -> None:
    sources = [Masked(Loader(shards, rows=1, length=40), BYTE, rows=1, seed=s) for s in (0, 1)]
    assert Mixture(sources, [1, 1], rows=4).batch(0).tokens.shape == (4, 40)


def test_what_makes_no_sense_is_refused(shards: Shards) -> None:
    source = Loader(shards, rows=1, length=40)
    with pytest.raises(SettingsError, match=r"share = 1\.5 must lie between 0 and 1"):
        Masked(source, BYTE, rows=1, share=1.5)
    with pytest.raises(SettingsError, match="three shares that sum to 1"):
        Masked(source, BYTE, rows=1, mixed=(0.8, 0.1, 0.2))
    with pytest.raises(SettingsError, match="mean_length"):
        Spans(source, BYTE, rows=1, mean_length=0.5)
    with pytest.raises(TokenizerError, match=r"no <\|mask\|>; learn one with tokenizer.masks"):
        Masked(source, train(ByteSettings(), ()), rows=1)
    few = train(ByteSettings(masks=1), ())
    with pytest.raises(SettingsError, match=r"more gaps than the 1 that the vocabulary names; raise tokenizer.masks"):
        Spans(source, few, rows=1, share=0.5).batch(0)
