"""The one linear map: float32 master weights, arithmetic in the dtype of the input (nanochat's cast-in-forward)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _CastLinear(torch.autograd.Function):
    """Keeps ``x`` and the master weight, not the weight's cast, which is made again for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return F.linear(x, weight.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad_x = grad @ weight.to(grad.dtype) if ctx.needs_input_grad[0] else None
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = (grad.reshape(-1, len(weight)).T @ x.reshape(-1, x.shape[-1])).to(weight.dtype)
        return grad_x, grad_weight


class Linear(nn.Module):
    """``x @ weight.T`` without bias; ``weight (outputs, inputs)`` is cast to the dtype of ``x`` at each use."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.dtype == x.dtype:
            return F.linear(x, self.weight)
        out: Tensor = _CastLinear.apply(x, self.weight)  # type: ignore[no-untyped-call]
        return out
