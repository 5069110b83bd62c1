"""Preference losses against numbers computed by hand and by numpy."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cutaway.batch import Example, pack, pad
from cutaway.errors import DataError, SettingsError, TrainingError
from cutaway.models.adapter import Lora, adapt
from cutaway.models.heads import TokenHead
from cutaway.models.learning import Beginning, low_rank_of
from cutaway.models.model import build, with_head
from cutaway.models.transformer import TransformerConfig
from cutaway.objectives.preference import DPO, Reward, pairs, rewards, with_reference

CONFIG = TransformerConfig(vocab_size=9, hidden_size=8, num_layers=1, num_heads=2, num_kv_heads=1,
                           intermediate_size=16, context_length=12)


def unigram(*chances: float) -> Any:
    """A model whose next token never depends on what came before: p(token i) = chances[i]."""
    weight = nn.Parameter(torch.tensor(chances).log()[:, None])
    return SimpleNamespace(head=TokenHead(weight), modules=list, hidden=lambda b: torch.ones(*b.tokens.shape, 1))


def example(tokens: list[int], context: int = 1) -> Example:
    weights = [0.0] * context + [1.0] * (len(tokens) - context)
    return Example(np.array(tokens), np.array(weights, np.float32))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# one pair: the chosen answer is "1 1 2", the rejected "0 2"; the request "2" is context
POLICY, REFERENCE = unigram(0.2, 0.5, 0.3), unigram(0.4, 0.4, 0.2)
PAIR = with_reference(REFERENCE, pairs([example([2, 1, 1, 2])], [example([2, 0, 2])], pad_id=0))
CHOSEN = 2 * math.log(0.5 / 0.4) + math.log(0.3 / 0.2)
REJECTED = math.log(0.2 / 0.4) + math.log(0.3 / 0.2)
H = CHOSEN - REJECTED


@pytest.mark.parametrize(("objective", "wanted"), [
    (DPO(beta=0.1), -math.log(sigmoid(0.1 * H))),
    (DPO(beta=2.0), -math.log(sigmoid(2.0 * H))),
    (DPO(beta=0.5, label_smoothing=0.2), -0.8 * math.log(sigmoid(0.5 * H)) - 0.2 * math.log(sigmoid(-0.5 * H))),
    (DPO(beta=0.25, kind="ipo"), (H - 2) ** 2),
    (DPO(beta=0.25, kind="ipo", label_smoothing=0.1), 0.9 * (H - 2) ** 2 + 0.1 * (-H - 2) ** 2),
], ids=str)
def test_dpo_and_ipo_equal_the_formula(objective: DPO, wanted: float) -> None:
    loss = objective(POLICY, PAIR)
    assert loss.total.item() == pytest.approx(wanted, rel=1e-6)
    assert loss.weight == objective.weight(PAIR) == 1
    metrics = {name: float(value) / count for name, (value, count) in loss.metrics.items()}
    beta = objective.beta
    assert metrics == pytest.approx({"accuracy": 1.0, "margin": beta * H, "chosen_reward": beta * CHOSEN,
                                     "rejected_reward": beta * REJECTED}, rel=1e-5)


def test_dpo_gradient_is_the_papers() -> None:
    """Equation 7 of arXiv 2305.18290: ``-beta sigmoid(-beta h) (grad log p(chosen) - grad log p(rejected))``."""
    loss = DPO(beta=0.7)(POLICY, PAIR)
    (got,) = torch.autograd.grad(loss.total, [POLICY.head.weight])
    p = np.array([0.2, 0.5, 0.3])
    chosen, rejected = np.array([0, 2, 1]) - 3 * p, np.array([1, 0, 1]) - 2 * p  # counts minus expected counts
    wanted = -0.7 * sigmoid(-0.7 * H) * (chosen - rejected)
    np.testing.assert_allclose(got[:, 0].numpy(), wanted, rtol=1e-5)


def test_weights_are_multiplied_and_padding_counts_for_nothing() -> None:
    half = Example(np.array([2, 1, 1, 2]), np.array([0, 1, 0.5, 0], np.float32))
    batch = with_reference(REFERENCE, pairs([half, half], [example([2, 0, 2]), example([2, 0, 2, 2, 2])], pad_id=0))
    chosen = 1.5 * math.log(0.5 / 0.4)
    h = [chosen - REJECTED, chosen - REJECTED - 2 * math.log(0.3 / 0.2)]
    assert DPO(beta=1.0)(POLICY, batch).total.item() == pytest.approx(sum(-math.log(sigmoid(x)) for x in h), rel=1e-6)


class Scorer:
    """A scalar model whose value at a position is the token standing there."""

    def __call__(self, batch: Any) -> Tensor:
        return batch.tokens.float()


@pytest.mark.parametrize("centring", [0.0, 0.01])
def test_bradley_terry_equals_the_formula(centring: float) -> None:
    batch = pairs([example([1, 5, 7]), example([1, 2]), example([1, 4])],
                  [example([1, 6]), example([1, 5, 5, 3]), example([1, 9, 4])], pad_id=0)
    loss = Reward(centring=centring)(Scorer(), batch)  # type: ignore[arg-type]
    margins, sums = [7 - 6, 2 - 3, 4 - 4], [13, 5, 8]
    wanted = sum(-math.log(sigmoid(m)) for m in margins) + centring * sum(s * s for s in sums)
    assert loss.total.item() == pytest.approx(wanted, rel=1e-6)
    assert loss.weight == 3
    assert float(loss.metrics["accuracy"][0]) == 1.5  # one won, one lost, a tie counts half
    assert float(loss.metrics["margin"][0]) == 0


def test_the_reward_is_read_at_the_answers_end_whatever_the_padding() -> None:
    model = with_head(build(CONFIG, seed=0), "scalar", seed=1)
    rows = [example([1, 5, 7, 3]), example([1, 2]), example([4, 4, 4, 4, 4, 4])]
    together = rewards(model, pad(rows, pad_id=0))
    alone = torch.cat([rewards(model, pad([row], pad_id=8, length=10)) for row in rows])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    plain = model(replace(pad(rows, pad_id=0), tokens=torch.tensor([[1, 5, 7, 3, 0, 0]] * 3), targets=None,
                          weights=None, documents=None, positions=None))
    torch.testing.assert_close(together[0], plain[0, 3], rtol=1e-5, atol=1e-6)


def test_the_last_token_is_part_of_what_is_judged() -> None:
    model = with_head(build(CONFIG, seed=0), "scalar", seed=1)
    ended, cut = rewards(model, pad([example([1, 5, 7]), example([1, 5, 8])], pad_id=0)).tolist()
    assert abs(ended - cut) > 1e-3


def test_what_cannot_be_compared_is_refused() -> None:
    lone = pad([example([1, 2, 3])], pad_id=0)
    with pytest.raises(TrainingError, match="rejected side"):
        Reward()(Scorer(), lone)  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="with_reference"):
        DPO()(POLICY, pairs([example([2, 1])], [example([2, 0])], pad_id=0))
    with pytest.raises(DataError, match="packed rows"):
        rewards(Scorer(), pack([example([1, 2, 3])] * 2, pad_id=0, length=6))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="2 chosen and 1 rejected"):
        pairs([example([1, 2])] * 2, [example([1, 2])], pad_id=0)
    with pytest.raises(TrainingError, match="2 chosen rows"):
        Reward()(Scorer(), replace(pad([example([1, 2])] * 2, pad_id=0), pair=lone))  # type: ignore[arg-type]


@pytest.mark.parametrize(("settings", "said"), [({"beta": 0.0}, "beta"), ({"label_smoothing": 0.5}, "label_smoothing"),
                                                ({"label_smoothing": -0.1}, "label_smoothing")])
def test_settings_outside_their_range_are_refused(settings: dict[str, float], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        DPO(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("own", [True, False])
def test_a_reference_drops_nothing_whatever_training_drops(own: bool) -> None:
    model = adapt(build(CONFIG, seed=0), Lora(rank=2, dropout=0.5))
    with torch.no_grad():
        for part in low_rank_of(model):
            for up in part.up:
                up.normal_(generator=torch.Generator().manual_seed(1))
    batch = pairs([example([2, 1, 1, 2])], [example([2, 0, 2])], pad_id=0)
    reference = model if own else Beginning(model)
    model.eval()
    wanted = with_reference(reference, batch)
    model.train()
    model.head.eval()  # a part that did not train does not afterwards
    for _ in range(2):
        found = with_reference(reference, batch)
        assert wanted.pair is not None and found.pair is not None
        for a, b in ((wanted, found), (wanted.pair, found.pair)):
            assert a.reference_logprob is not None and b.reference_logprob is not None
            assert torch.equal(a.reference_logprob, b.reference_logprob)
    assert model.training and all(part.training for part in low_rank_of(model)) and not model.head.training
