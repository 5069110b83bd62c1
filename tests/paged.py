"""A runner whose next token is a hash of the tokens it finds in its pages: a wrong page, a stale page or a wrong start
changes the answer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tables import VOCAB, row
from torch import Tensor

from cutaway.generate.track import Part


class PageTape:
    """Pages of tokens, each with all that it stood behind when it was read, as keys and values are. What a part stands
    on is read before anything of the step is written: a page that another part fills in the same step is not there yet.
    """

    vocab_size, shares_pages, exact, reads_source = VOCAB, True, True, False

    def __init__(self, *, pages: int, size: int, context: int = 24) -> None:
        self.page_size, self.num_pages, self.context_length = size, pages, context
        self.slots: dict[tuple[int, int], tuple[int, ...]] = {}  # (page, place) -> the tokens up to there
        self.steps: list[list[Part]] = []
        self.forgotten: list[int] = []
        self.fails = False

    def run(self, parts: Sequence[Part], *, every: bool = False) -> Tensor:
        self.steps.append(list(parts))
        if self.fails:
            self.fails, self.slots = False, {}
            raise RuntimeError("out of memory")
        assert len({p.sequence for p in parts}) == len(parts)
        size, out, before_of = self.page_size, [], dict[int, tuple[int, ...]]()
        for part in parts:
            assert part.tokens and part.like is None and part.source is None
            assert len(part.pages) * size >= part.start + len(part.tokens) <= self.context_length
            assert len(set(part.pages)) == len(part.pages) and all(0 <= p < self.num_pages for p in part.pages)
            found = [self.slots[part.pages[i // size], i % size] for i in range(part.start)]
            before = [tokens[-1] for tokens in found]
            assert all(tokens == tuple(before[: i + 1]) for i, tokens in enumerate(found))
            before_of[part.sequence] = tuple(before)
            ends = range(1, len(part.tokens) + 1) if every else [len(part.tokens)] if part.samples else []
            out += [torch.from_numpy(row((*before, *part.tokens[:end]))) for end in ends]
        for part in parts:
            whole = (*before_of[part.sequence], *part.tokens)
            for i in range(part.start, len(whole)):
                self.slots[part.pages[i // size], i % size] = whole[: i + 1]
        return torch.stack(out) if out else torch.zeros(0, VOCAB)

    def forget(self, sequence: int) -> None:
        self.forgotten.append(sequence)
