"""Feed-forward: gated, SwiGLU and GEGLU (Shazeer 2020, arXiv 2002.05202), and plain (Vaswani 2017)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cutaway.nn import ops
from cutaway.nn.linear import Activation, After, Linear, Packing, Room, packed
from cutaway.nn.memory import made_again


class Gated(nn.Module):
    """``down(activation(gate(x)) * up(x))``; gate and up are one product."""

    def __init__(self, width: int, inner: int, *, activation: Activation = "silu") -> None:
        super().__init__()
        self.activation: Activation = activation
        self.gate_up = Linear(width, 2 * inner)
        self.down = Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        gate_up = self.gate_up(x)
        # packed for reading it is a module of its own, and without a gradient there is nothing to keep or not to keep
        if isinstance(self.down, Linear) and torch.is_grad_enabled():
            return ops.gated_linear(gate_up, self.down.weight, self.activation)
        inner = ops.gated(gate_up, self.activation)
        with made_again(inner, lambda: ops.gated(gate_up, self.activation)):
            out: Tensor = self.down(inner)
        return out

    def packed(self, precision: Packing, room: Room | None = None) -> nn.Module | None:
        """The same for reading, where that is faster."""
        return _both(self.gate_up, self.down, precision, after=self.activation, gated=True, room=room)


class Plain(nn.Module):
    """``down(activation(up(x)))``."""

    def __init__(self, width: int, inner: int, *, activation: After, bias: bool) -> None:
        super().__init__()
        self.activation = activation
        self.up = Linear(width, inner, bias=bias)
        self.down = Linear(inner, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        up = self.up(x)
        if self.activation in ("relu", "silu"):
            up = F.relu(up) if self.activation == "relu" else F.silu(up)
        else:
            up = F.gelu(up, approximate="tanh" if self.activation == "gelu_tanh" else "none")
        out: Tensor = self.down(up)
        return out

    def packed(self, precision: Packing, room: Room | None = None) -> nn.Module | None:
        """The same for reading, where that is faster."""
        return _both(self.up, self.down, precision, after=self.activation, gated=False, room=room)


def _both(first: nn.Module, second: nn.Module, precision: Packing, *, after: After, gated: bool,
          room: Room | None) -> nn.Module | None:
    if not isinstance(first, Linear) or not isinstance(second, Linear):
        return None  # beside an adapter only what is the base's own is laid out
    one = packed(first, precision, after=after, gated=gated, room=room)
    other = packed(second, precision, room=room)
    return None if one is None or other is None else nn.Sequential(one, other)
