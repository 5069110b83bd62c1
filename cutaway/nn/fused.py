"""The kernels of ``csrc/`` as differentiable functions; each has its plain twin in ``ops``, and tests compare."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int, c_int64
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from cutaway.nn.kernels import Shape, pointer
from cutaway.nn.linear import weight_gradient
from cutaway.nn.mask import Interval

BF16 = torch.bfloat16


class AddNorm(torch.autograd.Function):
    """``(x + delta, norm)``, layer norm if ``center`` and RMS norm if not; see ``ops.add_norm``."""

    @staticmethod
    def forward(ctx: Any, lib: ctypes.CDLL, x: Tensor, delta: Tensor | None, weight: Tensor, eps: float,
                dtype: torch.dtype, center: bool) -> tuple[Tensor, Tensor]:
        x = x.contiguous()
        total, normed, scale, middle = add_norm(lib, x, delta, weight, None, eps, dtype, center=center)
        ctx.lib, ctx.delta_dtype = lib, None if delta is None else delta.dtype
        ctx.save_for_backward(total, weight, scale, middle)
        ctx.set_materialize_grads(False)
        return (x.view_as(x) if delta is None else total), normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor | None, grad_normed: Tensor | None) -> tuple[Any, ...]:
        total, weight, scale, middle = ctx.saved_tensors
        if grad_normed is None:
            assert grad_total is not None
            grad_delta = None if ctx.delta_dtype is None else grad_total.to(ctx.delta_dtype)
            return None, grad_total, grad_delta, None, None, None, None
        grad_normed = grad_normed.contiguous()
        grad_total = None if grad_total is None else grad_total.contiguous()
        grad_x, grad_weight = torch.empty_like(total), torch.empty_like(weight)
        # a float32 delta receives the very gradient of x: one tensor serves both
        apart = ctx.delta_dtype == BF16
        grad_delta = torch.empty(total.shape, dtype=BF16) if apart else None
        ctx.lib.add_norm_grad(pointer(total), pointer(weight), pointer(scale), pointer(middle), pointer(grad_normed),
                              c_int(grad_normed.dtype == BF16), pointer(grad_total), c_int64(scale.numel()),
                              c_int64(total.shape[-1]), pointer(grad_x), pointer(grad_delta), c_int(1),
                              pointer(grad_weight))
        given = grad_delta if apart or ctx.delta_dtype is None else grad_x
        return None, grad_x, given, grad_weight, None, None, None


def add_norm(lib: ctypes.CDLL, x: Tensor, delta: Tensor | None, weight: Tensor, shift: Tensor | None, eps: float,
             dtype: torch.dtype, *, center: bool, post: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """``x + delta``, or where ``post`` the result in float32 instead; the result in ``dtype``; and what of each row the
    gradient needs. Not differentiable by itself."""
    x, width = x.contiguous(), x.shape[-1]
    delta = None if delta is None else delta.contiguous()
    rows = x.numel() // width
    total = x if delta is None and not post else torch.empty_like(x)
    normed = torch.empty(x.shape, dtype=dtype)
    scale, middle = torch.empty(rows), torch.empty(rows) if center else None
    lib.add_norm(pointer(x), pointer(delta), c_int(delta is not None and delta.dtype == BF16), pointer(weight),
                 pointer(shift), c_float(eps), c_int64(rows), c_int64(width), pointer(total), pointer(normed),
                 c_int(dtype == BF16), pointer(scale), pointer(middle), c_int(post))
    return total, normed, scale, middle


class Gated(torch.autograd.Function):
    """``activation(gate) * up``, the activation by its number in ``pointwise.c``; see ``ops.gated``."""

    @staticmethod
    def forward(ctx: Any, lib: ctypes.CDLL, gate_up: Tensor, kind: int) -> Tensor:
        gate_up = gate_up.contiguous()
        ctx.lib, ctx.kind = lib, kind
        ctx.save_for_backward(gate_up)
        return gated(lib, gate_up, kind)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (gate_up,) = ctx.saved_tensors
        return None, _gated_grad(ctx.lib, gate_up, grad.contiguous(), ctx.kind, None), None


class GatedLinear(torch.autograd.Function):
    """``(activation(gate) * up) @ weight.T``, ``weight (D, I)``; see ``ops.gated_linear``. The gate's output is written
    again on the way back, in the pass that makes its gradient, so nothing but the input is kept."""

    @staticmethod
    def forward(ctx: Any, lib: ctypes.CDLL, gate_up: Tensor, weight: Tensor, kind: int) -> Tensor:
        gate_up = gate_up.contiguous()
        ctx.lib, ctx.kind = lib, kind
        ctx.save_for_backward(gate_up, weight)
        return F.linear(gated(lib, gate_up, kind), weight.to(gate_up.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        gate_up, weight = ctx.saved_tensors
        needs_gate_up, needs_weight = ctx.needs_input_grad[1:3]
        grad = grad.to(gate_up.dtype)  # under autocast the output was of another dtype
        if not needs_gate_up:
            return None, None, weight_gradient(grad, gated(ctx.lib, gate_up, ctx.kind), weight), None
        inner_grad = (grad @ weight.to(grad.dtype)).to(gate_up.dtype).contiguous()
        inner = torch.empty_like(inner_grad) if needs_weight else None
        gate_up_grad = _gated_grad(ctx.lib, gate_up, inner_grad, ctx.kind, inner)
        return None, gate_up_grad, None if inner is None else weight_gradient(grad, inner, weight), None


def gated(lib: ctypes.CDLL, gate_up: Tensor, kind: int) -> Tensor:
    """``activation(gate) * up`` of a contiguous ``gate_up``; not differentiable by itself."""
    inner = gate_up.shape[-1] // 2
    out = torch.empty((*gate_up.shape[:-1], inner), dtype=gate_up.dtype)
    lib.gated(pointer(gate_up), c_int64(out.numel() // inner), c_int64(inner), pointer(out),
              c_int(gate_up.dtype == BF16), c_int(kind))
    return out


def _gated_grad(lib: ctypes.CDLL, gate_up: Tensor, grad: Tensor, kind: int, inner: Tensor | None) -> Tensor:
    """The gradient by ``gate_up``; what ``gated`` gave is written to ``inner`` where it is given."""
    assert grad.dtype == gate_up.dtype
    width, out = gate_up.shape[-1] // 2, torch.empty_like(gate_up)
    lib.gated_grad(pointer(gate_up), pointer(grad), c_int64(grad.numel() // width), c_int64(width), pointer(out),
                   pointer(inner), c_int(gate_up.dtype == BF16), c_int(kind))
    return out


@dataclass(frozen=True, slots=True)
class Look:
    """What attention is told beside its tensors: heads, the scores' scale, and who sees whom."""

    heads: tuple[int, int, int]
    scale: float
    seen: Interval


