"""The few operations a transformer spends its time in, each one differentiable function.

Each has a plain PyTorch form; on a CPU with a C compiler the fused kernels of ``csrc/`` do the same
arithmetic in fewer passes over memory. B rows, T tokens, D width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from cutaway.nn import fused
from cutaway.nn.kernels import library_for
from cutaway.nn.linear import KERNEL_OF, Activation, linear
from cutaway.nn.mask import Interval
from cutaway.nn.memory import made_again
from cutaway.nn.position import by_distance, rotate

Heads = tuple[int, int, int]  # query heads, key/value heads, head size


def add_norm(x: Tensor, delta: Tensor | None, weight: Tensor, shift: Tensor | None = None, *, eps: float,
             dtype: torch.dtype, center: bool, post: bool = False) -> tuple[Tensor, Tensor]:
    """``x + delta`` in float32 and its normalised value in ``dtype``; all ``(B, T, D)``, ``weight`` and ``shift``
    ``(D,)``. Where ``post``, the normalised value in float32 and in ``dtype``.

    Divided by the root mean square; ``center`` takes the mean away first, which is layer norm.
    """
    lib = library_for(x, delta, weight, shift)
    if lib is not None and not torch.is_grad_enabled():
        return fused.add_norm(lib, x, delta, weight, shift, eps, dtype, center=center, post=post)[:2]
    if shift is not None or post:
        total, normed = add_norm(x, delta, weight, eps=eps, dtype=torch.float32, center=center)
        normed = normed if shift is None else normed + shift
        return normed if post else total, normed.to(dtype)
    if lib is not None:
        both: tuple[Tensor, Tensor] = fused.AddNorm.apply(lib, x, delta, weight, eps, dtype, center)  # type: ignore[no-untyped-call]
        return both
    total = x if delta is None else x + delta.float()
    if center:
        return total, F.layer_norm(total, total.shape[-1:], weight, None, eps).to(dtype)
    scale = torch.rsqrt(total.square().mean(-1, keepdim=True) + eps)
    return total, (total * scale * weight).to(dtype)


def gated(gate_up: Tensor, activation: Activation) -> Tensor:
    """``activation(gate) * up`` for ``gate_up (B, T, 2 I)``, the gate first; ``(B, T, I)``."""
    lib = library_for(gate_up)
    if lib is not None and not torch.is_grad_enabled():
        return fused.gated(lib, gate_up.contiguous(), KERNEL_OF[activation])
    if lib is not None:
        out: Tensor = fused.Gated.apply(lib, gate_up, KERNEL_OF[activation])  # type: ignore[no-untyped-call]
        return out
    gate, up = gate_up.chunk(2, -1)
    if activation == "silu":
        return (F.silu(gate.float()) * up).to(gate_up.dtype)
    return F.gelu(gate, approximate="tanh" if activation == "gelu_tanh" else "none") * up


def gated_linear(gate_up: Tensor, weight: Tensor, activation: Activation) -> Tensor:
    """``gated(gate_up) @ weight.T`` for ``gate_up (B, T, 2 I)`` and ``weight (D, I)``, cast to that dtype;
    ``(B, T, D)``. For the backward pass ``gate_up`` alone is kept: the gate's output is made again."""
    lib = library_for(gate_up, weight)
    if lib is not None:
        out: Tensor = fused.GatedLinear.apply(lib, gate_up, weight, KERNEL_OF[activation])  # type: ignore[no-untyped-call]
        return out
    inner = gated(gate_up, activation)
    with made_again(inner, lambda: gated(gate_up, activation)):
        return linear(inner, weight)


def self_attention(qkv: Tensor, rotary: Tensor | None, heads: Heads, *, seen: Interval, bias: Tensor | None = None,
                   scale: float | None = None) -> Tensor:
    """Rotary positions where given, then softmax(q k scale + bias) v over the keys each query sees.

    ``qkv (B, T, (H + 2 Hkv) D)``, ``rotary (2, B or 1, T, D / 2)``, ``bias`` one of ``RelativeBias.table`` or None,
    ``scale`` 1/sqrt(D) if not given; ``(B, T, H D)``.
    """
    rows, steps, _ = qkv.shape
    num_heads, num_kv, size = heads
    lib = library_for(qkv, bias)
    if lib is not None:
        look = fused.Look(heads, size**-0.5 if scale is None else scale, seen)
        out: Tensor = fused.SelfAttention.apply(lib, qkv, rotary, bias, look)  # type: ignore[no-untyped-call]
        return out
    q, k, v = qkv.view(rows, steps, -1, size).split([num_heads, num_kv, num_kv], 2)
    if rotary is not None:
        cos, sin = rotary[0, :, :, None], rotary[1, :, :, None]
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    plain = seen.causal and seen.first is None and bias is None
    dense = None if plain else seen.dense(steps, steps, qkv.device)
    mixed = attend(q, k, v, seen=dense, bias=None if bias is None else by_distance(bias, steps, steps), causal=plain,
                   scale=scale)
    return mixed.transpose(1, 2).reshape(rows, steps, -1)


