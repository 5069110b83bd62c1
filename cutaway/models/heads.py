"""Heads: what is read off the hidden state. Tokens (logits over the vocabulary) and scalar (one number a position)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TokenHead(nn.Module):
    """Hidden ``(…, D)`` -> logits ``(…, V)`` in float32; the weight may be the embedding's own."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        assert isinstance(weight, nn.Parameter)
        self.weight = weight

    def forward(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.weight.to(hidden.dtype)).float()


class ScalarHead(nn.Module):
    """Hidden ``(…, D)`` -> one float32 number ``(…)``: a reward or a value."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, width))

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden.float() @ self.weight[0]
