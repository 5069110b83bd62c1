"""Gated feed-forward, SwiGLU (Shazeer 2020, arXiv 2002.05202)."""

from __future__ import annotations

from torch import Tensor, nn

from cutaway.nn import ops
from cutaway.nn.linear import Linear


class Gated(nn.Module):
    """``down(silu(gate(x)) * up(x))``; gate and up are one product."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_up = Linear(width, 2 * inner)
        self.down = Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(ops.swiglu(self.gate_up(x)))
        return out
