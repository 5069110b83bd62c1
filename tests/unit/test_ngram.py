"""The n-gram model beside the textbook's formula written out with dictionaries, and as a LanguageModel."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cutaway.errors import DataError, ModelError, RequestError, SettingsError
from cutaway.generate.engine import Engine
from cutaway.generate.request import Request, Sampling
from cutaway.generate.writer import Options, Writer
from cutaway.models import grams, kneser_ney, ngram
from cutaway.models.kneser_ney import FALLBACK, fit
from cutaway.models.ngram import NGram, NGramConfig
from cutaway.settings import decode
from cutaway.text.tokenizer import ByteSettings, train

BOS, EOS, V = 0, 1, 9
pytestmark = pytest.mark.filterwarnings("ignore:the discounts of")
Documents = list[list[int]]


def corpus(count: int = 80, seed: int = 0) -> Documents:
    draw = np.random.default_rng(seed)
    weights = 1 / np.arange(1, V - 2)
    return [[BOS, *draw.choice(np.arange(2, V - 1), draw.integers(0, 25), p=weights / weights.sum()).tolist(), EOS]
            for _ in range(count)]


def flat(documents: Documents) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    return np.concatenate(documents), np.cumsum([0, *map(len, documents)])


def model(documents: Documents, order: int = 4, prune: tuple[int, ...] = ()) -> NGram:
    return fit(*flat(documents), NGramConfig(vocab_size=V, order=order, bos_id=BOS, prune=prune))


def textbook(documents: Documents, order: int):  # type: ignore[no-untyped-def]
    """``p(word, context)`` by Chen & Goodman's recursion, nothing shared with the package."""
    raw = [Counter(tuple(d[i : i + n]) for d in documents for i in range(len(d) - n + 1)) for n in range(1, order + 1)]
    counts = []
    for n in range(1, order + 1):
        if n == order:
            counts.append(dict(raw[n - 1]))
            continue
        before = defaultdict(set)
        for gram in raw[n]:
            before[gram[1:]].add(gram[0])
        counts.append({g: c if g[0] == BOS else len(before[g]) for g, c in raw[n - 1].items()})
    counts[0].pop((BOS,))

    def discounts(table: dict[tuple[int, ...], int]) -> list[float]:
        t = [sum(c == k for c in table.values()) for k in range(5)]
        if all(t[1:4]):
            y = t[1] / (t[1] + 2 * t[2])
            found = [k - (k + 1) * y * t[k + 1] / t[k] for k in (1, 2, 3)]
            if all(0 <= d <= k for k, d in enumerate(found, 1)):
                return [0.0, *found]
        return [0.0, *FALLBACK]

    cuts = [discounts(table) for table in counts]

    def p(word: int, context: tuple[int, ...]) -> float:
        n = len(context) + 1
        table, cut = counts[n - 1], cuts[n - 1]
        row = {g[-1]: c for g, c in table.items() if g[:-1] == context}
        lower = 1 / (V - 1) if n == 1 else p(word, context[1:])
        if not row:
            return lower
        freed = sum(cut[min(c, 3)] for c in row.values())
        c = row.get(word, 0)
        return (c - cut[min(c, 3)] + freed * lower) / sum(row.values())

    return p


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_every_probability_is_the_textbook_s(order: int) -> None:
    documents = corpus()
    fitted, p = model(documents, order), textbook(documents, order)
    tokens, starts = flat(documents)
    found = fitted.score(tokens, starts)
    at = 0
    for document in documents[:25]:
        for i, word in enumerate(document):
            if i:
                context = tuple(document[max(0, i - order + 1) : i])
                assert found[at + i] == pytest.approx(np.log(p(word, context)), abs=2e-6)
        at += len(document)


def counted(documents: Documents, order: int, size: int) -> list[dict[tuple[int, ...], int]]:
    """The n-grams and their counts read back out of the sorted arrays."""
    found = grams.count(*flat(documents), order=order, vocab_size=size, bos_id=BOS)
    tables: list[dict[tuple[int, ...], int]] = []
    before: list[tuple[int, ...]] = [()]
    starts = np.array([0, len(found.orders[0].words)])
    for n, part in enumerate(found.orders, start=1):
        prefixes = [before[i] for i, many in enumerate(np.diff(starts)) for _ in range(many)]
        rows = [(*p, w) for p, w in zip(prefixes, part.words.tolist(), strict=True)]
        if n > 1:
            assert [r[1:] for r in rows] == [before[i] for i in found.suffixes(n)]
        assert all((r[0] == BOS) == (part.begins.start <= i < part.begins.stop) for i, r in enumerate(rows))
        tables.append(dict(zip(rows, part.counts.tolist(), strict=True)))
        before, starts = rows, part.starts
    return tables