class SelfAttention(torch.autograd.Function):
    """Attention of a sequence over itself; see ``ops.self_attention``. Keeps nothing but its input."""

    @staticmethod
    def forward(ctx: Any, lib: ctypes.CDLL, qkv: Tensor, rotary: Tensor | None, bias: Tensor | None,
                look: Look) -> Tensor:
        qkv = qkv.contiguous()
        rotary = None if rotary is None else rotary.contiguous()
        bias = None if bias is None else bias.contiguous()
        out = torch.empty((*qkv.shape[:2], look.heads[0] * look.heads[2]), dtype=qkv.dtype)
        shape = _shape(qkv, qkv, look, rotary=rotary, bias=bias)
        lib.attention(ctypes.byref(shape), *_thirds(qkv, look.heads), pointer(out))
        ctx.lib, ctx.look = lib, look
        ctx.save_for_backward(qkv, rotary, bias)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        qkv, rotary, bias = ctx.saved_tensors
        grad, out = grad.contiguous(), torch.empty_like(qkv)
        grad_bias = None if bias is None else torch.empty_like(bias)
        shape = _shape(qkv, qkv, ctx.look, rotary=rotary, bias=bias)
        ctx.lib.attention_grad(ctypes.byref(shape), *_thirds(qkv, ctx.look.heads), pointer(grad),
                               *_thirds(out, ctx.look.heads), pointer(grad_bias))
        return None, out, None, grad_bias, None


