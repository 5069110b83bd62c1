"""One attention: grouped heads (Ainslie et al. 2023, arXiv 2305.13245), rotary positions, a mask or a cache.

B rows, T queries, S keys, H query heads, Hkv key heads, D head size.
"""

from __future__ import annotations

from ctypes import CDLL
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from cutaway.nn import fused, ops
from cutaway.nn.cache import KVCache
from cutaway.nn.linear import Linear
from cutaway.nn.position import rotate


@dataclass(frozen=True, slots=True)
class Where:
    """What all layers of one forward pass share: rotary angles of each token and who may see whom."""

    rotary: Tensor  # (2, B or 1, T, D / 2)
    documents: Tensor | None = None  # (B, T) packed documents
    seen: Tensor | None = None  # (B or 1, 1, T, S) dense mask over a cache
    causal: bool = True
    counts: Tensor | None = None  # (B,) real tokens of each row when reading into a cache
    step: CDLL | None = None  # one token a row behind a cache: the kernels do it, ``rotary`` is the whole table


class Attention(nn.Module):
    """``x (B, T, width) -> (B, T, width)``; queries, keys and values come from one product."""

    def __init__(self, width: int, *, num_heads: int, num_kv_heads: int, head_size: int) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_size = num_heads, num_kv_heads, head_size
        self.qkv = Linear(width, (num_heads + 2 * num_kv_heads) * head_size)
        self.out = Linear(num_heads * head_size, width)

    def forward(self, x: Tensor, where: Where, cache: tuple[int, KVCache] | None = None) -> Tensor:
        qkv = self.qkv(x)
        heads = (self.num_heads, self.num_kv_heads, self.head_size)
        if cache is None:
            mixed = ops.self_attention(qkv, where.rotary, heads, documents=where.documents, causal=where.causal)
        else:
            mixed = self._cached(qkv, where, *cache)
        out: Tensor = self.out(mixed)
        return out

    def _cached(self, qkv: Tensor, where: Where, layer: int, state: KVCache) -> Tensor:
        if where.step is not None:
            keys, values = state.room(layer)
            heads = (self.num_heads, self.num_kv_heads, self.head_size)
            return fused.attention_step(where.step, qkv, keys, values, state.lengths, where.rotary, heads)
        rows, steps, _ = qkv.shape
        sizes = [self.num_heads, self.num_kv_heads, self.num_kv_heads]
        q, k, v = qkv.view(rows, steps, -1, self.head_size).split(sizes, 2)  # (B, T, H, D)
        cos, sin = where.rotary[0, :, :, None], where.rotary[1, :, :, None]
        k, v = state.write(layer, rotate(k, cos, sin), v, where.counts)  # (B, Hkv, S, D)
        # a group's query heads share its keys, so they become rows of one product: (B, Hkv, G*T, D)
        group = self.num_heads // self.num_kv_heads
        q = rotate(q, cos, sin).view(rows, steps, self.num_kv_heads, group, -1).permute(0, 2, 3, 1, 4)
        q = q.reshape(rows, self.num_kv_heads, group * steps, -1)
        seen = where.seen
        if seen is not None and group > 1 and steps > 1:
            seen = seen.repeat(1, 1, group, 1)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)  # (B, Hkv, G*T, D)
        mixed = mixed.view(rows, self.num_kv_heads, group, steps, -1).permute(0, 3, 1, 2, 4)
        return mixed.reshape(rows, steps, -1)
