"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864), in Llama's half-split layout."""

from __future__ import annotations

import torch
from torch import Tensor


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