class CrossAttention(torch.autograd.Function):
    """Attention of ``q (B, T, H D)`` over another sequence's ``kv (B, S, 2 Hkv D)``; see ``ops.cross_attention``."""

    @staticmethod
    def forward(ctx: Any, lib: ctypes.CDLL, q: Tensor, kv: Tensor, look: Look) -> Tensor:
        q, kv = q.contiguous(), kv.contiguous()
        out = torch.empty_like(q)
        lib.attention(ctypes.byref(_shape(q, kv, look)), pointer(q), *_halves(kv), pointer(out))
        ctx.lib, ctx.look = lib, look
        ctx.save_for_backward(q, kv)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        q, kv = ctx.saved_tensors
        grad, grad_q, grad_kv = grad.contiguous(), torch.empty_like(q), torch.empty_like(kv)
        ctx.lib.attention_grad(ctypes.byref(_shape(q, kv, ctx.look)), pointer(q), *_halves(kv), pointer(grad),
                               pointer(grad_q), *_halves(grad_kv), pointer(None))
        return None, grad_q, grad_kv, None


def _thirds(qkv: Tensor, heads: tuple[int, int, int]) -> tuple[ctypes.c_void_p, ...]:
    """Where queries, keys and values begin."""
    num_heads, num_kv, size = heads
    starts = (0, num_heads * size, (num_heads + num_kv) * size)
    return tuple(ctypes.c_void_p(qkv.data_ptr() + start * qkv.element_size()) for start in starts)


def _halves(kv: Tensor) -> tuple[ctypes.c_void_p, ...]:
    """Where keys and values begin."""
    return tuple(ctypes.c_void_p(kv.data_ptr() + start * kv.element_size()) for start in (0, kv.shape[-1] // 2))


def _shape(q: Tensor, kv: Tensor, look: Look, *, rotary: Tensor | None = None, bias: Tensor | None = None) -> Shape:
    rows, steps, query_stride = q.shape
    turned = None if rotary is None else rotary.stride(1) * (rotary.shape[1] > 1)
    cosines, sines = (None, None) if rotary is None else (rotary[0], rotary[1])
    return Shape(rows, steps, kv.shape[1], *look.heads, int(q.dtype == BF16), int(look.seen.causal), look.scale,
                 query_stride, kv.shape[2], pointer(cosines), pointer(sines), turned or 0, pointer(look.seen.first),
                 pointer(look.seen.last), pointer(bias), 0 if bias is None else bias.shape[1])


def cross_entropy_(lib: ctypes.CDLL, logits: Tensor, targets: Tensor, weights: Tensor, *, learning: bool) -> Tensor:
    """Weighted losses ``(n,)`` of ``logits (n, V)``, which become their own gradient in place where ``learning``."""
    losses = torch.empty(len(logits))
    lib.cross_entropy(pointer(logits), c_int(logits.dtype == BF16), pointer(targets), pointer(weights),
                      c_int64(len(logits)), c_int64(logits.shape[1]), pointer(losses), c_int(learning))
    return losses


def attention_step(lib: ctypes.CDLL, qkv: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, table: Tensor,
                   heads: tuple[int, int, int], *, scale: float | None = None) -> Tensor:
    """One new token a row: ``qkv (B, 1, (H + 2 Hkv) D)`` is appended to the caches ``(B, Hkv, capacity, D)`` at
    ``lengths (B,)`` and attends over its row; ``table (2, context, D / 2)``. Not differentiable; ``(B, 1, H D)``."""
    out = torch.empty((len(qkv), 1, heads[0] * heads[2]), dtype=qkv.dtype)
    shape = Shape(len(qkv), keys.shape[2], keys.shape[2], *heads, int(qkv.dtype == BF16), 1,
                  heads[2] ** -0.5 if scale is None else scale, 0, 0,
                  pointer(table[0]), pointer(table[1]), 0, None, None, None, 0)
    lib.attention_step(ctypes.byref(shape), pointer(qkv.contiguous()), pointer(keys), pointer(values),
                       pointer(lengths), pointer(out))
    return out
