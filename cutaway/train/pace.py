"""How long a step takes on this machine, from a few steps of a copy: what turns a budget in seconds into steps."""

from __future__ import annotations

import copy
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from statistics import median

from cutaway.models.model import Model
from cutaway.objectives.objective import Objective
from cutaway.train.loop import Batches, steps
from cutaway.train.optimizer import OptimizerSettings, build_optimizer
from cutaway.train.schedule import Schedule

WARM, TIMED_STEPS, TIMED_SECONDS = 2, 3, 3.0


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds of one step, and what the measuring itself took."""

    each: float
    spent: float

    def fits(self, seconds: float) -> int:
        """Steps in what is left of ``seconds``, at least one."""
        return max(1, int((seconds - self.spent) / self.each))


def measure_pace(model: Model, batches: Batches, objective: Objective, *, optimizer: OptimizerSettings,
                 schedule: Schedule, clip: float | None = 1.0, seconds: float,
                 prepared: AbstractContextManager[object] | None = None, trial: Model | None = None) -> Pace:
    """The median step of a copy of ``model`` (or of ``trial``, which is changed), the first ``WARM`` left out.

    Takes about ``TIMED_SECONDS``, and never much more than an eighth of ``seconds``.
    """
    began = time.perf_counter()
    trial = copy.deepcopy(model) if trial is None else trial
    took: list[float] = []
    loop = steps(trial, batches, objective, build_optimizer(trial, optimizer), schedule=schedule, total=10**6,
                 clip=clip)
    with prepared or nullcontext():
        for step in loop:
            took.append(step.seconds)
            spent = time.perf_counter() - began
            if step.number >= WARM + TIMED_STEPS and (spent > TIMED_SECONDS or step.number >= 4 * WARM):
                break
            if step.number > WARM and spent > max(TIMED_SECONDS, seconds / 8):
                break
    return Pace(median(took[WARM:] or took), time.perf_counter() - began)
