"""Normalisation of the residual stream: RMS (Zhang & Sennrich 2019, arXiv 1910.07467) and layer (Ba et al. 2016,
arXiv 1607.06450), with the residual addition that precedes it fused in."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from cutaway.nn import ops

NormKind = Literal["rms", "layer", "none"]


class Norm(nn.Module):
    """``x / rms(x) * weight`` over the last axis, or the same after the mean is taken away, plus a ``bias`` if there is
    one; ``none`` leaves ``x``.

    The residual stream stays in float32 and the result is given in the arithmetic of the matrix products,
    so bfloat16 rounds what enters a product and never the running sum.
    """

    def __init__(self, kind: NormKind, width: int, *, eps: float, bias: bool = False) -> None:
        super().__init__()
        self.kind, self.eps = kind, eps
        self.weight = None if kind == "none" else nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias and kind != "none" else None

    def forward(self, x: Tensor, delta: Tensor | None = None, *, dtype: torch.dtype,
                post: bool = False) -> tuple[Tensor, Tensor]:
        """``(x + delta, normalised in dtype)`` for ``x (B, T, D)`` float32 and ``delta (B, T, D)`` or None; where
        ``post``, ``(normalised in float32, normalised in dtype)``."""
        if self.weight is None:
            total = x if delta is None else x + delta.float()
            return total, total.to(dtype)
        return ops.add_norm(x, delta, self.weight, self.bias, eps=self.eps, dtype=dtype, center=self.kind == "layer",
                            post=post)
