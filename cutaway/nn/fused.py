"""The kernels of ``csrc/`` as differentiable functions; each has its plain twin in ``ops``, and tests compare."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int, c_int64
from typing import Any

import torch
from torch import Tensor

from cutaway.nn.kernels import Shape, pointer

BF16 = torch.bfloat16


class AddRMSNorm(torch.autograd.Function):
    """``(x + delta, norm)``; see ``ops.add_rms_norm``."""

    @staticmethod
    def forward(ctx: Any, lib: ctypes.CDLL, x: Tensor, delta: Tensor | None, weight: Tensor, eps: float,
                dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        x, width = x.contiguous(), x.shape[-1]
        delta = None if delta is None else delta.contiguous()
        rows = x.numel() // width
        total = x if delta is None else torch.empty_like(x)
        normed = torch.empty(x.shape, dtype=dtype)
        scale = torch.empty(rows)
        lib.add_rms_norm(pointer(x), pointer(delta), c_int(delta is not None and delta.dtype == BF16), pointer(weight),
                         c_float(eps), c_int64(rows), c_int64(width), pointer(total), pointer(normed),
                         c_int(dtype == BF16), pointer(scale))
        ctx.lib, ctx.delta_dtype = lib, None if delta is None else delta.dtype
        ctx.save_for_backward(total, weight, scale)
        ctx.set_materialize_grads(False)
        return (x.view_as(x) if delta is None else total), normed

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor | None, grad_normed: Tensor | None) -> tuple[Any, ...]:
        total, weight, scale = ctx.saved_tensors
        if grad_normed is None:
            assert grad_total is not None
            grad_delta = None if ctx.delta_dtype is None else grad_total.to(ctx.delta_dtype)
            return None, grad_total, grad_delta, None, None, None
        grad_normed = grad_normed.contiguous()
        grad_total = None if grad_total is None else grad_total.contiguous()
        grad_x, grad_weight = torch.empty_like(total), torch.empty_like(weight)
        # a float32 delta receives the very gradient of x: one tensor serves both
        apart = ctx.delta_dtype == BF16
        grad_delta = torch.empty(total.shape, dtype=BF16) if apart else None
        ctx.lib.add_rms_norm_grad(pointer(total), pointer(weight), pointer(scale), pointer(grad_normed),
                                  c_int(grad_normed.dtype == BF16), pointer(grad_total), c_int64(scale.numel()),
                                  c_int64(total.shape[-1]), pointer(grad_x), pointer(grad_delta), c_int(1),
                                  pointer(grad_weight))
        return None, grad_x, grad_delta if apart or ctx.delta_dtype is None else grad_x, grad_weight, None, None


class SwiGLU(torch.autograd.Function):
    """``silu(gate) * up``; see ``ops.swiglu``."""

    @staticmethod
    def forward(ctx: Any, lib: ctypes.CDLL, gate_up: Tensor) -> Tensor:
        gate_up = gate_up.contiguous()
        inner = gate_up.shape[-1] // 2
        out = torch.empty((*gate_up.shape[:-1], inner), dtype=gate_up.dtype)
        lib.swiglu(pointer(gate_up), c_int64(out.numel() // inner), c_int64(inner), pointer(out),
                   c_int(gate_up.dtype == BF16))
        ctx.lib = lib
        ctx.save_for_backward(gate_up)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        (gate_up,) = ctx.saved_tensors
        grad, inner, out = grad.contiguous(), gate_up.shape[-1] // 2, torch.empty_like(gate_up)
        ctx.lib.swiglu_grad(pointer(gate_up), pointer(grad), c_int64(grad.numel() // inner), c_int64(inner),
                            pointer(out), c_int(gate_up.dtype == BF16))
        return None, out


class SelfAttention(torch.autograd.Function):
    """Rotary attention over intervals of keys; see ``ops.self_attention``. Keeps nothing but its input."""

    @staticmethod
    def forward(ctx: Any, lib: ctypes.CDLL, qkv: Tensor, rotary: Tensor, first: Tensor,
                heads: tuple[int, int, int]) -> Tensor:
        qkv, rotary = qkv.contiguous(), rotary.contiguous()
        out = torch.empty((*qkv.shape[:2], heads[0] * heads[2]), dtype=qkv.dtype)
        lib.attention(ctypes.byref(_shape(qkv, rotary, first, heads)), pointer(qkv), pointer(out))
        ctx.lib, ctx.heads = lib, heads
        ctx.save_for_backward(qkv, rotary, first)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        qkv, rotary, first = ctx.saved_tensors
        grad, out = grad.contiguous(), torch.empty_like(qkv)
        ctx.lib.attention_grad(ctypes.byref(_shape(qkv, rotary, first, ctx.heads)), pointer(qkv), pointer(grad),
                               pointer(out))
        return None, out, None, None, None


def _shape(qkv: Tensor, rotary: Tensor, first: Tensor, heads: tuple[int, int, int]) -> Shape:
    rows, steps, _ = qkv.shape
    stride = 0 if rotary.shape[1] == 1 else rotary.stride(1)
    return Shape(rows, steps, *heads, int(qkv.dtype == BF16), pointer(rotary[0]), pointer(rotary[1]), stride,
                 pointer(first))


def first_keys(documents: Tensor | None, rows: int, steps: int) -> Tensor:
    """``(B, T)`` int32: the first key each causal query sees; a padded token sees itself only."""
    if documents is None:
        return torch.zeros((rows, steps), dtype=torch.int32)
    at = torch.arange(steps).expand(rows, steps)
    starts = torch.ones((rows, steps), dtype=torch.bool)
    starts[:, 1:] = (documents[:, 1:] != documents[:, :-1]) | (documents[:, 1:] < 0)
    return torch.where(starts, at, 0).cummax(1).values.int()


def cross_entropy_(lib: ctypes.CDLL, logits: Tensor, targets: Tensor, weights: Tensor, *, learning: bool) -> Tensor:
    """Weighted losses ``(n,)`` of ``logits (n, V)``, which become their own gradient in place where ``learning``."""
    losses = torch.empty(len(logits))
    lib.cross_entropy(pointer(logits), c_int(logits.dtype == BF16), pointer(targets), pointer(weights),
                      c_int64(len(logits)), c_int64(logits.shape[1]), pointer(losses), c_int(learning))
    return losses


def attention_step(lib: ctypes.CDLL, qkv: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, table: Tensor,
                   heads: tuple[int, int, int]) -> Tensor:
    """One new token a row: ``qkv (B, 1, (H + 2 Hkv) D)`` is appended to the caches ``(B, Hkv, capacity, D)`` at
    ``lengths (B,)`` and attends over its row; ``table (2, context, D / 2)``. Not differentiable; ``(B, 1, H D)``."""
    out = torch.empty((len(qkv), 1, heads[0] * heads[2]), dtype=qkv.dtype)
    shape = Shape(len(qkv), keys.shape[2], *heads, int(qkv.dtype == BF16), pointer(table[0]),
                  pointer(table[1]), 0, None)
    lib.attention_step(ctypes.byref(shape), pointer(qkv.contiguous()), pointer(keys), pointer(values),
                       pointer(lengths), pointer(out))
    return out