def cross_attention(q: Tensor, kv: Tensor, heads: Heads, *, seen: Interval, scale: float | None = None) -> Tensor:
    """``q (B, T, H D)`` over the keys and values ``kv (B, S, 2 Hkv D)`` of another sequence; ``(B, T, H D)``."""
    num_heads, num_kv, size = heads
    lib = library_for(q, kv)
    if lib is not None:
        look = fused.Look(heads, size**-0.5 if scale is None else scale, seen)
        out: Tensor = fused.CrossAttention.apply(lib, q, kv, look)  # type: ignore[no-untyped-call]
        return out
    rows, steps, source = len(q), q.shape[1], kv.shape[1]
    k, v = kv.view(rows, source, 2, num_kv, size).permute(2, 0, 3, 1, 4)
    q = q.view(rows, steps, num_heads, size).transpose(1, 2)
    mixed = attend(q, k, v, seen=seen.dense(steps, source, q.device), scale=scale)
    return mixed.transpose(1, 2).reshape(rows, steps, -1)


def attend(q: Tensor, k: Tensor, v: Tensor, *, seen: Tensor | None, bias: Tensor | None = None, causal: bool = False,
           scale: float | None = None) -> Tensor:
    """Softmax attention of ``q (B, H, T, D)`` over ``k, v (B, Hkv, S, D)``: only where ``seen`` (bool, broadcast to
    ``(B, H, T, S)``) and with ``bias`` added to the scores; ``(B, H, T, D)``."""
    allowed = seen
    if bias is not None:
        allowed = bias if seen is None else bias.masked_fill(~seen, -torch.inf)
        allowed = allowed.to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, is_causal=causal, scale=scale,
                                          enable_gqa=q.shape[1] != k.shape[1])


def _losses(logits: Tensor, targets: Tensor, weights: Tensor, *, learning: bool,
            smoothing: float) -> tuple[Tensor, Tensor]:
    """Weighted losses ``(n,)`` and their gradient ``(n, V)`` by the logits, in the logits' dtype."""
    if smoothing:
        return _smoothed(logits, targets, weights, learning=learning, smoothing=smoothing)
    lib = library_for(logits, weights)
    if lib is not None:
        return fused.cross_entropy_(lib, logits, targets, weights, learning=learning), logits
    logs = torch.log_softmax(logits.float(), -1)
    losses = -logs.gather(1, targets[:, None]).squeeze(1) * weights
    slope = logs.exp_().mul_(weights[:, None]).scatter_add_(1, targets[:, None], -weights[:, None])
    return losses, slope.to(logits.dtype)


def _smoothed(logits: Tensor, targets: Tensor, weights: Tensor, *, learning: bool,
              smoothing: float) -> tuple[Tensor, Tensor]:
    """The same with ``smoothing`` of each target's weight on all V words alike: ``smoothing (logit - mean logit)`` of
    the target more than without."""
    at, share = targets[:, None], weights[:, None] * smoothing
    more = (logits.gather(1, at).float() - logits.mean(1, keepdim=True, dtype=torch.float32)) * share
    losses, slope = _losses(logits, targets, weights, learning=learning, smoothing=0.0)
    if learning:
        slope.sub_((share / logits.shape[1]).to(slope.dtype)).scatter_add_(1, at, share.to(slope.dtype))
    return losses + more.squeeze(1), slope


