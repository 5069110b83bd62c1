"""Preferences of known utilities: Bradley-Terry reaches its Bayes limit, DPO finds the reward it was never shown."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from cutaway.batch import Batch, Example
from cutaway.models.model import Model, build, with_head
from cutaway.models.transformer import TransformerConfig
from cutaway.objectives.likelihood import token_logprobs
from cutaway.objectives.preference import DPO, Reward, pairs, rewards, with_reference

VOCAB, REQUEST = 4, 3  # the request's token is none of the answer's: rows of one repeated token look alike to attention
ITEMS = [(a, b) for a in range(3) for b in range(3)]  # every answer of two tokens
UTILITY = np.random.default_rng(12).normal(size=len(ITEMS)) * 0.9
CONFIG = TransformerConfig(vocab_size=VOCAB, hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=2,
                           intermediate_size=32, context_length=8, tie_embeddings=False)


def example(i: int) -> Example:
    return Example(np.array([REQUEST, *ITEMS[i]]), np.array([0, 1, 1], np.float32))


def batch_of(chosen: list[int], rejected: list[int]) -> Batch:
    return pairs([example(i) for i in chosen], [example(i) for i in rejected], pad_id=0)


def preferred(i: Any, j: Any) -> Any:
    return 1 / (1 + np.exp(UTILITY[j] - UTILITY[i]))


def sampled(count: int, seed: int) -> tuple[list[int], list[int]]:
    """Pairs whose winner is drawn with probability sigmoid(utility difference)."""
    draw = np.random.default_rng(seed)
    i, j = draw.integers(len(ITEMS), size=count), draw.integers(1, len(ITEMS), size=count)
    j = (i + j) % len(ITEMS)
    won = draw.random(count) < preferred(i, j)
    return np.where(won, i, j).tolist(), np.where(won, j, i).tolist()


def most_likely(chosen: list[int], rejected: list[int]) -> Any:
    """Maximum-likelihood utilities of the comparisons, mean 0: one free number an item, by Newton's method."""
    values = np.zeros(len(ITEMS))
    counts = np.zeros((len(ITEMS), len(ITEMS)))
    np.add.at(counts, (chosen, rejected), 1)
    games = counts + counts.T
    for _ in range(20):
        p = 1 / (1 + np.exp(values[None, :] - values[:, None]))
        slope = (counts - games * p).sum(1)
        curve = games * p * (1 - p)
        values = values + np.linalg.pinv(np.diag(curve.sum(1)) - curve) @ slope
    return values - values.mean()


def train(model: Model, objective: Any, batch: Batch, *, updates: int, rate: float) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for step in range(updates):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / updates)
        loss = objective(model, batch)
        optimizer.zero_grad()
        (loss.total / loss.weight).backward()
        optimizer.step()


def test_bradley_terry_reaches_its_bayes_limit() -> None:
    model = with_head(build(CONFIG, seed=0), "scalar", seed=1)
    train(model, Reward(centring=0.0), batch_of(*sampled(3000, seed=0)), updates=150, rate=0.005)
    chosen, rejected = sampled(10_000, seed=1)
    with torch.no_grad():
        loss = Reward()(model, batch_of(chosen, rejected))
        scores = rewards(model, batch_of(list(range(len(ITEMS))), list(range(len(ITEMS)))))
    best = most_likely(*sampled(3000, seed=0))
    both = [(i, j) for i, j in itertools.product(range(len(ITEMS)), repeat=2) if i != j]
    limit = float(np.mean([max(preferred(i, j), 1 - preferred(i, j)) for i, j in both]))
    hits, count = loss.metrics["accuracy"]
    # 10,000 pairs: a standard error of 0.005
    assert limit - 0.015 < float(hits) / count < limit + 0.015
    assert np.abs((scores - scores.mean()).numpy() - best).max() < 0.02  # the maximum-likelihood utilities themselves


def counted(pairs_per: int = 40) -> tuple[list[int], list[int]]:
    """Each pair of answers ``pairs_per`` times, its two orders in the proportion of their probabilities."""
    chosen, rejected = [], []
    for i, j in itertools.combinations(range(len(ITEMS)), 2):
        first = int(np.clip(round(pairs_per * preferred(i, j)), 1, pairs_per - 1))
        chosen += [i] * first + [j] * (pairs_per - first)
        rejected += [j] * first + [i] * (pairs_per - first)
    return chosen, rejected


def test_dpo_recovers_the_reward_difference() -> None:
    """At the optimum ``beta (log-ratio of i - log-ratio of j)`` is the difference of utilities."""
    beta, reference = 0.5, build(CONFIG, seed=2)
    model = build(CONFIG, seed=2)
    batch = with_reference(reference, batch_of(*counted()))
    train(model, DPO(beta=beta), batch, updates=200, rate=0.02)
    every = batch_of(list(range(len(ITEMS))), list(range(len(ITEMS))))
    with torch.no_grad():
        implied = beta * (token_logprobs(model, every) - token_logprobs(reference, every)).sum(1).numpy()
    off = (implied - implied.mean()) - (UTILITY - UTILITY.mean())
    assert np.abs(off).max() < 0.05


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_ipo_stops_at_its_margin_where_preferences_are_certain(smoothing: float) -> None:
    """One pair, always won: DPO would run to infinity, IPO stops at ``(1 - 2 smoothing) / (2 beta)``."""
    beta, model = 0.25, build(CONFIG, seed=3)
    batch = with_reference(model, batch_of([5], [7]))
    objective = DPO(beta=beta, kind="ipo", label_smoothing=smoothing)
    train(model, objective, batch, updates=150, rate=0.02)
    with torch.no_grad():
        margin, count = objective(model, batch).metrics["margin"]
    assert float(margin) / count / beta == pytest.approx((1 - 2 * smoothing) / (2 * beta), rel=0.02)
