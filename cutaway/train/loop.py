"""The one loop: a generator that yields after every optimizer step, so that the caller owns what happens between.

Every stage is this loop over another objective and another source of batches.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cutaway.batch import Batch
from cutaway.device import keep_memory
from cutaway.errors import TrainingError
from cutaway.models.learning import low_rank_of
from cutaway.models.model import Model
from cutaway.objectives.objective import Objective
from cutaway.train.optimizer import Optimizer
from cutaway.train.parallel import SINGLE, Parallel
from cutaway.train.schedule import Schedule

Batches = Callable[[int], Sequence[Batch]]  # step -> its micro-batches on this rank


@dataclass(frozen=True, slots=True)
class Step:
    """What one optimizer step did. ``loss`` and ``metrics`` are sums divided once by their global weights."""

    number: int  # steps done, this one included
    loss: float
    weight: float  # global weight the loss was divided by
    metrics: dict[str, float]
    grad_norm: float  # before clipping
    learning_rate: float
    tokens: int  # positions read on all ranks, padding left out
    seconds: float
    skipped: bool  # the gradient was not finite and nothing was changed


def steps(model: Model, batches: Batches, objective: Objective, optimizer: Optimizer, *, schedule: Schedule,
          total: int, start: int = 0, clip: float | None = 1.0, parallel: Parallel = SINGLE,
          patience: int = 5, seed: int = 0) -> Iterator[Step]:
    """Train from step ``start`` to ``total``, yielding after each.

    What a model drops out depends on (``seed``, step, micro-batch, rank) alone, so a resumed run drops the same.

    A step whose loss or gradient is not finite changes nothing, is marked ``skipped``, and after ``patience`` such
    steps in a row TrainingError is raised. Raises TrainingError for a step whose weights are all zero.
    """
    if model.device.type == "cpu":
        keep_memory(max(p.nbytes for p in model.parameters()))
    bad = 0
    for number in range(start, total):
        began = time.perf_counter()
        parts = batches(number)
        model.train()
        loss, weight, metrics, tokens = _accumulate(model, parts, objective, parallel, number, seed)
        norm = parallel.grad_norm(optimizer.parameters())
        skipped = not (math.isfinite(loss) and math.isfinite(norm))
        if not skipped:
            shrink = 1.0 if clip is None or norm <= clip else clip / norm
            optimizer.step(schedule.factor(number, total), shrink=shrink)
        optimizer.zero_grad()
        bad = bad + 1 if skipped else 0
        yield Step(number + 1, loss, weight, metrics, norm, optimizer.learning_rate, tokens,
                   time.perf_counter() - began, skipped)
        if bad >= patience:
            raise TrainingError(f"{bad} steps in a row had a loss or gradient that is not finite, the last at step "
                                f"{number + 1}", way_out="lower the learning rate and resume from the last checkpoint")


@contextmanager
def _dice(model: Model, key: tuple[int, ...]) -> Iterator[None]:
    """What is drawn inside depends on ``key`` alone, and nothing outside notices; for models that drop out."""
    if not model.config.dropout and not any(part.dropout for part in low_rank_of(model)):
        yield
        return
    with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]) >> 1)
        yield


def _accumulate(model: Model, parts: Sequence[Batch], objective: Objective, parallel: Parallel,
                number: int, seed: int) -> tuple[float, float, dict[str, float], int]:
    """Backward over the micro-batches; returns the step's loss, weight, metrics and tokens over all ranks."""
    device = model.device
    if getattr(objective, "whole", False) and len(parts) * parallel.world > 1:
        raise TrainingError(f"{type(objective).__name__} compares all rows of a step, and they came in {len(parts)} "
                            f"micro-batches on {parallel.world} ranks", way_out="give one batch, and bound its memory "
                            "with the objective's chunk")
    mine = sum(objective.weight(b) for b in parts)
    weight = float(parallel.all_sum(torch.tensor(mine, dtype=torch.float64)))
    if weight <= 0:
        raise TrainingError(f"step {number + 1} has no target with a weight above zero", way_out="check the loss masks")
    total = torch.zeros((), dtype=torch.float32, device=device)
    sums: dict[str, list[Tensor | float]] = {}
    for i, part in enumerate(parts):
        with parallel.accumulating(model, last=i == len(parts) - 1), _dice(model, (seed, number, i, parallel.rank)):
            loss = objective(model, part.to(device))
            (loss.total / weight).backward()
        total += loss.total.detach()
        for name, (value, count) in loss.metrics.items():
            entry = sums.setdefault(name, [0.0, 0.0])
            entry[0] = entry[0] + (value.detach() if isinstance(value, Tensor) else value)
            entry[1] = entry[1] + count
    parallel.finish(model)
    tokens = sum(int(b.lengths().sum()) for p in parts for b in (p, p.pair) if b is not None)
    flat = [float(total), float(tokens)] + [float(x) for entry in sums.values() for x in entry]
    summed = parallel.all_sum(torch.tensor(flat, dtype=torch.float64)).tolist()
    metrics = {name: summed[2 + 2 * i] / max(summed[3 + 2 * i], 1e-12) for i, name in enumerate(sums)}
    return summed[0] / weight, weight, metrics, int(summed[1])
