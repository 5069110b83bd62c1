"""What the contenders of ``architectures.py`` read: the same random texts for everybody, each lays them its own way."""

from __future__ import annotations

import torch
from torch import Tensor
from worker import Case

MASKED = 0.3  # share of tokens to be found, as ModernBERT has it
SHORTEST, LONGEST = 5, 60  # tokens of a sentence to be classified
CLASSES = 4
PAIR = (20, 61)  # tokens of each side of a pair, 40 on average


def _words(case: Case, draw: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    return torch.randint(3, case.vocab_size, shape, generator=draw)  # below: padding and marks


def masked(case: Case, count: int = 8) -> list[tuple[Tensor, Tensor]]:
    """Tokens ``(batch, context)`` and which of them are to be found."""
    draw = torch.Generator().manual_seed(1)
    shape = (case.batch, case.context)
    return [(_words(case, draw, shape), torch.rand(shape, generator=draw) < MASKED) for _ in range(count)]


def pairs(case: Case, count: int = 8) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Sources and targets of unequal lengths; a target begins with a mark (1) that is not learned."""
    draw = torch.Generator().manual_seed(1)
    out = []
    for _ in range(count):
        lengths = torch.randint(*PAIR, (2, case.batch), generator=draw).tolist()
        sources = [_words(case, draw, (n,)) for n in lengths[0]]
        targets = [torch.cat((torch.ones(1, dtype=torch.long), _words(case, draw, (n,)))) for n in lengths[1]]
        out.append((sources, targets))
    return out


def sentences(case: Case, count: int = 16) -> list[list[Tensor]]:
    """Batches of sentences of mixed lengths, as they come."""
    draw = torch.Generator().manual_seed(1)
    lengths = torch.randint(SHORTEST, LONGEST + 1, (count, case.batch), generator=draw).tolist()
    return [[_words(case, draw, (n,)) for n in row] for row in lengths]


def labels(case: Case) -> Tensor:
    """A class for each sentence of a batch."""
    return torch.randint(CLASSES, (case.batch,), generator=torch.Generator().manual_seed(2))
