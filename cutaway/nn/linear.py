"""The one linear map: float32 master weights, arithmetic in the dtype of the input (nanochat's cast-in-forward)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Module):
    """``x @ weight.T`` without bias; ``weight (outputs, inputs)`` is cast to the dtype of ``x`` at each use."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))
