"""The one linear map: float32 master weights, arithmetic in the dtype of the input (nanochat's cast-in-forward)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from ctypes import CDLL, POINTER, Structure, byref, c_int, c_int64, c_void_p, cast
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cutaway.device import forget_pages, large_pages
from cutaway.nn.beside import PANEL, Beside, Laid, Struct
from cutaway.nn.kernels import library_for, pointer

Activation = Literal["silu", "gelu", "gelu_tanh"]
After = Literal[Activation, "relu"]
KERNEL_OF: dict[After, int] = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3}  # their numbers in csrc
Packing = Literal["float32", "bfloat16", "int8", "int4"]
_KINDS: dict[Packing, int] = {"bfloat16": 0, "int8": 1, "float32": 2, "int4": 3}  # their numbers in csrc/linear.h
_BITS: dict[Packing, int] = {"bfloat16": 1, "int8": 2, "float32": 4, "int4": 8}  # of what linear_packs answers
_GROUP, _BLOCK = 64, 32  # of csrc/int8.h and int4.h
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


class Blocks(NamedTuple):
    """Rows of four bits a number as a file has them: ``read`` gives ``(rows, inputs / 32, size)`` bytes."""

    read: Callable[[], Tensor]
    size: int


class Lying(NamedTuple):
    """Rows of a weight that lie in a file: how they are read, whether what is read is the mapped file itself, and their
    blocks, where the file has four bits a number."""

    read: Callable[[], Tensor]
    mapped: bool
    blocks: Blocks | None = None


class Linear(nn.Module):
    """``x @ weight.T``, with ``bias`` plus ``bias (outputs,)``; ``weight (outputs, inputs)`` is cast to the dtype of
    ``x`` at each use. ``called`` is False where the owner always multiplies with the weight itself, so that it must
    not be packed. Where there is something in ``lying``, its rows are the weight, in files, and ``weight`` holds
    nothing yet. What adapters add, each to rows of its own, stands ``beside`` it when it reads."""

    def __init__(self, inputs: int, outputs: int, *, called: bool = True, bias: bool = False) -> None:
        super().__init__()
        self.called = called
        self.lying: tuple[Lying, ...] = ()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None
        self.beside: Beside | None = None

    @property
    def in_blocks(self) -> bool:
        """Whether all its weights lie in a file in blocks of four bits, of one kind."""
        return (bool(self.lying) and all(piece.blocks is not None for piece in self.lying)
                and len({piece.blocks.size for piece in self.lying if piece.blocks is not None}) == 1)

    def forward(self, x: Tensor) -> Tensor:
        assert not self.lying, "its weight was never read"
        out = _biased(linear(x, self.weight), self.bias)
        return out if self.beside is None else self.beside(out, x)


def _biased(out: Tensor, bias: Tensor | None) -> Tensor:
    return out if bias is None else out + bias.to(out.dtype)


class Plan(Structure):
    """``Plan`` of linear.h."""

    _fields_ = (("inputs", c_int64), ("outputs", c_int64), ("panels", c_void_p), ("scales", c_void_p),
                ("sums", c_void_p), ("bias", c_void_p), ("kind", c_int), ("gated", c_int), ("precision", c_int),
                ("beside", POINTER(Struct)), ("rank", c_int64))


class Room:
    """Memory for weights that are read one behind another at every token: they lie so, in large pages."""

    def __init__(self, most: int = 0) -> None:
        self.most, self._left = most, torch.empty(0, dtype=torch.uint8)
        self._joined = torch.empty(0)

    def take(self, size: int) -> Tensor:
        """``size`` bytes behind those that were taken before, at the beginning of a cache line."""
        size = -(-size // _LINE) * _LINE
        if len(self._left) < size:
            self._left = large_pages(max(size, self.most))
        taken, self._left = self._left[:size], self._left[size:]
        return taken

    def blocks(self, linear: Linear) -> Tensor | None:
        """A weight's blocks of four bits as a file has them, or None where it has not."""
        if not linear.in_blocks:
            return None
        pieces = [piece.blocks.read() for piece in linear.lying if piece.blocks is not None]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def read(self, linear: Linear) -> Tensor:
        """A weight, wherever it lies, until the next one is asked for: memory for each would be left in pieces."""
        if not linear.lying:
            return linear.weight
        if len(linear.lying) == 1:
            return linear.lying[0].read()
        if self._joined.numel() < linear.weight.numel():
            self._joined = torch.empty(linear.weight.numel())
        out, at = self._joined[: linear.weight.numel()].view(linear.weight.shape), 0
        for piece in linear.lying:
            rows = piece.read()
            out[at : at + len(rows)] = rows
            at += len(rows)
            if piece.mapped:
                forget_pages(rows)
        return out


