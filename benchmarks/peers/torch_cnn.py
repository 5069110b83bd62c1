"""Peer: Kim's sentence classifier (2014, arXiv 1408.5882) in plain PyTorch, as its many public versions have it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from shapes import CLASSES, labels, sentences
from torch import Tensor, nn
from worker import Case, enter, infer, race


class Kim(nn.Module):
    """Widths 3, 4 and 5 over the words, ReLU, the strongest of each filter, one matrix."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.tokens = nn.Embedding(case.vocab_size, case.inner, padding_idx=0)
        self.filters = nn.ModuleList(nn.Conv1d(case.inner, case.hidden_size // 3, k, padding=k - 1) for k in (3, 4, 5))
        self.head = nn.Linear(case.hidden_size, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens).transpose(1, 2)
        found = torch.cat([F.relu(f(x)).amax(-1) for f in self.filters], 1)
        out: Tensor = self.head(found)
        return out


def _padded(batch: list[Tensor]) -> Tensor:
    return nn.utils.rnn.pad_sequence(batch, batch_first=True)


if __name__ == "__main__":
    case, turns = enter()
    torch.manual_seed(0)
    model = Kim(case)
    if case.work == "train-classes":
        race(case, turns, model, lambda m, tokens, classes: F.cross_entropy(m(tokens), classes),
             [(_padded(batch), labels(case)) for batch in sentences(case)])
    else:
        turns.note["parameters"] = sum(p.numel() for p in model.parameters())
        model.eval()
        if case.dtype == "bfloat16":
            model.to(torch.bfloat16)
        infer(case, turns, lambda batch: model(_padded(batch)), sentences(case))
