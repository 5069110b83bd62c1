"""Low-rank adaptation (LoRA: Hu 2021, arXiv 2106.09685): small matrices learned beside a linear map that stays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cutaway.nn.linear import Linear


class _Both(torch.autograd.Function):
    """``x @ (weight + up @ down).T`` without that sum, in the dtype of ``x``: the weight gets no gradient, so nothing
    is kept or computed for one, and the two gradients by ``x`` are added where they are made."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, down: Tensor, up: Tensor) -> Tensor:
        flat, dtype = x.reshape(-1, x.shape[-1]), x.dtype
        inner = flat @ down.to(dtype).T
        out = torch.addmm(flat @ weight.to(dtype).T, inner, up.to(dtype).T)
        ctx.save_for_backward(x, inner, weight, down, up)
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, inner, weight, down, up = ctx.saved_tensors
        grad, flat = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        grad = grad.to(x.dtype)
        grad_inner = grad @ up.to(x.dtype)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.addmm(grad @ weight.to(x.dtype), grad_inner, down.to(x.dtype)).view(x.shape)
        return grad_x, None, (grad_inner.T @ flat).to(down.dtype), (grad.T @ inner).to(up.dtype)


class LaidTogether(nn.Module):
    """``base(x) + up (down x)`` for reading alone: what ``LowRank.light`` gives."""

    def __init__(self, base: nn.Module, down: Tensor, up: Tensor) -> None:
        super().__init__()
        self.base, self.down, self.up = base, nn.Parameter(down, False), nn.Parameter(up, False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x)
        flat = x.reshape(-1, x.shape[-1])
        return torch.addmm(out.view(len(flat), -1), flat @ self.down.T, self.up.T).view(out.shape)


def scale_of(alpha: float, rank: int, *, rooted: bool) -> float:
    """What the product of an adapter's matrices is multiplied by."""
    return alpha / (math.sqrt(rank) if rooted else rank) if rank else 0.0


class LowRank(nn.Module):
    """``base(x) + scale (up_i (down_i x))`` for each part of the base's rows, in their order.

    A part is what is a matrix of its own in a public format (queries, keys and values of one product): each has its
    ``down (rank, inputs)``, drawn, and ``up (rows, rank)``, 0 at first, so that nothing changes before it learns. A
    part of rank 0 learns nothing. ``scale`` is alpha / rank, or alpha / sqrt(rank) where ``rooted`` (Kalajdzievski
    2023, arXiv 2312.03732). Where it is ``off`` the base stands alone.
    """

    def __init__(self, base: Linear, rows: Sequence[int], ranks: Sequence[int], *, alpha: float, dropout: float = 0.0,
                 rooted: bool = False) -> None:
        super().__init__()
        self.base, self.rows, self.dropout, self.off = base, tuple(rows), dropout, False
        inputs = base.weight.shape[1]
        self.down = nn.ParameterList(torch.empty(rank, inputs, device=base.weight.device) for rank in ranks)
        self.up = nn.ParameterList(torch.zeros(count, rank, device=base.weight.device)
                                   for count, rank in zip(rows, ranks, strict=True))
        self.scales = tuple(scale_of(alpha, rank, rooted=rooted) for rank in ranks)
        for parameter in base.parameters():
            parameter.requires_grad_(False)

    @property
    def weight(self) -> Tensor:
        """The base's."""
        return self.base.weight

    @property
    def silent(self) -> bool:
        """Whether it adds nothing yet."""
        return not any(bool(up.any()) for up in self.up)

    def added(self) -> list[nn.Parameter]:
        """What stands beside the base."""
        return [*self.down, *self.up]

    def factors(self) -> tuple[Tensor, Tensor]:
        """All parts as one: ``down (R, inputs)`` and ``up (rows, R)``, the scales in it."""
        scaled = [up if scale == 1 else scale * up for scale, up in zip(self.scales, self.up, strict=True)]
        return torch.cat(list(self.down)), torch.block_diag(*scaled)

    def forward(self, x: Tensor) -> Tensor:
        if self.off:
            alone: Tensor = self.base(x)
            return alone
        down, up = self.factors()
        if self.dropout and self.training:  # what is dropped beside the base is not dropped of it
            dropped = F.dropout(x, self.dropout, True)
            out: Tensor = self.base(x) + (dropped @ down.to(x.dtype).T) @ up.to(x.dtype).T
            return out
        out = _Both.apply(x, self.base.weight, down, up)  # type: ignore[no-untyped-call]
        return out if self.base.bias is None else out + self.base.bias.to(out.dtype)

    def merged(self) -> Linear:
        """The base with what was learned added to its weight: the same function, no dearer than before."""
        with torch.no_grad():
            down, up = self.factors()
            self.base.weight.add_(up @ down)
        for parameter in self.base.parameters():
            parameter.requires_grad_(True)
        return self.base

    def light(self, dtype: torch.dtype) -> LaidTogether:
        """The same map for reading in ``dtype``, its parts laid together once."""
        down, up = self.factors()
        return LaidTogether(self.base, down.detach().to(dtype), up.detach().to(dtype))

    def draw(self, generator: torch.Generator) -> None:
        """First weights: ``down`` uniform within 1 / sqrt(inputs), as peft has it; ``up`` zero."""
        with torch.no_grad():
            for down, up in zip(self.down, self.up, strict=True):
                limit = 1 / math.sqrt(down.shape[1])
                down.copy_((2 * torch.rand(down.shape, generator=generator) - 1) * limit)
                up.zero_()
