"""Policy losses against numbers computed by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cutaway.batch import Batch, Example, pack, pad
from cutaway.errors import DataError, SettingsError, TrainingError
from cutaway.models.heads import TokenHead
from cutaway.objectives.policy import GRPO, Reinforce, answers, group_advantages

P = (0.2, 0.5, 0.3)


def unigram(*chances: float) -> Any:
    """A model whose next token never depends on what came before: p(token i) = chances[i]."""
    weight = nn.Parameter(torch.tensor(chances).log()[:, None])
    return SimpleNamespace(head=TokenHead(weight), hidden=lambda batch: torch.ones(*batch.tokens.shape, 1))


def rollout(*, old: tuple[float, ...] | None = None, reference: tuple[float, ...] | None = None) -> Batch:
    """Answers "1 2" with advantage 1 and "0" with advantage -2, behind the request "2"."""
    examples = [Example(np.array([2, 1, 2]), np.array([0, 1, 1], np.float32)),
                Example(np.array([2, 0]), np.array([0, 1], np.float32))]
    batch = pad(examples, pad_id=0)
    advantage = torch.tensor([[1.0], [-2.0]]).expand(2, 2)

    def under(chances: tuple[float, ...] | None) -> torch.Tensor | None:
        return None if chances is None else torch.tensor(chances).log()[batch.targets] * (batch.weights != 0)

    return replace(batch, advantage=advantage, old_logprob=under(old), reference_logprob=under(reference))


def test_reinforce_equals_the_formula() -> None:
    loss = Reinforce()(unigram(*P), rollout())
    assert loss.total.item() == pytest.approx(-(math.log(0.5) + math.log(0.3)) + 2 * math.log(0.2), rel=1e-6)
    assert loss.weight == 2  # answers, whatever their lengths
    assert float(loss.metrics["entropy"][0]) == pytest.approx(-math.log(0.5 * 0.3 * 0.2), rel=1e-6)
    assert loss.metrics["entropy"][1] == 3


@pytest.mark.parametrize(("old", "terms", "low", "high"), [
    # ratios 0.5/0.5, 0.3/0.3 | 0.2/0.2: nothing is clipped
    ((0.2, 0.5, 0.3), [1.0, 1.0, -2.0], 0, 0),
    # 0.5/0.4 = 1.25 stays under 1.28; 0.3/0.2 = 1.5 is held at 1.28; 0.2/0.4 = 0.5 with A < 0 is held at 0.8
    ((0.4, 0.4, 0.2), [1.25, 1.28, -2 * 0.8], 1, 1),
    # 0.5/0.7 with A > 0 and 0.2/0.1 = 2 with A < 0 move against their advantage: never held back
    ((0.1, 0.7, 0.2), [5 / 7, 1.28, -2 * 2.0], 0, 1),
])
def test_grpo_equals_the_formula(old: tuple[float, ...], terms: list[float], low: int, high: int) -> None:
    loss = GRPO(kl=0.0)(unigram(*P), rollout(old=old))
    assert loss.total.item() == pytest.approx(-sum(terms), rel=1e-6)
    assert (float(loss.metrics["clipped_low"][0]), loss.metrics["clipped_low"][1]) == (low, 3)
    assert (float(loss.metrics["clipped_high"][0]), loss.metrics["clipped_high"][1]) == (high, 3)


def test_a_clipped_token_has_no_gradient() -> None:
    model = unigram(*P)
    batch = rollout(old=(0.4, 0.4, 0.2))  # only the token of ratio 1.25 is inside
    (got,) = torch.autograd.grad(GRPO(kl=0.0)(model, batch).total, [model.head.weight])
    wanted = -1.25 * (np.array([0, 1, 0]) - np.array(P))
    np.testing.assert_allclose(got[:, 0].numpy(), wanted, rtol=1e-5)


@pytest.mark.parametrize("objective", [Reinforce(kl=0.5), GRPO(kl=0.5)], ids=str)
def test_the_kl_to_go_is_taken_off_the_advantage(objective: Any) -> None:
    model, q = unigram(*P), (0.4, 0.4, 0.2)
    loss = objective(model, rollout(reference=q))
    d1, d2, d0 = math.log(0.5 / 0.4), math.log(0.3 / 0.2), math.log(0.2 / 0.4)
    advantage = [1 - 0.5 * (d1 + d2), 1 - 0.5 * d2, -2 - 0.5 * d0]
    (got,) = torch.autograd.grad(loss.total, [model.head.weight])
    scores = [np.eye(3)[i] - np.array(P) for i in (1, 2, 0)]
    wanted = -sum(a * s for a, s in zip(advantage, scores, strict=True))
    np.testing.assert_allclose(got[:, 0].numpy(), wanted, rtol=1e-5)
    k3 = sum(math.exp(-d) - 1 + d for d in (d1, d2, d0))
    assert float(loss.metrics["kl"][0]) == pytest.approx(k3, rel=1e-5)
    assert loss.metrics["kl"][1] == 2  # nats an answer


def test_without_old_logprob_the_gradient_is_reinforces() -> None:
    model, batch = unigram(*P), rollout(reference=(0.4, 0.4, 0.2))
    losses = [objective(model, batch).total for objective in (Reinforce(kl=0.1), GRPO(kl=0.1))]
    both = [torch.autograd.grad(loss, [model.head.weight])[0] for loss in losses]
    torch.testing.assert_close(*both)


def test_group_advantages_leave_the_answer_itself_out() -> None:
    rewards = torch.tensor([1.0, 2.0, 6.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    assert group_advantages(rewards, 3).tolist() == pytest.approx([1 - 4, 2 - 3.5, 6 - 1.5, 0, 0, 0])
    std = np.std([1, 2, 6])
    scaled = group_advantages(rewards, 3, scale="group").tolist()
    assert scaled == pytest.approx([-2 / std, -1 / std, 3 / std, 0, 0, 0], rel=1e-5)


def test_an_answer_masked_out_is_not_counted() -> None:
    batch = rollout()
    silent = replace(batch, weights=batch.weights * torch.tensor([[1.0], [0.0]]))
    assert (answers(batch), answers(silent)) == (2, 1)
    loss = GRPO(kl=0.0)(unigram(*P), silent)
    assert (loss.total.item(), loss.weight) == (pytest.approx(-2.0), 1)


def test_what_is_missing_is_named() -> None:
    bare = pad([Example(np.array([2, 1]), np.array([0, 1], np.float32))], pad_id=0)
    for objective in (Reinforce(), GRPO()):
        with pytest.raises(TrainingError, match="advantage"):
            objective(unigram(*P), bare)
    with pytest.raises(TrainingError, match="reference_logprob"):
        GRPO(kl=0.1)(unigram(*P), rollout())
    with pytest.raises(TrainingError, match="weights"):
        answers(replace(bare, weights=None))
    packed = pack([Example(np.array([2, 1]), np.array([0, 1], np.float32))] * 2, pad_id=0, length=4)
    with pytest.raises(DataError, match="packed rows"):
        answers(packed)


@pytest.mark.parametrize("settings", [{"kl": -0.1}, {"clip": 0.0}, {"clip": 1.0}, {"clip_high": 0.0}])
def test_settings_outside_their_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(SettingsError):
        GRPO(**settings)