@settings(max_examples=80)
@given(st.lists(st.lists(st.integers(0, 4), max_size=12), min_size=1, max_size=8), st.integers(1, 7),
       st.sampled_from([5, 6, 70_000]), st.sampled_from([1, 3, 1 << 22]))
def test_counts_are_those_of_a_dictionary(documents: Documents, order: int, size: int, block: int) -> None:
    """Whatever the vocabulary, which decides how many tokens one sort compares, and however small the blocks."""
    if max(map(len, documents)) < order:
        return
    found = [Counter(tuple(d[i : i + n]) for d in documents for i in range(len(d) - n + 1))
             for n in range(1, order + 1)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grams, "BLOCK", block)
        assert counted(documents, order, size) == [dict(f) for f in found]


@pytest.mark.parametrize("prune", [(), (0, 1), (0, 0, 10**6)])
def test_the_size_of_the_pieces_changes_nothing(monkeypatch: pytest.MonkeyPatch, prune: tuple[int, ...]) -> None:
    tokens, starts = flat(corpus(30, seed=3))
    whole = model(corpus(), prune=prune)
    expected = whole.score(tokens, starts)
    for module, name in ((grams, "BLOCK"), (kneser_ney, "STEP"), (ngram, "PIECE"), (ngram, "SCORES")):
        monkeypatch.setattr(module, name, 7)
    small = model(corpus(), prune=prune)
    assert all(np.array_equal(a, b) for a, b in zip(whole.tensors().values(), small.tensors().values(), strict=True))
    assert np.array_equal(small.score(tokens, starts), expected)
    line = torch.tensor([corpus()[3]])
    assert torch.equal(small.logits(line, small.new_state(1, capacity=64), every=True),
                       whole.logits(line, whole.new_state(1, capacity=64), every=True))


