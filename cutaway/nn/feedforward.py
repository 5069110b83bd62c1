"""Gated feed-forward: SwiGLU and GEGLU (Shazeer 2020, arXiv 2002.05202)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cutaway.nn import ops
from cutaway.nn.linear import Linear


class Gated(nn.Module):
    """``down(activation(gate(x)) * up(x))``; gate and up are one product."""

    def __init__(self, width: int, inner: int, *, activation: ops.Activation = "silu") -> None:
        super().__init__()
        self.activation: ops.Activation = activation
        self.gate_up = Linear(width, 2 * inner)
        self.down = Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        gate_up = self.gate_up(x)
        # packed for reading it is a module of its own, and without a gradient there is nothing to keep or not to keep
        if isinstance(self.down, Linear) and torch.is_grad_enabled():
            return ops.gated_linear(gate_up, self.down.weight, self.activation)
        out: Tensor = self.down(ops.gated(gate_up, self.activation))
        return out
