"""Low-rank adaptation (LoRA: Hu 2021, arXiv 2106.09685): small matrices learned beside a linear map that stays."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cutaway.nn.linear import Linear, linear


class LowRank(nn.Module):
    """``base(x) + scale (up_i (down_i x))`` for each part of the base's rows, in their order.

    A part is what is a matrix of its own in a public format (queries, keys and values of one product): each has its
    ``down (rank, inputs)``, drawn, and ``up (rows, rank)``, 0 at first, so that nothing changes before it learns. A
    part of rank 0 learns nothing. ``scale`` is alpha / rank, or alpha / sqrt(rank) where ``rooted`` (Kalajdzievski
    2023, arXiv 2312.03732).
    """

    def __init__(self, base: Linear, rows: Sequence[int], ranks: Sequence[int], *, alpha: float, dropout: float = 0.0,
                 rooted: bool = False) -> None:
        super().__init__()
        self.base, self.rows, self.dropout = base, tuple(rows), dropout
        inputs = base.weight.shape[1]
        self.down = nn.ParameterList(torch.empty(rank, inputs, device=base.weight.device) for rank in ranks)
        self.up = nn.ParameterList(torch.zeros(count, rank, device=base.weight.device)
                                   for count, rank in zip(rows, ranks, strict=True))
        self.scales = tuple(alpha / (math.sqrt(rank) if rooted else rank) if rank else 0.0 for rank in ranks)
        for parameter in base.parameters():
            parameter.requires_grad_(False)

    @property
    def weight(self) -> Tensor:
        """The base's."""
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        dropped = F.dropout(x, self.dropout, self.training) if self.dropout else x
        beside = [self._part(dropped, i) for i in range(len(self.rows))]
        out: Tensor = self.base(x) + (beside[0] if len(beside) == 1 else torch.cat(beside, -1))
        return out

    def _part(self, x: Tensor, i: int) -> Tensor:
        if not self.scales[i]:
            return x.new_zeros((*x.shape[:-1], self.rows[i]))
        return linear(linear(x, self.down[i]), self.up[i]) * self.scales[i]

    def merged(self) -> Linear:
        """The base with what was learned added to its weight: the same function, no dearer than before."""
        with torch.no_grad():
            change = torch.cat([scale * (up @ down) for scale, up, down in zip(self.scales, self.up, self.down,
                                                                               strict=True)])
            self.base.weight.add_(change)
        for parameter in self.base.parameters():
            parameter.requires_grad_(True)
        return self.base

    def draw(self, generator: torch.Generator) -> None:
        """First weights: ``down`` uniform within 1 / sqrt(inputs), as peft has it; ``up`` zero."""
        with torch.no_grad():
            for down, up in zip(self.down, self.up, strict=True):
                limit = 1 / math.sqrt(down.shape[1])
                down.copy_((2 * torch.rand(down.shape, generator=generator) - 1) * limit)
                up.zero_()
