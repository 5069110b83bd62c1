"""Pairs, budgets, predictions and differences: the small decisions of a run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cutaway.data.conversations import Conversation
from cutaway.device import Machine
from cutaway.models.cost import cost
from cutaway.models.transformer import TransformerConfig
from cutaway.records import Measurement
from cutaway.run.diff import _differing, verdict
from cutaway.run.predict import predict, stage_flops
from cutaway.run.preferences import Preference, hold_out, pairs_from
from cutaway.run.stage_evaluate import chosen_answers
from cutaway.run.training import _due
from cutaway.text.tokenizer import ByteSettings, train

CONFIG = TransformerConfig(vocab_size=64, hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=1,
                           intermediate_size=32, context_length=32)
MACHINE = Machine("cpu", "x", 2, 10**9, None, None, "2", 1e11, 4e11, 1e10, 1e10, "now")


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=2, max_size=9), st.integers(1, 5))
def test_pairs_are_ordered_and_share_no_answer(scores: list[float], most: int) -> None:
    pairs, ties = pairs_from(scores, most)
    used = [i for pair in pairs for i in pair]
    assert len(used) == len(set(used)) and len(pairs) + ties == min(most, len(scores) // 2)
    assert all(scores[a] > scores[b] for a, b in pairs)
    if len(set(scores)) > 1:
        assert scores[pairs[0][0]] == max(scores) and scores[pairs[0][1]] == min(scores)


@given(st.integers(2, 60), st.floats(0.01, 0.99), st.integers(0, 3))
def test_some_requests_are_held_out_and_never_all(count: int, share: float, seed: int) -> None:
    made = [Preference(f"request {i}", (), (), ((0, 1),) if i % 3 else ()) for i in range(count)]
    giving = sum(bool(p.pairs) for p in made)
    held = [p for p in hold_out(made, share, seed) if p.held_out]
    assert all(p.pairs for p in held)
    if giving >= 2:
        assert 1 <= len(held) < giving
        assert abs(len(held) - share * giving) <= 1


@given(st.integers(1, 200), st.integers(0, 12))
def test_looks_are_as_many_as_asked_and_the_last_is_at_the_end(total: int, looks: int) -> None:
    due = [n for n in range(1, total + 1) if _due(n, total, looks)]
    assert len(due) == min(looks, total)
    assert not due or due[-1] == total


def test_predictions_follow_from_the_configuration() -> None:
    tokens = 10_000
    assert stage_flops(CONFIG, tokens, context=32) == pytest.approx(cost(CONFIG).train_flops(32) * tokens)
    fp32, bf16 = (predict(CONFIG, tokens, context=32, rows=4, machine=MACHINE, dtype=d)
                  for d in (torch.float32, torch.bfloat16))
    assert fp32.seconds == pytest.approx(4 * bf16.seconds)
    assert fp32.memory_bytes > bf16.memory_bytes > 16 * cost(CONFIG).parameters


def test_a_verdict_needs_intervals_that_are_apart() -> None:
    low, high, wide = (Measurement("x", (a + b) / 2, "share", 9, a, b) for a, b in ((0.0, 0.2), (0.8, 1.0), (0.1, 0.9)))
    assert verdict(low, high) == "higher" and verdict(high, low) == "lower"
    assert verdict(low, wide) == "intervals overlap" and verdict(low, None) == ""


def test_differences_are_named_by_path() -> None:
    assert _differing({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 4}, "e": 5}) == {
        "a.c": (2, 4), "d": (3, None), "e": (None, 5)}


def test_held_out_answers_that_do_not_fit_are_counted() -> None:
    said = [Conversation("a", "short", "x:1", ""), Conversation("b", "long" * 20, "x:2", "")]
    work: Any = SimpleNamespace(text=SimpleNamespace(test=said), tokenizer=train(ByteSettings(), []),
                                recipe=SimpleNamespace(model=SimpleNamespace(context_length=40)))
    assert chosen_answers(work, ["b", "a"]) == ([("a", "short")], 1)
