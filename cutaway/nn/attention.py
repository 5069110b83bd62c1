"""Attention: grouped heads (Ainslie et al. 2023, arXiv 2305.13245) over oneself, a cache, or another sequence.

B rows, T queries, S keys, H query heads, Hkv key heads, D head size.
"""

from __future__ import annotations

from ctypes import CDLL
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from cutaway.nn import fused, ops
from cutaway.nn.cache import Carried, Memory
from cutaway.nn.linear import Linear
from cutaway.nn.mask import Interval
from cutaway.nn.norm import Norm
from cutaway.nn.position import rotate

Biases = Literal["none", "qkv", "all"]  # which products of attention add one


@dataclass(frozen=True, slots=True)
class Where:
    """What all layers of one forward pass share: positions of the tokens, and who may see whom."""

    rotary: Tensor | None  # (2, B or 1, T, D / 2)
    keys: Interval = Interval(causal=True)  # noqa: RUF009 - frozen; of the row itself
    table: Tensor | None = None  # (H, T - 1 + T) relative positions of whole rows
    bias: Tensor | None = None  # (B or 1, H, T, S) relative positions over a cache
    seen: Tensor | None = None  # (B or 1, 1, T, S) dense mask over a cache
    counts: Tensor | None = None  # (B,) real tokens of each row when reading into a cache
    step: CDLL | None = None  # one token a row behind a cache: the kernels do it, ``rotary`` is the whole table
    memory: Tensor | None = None  # (B, S, width) hidden states of the source
    source: Interval = Interval()  # noqa: RUF009 - frozen; which places of the source each token sees
    real: Tensor | None = None  # (B, 1, 1, S) which places of a cached source hold a token


class Attention(nn.Module):
    """``x (B, T, width) -> (B, T, width)``; queries, keys and values come from one product. Scores are
    multiplied with ``scale``, 1/sqrt(D) where it is None; with ``head_norm`` queries and keys are normalised before."""

    def __init__(self, width: int, heads: ops.Heads, *, scale: float | None = None, biases: Biases = "none",
                 head_norm: float | None = None) -> None:
        super().__init__()
        self.heads, self.scale = heads, scale
        num_heads, num_kv_heads, head_size = heads
        self.qkv = Linear(width, (num_heads + 2 * num_kv_heads) * head_size, bias=biases != "none")
        self.out = Linear(num_heads * head_size, width, bias=biases == "all")
        self.query_norm = None if head_norm is None else Norm("rms", head_size, eps=head_norm)
        self.key_norm = None if head_norm is None else Norm("rms", head_size, eps=head_norm)

    def forward(self, x: Tensor, where: Where, cache: tuple[int, Carried] | None = None) -> Tensor:
        qkv = self._normed(self.qkv(x))
        if cache is None:
            mixed = ops.self_attention(qkv, where.rotary, self.heads, seen=where.keys, bias=where.table,
                                       scale=self.scale)
        else:
            mixed = self._cached(qkv, where, *cache)
        out: Tensor = self.out(mixed)
        return out

    def _normed(self, qkv: Tensor) -> Tensor:
        """Queries and keys of length one a dimension, head by head (Qwen 3, Gemma 3)."""
        if self.query_norm is None or self.key_norm is None:
            return qkv
        num_heads, num_kv_heads, size = self.heads
        q, k, v = qkv.unflatten(-1, (-1, size)).split([num_heads, num_kv_heads, num_kv_heads], -2)
        q, k = (norm(part.float(), dtype=qkv.dtype)[1] for norm, part in ((self.query_norm, q), (self.key_norm, k)))
        return torch.cat((q, k, v), -2).flatten(-2)

    def _cached(self, qkv: Tensor, where: Where, layer: int, state: Carried) -> Tensor:
        num_heads, num_kv_heads, size = self.heads
        if where.step is not None:
            room = state.room(layer)
            assert where.rotary is not None and room is not None
            return fused.attention_step(where.step, qkv, *room, state.lengths, where.rotary, self.heads,
                                        scale=self.scale)
        rows, steps, _ = qkv.shape
        q, k, v = qkv.view(rows, steps, -1, size).split([num_heads, num_kv_heads, num_kv_heads], 2)  # (B, T, H, D)
        if where.rotary is not None:
            cos, sin = where.rotary[0, :, :, None], where.rotary[1, :, :, None]
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k, v = state.write(layer, k, v, where.counts)  # (B, Hkv, S, D)
        mixed = self._grouped(q, k, v, where.seen, where.bias)
        return mixed.reshape(rows, steps, -1)

    def _grouped(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, bias: Tensor | None) -> Tensor:
        """A group's query heads share its keys, so they become rows of one product: ``(B, Hkv, G*T, D)``."""
        rows, steps, num_heads, size = q.shape
        num_kv_heads = k.shape[1]
        group = num_heads // num_kv_heads
        q = q.view(rows, steps, num_kv_heads, group, size).permute(0, 2, 3, 1, 4)
        q = q.reshape(rows, num_kv_heads, group * steps, size)
        if seen is not None and group > 1 and seen.shape[2] > 1:
            seen = seen.repeat(1, 1, group, 1)
        if bias is not None:
            bias = bias.reshape(len(bias), num_kv_heads, group * steps, -1)
        mixed = ops.attend(q, k, v, seen=seen, bias=bias, scale=self.scale)  # (B, Hkv, G*T, D)
        return mixed.view(rows, num_kv_heads, group, steps, size).permute(0, 3, 1, 2, 4)

    def adjust_initial(self) -> None:
        """Scores begin as large as those of 1/sqrt(D)."""
        if self.scale is not None:
            with torch.no_grad():
                self.qkv.weight[: self.heads[0] * self.heads[2]].mul_(self.heads[2] ** -0.5 / self.scale)


