"""Gated feed-forward, SwiGLU (Shazeer 2020, arXiv 2002.05202)."""

from __future__ import annotations

from torch import Tensor, nn

from cutaway.nn import ops
from cutaway.nn.linear import Linear
from cutaway.nn.memory import made_again


class Gated(nn.Module):
    """``down(silu(gate(x)) * up(x))``; gate and up are one product."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_up = Linear(width, 2 * inner)
        self.down = Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        gate_up = self.gate_up(x)
        inner = ops.swiglu(gate_up)
        with made_again(inner, lambda: ops.swiglu(gate_up)):
            out: Tensor = self.down(inner)
        return out
