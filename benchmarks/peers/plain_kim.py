"""Peer: a plain PyTorch Kim CNN (2014): embedding, one ``nn.Conv1d`` a width, ReLU, maximum over time, dropout, dense.

Classifies rows of ``context`` words into two classes; ``hidden_size`` is the filters of all widths and the width of a
word, as in the paper (3 x 100 and 300). A step's rate counts ``batch x context`` words.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from worker import Case, enter, race

WIDTHS, CLASSES, DROPOUT = (3, 4, 5), 2, 0.5


class Kim(nn.Module):
    """Rows of words -> logits of the classes."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.words = nn.Embedding(case.vocab_size, case.hidden_size)
        each = case.hidden_size // len(WIDTHS)
        self.filters = nn.ModuleList(
            nn.Conv1d(case.hidden_size, each, width, padding="same") for width in WIDTHS
        )
        self.out = nn.Linear(each * len(WIDTHS), CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens).transpose(1, 2)
        largest = torch.cat([F.relu(filters(x)).amax(2) for filters in self.filters], 1)
        out: Tensor = self.out(F.dropout(largest, DROPOUT, self.training))
        return out


def loss_of(model: nn.Module, tokens: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of a label that each row carries in its first target."""
    return F.cross_entropy(model(tokens).float(), targets[:, 0] % CLASSES)


if __name__ == "__main__":
    case, turns = enter()
    model = Kim(case).to(torch.device(case.device))
    race(case, turns, model, loss_of)
