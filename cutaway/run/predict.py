"""Prediction: what a stage should cost, from its configuration and the measured machine alone (Kaplan et al. 2020).

The report shows it beside what was measured; where the two differ, the difference is the news.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from cutaway.device import Machine
from cutaway.models.cost import cost
from cutaway.models.transformer import TransformerConfig

# Share of the measured GEMM peak a small decoder reaches in training on this kind of machine: 15-25 % at width 128,
# 45-52 % from width 384 on, because below that what is not a matrix product dominates.
_SHARES = ((256, 0.20), (10**9, 0.45))


@dataclass(frozen=True, slots=True)
class Prediction:
    """``flops`` and ``seconds`` of a stage, and its peak memory in bytes."""

    flops: float
    seconds: float
    memory_bytes: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def stage_flops(config: TransformerConfig, tokens: float, *, context: int, passes: float = 3.0) -> float:
    """FLOPs of ``tokens`` of sequences of ``context``; training is three forward passes' worth."""
    return passes * cost(config).forward_flops(context) * tokens


def predict(config: TransformerConfig, tokens: float, *, context: int, rows: int, machine: Machine, dtype: torch.dtype,
            passes: float = 3.0) -> Prediction:
    """Cost of training on ``tokens`` in steps of ``rows`` sequences of ``context`` tokens."""
    flops = stage_flops(config, tokens, context=context, passes=passes)
    share = next(s for width, s in _SHARES if config.hidden_size <= width)
    each = 2 if dtype == torch.bfloat16 else 4
    kept = config.num_layers * (10 * config.hidden_size + 4 * config.intermediate_size) * each
    memory = 16.0 * cost(config).parameters + float(rows * context * kept)
    return Prediction(flops, flops / (share * machine.peak(dtype)), memory)
