"""Gated feed-forward: SwiGLU and GEGLU (Shazeer 2020, arXiv 2002.05202)."""

from __future__ import annotations

from torch import Tensor, nn

from cutaway.nn import ops
from cutaway.nn.linear import Linear
from cutaway.nn.memory import made_again


class Gated(nn.Module):
    """``down(activation(gate(x)) * up(x))``; gate and up are one product."""

    def __init__(self, width: int, inner: int, *, activation: ops.Activation = "silu") -> None:
        super().__init__()
        self.activation: ops.Activation = activation
        self.gate_up = Linear(width, 2 * inner)
        self.down = Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        gate_up = self.gate_up(x)
        inner = ops.gated(gate_up, self.activation)
        with made_again(inner, lambda: ops.gated(gate_up, self.activation)):
            out: Tensor = self.down(inner)
        return out
