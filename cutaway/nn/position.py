"""Positions: rotary (Su et al. 2021, arXiv 2104.09864) in Llama's half-split layout, stretched for long contexts as
public models have it, and T5's relative bias."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from cutaway.settings import Settings

BUCKETS, FARTHEST = 32, 128  # T5's own; Raffel et al. 2020, arXiv 1910.10683


class LinearStretch(Settings):
    """Every angle divided by ``factor`` (Chen 2023, arXiv 2306.15595)."""

    kind: Literal["linear"] = "linear"
    factor: float = Field(gt=0)


class Llama3Stretch(Settings):
    """Slow angles divided by ``factor``, fast ones kept, those between blended: fast and slow by how often they turn in
    the ``original`` context (Llama 3.1, Dubey 2024, arXiv 2407.21783)."""

    kind: Literal["llama3"] = "llama3"
    factor: float = Field(gt=0)
    low: float = Field(gt=0)
    high: float = Field(gt=0)
    original: int = Field(ge=1)


class YarnStretch(Settings):
    """The same with a ramp over the dimensions, between those that turn ``fast`` and ``slow`` times in the ``original``
    context, and scores made ``attention`` squared times sharper (Peng 2023, arXiv 2309.00071)."""

    kind: Literal["yarn"] = "yarn"
    factor: float = Field(gt=0)
    original: int = Field(ge=1)
    fast: float = Field(default=32.0, gt=0, le=1e6)
    slow: float = Field(default=1.0, gt=0, le=1e6)
    attention: float = Field(default=1.0, gt=0)
    whole: bool = True  # the ramp's ends are whole dimensions


AnyStretch = LinearStretch | Llama3Stretch | YarnStretch
Stretch = Annotated[AnyStretch, Field(discriminator="kind")]


def frequencies(head_size: int, theta: float, stretch: AnyStretch | None) -> Tensor:
    """``(head_size / 2,)`` float64: radians a token."""
    # float64, so that far positions lose nothing
    plain = theta ** (-torch.arange(0, head_size, 2, dtype=torch.float64) / head_size)
    if stretch is None:
        return plain
    if isinstance(stretch, LinearStretch):
        return plain / stretch.factor
    if isinstance(stretch, Llama3Stretch):
        turns = stretch.original * plain / (2 * math.pi)
        kept = ((turns - stretch.low) / (stretch.high - stretch.low)).clamp(0, 1)
        return (1 - kept) * plain / stretch.factor + kept * plain
    ends = [head_size * math.log(stretch.original / (turns * 2 * math.pi)) / (2 * math.log(theta))
            for turns in (stretch.fast, stretch.slow)]
    low, high = (math.floor(ends[0]), math.ceil(ends[1])) if stretch.whole else ends
    low, high = max(low, 0), min(high, head_size - 1)
    ramp = (torch.arange(head_size // 2, dtype=torch.float64) - low) / max(high - low, 0.001)
    divided = ramp.clamp(0, 1)
    return divided * plain / stretch.factor + (1 - divided) * plain


def rotary_table(head_size: int, length: int, *, theta: float, stretch: AnyStretch | None = None,
                 device: torch.device | None = None) -> Tensor:
    """``(2, length, head_size / 2)`` float32: cosines and sines of position x frequency."""
    # equal on every device, and for a sketch without memory torch would import its compiler: two seconds
    with torch.device("cpu"):
        angle = torch.outer(torch.arange(length, dtype=torch.float64), frequencies(head_size, theta, stretch))
    sharper = stretch.attention if isinstance(stretch, YarnStretch) else 1.0
    return (torch.stack((angle.cos(), angle.sin())) * sharper).float().to(device)


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
