"""Samplers against their definitions, one row at a time, in plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cutaway.errors import ModelError
from cutaway.generate.request import Sampling
from cutaway.generate.sample import Seen, chain, invert, keys, uniforms

CPU = torch.device("cpu")
samplings = st.builds(
    Sampling, temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]), top_k=st.sampled_from([None, 1, 3, 500]),
    top_p=st.sampled_from([0.1, 0.5, 0.9, 1.0]), min_p=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.4, 0.8]), presence_penalty=st.sampled_from([0.0, 1.5, -1.0]),
    frequency_penalty=st.sampled_from([0.0, 0.7, -0.4]),
    logit_bias=st.sampled_from([(), ((1, 5.0),), ((0, -100.0), (2, 0.5), (2, 0.25))]))


def expected(logits: np.ndarray, s: Sampling, anywhere: np.ndarray, answered: np.ndarray) -> np.ndarray:
    """The distribution of one row, step by step as ``Sampling`` says."""
    x = logits.astype(np.float64)
    x = np.where(anywhere, np.where(x > 0, x / s.repetition_penalty, x * s.repetition_penalty), x)
    x = x - s.presence_penalty * (answered > 0) - s.frequency_penalty * answered
    for token, value in s.logit_bias:
        x[token] += value
    if s.temperature == 0:
        return np.eye(len(x))[x.argmax()]
    x = x / s.temperature
    if s.top_k is not None and s.top_k < len(x):
        x[x < np.sort(x)[-s.top_k]] = -np.inf
    p = np.exp(x - x.max()) / np.exp(x - x.max()).sum()
    order = np.argsort(-p)
    before = np.cumsum(p[order]) - p[order]
    p[order[before >= s.top_p]] = 0
    p[p < s.min_p * p.max()] = 0
    return p / p.sum()


@settings(max_examples=60, deadline=None)
@given(st.lists(samplings, min_size=1, max_size=4), st.integers(0, 999))
def test_every_row_has_its_own_distribution(rows: list[Sampling], seed: int) -> None:
    draw, n, vocab = np.random.default_rng(seed), 400, 70
    logits = draw.normal(0, 2, (len(rows), vocab)).astype(np.float32)
    anywhere = draw.random((len(rows), vocab)) < 0.3
    answered = (anywhere * draw.integers(0, 3, (len(rows), vocab))).astype(np.int32)
    many = [s for s in rows for _ in range(n)]
    tiled = [torch.from_numpy(np.repeat(a, n, 0)) for a in (logits, anywhere, answered)]
    # evenly spaced numbers: the counts must equal the probabilities to 1 / n, not only on average
    grid = torch.from_numpy(np.tile((np.arange(n) + 0.5) / n, len(rows)))
    tokens = chain(many, vocab_size=vocab, device=CPU)(tiled[0], grid, Seen(tiled[1], tiled[2])).view(len(rows), n)
    for row, s in enumerate(rows):
        wanted = expected(logits[row], s, anywhere[row], answered[row])
        share = np.bincount(tokens[row].numpy(), minlength=vocab) / n
        assert np.abs(share - wanted).max() <= 1.5 / n + 1e-5
        assert not share[wanted == 0].any()


def test_a_selected_chain_is_the_chain_of_the_selected() -> None:
    rows = [Sampling(temperature=0), Sampling(top_k=2, logit_bias=((3, 4.0), (4, 3.0))),
            Sampling(temperature=0.5, top_p=0.5, logit_bias=((5, 9.0),)), Sampling(min_p=0.2)]
    logits, uniform = torch.randn(4, 30, generator=torch.Generator().manual_seed(0)), torch.full((4,), 0.6).double()
    whole = chain(rows, vocab_size=30, device=CPU)
    keep = torch.tensor([3, 1])
    assert torch.equal(whole.select(keep)(logits[keep], uniform[keep]), whole(logits, uniform)[keep])


@pytest.mark.parametrize("vocab", [1, 2, 63, 64, 65, 300])
def test_inversion_is_the_cumulative_search(vocab: int) -> None:
    logits = torch.randn(500, vocab, generator=torch.Generator().manual_seed(1)) * 3
    uniform = torch.rand(500, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    cdf = torch.softmax(logits.double(), 1).cumsum(1)
    plain = torch.searchsorted(cdf, uniform[:, None], right=True).squeeze(1)
    found, sound = invert(logits, uniform)
    assert sound.all() and (found == plain).float().mean() > 0.995  # only the sums' last bits differ


def test_the_ends_of_the_unit_interval_are_safe() -> None:
    logits = torch.full((2, 100), -torch.inf)
    logits[:, 37] = 1.0
    assert invert(logits, torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64))[0].tolist() == [37, 37]


@pytest.mark.parametrize("hot", [0.0, 1.0])
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
@pytest.mark.parametrize("vocab", [5, 64, 100])
def test_rows_that_are_not_finite_are_told_apart_and_touch_no_other(vocab: int, wrong: float, hot: float) -> None:
    logits = torch.randn(4, vocab, generator=torch.Generator().manual_seed(3))
    uniform = torch.tensor([0.1, 0.999999, 0.5, 0.9], dtype=torch.float64)
    drawn = chain([Sampling(temperature=hot)] * 4, vocab_size=vocab, device=CPU)
    wanted, sound = drawn.drawn(logits, uniform)
    assert sound.all()
    logits[1, 3], logits[2] = wrong, -torch.inf
    found, sound = drawn.drawn(logits, uniform)
    assert sound.tolist() == [True, False, False, True]
    assert found[sound].tolist() == wanted[sound].tolist() and ((found >= 0) & (found < vocab)).all()
    with pytest.raises(ModelError, match="not finite"):
        drawn(logits, uniform)


def test_uniforms_are_uniform_and_independent_of_neighbours() -> None:
    streams = keys(range(2000))
    table = np.stack([uniforms(streams, t) for t in range(50)])
    assert table.min() >= 0 and table.max() < 1
    counts = np.histogram(table, 100, (0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 99 + 5 * np.sqrt(2 * 99)
    assert abs(np.corrcoef(table[:, :-1].ravel(), table[:, 1:].ravel())[0, 1]) < 0.02  # seeds s and s + 1
    assert abs(np.corrcoef(table[:-1].ravel(), table[1:].ravel())[0, 1]) < 0.02  # positions t and t + 1
    assert uniforms(keys([7]), 9)[0] == uniforms(keys([1, 7, 2**64 - 1]), 9)[1]


@pytest.mark.parametrize("bad", [{"temperature": -1.0}, {"temperature": 1e-9}, {"temperature": float("nan")},
                                 {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.1}, {"min_p": -0.1},
                                 {"repetition_penalty": 0.0}, {"typical_p": 0.5}])
def test_an_impossible_sampler_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        Sampling(**bad)  # type: ignore[arg-type]
