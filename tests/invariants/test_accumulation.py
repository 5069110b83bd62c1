"""Gradient accumulation equals the big batch, whatever the split and however uneven the masks."""

from __future__ import annotations

from itertools import pairwise

import pytest
import tiny
import torch
from torch import Tensor

from cutaway.batch import Batch
from cutaway.errors import TrainingError
from cutaway.models.model import Model
from cutaway.train.loop import Step, steps
from cutaway.train.optimizer import Optimizer, OptimizerSettings, build_optimizer
from cutaway.train.schedule import Schedule


class Caught(Optimizer):
    """Keeps the gradient instead of using it."""

    gradient: dict[str, Tensor]

    def step(self, factor: float, *, shrink: float = 1.0) -> None:
        self.gradient = {n: p.grad.double().clone() for n, (_, p) in self.names.items() if p.grad is not None}


def gradient(model: Model, case: tiny.Case, parts: list[Batch]) -> tuple[Step, dict[str, Tensor]]:
    optimizer = Caught(model, build_optimizer(model, OptimizerSettings(kind="adamw")).parts)
    [step] = steps(model, lambda _: parts, case.objective, optimizer, schedule=Schedule(), total=1, clip=None)
    return step, optimizer.gradient


def split(batch: Batch, sizes: list[int]) -> list[Batch]:
    """Consecutive groups of rows of these sizes."""
    edges = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    return [batch.rows(a, b) for a, b in pairwise(edges)]


@pytest.mark.parametrize(("name", "config"), tiny.COMBINATIONS)
def test_accumulated_is_the_big_batch(name: str, config: str) -> None:
    case = tiny.case_for(name, config)
    model, batch = tiny.start(case, config), case.batch(0)
    whole, expected = gradient(model, case, [batch])
    size = torch.cat([g.flatten() for g in expected.values()]).norm()
    assert size > 1e-3
    for sizes in ([4, 4], [1, 5, 2], [1] * 8, [7, 1]):
        step, found = gradient(model, case, split(batch, sizes))
        assert found.keys() == expected.keys()
        apart = torch.cat([(found[n] - expected[n]).flatten() for n in expected]).norm()
        assert apart <= 1e-6 * size, (sizes, float(apart / size))
        assert step.weight == whole.weight and step.tokens == whole.tokens
        assert step.loss == pytest.approx(whole.loss, rel=1e-6, abs=1e-7)
        assert step.metrics == pytest.approx(whole.metrics, rel=1e-5, abs=1e-6)


def test_a_mean_of_means_would_be_caught() -> None:
    """The masks are so uneven that dividing each part by its own weight gives another gradient."""
    case = tiny.CASES["likelihood"]
    model, batch = tiny.start(case), case.batch(0)
    _, exact = gradient(model, case, [batch])
    halves = [gradient(model, case, [part])[1] for part in batch.rows(0, 7).micro(2)]
    apart = max(float((sum(h[n] for h in halves) / 2 - exact[n]).norm() / exact[n].norm()) for n in exact)
    assert apart > 1e-2


def test_a_step_without_targets_is_refused() -> None:
    case = tiny.CASES["likelihood"]
    model, batch = tiny.start(case), case.batch(0)
    assert batch.weights is not None
    batch.weights.zero_()
    with pytest.raises(TrainingError, match="step 1 has no target"):
        gradient(model, case, [batch])
