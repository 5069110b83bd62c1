"""Peer: a plain PyTorch decoder and loop in the way of nanoGPT (Karpathy 2023), eager or under torch.compile."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from worker import Case, enter, race


class Block(nn.Module):
    """Pre-norm attention and a GELU feed-forward of four times the width, without biases."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_feedforward = (
            nn.LayerNorm(width, bias=False),
            nn.LayerNorm(width, bias=False),
        )
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        B, T, D = x.shape
        q, k, v = (
            self.qkv(self.before_attention(x))
            .view(B, T, 3, self.heads, D // self.heads)
            .permute(2, 0, 3, 1, 4)
        )
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(B, T, D))
        out: Tensor = x + self.down(F.gelu(self.up(self.before_feedforward(x))))
        return out


class Decoder(nn.Module):
    """Learned positions, tied head, mean cross-entropy inside ``forward`` as nanoGPT has it."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.tokens = nn.Embedding(case.vocab_size, case.hidden_size)
        self.positions = nn.Embedding(case.context, case.hidden_size)
        self.blocks = nn.ModuleList(Block(case.hidden_size, case.num_heads) for _ in range(case.num_layers))
        self.norm = nn.LayerNorm(case.hidden_size, bias=False)
        for p in self.parameters():
            if p.ndim == 2:
                nn.init.normal_(p, std=0.02)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm(x), self.tokens.weight)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))


if __name__ == "__main__":
    case, turns = enter()
    model = Decoder(case).to(torch.device(case.device))
    race(case, turns, model, lambda m, tokens, targets: m(tokens, targets))