class _LinearCrossEntropy(torch.autograd.Function):
    """Sum of weighted negative log-likelihoods; the gradient is formed while each chunk's logits exist."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor, chunk: int,
                smoothing: float) -> Tensor:
        cast = weight.to(hidden.dtype)
        # asked of ctx: inside, a tensor never says so itself; a frozen head has no gradient of a vocabulary's size
        learning = any(ctx.needs_input_grad[:2])
        grad_hidden = torch.zeros_like(hidden) if learning else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        total = torch.zeros((), dtype=torch.float64 if hidden.device.type == "cpu" else torch.float32,
                            device=hidden.device)
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            h = hidden[part]
            losses, slope = _losses(h @ cast.T, targets[part], weights[part], learning=learning,
                                    smoothing=smoothing)
            total += losses.sum(dtype=total.dtype)
            if grad_hidden is not None:
                torch.mm(slope, cast, out=grad_hidden[part])
            if grad_weight is not None:
                grad_weight += slope.T @ h
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.spent = False
        return total.float()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # scaled in place: a second gradient of a vocabulary's size would be the largest tensor of a step
        if ctx.spent:
            raise RuntimeError("the gradient of linear_cross_entropy was already taken; call it again")
        ctx.spent = True
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden.mul_(grad), None if grad_weight is None else grad_weight.mul_(grad), None, None, None, None


def learned(hidden: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``hidden (B, T, D)``, ``targets (B, T)`` and ``weights (B, T)`` as ``(n, D)``, ``(n,)`` and ``(n,)``.

    Where many positions have weight 0 they are left out, so that no head runs there.
    """
    hidden, targets, weights = hidden.flatten(0, 1), targets.flatten(), weights.flatten()
    kept = weights.nonzero().squeeze(1)
    if len(kept) < 0.9 * len(weights):  # a few positions without weight cost less than copying the others
        hidden, targets, weights = hidden.index_select(0, kept), targets[kept], weights[kept]
    return hidden, targets, weights


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor, *, chunk: int,
                         smoothing: float = 0.0) -> Tensor:
    """``-sum(weights * log softmax(hidden @ weight.T)[targets])``, a float32 scalar; with ``smoothing``, that share of
    each weight lies on all V words alike (Szegedy 2016, arXiv 1512.00567).

    ``hidden (n, D)``, ``weight (V, D)``, ``targets (n,)``, ``weights (n,)``. Peak memory is ``chunk x V`` logits,
    whatever n is.
    """
    out: Tensor = _LinearCrossEntropy.apply(hidden, weight, targets, weights, chunk,  # type: ignore[no-untyped-call]
                                      smoothing)
    return out


class _LinearLogprobs(torch.autograd.Function):
    """``log softmax(hidden @ weight.T / temperature)[targets]`` chunk by chunk. Where the weight is frozen the gradient
    by each hidden state is formed while its logits exist, and only scaled in the backward pass; where it learns the
    logits are made again there, because its gradient is a sum over positions whose factors are not known before."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, chunk: int) -> Tensor:
        cast, ready = weight.to(hidden.dtype), ctx.needs_input_grad[0] and not ctx.needs_input_grad[1]
        out = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        slopes = torch.empty_like(hidden) if ready else None
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            logits = hidden[part] @ cast.T
            logits = logits if temperature == 1 else logits.div_(temperature)
            less = torch.full((len(logits),), -1.0, device=hidden.device)
            out[part], slope = _losses(logits, targets[part], less, learning=ready, smoothing=0.0)
            if slopes is not None:
                torch.mm(slope, cast, out=slopes[part])
        ctx.save_for_backward(*((None, None, None, slopes) if ready else (hidden, weight, targets, None)))
        ctx.temperature, ctx.chunk = temperature, chunk
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, slopes = ctx.saved_tensors
        grad = grad / ctx.temperature
        if slopes is not None:
            return slopes * grad[:, None].to(slopes.dtype), None, None, None, None
        cast, grad_hidden = weight.to(hidden.dtype), torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        for start in range(0, len(hidden), ctx.chunk):
            part = slice(start, start + ctx.chunk)
            logits = hidden[part] @ cast.T
            logits = logits if ctx.temperature == 1 else logits.div_(ctx.temperature)
            _, slope = _losses(logits, targets[part], -grad[part], learning=True, smoothing=0.0)
            torch.mm(slope, cast, out=grad_hidden[part])
            grad_weight += slope.T @ hidden[part]
        return grad_hidden, grad_weight, None, None, None


def linear_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor, kept: Tensor, *, temperature: float,
                    chunk: int) -> Tensor:
    """``log softmax(hidden @ weight.T / temperature)[targets]`` ``(B, T)``, 0 where ``kept`` is False; differentiable.

    No more than a chunk's logits exist at once.
    """
    at = kept.flatten().nonzero().squeeze(1)
    flat, chosen = hidden.flatten(0, 1)[at], targets.flatten()[at]
    logs: Tensor = _LinearLogprobs.apply(flat, weight, chosen, temperature, chunk)  # type: ignore[no-untyped-call]
    # no target at all still ties the zeros to the graph: a micro-batch may have nothing to learn
    return torch.zeros(kept.numel(), device=hidden.device).index_put((at,), logs).view(kept.shape)
