"""A language model that is a table of random numbers: what was read wrongly changes the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

VOCAB, CONTEXT = 13, 24


@dataclass
class Tape:
    """A state that remembers every token; it refuses what a real cache would."""

    tokens: list[list[int]]
    capacity: int
    sources: list[tuple[int, ...]]

    @property
    def lengths(self) -> Tensor:
        return torch.tensor([len(t) for t in self.tokens])

    def select(self, rows: Tensor) -> Tape:
        chosen = rows.tolist()
        return Tape([list(self.tokens[r]) for r in chosen], self.capacity, [self.sources[r] for r in chosen])

    def join(self, others: Sequence[Tape], *, capacity: int) -> Tape:
        alike = (self, *others)
        return Tape([t for s in alike for t in s.tokens], max(capacity, self.capacity),
                    [t for s in alike for t in s.sources])

    def truncate(self, lengths: Tensor) -> None:
        self.tokens = [t[:n] for t, n in zip(self.tokens, lengths.tolist(), strict=True)]

    def copy(self) -> Tape:
        return Tape([list(t) for t in self.tokens], self.capacity, list(self.sources))


class Table:
    """Logits that depend on all tokens so far through a hash: any mistake in what was read changes the answer."""

    context_length: int = CONTEXT

    def __init__(self, vocab_size: int = VOCAB, *, reads_source: bool = False) -> None:
        self.vocab_size, self.reads_source, self.reads = vocab_size, reads_source, 0

    def new_state(self, rows: int, *, capacity: int, sources: Sequence[Sequence[int]] | None = None) -> Tape:
        assert capacity <= self.context_length and self.reads_source == (sources is not None)
        read: Sequence[Sequence[int]] = [()] * rows if sources is None else sources
        return Tape([[] for _ in range(rows)], capacity, [tuple(s) for s in read])

    def logits(self, tokens: Tensor, state: Tape, *, counts: Tensor | None = None, every: bool = False) -> Tensor:  # type: ignore[override]
        assert len(tokens) == len(state.tokens)
        self.reads += tokens.numel()
        sizes = [tokens.shape[1]] * len(tokens) if counts is None else counts.tolist()
        out = torch.zeros(*tokens.shape, self.vocab_size)
        for i, (tape, source) in enumerate(zip(state.tokens, state.sources, strict=True)):
            for step, token in enumerate(tokens[i, : sizes[i]].tolist()):
                tape.append(token)
                out[i, step] = torch.from_numpy(row(tape, source, self.vocab_size)) if every else 0
            assert len(tape) <= state.capacity
        return out if every else torch.stack([torch.from_numpy(row(tape, source, self.vocab_size)) for tape, source
                                              in zip(state.tokens, state.sources, strict=True)])


def row(tape: Sequence[int], source: Sequence[int] = (), vocab_size: int = VOCAB) -> NDArray[np.float32]:
    """The logits behind these tokens."""
    seed = [len(tape), *tape, *source]
    return np.random.default_rng(seed).normal(0, 2, vocab_size).astype(np.float32)
