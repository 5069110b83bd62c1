"""Positions: rotary (Su et al. 2021, arXiv 2104.09864) in Llama's half-split layout, and T5's relative bias."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

BUCKETS, FARTHEST = 32, 128  # T5's own; Raffel et al. 2020, arXiv 1910.10683


def rotary_table(head_size: int, length: int, *, theta: float, device: torch.device | None = None) -> Tensor:
    """``(2, length, head_size / 2)`` float32: cosines and sines of position x frequency."""
    # float64 inside, so that far positions lose nothing
    frequency = theta ** (-torch.arange(0, head_size, 2, dtype=torch.float64) / head_size)
    angle = torch.outer(torch.arange(length, dtype=torch.float64), frequency)
    return torch.stack((angle.cos(), angle.sin())).float().to(device)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn ``x (B, T, H, head_size)`` by ``cos, sin (B or 1, T, 1, head_size / 2)``; computed in float32."""
    a, b = x.float().chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)


def bucket(distance: Tensor, *, both_ways: bool) -> Tensor:
    """T5's bucket of ``key position - query position``: one for each near distance, wider and wider ones behind.

    ``both_ways`` gives half of the buckets to keys that stand after the query; otherwise those share bucket 0.
    """
    count = BUCKETS // 2 if both_ways else BUCKETS
    after = (distance > 0).long() * count if both_ways else torch.zeros_like(distance)
    away = distance.abs() if both_ways else (-distance).clamp(min=0)
    near = count // 2
    # in float32 as the public implementation does it, so that border distances fall into the same bucket
    far = near + (torch.log(away.float() / near) / math.log(FARTHEST / near) * (count - near)).long()
    return after + torch.where(away < near, away, far.clamp(max=count - 1))


def by_distance(table: Tensor, queries: int, keys: int) -> Tensor:
    """``RelativeBias.table`` laid out as ``(1, H, T, S)``."""
    at = torch.arange(keys, device=table.device) - torch.arange(queries, device=table.device)[:, None]
    return table[:, at + queries - 1][None]


class RelativeBias(nn.Module):
    """A learned number for each head and bucket of distance, added to the scores of attention."""

    def __init__(self, num_heads: int, *, both_ways: bool) -> None:
        super().__init__()
        self.both_ways = both_ways
        self.weight = nn.Parameter(torch.empty(BUCKETS, num_heads))

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Positions ``(B or 1, T)`` and ``(S,)`` -> ``(B or 1, H, T, S)`` float32."""
        away = bucket(keys[None, None, :] - queries[:, :, None], both_ways=self.both_ways)
        return self.weight[away].permute(0, 3, 1, 2)

    def table(self, queries: int, keys: int) -> Tensor:
        """The same for whole sequences: only ``key - query`` counts, at ``key - query + T - 1`` of
        ``(H, T - 1 + S)`` float32; S is filled up to 32, the width of a kernel's tile."""
        away = torch.arange(1 - queries, (keys + 31) // 32 * 32, device=self.weight.device)
        return self.weight[bucket(away, both_ways=self.both_ways)].T.contiguous()

    def adjust_initial(self) -> None:
        """No position is preferred at first."""
        nn.init.zeros_(self.weight)
