"""Peer: a plain PyTorch causal convolutional language model, ``nn.Conv1d`` over dilations 1, 2, 4, 8, as in Bai's TCN
(2018) with the gate of Dauphin (2017), eager or under torch.compile."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from worker import Case, enter, race

KERNEL, DILATIONS = 3, (1, 2, 4, 8)


class Block(nn.Module):
    """Pre-norm residual: padded convolution to twice the width, gate, 1 x 1 convolution; ``(B, D, T)`` throughout."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.padding = (KERNEL - 1) * dilation
        self.convolution = nn.Conv1d(width, 2 * width, KERNEL, dilation=dilation, bias=False)
        self.out = nn.Conv1d(width, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x.transpose(1, 2)).transpose(1, 2)
        mixed = F.glu(self.convolution(F.pad(h, (self.padding, 0))), 1)
        out: Tensor = x + self.out(mixed)
        return out


class Decoder(nn.Module):
    """Tied head, mean cross-entropy inside ``forward``."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.tokens = nn.Embedding(case.vocab_size, case.hidden_size)
        self.blocks = nn.ModuleList(
            Block(case.hidden_size, DILATIONS[i % len(DILATIONS)]) for i in range(case.num_layers)
        )
        self.norm = nn.RMSNorm(case.hidden_size, eps=1e-5)
        nn.init.normal_(self.tokens.weight, std=0.02)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.tokens(tokens).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm(x.transpose(1, 2)), self.tokens.weight)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))


if __name__ == "__main__":
    case, turns = enter()
    model = Decoder(case).to(torch.device(case.device))
    race(case, turns, model, lambda m, tokens, targets: m(tokens, targets))