def test_single_tokens_alone_are_a_model_too(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = model(corpus(), 1)
    tokens, starts = flat(corpus(5, seed=1))
    monkeypatch.setattr(ngram, "PIECE", 3)
    expected = fitted.base[tokens]
    expected[starts[:-1]] = 0
    assert np.array_equal(fitted.score(tokens, starts), expected)


def test_rows_of_different_lengths_read_what_is_theirs() -> None:
    fitted, lines = model(corpus(200)), [corpus()[i] for i in (1, 4, 6)]
    tokens = torch.zeros(3, max(map(len, lines)), dtype=torch.long)
    for row, line in zip(tokens, lines, strict=True):
        row[: len(line)] = torch.tensor(line)
    counts = torch.tensor([len(line) for line in lines])
    state = fitted.new_state(3, capacity=64)
    every = fitted.logits(tokens, state.copy(), counts=counts, every=True)
    last = fitted.logits(tokens, state, counts=counts)
    assert torch.equal(state.lengths, counts)
    for i, line in enumerate(lines):
        alone = fitted.logits(torch.tensor([line]), fitted.new_state(1, capacity=64), every=True)[0]
        assert torch.equal(every[i, : len(line)], alone) and not every[i, len(line) :].any()
        assert torch.equal(last[i], alone[-1])
    idle = fitted.logits(tokens[:, :1], state, counts=torch.tensor([0, 1, 0]))
    assert torch.equal(idle[0], last[0]) and not torch.equal(idle[1], last[1])


@settings(max_examples=40)
@given(st.lists(st.integers(2, V - 1), max_size=6), st.sampled_from([(), (0, 1), (0, 0, 1, 2)]))
def test_probabilities_sum_to_one_whatever_the_context(context: list[int], prune: tuple[int, ...]) -> None:
    fitted = model(corpus(), 4, prune)
    state = fitted.new_state(1, capacity=20)
    logits = fitted.logits(torch.tensor([[BOS, *context]]), state)
    assert float(logits.double().exp().sum()) == pytest.approx(1, abs=1e-5)


def test_pruning_leaves_out_what_is_rare_and_costs_little() -> None:
    documents = corpus(300)
    whole, small = model(documents), model(documents, prune=(0, 0, 1))
    sizes = [len(t.words) for t in whole.tables], [len(t.words) for t in small.tables]
    assert sizes[0][:2] == sizes[1][:2] and all(a > b for a, b in zip(sizes[0][2:], sizes[1][2:], strict=True))
    tokens, starts = flat(corpus(50, seed=1))
    costs = [-m.score(tokens, starts).mean() for m in (whole, small)]
    assert abs(costs[0] - costs[1]) < 0.1 * costs[0]


def test_it_reads_and_writes_like_any_language_model() -> None:
    documents = corpus(200)
    fitted = model(documents)
    tokens, starts = flat(documents)
    scores = fitted.score(tokens, starts)
    line = torch.tensor([documents[3]])
    at_once = fitted.logits(line, fitted.new_state(1, capacity=64), every=True)[0]
    state, each = fitted.new_state(1, capacity=64), []
    for i in range(line.shape[1]):
        each.append(fitted.logits(line[:, i : i + 1], state)[0])
    assert torch.equal(torch.stack(each), at_once)
    chosen = at_once[:-1].gather(1, line[0, 1:, None])[:, 0]
    assert torch.allclose(chosen.double(), torch.from_numpy(scores[starts[3] + 1 : starts[4]]), atol=1e-5)


def test_a_batch_is_its_rows_alone_and_the_engine_drives_it() -> None:
    fitted = model(corpus(200))
    asked = [Request(tokens=(BOS, *words), max_tokens=12, sampling=Sampling(temperature=1.0), seed=i, stop_ids=(EOS,))
             for i, words in enumerate([(), (2,), (3, 2, 4)])]
    together = [c.tokens for c in Engine(fitted).generate(asked)]
    assert together == [c.tokens for r in asked for c in Engine(fitted).generate([r])]
    assert any(len(t) > 1 for t in together)


def test_a_writer_streams_what_it_would_have_written() -> None:
    tokenizer = train(ByteSettings(), [])
    texts = ["the cat sat on the mat. ", "the dog sat on the cat. ", "the mat and the dog. "] * 20
    documents = [[tokenizer.bos_id, *tokenizer.encode(t), tokenizer.eos_id] for t in texts]
    fitted = fit(*flat(documents), NGramConfig(vocab_size=tokenizer.vocab_size, order=5, bos_id=tokenizer.bos_id))
    writer = Writer(Engine(fitted), tokenizer)
    options = Options(max_tokens=80, sampling=Sampling(temperature=1.0), seed=3)
    prompts = [writer.text_ids(p) for p in ("the ", "a dog", "the mat")]
    whole = writer.write(prompts, options)
    pieces = list(writer.stream(prompts, options))
    assert ["".join(p.text for p in pieces if p.prompt == i) for i in range(3)] == [w.text for w in whole]
    assert whole[0].finish_reason == "stop" and whole[0].text.endswith(". ")
    stopped = writer.write(prompts[:1], options.model_copy(update={"stop": (" sat",), "logprobs": 2}))[0]
    assert " sat" not in stopped.text and len(stopped.logprobs) == len(stopped.tokens)
    assert all(a[0].logprob >= p - 1e-6 for a, p in zip(stopped.alternatives, stopped.logprobs, strict=True))


def test_it_is_saved_as_tensors() -> None:
    fitted = model(corpus())
    again = NGram.from_tensors(fitted.config, fitted.tensors())
    tokens, starts = flat(corpus(20, seed=2))
    assert np.array_equal(again.score(tokens, starts), fitted.score(tokens, starts))
    damaged = fitted.tensors()
    damaged["2.starts"] = damaged["2.starts"][:-1]
    with pytest.raises(ModelError, match="2-grams does not fit the others: an array is of another"):
        NGram.from_tensors(fitted.config, damaged)
    del damaged["3.logs"]
    with pytest.raises(ModelError, match=r"without '3\.logs'"):
        NGram.from_tensors(fitted.config, damaged)


@pytest.mark.parametrize(("tokens", "starts", "said"), [
    ([], [0], "no tokens"), ([0, 99, 1], [0, 3], "99 is not in a vocabulary of 9"),
    ([0, 2, 1], [0, 2], "do not cover 3"), ([0, 2, 1], [0, 3], "no document has 4 tokens; set order to 3"),
    ([0, 0, 0, 0], [0, 4], "nothing but their beginnings")])
def test_what_cannot_be_counted_is_refused(tokens: list[int], starts: list[int], said: str) -> None:
    with pytest.raises(DataError, match=said):
        fit(np.array(tokens), np.array(starts), NGramConfig(vocab_size=V, order=4, bos_id=BOS))


def test_settings_and_states_are_checked() -> None:
    for wrong in ({"prune": [1]}, {"prune": [0, 2, 1]}, {"bos_id": 9}, {"order": 0}):
        with pytest.raises(SettingsError):
            decode(NGramConfig, {"vocab_size": V, "bos_id": BOS, **wrong}, where="here")
    fitted = model(corpus())
    with pytest.raises(RequestError, match="do not fit a state of 2"):
        fitted.logits(torch.tensor([[0, 2, 3]]), fitted.new_state(1, capacity=2))
