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
from cutaway.models.kneser_ney import FALLBACK, fit
from cutaway.models.ngram import NGram, NGramConfig
from cutaway.settings import decode

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
        if all(t[1:]):
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


def test_it_is_saved_as_tensors() -> None:
    fitted = model(corpus())
    again = NGram.from_tensors(fitted.config, fitted.tensors())
    tokens, starts = flat(corpus(20, seed=2))
    assert np.array_equal(again.score(tokens, starts), fitted.score(tokens, starts))
    damaged = fitted.tensors()
    damaged["2.starts"] = damaged["2.starts"][:-1]
    with pytest.raises(ModelError, match="2-grams does not fit"):
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
