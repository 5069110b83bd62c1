"""Learning-rate schedules: warmup-stable-decay (Hu et al. 2024, arXiv 2404.06395), cosine and constant."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from cutaway.settings import Settings


class Schedule(Settings):
    """Factor on the learning rate at each step, a pure function of the step and the total.

    ``warmup`` and ``decay`` are shares of the total; ``final`` is the factor reached at the end.
    """

    kind: Literal["wsd", "cosine", "constant"] = "wsd"
    warmup: float = Field(default=0.05, ge=0, le=1)
    decay: float = Field(default=0.5, ge=0, le=1)
    final: float = Field(default=0.0, ge=0, le=1)

    def factor(self, step: int, total: int) -> float:
        """Factor at step 0 .. total - 1; never zero in the warmup, so the first step already learns."""
        warm = self.warmup * total
        rise = min(1.0, (step + 1) / warm) if warm > 1 else 1.0
        if self.kind == "constant":
            return rise
        if self.kind == "cosine":
            done = max(0.0, step - warm) / max(1.0, total - warm)
            return rise * (self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))
        left = (total - step) / max(1.0, self.decay * total)
        return rise * (self.final + (1 - self.final) * min(1.0, left))
