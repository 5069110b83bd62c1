"""What a stage learns: a sum and its weight, never a mean, so that accumulation and data parallelism are exact."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from cutaway.batch import Batch
from cutaway.models.model import Model


@dataclass(frozen=True, slots=True)
class Loss:
    """``total`` is the differentiable sum, ``weight`` what to divide it by once all parts of a step are known.

    ``metrics`` are ``name -> (sum, weight)`` and are added up the same way.
    """

    total: Tensor
    weight: float
    metrics: dict[str, tuple[Tensor | float, float]] = field(default_factory=dict)


class Objective(Protocol):
    """A frozen value per stage. ``weight`` is known before the forward pass, so a step divides exactly once."""

    def weight(self, batch: Batch) -> float: ...
    def __call__(self, model: Model, batch: Batch) -> Loss: ...
