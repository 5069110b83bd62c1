"""Schedules, optimizer groups and state, the bill of a model, and what the loop does with a bad step."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import CONFIGS, EVERY, plain

from cutaway.batch import Batch
from cutaway.errors import CheckpointError, TrainingError
from cutaway.models.cost import cost
from cutaway.models.model import Model, build
from cutaway.models.transformer import TransformerConfig
from cutaway.objectives.likelihood import Likelihood
from cutaway.objectives.objective import Loss
from cutaway.train.loop import Step, steps
from cutaway.train.optimizer import OptimizerSettings, build_optimizer
from cutaway.train.schedule import Schedule


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_shrinking_is_a_gradient_multiplied_beforehand(kind: str) -> None:
    def trained(*, beforehand: bool) -> list[torch.Tensor]:
        model, draw = build(CONFIGS["tied"]), torch.Generator().manual_seed(3)
        optimizer = build_optimizer(model, OptimizerSettings.model_validate({"kind": kind, "eps": 1e-3}))
        for shrink in (0.25, 1.0):  # the second step is not shrunk: nothing of the first may linger
            for p in model.parameters():
                p.grad = torch.randn(p.shape, generator=draw) * (shrink if beforehand else 1)
            optimizer.step(1.0, shrink=1.0 if beforehand else shrink)
        return [p.detach() for p in model.parameters()]

    start = list(build(CONFIGS["tied"]).parameters())
    for a, b, begin in zip(trained(beforehand=True), trained(beforehand=False), start, strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-7) and not torch.equal(a, begin)


@given(total=st.integers(1, 500), kind=st.sampled_from(["wsd", "cosine", "constant"]), warmup=st.floats(0, 1),
       decay=st.floats(0, 1), final=st.floats(0, 1))
def test_a_schedule_stays_between_zero_and_one_and_never_starts_at_rest(total: int, kind: str, warmup: float,
                                                                       decay: float, final: float) -> None:
    schedule = Schedule.model_validate({"kind": kind, "warmup": warmup, "decay": decay, "final": final})
    factors = [schedule.factor(i, total) for i in range(total)]
    assert all(0 <= f <= 1 for f in factors) and factors[0] > 0


def test_warmup_stable_decay_has_its_three_parts() -> None:
    factors = [Schedule(warmup=0.1, decay=0.5, final=0.1).factor(i, 100) for i in range(101)]
    assert factors[0] == pytest.approx(0.1) and factors[9] == 1 and factors[10:51] == [1.0] * 41
    assert factors[75] == pytest.approx(0.1 + 0.9 * 0.5) and factors[100] == pytest.approx(0.1)


def test_cosine_is_half_way_down_in_the_middle() -> None:
    schedule = Schedule(kind="cosine", warmup=0, final=0.2)
    assert schedule.factor(50, 100) == pytest.approx(0.6)


@pytest.mark.parametrize("name", EVERY)
def test_the_bill_counts_every_parameter(name: str) -> None:
    model = build(EVERY[name])
    assert cost(EVERY[name]).parameters == sum(p.numel() for p in model.parameters())


def test_the_bill_counts_the_products_pytorch_does() -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    config = TransformerConfig(vocab_size=64, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2,
                               intermediate_size=48, context_length=16)
    model, counter = build(config), FlopCounterMode(display=False)
    with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        state = model.new_state(1, capacity=16)
        model.logits(torch.ones(1, 16, dtype=torch.long), state, every=True)
    # the cache path multiplies all 16 x 16 pairs; the bill counts the 136 that are seen
    extra = cost(config).attention * 16 * (16 - 17 / 2)
    assert counter.get_total_flops() == pytest.approx(16 * cost(config).forward_flops(16) + extra)


@pytest.mark.parametrize("name", ["untied", "encoder-decoder"])
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_every_parameter_is_in_exactly_one_group(kind: str, name: str) -> None:
    model = build(CONFIGS[name])
    optimizer = build_optimizer(model, OptimizerSettings.model_validate({"kind": kind}))
    grouped = [id(p) for part in optimizer.parts for g in part.param_groups for p in g["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    groups = [g for part in optimizer.parts for g in part.param_groups]
    undecayed = {id(p) for g in groups if not g["weight_decay"] for p in g["params"]}
    assert undecayed == {id(p) for p in model.parameters() if p.ndim < 2}


def test_a_scaled_head_begins_and_moves_as_much_larger_as_its_scale_is_smaller() -> None:
    rates = OptimizerSettings(kind="adamw", learning_rate=1e-3, weight_decay=0.1)
    model = build(CONFIGS["encoder-decoder"])
    scale, weight = model.head.scale, model.head.weight
    assert 0 < scale < 1 and weight is model.backbone.embedding.weight
    groups = [g for part in build_optimizer(model, rates).parts for g in part.param_groups]
    mine = next(g for g in groups if any(p is weight for p in g["params"]))
    assert mine["lr"] == pytest.approx(1e-3 / scale) and len(mine["params"]) == 1
    assert mine["lr"] * mine["weight_decay"] == pytest.approx(1e-3 * 0.1)
    assert all(g["lr"] == 1e-3 for g in groups if g is not mine) and groups[0] is not mine
    plain = build(CONFIGS["tied"])
    assert float((weight * scale).detach().std()) == pytest.approx(float(plain.head.weight.detach().std()), rel=0.1)
    assert all(g["lr"] == 1e-3 for g in build_optimizer(plain, rates).parts[0].param_groups)


def test_state_of_another_model_is_refused() -> None:
    optimizer = build_optimizer(build(CONFIGS["tied"]), OptimizerSettings())
    with pytest.raises(CheckpointError, match=r"blocks\.9"):
        optimizer.load_tensors({"backbone.blocks.9.norm.weight|exp_avg": torch.zeros(3)})


class Poisoned:
    """Likelihood that is not a number at some steps, counted by calls."""

    def __init__(self, bad: set[int]) -> None:
        self.bad, self.calls = bad, 0

    def weight(self, batch: Batch) -> float:
        return batch.total_weight()

    def __call__(self, model: Model, batch: Batch) -> Loss:
        loss = Likelihood()(model, batch)
        self.calls += 1
        return Loss(loss.total * float("nan"), loss.weight) if self.calls - 1 in self.bad else loss


def _run(model: Model, bad: set[int], **more: int) -> list[Step]:
    return list(steps(model, lambda n: [plain(n)], Poisoned(bad), build_optimizer(model, OptimizerSettings()),
                      schedule=Schedule(), total=8, **more))


def test_a_step_that_is_not_finite_changes_nothing_and_is_marked() -> None:
    model, seen = build(CONFIGS["tied"], seed=2), []
    optimizer = build_optimizer(model, OptimizerSettings())
    before = [p.clone() for p in model.parameters()]
    for step in steps(model, lambda n: [plain(n)], Poisoned({0, 1}), optimizer, schedule=Schedule(), total=3):
        seen.append((step.skipped, all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))))
    assert seen == [(True, True), (True, True), (False, False)]


def test_scattered_bad_steps_are_survived_and_a_row_of_them_stops_the_run() -> None:
    assert sum(s.skipped for s in _run(build(CONFIGS["tied"]), {1, 3, 5}, patience=2)) == 3
    with pytest.raises(TrainingError, match="3 steps in a row"):
        _run(build(CONFIGS["tied"]), {2, 3, 4}, patience=3)


def test_a_step_with_nothing_to_learn_is_an_error() -> None:
    model = build(CONFIGS["tied"])
    empty = plain(0)
    assert empty.weights is not None
    empty.weights.zero_()
    with pytest.raises(TrainingError, match="no target"):
        next(steps(model, lambda n: [empty], Likelihood(), build_optimizer(model, OptimizerSettings()),
                   schedule=Schedule(), total=1))
