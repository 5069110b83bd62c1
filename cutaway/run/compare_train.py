"""Training a network of a comparison within the budget that all of them have."""

from __future__ import annotations

from dataclasses import dataclass

from cutaway.models.model import Model
from cutaway.objectives.objective import Objective
from cutaway.records import Stopwatch
from cutaway.run.compare_recipe import Budget, NeuralSystem
from cutaway.run.recipe import SecondsBudget, StepsBudget
from cutaway.train.loop import Batches, steps
from cutaway.train.optimizer import build_optimizer
from cutaway.train.pace import measure_pace


@dataclass(frozen=True)
class Done:
    """What a training took."""

    seconds: float
    steps: int
    flops: float
    notes: tuple[str, ...]


def train_neural(model: Model, batches: Batches, objective: Objective, system: NeuralSystem, budget: Budget, *,
                 seed: int, flops_a_step: float) -> Done:
    """Train ``model`` in place. The pace is measured first and counts as training where seconds are the budget.

    Skipped steps are noted; TrainingError where too many follow one another.
    """
    with Stopwatch() as watch:
        total = _total(model, batches, objective, system, budget, flops_a_step)
        optimizer = build_optimizer(model, system.optimizer)
        skipped = 0
        for step in steps(model, batches, objective, optimizer, schedule=system.schedule, total=total,
                          clip=system.clip, seed=seed):
            skipped += step.skipped
    notes = (f"{skipped} steps had a gradient that is not finite and changed nothing (seed {seed})",) if skipped else ()
    return Done(watch.seconds, total, total * flops_a_step, notes)


def _total(model: Model, batches: Batches, objective: Objective, system: NeuralSystem, budget: Budget,
           flops_a_step: float) -> int:
    if isinstance(budget, StepsBudget):
        return budget.steps
    if isinstance(budget, SecondsBudget):
        pace = measure_pace(model, batches, objective, optimizer=system.optimizer, schedule=system.schedule,
                            clip=system.clip, seconds=budget.seconds)
        return pace.fits(budget.seconds)
    return max(1, round(budget.flops / flops_a_step))
