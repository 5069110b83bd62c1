"""RMS normalisation (Zhang & Sennrich 2019, arXiv 1910.07467), with the residual addition that precedes it fused in."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cutaway.nn import ops


class RMSNorm(nn.Module):
    """``x / rms(x) * weight`` over the last axis.

    The residual stream stays in float32 and the result is given in the arithmetic of the matrix products,
    so bfloat16 rounds what enters a product and never the running sum.
    """

    def __init__(self, width: int, *, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor, delta: Tensor | None = None, *, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """``(x + delta, normalised in dtype)`` for ``x (B, T, D)`` float32 and ``delta (B, T, D)`` or None."""
        return ops.add_rms_norm(x, delta, self.weight, eps=self.eps, dtype=dtype)
