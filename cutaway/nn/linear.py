"""The one linear map: float32 master weights, arithmetic in the dtype of the input (nanochat's cast-in-forward)."""

from __future__ import annotations

from ctypes import CDLL, c_int64
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cutaway.nn.kernels import library_for, pointer


def weight_gradient(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """By the weight of ``x (…, inputs) @ weight.T``, for the gradient of that product, in the weight's dtype."""
    return (grad.reshape(-1, len(weight)).T @ x.reshape(-1, weight.shape[1])).to(weight.dtype)


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
            grad_weight = weight_gradient(grad, x, weight)
        return grad_x, grad_weight


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """``x @ weight.T`` in the dtype of ``x``, for ``weight (outputs, inputs)``."""
    if weight.dtype == x.dtype:
        return F.linear(x, weight)
    out: Tensor = _CastLinear.apply(x, weight)  # type: ignore[no-untyped-call]
    return out


class Linear(nn.Module):
    """``x @ weight.T``, with ``bias`` plus ``bias (outputs,)``; ``weight (outputs, inputs)`` is cast to the dtype of
    ``x`` at each use. ``called`` is False where the owner always multiplies with the weight itself, so that it must
    not be packed."""

    def __init__(self, inputs: int, outputs: int, *, called: bool = True, bias: bool = False) -> None:
        super().__init__()
        self.called = called
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return _biased(linear(x, self.weight), self.bias)


def _biased(out: Tensor, bias: Tensor | None) -> Tensor:
    return out if bias is None else out + bias.to(out.dtype)


class PackedLinear(nn.Module):
    """The same map for reading, its bfloat16 weight laid out once for the kernel of ``csrc/linear.c``. A row's output
    does not depend on the rows beside it, which a library does not promise."""

    def __init__(self, lib: CDLL, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.lib, self.bias, self.shape = lib, bias, (weight.shape[0], weight.shape[1])
        outputs, inputs = self.shape
        weight = weight.detach().to(torch.bfloat16).contiguous()
        self.panels = torch.empty(-(-outputs // 32) * 32 * (inputs // 2), dtype=torch.int32)
        lib.linear_pack(pointer(weight), c_int64(outputs), c_int64(inputs), pointer(self.panels))

    def forward(self, x: Tensor) -> Tensor:
        x, (outputs, inputs) = x.contiguous(), self.shape
        out = torch.empty((*x.shape[:-1], outputs), dtype=torch.bfloat16)
        self.lib.linear(pointer(x), c_int64(x.numel() // inputs), c_int64(inputs), pointer(self.panels),
                        c_int64(outputs), pointer(out))
        return _biased(out, self.bias)


def packed(linear: Linear) -> Linear | PackedLinear:
    """``linear`` for reading in bfloat16, laid out for this processor's kernel where that is faster than the library;
    otherwise as it is."""
    lib = library_for(linear.weight)
    if lib is not None and linear.called and linear.weight.shape[1] % 2 == 0 and lib.linear_packs():
        return PackedLinear(lib, linear.weight, linear.bias)
    return linear