def _bytes(inputs: int, precision: Packing) -> int:
    """What an output's weights take."""
    if precision == "int4":
        return inputs // _BLOCK * 20  # 16 for 32 weights and 4 for their step and lowest value
    return {"float32": 4 * inputs, "bfloat16": 2 * inputs, "int8": -(-inputs // 4) * 4}[precision]


class PackedLinear(nn.Module):
    """The same map for reading, its weight laid out once for the kernel of ``csrc/linear.c`` in ``precision``, with
    what follows it: an activation, or one of the first half of the outputs that lets the second half through.

    Takes ``(…, inputs)``, in bfloat16 unless it is float32; a row's output does not depend on the rows beside it, which
    a library does not promise. int8 weights have a scale an output and inputs one for every 64 of a row, by the largest
    magnitude. int4 weights have a step and a lowest value an output and 32 inputs, and meet inputs of int8; where
    inputs are no multiple of 32, weights are int8. ``weight`` is (outputs, inputs) or, for int4, a file's blocks, see
    ``Lying``.
    """

    def __init__(self, lib: CDLL, weight: Tensor, bias: Tensor | None, precision: Packing, *,
                 after: After | None = None, gated: bool = False, room: Room | None = None,
                 beside: Beside | None = None) -> None:
        super().__init__()
        outputs, inputs = len(weight), weight.shape[1] * (_BLOCK if weight.dtype == torch.uint8 else 1)
        self.lib, self.inputs, self.width = lib, inputs, outputs // 2 if gated else outputs
        self.dtype = torch.float32 if precision == "float32" else torch.bfloat16
        if precision == "int4" and inputs % _BLOCK:
            precision = "int8"
        weight, bias = weight.detach(), None if bias is None else bias.detach()
        if gated and bias is not None:  # 16 gates, then what they let through
            bias = bias[torch.arange(outputs).view(2, -1, 16).transpose(0, 1).flatten()]
        padded = -(-outputs // PANEL) * PANEL
        self.bias = None if bias is None else F.pad(bias.float(), (0, padded - outputs)).contiguous()
        self.scales: Tensor | None = None
        self.sums: Tensor | None = None
        self.panels = (room or Room()).take(padded * _bytes(inputs, precision))
        self._lay_out(weight, padded, precision, gated)
        self.rows = None if beside is None else beside.rows
        self.laid = None if beside is None else Laid(beside, outputs, gated=gated, dtype=self.dtype)
        self.plan = Plan(inputs, outputs, pointer(self.panels), pointer(self.scales), pointer(self.sums),
                         pointer(self.bias), -1 if after is None else KERNEL_OF[after], gated, _KINDS[precision],
                         None if self.laid is None else cast(self.laid.structs, POINTER(Struct)),
                         0 if self.laid is None else self.laid.rank)

    def _lay_out(self, weight: Tensor, padded: int, precision: Packing, gated: bool) -> None:
        if weight.dtype == torch.uint8:
            assert precision == "int4", "blocks of four bits are int4"
            weight = weight.contiguous()
            self.lib.linear_pack_blocks(pointer(weight), c_int64(len(weight)), c_int64(weight.shape[1] * _BLOCK),
                                        c_int64(weight.shape[2]), c_int(gated), pointer(self.panels))
            return
        inputs = weight.shape[1]
        weight = weight.to(torch.bfloat16 if precision == "bfloat16" else torch.float32).contiguous()
        given = pointer(weight), c_int64(len(weight)), c_int64(inputs), c_int(gated), pointer(self.panels)
        if precision == "bfloat16":
            self.lib.linear_pack(*given)
        elif precision == "float32":
            self.lib.linear_pack_float(*given)
        elif precision == "int4":
            self.lib.linear_pack_int4(*given)
        else:
            self.scales = torch.empty(padded)
            self.sums = torch.empty(padded * (-(-inputs // _GROUP)), dtype=torch.int32)
            self.lib.linear_pack_int8(*given, pointer(self.scales), pointer(self.sums))

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedLinear:
        if self.rows is None:
            return self  # nothing in it changes
        made = copy.copy(self)
        made.rows = copy.deepcopy(self.rows, memo)  # the copy's own
        return made

    def forward(self, x: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
        """``(…, outputs)`` in ``dtype``, that of its inputs if not given; half as many behind a gate."""
        x = x.to(self.dtype).contiguous()
        out = torch.empty((*x.shape[:-1], self.width), dtype=dtype or self.dtype)
        which = None if self.rows is None else self.rows.each(x.numel() // self.inputs)
        self.lib.linear(byref(self.plan), pointer(x), c_int(x.dtype == torch.bfloat16),
                        c_int64(x.numel() // self.inputs), pointer(out), c_int(out.dtype == torch.bfloat16),
                        None if which is None else c_void_p(which.ctypes.data))
        return out


def packs(weight: Tensor, precision: Packing) -> CDLL | None:
    """The kernels, where they are on this processor faster with such a weight laid out than the library."""
    lib = library_for(weight)
    here = lib is not None and lib.linear_packs() & _BITS[precision]
    return lib if here and weight.shape[1] % 2 == 0 else None


def packed(linear: Linear, precision: Packing = "bfloat16", *, after: After | None = None, gated: bool = False,
           room: Room | None = None) -> PackedLinear | None:
    """``linear`` for reading, with what follows it, laid out for this processor's kernel; None where that is not faster
    than the library."""
    lib, room = packs(linear.weight, precision), room or Room()
    if lib is None or not linear.called or (gated and linear.weight.shape[0] % 32):
        return None
    blocks = room.blocks(linear) if precision == "int4" else None
    weight = room.read(linear) if blocks is None else blocks
    made = PackedLinear(lib, weight, linear.bias, precision, after=after, gated=gated, room=room,
                        beside=linear.beside)
    if blocks is None and len(linear.lying) == 1 and linear.lying[0].mapped:
        forget_pages(weight)
    return made
