"""The one linear map: float32 master weights, arithmetic in the dtype of the input (nanochat's cast-in-forward)."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import CDLL, Structure, byref, c_int, c_int64, c_void_p
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cutaway.device import large_pages
from cutaway.nn.kernels import library_for, pointer

Activation = Literal["silu", "gelu", "gelu_tanh"]
After = Literal[Activation, "relu"]
KERNEL_OF: dict[After, int] = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3}  # their numbers in csrc
Packing = Literal["float32", "bfloat16", "int8"]
_KINDS: dict[Packing, int] = {"bfloat16": 0, "int8": 1, "float32": 2}  # their numbers in csrc/linear.h
_PANEL, _GROUP = 32, 64  # of csrc/int8.h
_LINE = 64  # bytes of a cache line


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


class Plan(Structure):
    """``Plan`` of linear.h."""

    _fields_ = (("inputs", c_int64), ("outputs", c_int64), ("panels", c_void_p), ("scales", c_void_p),
                ("sums", c_void_p), ("bias", c_void_p), ("kind", c_int), ("gated", c_int), ("precision", c_int))


class PackedLinear(nn.Module):
    """The same map for reading, its weight laid out once for the kernel of ``csrc/linear.c`` in ``precision``, with
    what follows it: an activation, or one of the first half of the outputs that lets the second half through.

    Takes ``(…, inputs)``, in bfloat16 unless it is float32; a row's output does not depend on the rows beside it, which
    a library does not promise. int8 weights have a scale an output and inputs one for every 64 of a row, by the largest
    magnitude.
    """

    def __init__(self, lib: CDLL, weight: Tensor, bias: Tensor | None, precision: Packing, *,
                 after: After | None = None, gated: bool = False) -> None:
        super().__init__()
        outputs, inputs = weight.shape
        self.lib, self.inputs, self.width = lib, inputs, outputs // 2 if gated else outputs
        self.dtype = torch.float32 if precision == "float32" else torch.bfloat16
        weight, bias = weight.detach(), None if bias is None else bias.detach()
        if gated:  # 16 gates, then what they let through
            order = torch.arange(outputs).view(2, -1, 16).transpose(0, 1).flatten()
            weight, bias = weight[order], None if bias is None else bias[order]
        padded = -(-outputs // _PANEL) * _PANEL
        self.bias = None if bias is None else F.pad(bias.float(), (0, padded - outputs)).contiguous()
        self.scales: Tensor | None = None
        self.sums: Tensor | None = None
        self._lay_out(weight, padded, precision)
        self.plan = Plan(inputs, outputs, pointer(self.panels), pointer(self.scales), pointer(self.sums),
                         pointer(self.bias), -1 if after is None else KERNEL_OF[after], gated, _KINDS[precision])

    def _lay_out(self, weight: Tensor, padded: int, precision: Packing) -> None:
        outputs, inputs = weight.shape
        size = c_int64(outputs), c_int64(inputs)
        if precision == "bfloat16":
            weight = weight.to(torch.bfloat16).contiguous()
            self.panels = torch.empty(padded * (inputs // 2), dtype=torch.int32)
            self.lib.linear_pack(pointer(weight), *size, pointer(self.panels))
            return
        weight = weight.float().contiguous()
        if precision == "float32":
            self.panels = torch.empty(padded * inputs)
            self.lib.linear_pack_float(pointer(weight), *size, pointer(self.panels))
            return
        self.panels = torch.empty(padded * (-(-inputs // 4)), dtype=torch.int32)
        self.scales = torch.empty(padded)
        self.sums = torch.empty(padded * (-(-inputs // _GROUP)), dtype=torch.int32)
        self.lib.linear_pack_int8(pointer(weight), *size, *map(pointer, (self.panels, self.scales, self.sums)))

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedLinear:
        return self  # nothing in it changes

    def forward(self, x: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
        """``(…, outputs)`` in ``dtype``, that of its inputs if not given; half as many behind a gate."""
        x = x.to(self.dtype).contiguous()
        out = torch.empty((*x.shape[:-1], self.width), dtype=dtype or self.dtype)
        self.lib.linear(byref(self.plan), pointer(x), c_int(x.dtype == torch.bfloat16),
                        c_int64(x.numel() // self.inputs), pointer(out), c_int(out.dtype == torch.bfloat16))
        return out


def lay_together(linears: Sequence[PackedLinear]) -> None:
    """Move their weights into one piece of memory, in this order: they are read from end to end at every token."""
    sizes = [-(-one.panels.nbytes // _LINE) * _LINE for one in linears]
    room, start = large_pages(sum(sizes)), 0
    for one, size in zip(linears, sizes, strict=True):
        part = room[start : start + one.panels.nbytes].view(one.panels.dtype)
        part.copy_(one.panels)
        one.panels, start = part, start + size
        one.plan.panels = pointer(part)


def packs(weight: Tensor, precision: Packing) -> CDLL | None:
    """The kernels, where they are on this processor faster with such a weight laid out than the library."""
    lib = library_for(weight)
    here = lib is not None and lib.linear_packs() & {"bfloat16": 1, "int8": 2, "float32": 4}[precision]
    return lib if here and weight.shape[1] % 2 == 0 else None


def packed(linear: Linear, precision: Packing = "bfloat16", *, after: After | None = None,
           gated: bool = False) -> PackedLinear | None:
    """``linear`` for reading, with what follows it, laid out for this processor's kernel; None where that is not faster
    than the library."""
    lib = packs(linear.weight, precision)
    if lib is None or not linear.called or (gated and linear.weight.shape[0] % 32):
        return None
    return PackedLinear(lib, linear.weight, linear.bias, precision, after=after, gated=gated)
