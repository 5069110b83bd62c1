"""One course of training for a probe: the same loop, optimizer and batches for every architecture, within a time limit.

A course is steps, not seconds, so that it can be repeated; where this machine is too slow for them, a few timed steps
say so before it begins, it is made shorter as a whole, and a note says by how much.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any, Protocol

import torch
from pydantic import Field

from cutaway.batch import Batch
from cutaway.models.model import Model, build
from cutaway.objectives.likelihood import Likelihood
from cutaway.settings import Settings
from cutaway.train.loop import steps
from cutaway.train.optimizer import OptimizerSettings, build_optimizer
from cutaway.train.schedule import Schedule

WARM, TIMED = 1, 3


class Task(Protocol):
    """What can be learned in a course."""

    @property
    def steps(self) -> int: ...
    def batch(self, step: int, *, total: int, seed: int) -> Batch: ...


class Course(Settings):
    """How every architecture learns: one rate for each kind, because each has its own best."""

    transformer: float = Field(default=2e-3, gt=0)
    recurrent: float = Field(default=4e-3, gt=0)
    convolution: float = Field(default=4e-3, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    schedule: Schedule = Schedule(decay=0.3)

    def optimizer(self, kind: str) -> OptimizerSettings:
        """AdamW at the rate of that kind."""
        return OptimizerSettings(kind="adamw", learning_rate=float(getattr(self, kind)), betas=(0.9, 0.98), eps=1e-8,
                                 weight_decay=self.weight_decay)


@dataclass(frozen=True, slots=True)
class Learned:
    """A trained model and how it came to be."""

    model: Model
    steps: int
    wanted: int
    tokens: int
    seconds: float
    loss: float  # of the last tenth of the steps, each as much as its weight

    def facts(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"steps": self.steps, "wanted_steps": self.wanted, "tokens": self.tokens, "seconds": self.seconds,
                "loss": self.loss}


def learn(config: Any, task: Task, course: Course, *, seed: int, dtype: torch.dtype, seconds: float,
          tick: Callable[[float], None] = lambda _: None) -> Learned:
    """Train ``config`` on ``task`` for its steps, or for as many as ``seconds`` allow; ``tick`` is told each share."""
    began = time.perf_counter()
    total = _affordable(config, task, course, seed=seed, dtype=dtype, seconds=seconds)
    model = build(config, seed=seed, compute_dtype=dtype)
    tokens, ended, sums = 0, max(1, total // 10), [0.0, 0.0]
    for step in steps(model, lambda n: [task.batch(n, total=total, seed=seed)], Likelihood(),
                      build_optimizer(model, course.optimizer(config.kind)), schedule=course.schedule, total=total):
        tokens += step.tokens
        if step.number > total - ended:
            sums = [sums[0] + step.loss * step.weight, sums[1] + step.weight]
        tick(1 / total)
    return Learned(model.eval(), total, task.steps, tokens, time.perf_counter() - began, sums[0] / sums[1])


def _affordable(config: Any, task: Task, course: Course, *, seed: int, dtype: torch.dtype, seconds: float) -> int:
    """The task's steps, or fewer where its last and longest batches say that they take more than ``seconds``."""
    trial = build(config, seed=seed, compute_dtype=dtype)
    last = [task.batch(task.steps - 1, total=task.steps, seed=seed)]
    took = [s.seconds for s in steps(trial, lambda _: last, Likelihood(),
                                     build_optimizer(trial, course.optimizer(config.kind)), schedule=course.schedule,
                                     total=WARM + TIMED)][WARM:]
    return max(1, min(task.steps, int(seconds / median(took))))
