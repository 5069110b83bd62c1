"""Kim's classifier as the paper trains it (CNN-rand, Kim 2014, arXiv 1408.5882, 3.1), in plain PyTorch: a second
opinion on a split of one's own, where the paper's figure of another one says little.

Words of 300 drawn from U(-0.25, 0.25), also those that are never learned; 100 filters of each of 3, 4 and 5 words,
dropout of a half, rows of the last layer of length 3 at most, Adadelta, 50 sentences a step, the best of 25 epochs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS, WORD, FILTERS, DROPOUT, LONGEST, ROWS = (3, 4, 5), 300, 100, 0.5, 3.0, 50
Rows = Sequence[tuple[str, str]]


class Kim(nn.Module):
    """Rows of words -> logits of the classes."""

    def __init__(self, words: int, classes: int) -> None:
        super().__init__()
        self.words = nn.Embedding(words, WORD, padding_idx=0)
        nn.init.uniform_(self.words.weight, -0.25, 0.25)
        self.words.weight.data[0] = 0
        self.filters = nn.ModuleList(nn.Conv1d(WORD, FILTERS, width) for width in WIDTHS)
        self.out = nn.Linear(FILTERS * len(WIDTHS), classes)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens).transpose(1, 2)
        largest = torch.cat([F.relu(filters(x)).amax(2) for filters in self.filters], 1)
        out: Tensor = self.out(F.dropout(largest, DROPOUT, self.training))
        return out


def accuracy(learned: Rows, valid: Rows, held: Rows, *, seed: int, epochs: int = 25) -> float:
    """Share of ``held`` that the epoch which is best on ``valid`` gets right."""
    known = {word: i + 1 for i, word in enumerate(sorted({w for part in (learned, valid, held) for text, _ in part
                                                          for w in text.split()}))}
    classes = {label: i for i, label in enumerate(sorted({label for _, label in learned}))}

    def laid(rows: Rows) -> tuple[Tensor, Tensor]:
        edge = [0] * (max(WIDTHS) - 1)
        ids = [torch.tensor(edge + [known[w] for w in text.split()] + edge) for text, _ in rows]
        return nn.utils.rnn.pad_sequence(ids, batch_first=True), torch.tensor([classes.get(y, -1) for _, y in rows])

    def right(rows: Rows) -> float:
        model.eval()
        with torch.inference_mode():
            tokens, labels = laid(rows)
            return float((model(tokens).argmax(1) == labels).float().mean())

    torch.manual_seed(seed)
    model = Kim(len(known) + 1, len(classes))
    optimizer = torch.optim.Adadelta(model.parameters(), lr=1.0, rho=0.95, eps=1e-6)
    best, order = (-1.0, 0.0), np.random.default_rng(seed)
    for _ in range(epochs):
        model.train()
        numbers = order.permutation(len(learned))
        for at in range(0, len(numbers), ROWS):
            tokens, labels = laid([learned[i] for i in numbers[at : at + ROWS]])
            optimizer.zero_grad()
            F.cross_entropy(model(tokens), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            with torch.no_grad():
                model.out.weight.copy_(torch.renorm(model.out.weight, 2, 0, LONGEST))
        if (seen := right(valid)) > best[0]:
            best = (seen, right(held))
    return best[1]