class Remembering(Protocol):
    """The state of a decoder that may hold the memory of a source."""

    memory: Memory | None


class CrossAttention(nn.Module):
    """``x (B, T, width)`` looks at a source ``(B, S, width)``; the source's keys and values can be made once."""

    def __init__(self, width: int, heads: ops.Heads, *, scale: float | None = None) -> None:
        super().__init__()
        self.heads, self.scale = heads, scale
        self.query = Linear(width, heads[0] * heads[2])
        self.key_value = Linear(width, 2 * heads[1] * heads[2])
        self.out = Linear(heads[0] * heads[2], width)

    def keys_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """``memory (B, S, width)`` -> keys and values ``(B, Hkv, S, D)``."""
        rows, source, _ = memory.shape
        k, v = self.key_value(memory).view(rows, source, 2, self.heads[1], self.heads[2]).unbind(2)
        return k.transpose(1, 2), v.transpose(1, 2)

    def forward(self, x: Tensor, where: Where, cache: tuple[int, Remembering] | None = None) -> Tensor:
        q = self.query(x)
        if cache is None:
            assert where.memory is not None
            mixed = ops.cross_attention(q, self.key_value(where.memory), self.heads, seen=where.source,
                                        scale=self.scale)
        else:
            mixed = self._cached(q, where, *cache)
        out: Tensor = self.out(mixed)
        return out

    def _cached(self, q: Tensor, where: Where, layer: int, state: Remembering) -> Tensor:
        assert state.memory is not None
        k, v = state.memory.keys[layer], state.memory.values[layer]
        # rows that share a source are queries of one product
        rows = q.view(len(k), -1, self.heads[0], self.heads[2]).transpose(1, 2)
        mixed = ops.attend(rows, k, v, seen=where.real, scale=self.scale)
        return mixed.transpose(1, 2).reshape(q.shape)

    def adjust_initial(self) -> None:
        """Scores begin as large as those of 1/sqrt(D)."""
        if self.scale is not None:
            with torch.no_grad():
                self.query.weight.mul_(self.heads[2] ** -0.5 / self.scale)
