"""Which keys each query may see: an interval of them, made a dense mask only where no kernel takes the interval.

B rows, T queries, S keys.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cutaway.batch import Batch


@dataclass(frozen=True, slots=True)
class Interval:
    """The keys ``first`` to ``last``, both counted, that each query sees; ``(B, T)`` int32. Without ``first`` from 0,
    without ``last`` to the query's own place where ``causal``, and to the end where not."""

    first: Tensor | None = None
    last: Tensor | None = None
    causal: bool = False

    def dense(self, queries: int, keys: int, device: torch.device) -> Tensor | None:
        """Boolean ``(B or 1, 1, T, S)``, True where a query may look; None where it may look everywhere."""
        k = torch.arange(keys, device=device)
        last = self.last
        if last is None and self.causal:
            last = torch.arange(queries, device=device)[None]
        seen = None if last is None else k <= last[:, None, :, None]
        if self.first is None:
            return seen
        begun = k >= self.first[:, None, :, None]
        return begun if seen is None else begun & seen


def within(documents: Tensor | None, *, causal: bool) -> Interval:
    """In a packed row a query sees its own document only, whose tokens of ``documents (B, T)`` stand together; padding
    (-1) sees itself, so that softmax is finite."""
    if documents is None:
        return Interval(causal=causal)
    rows, steps = documents.shape
    at = torch.arange(steps, dtype=torch.int32, device=documents.device).expand(rows, steps)
    edge = (documents[:, 1:] != documents[:, :-1]) | (documents[:, 1:] < 0)
    ends = torch.ones((rows, 1), dtype=torch.bool, device=documents.device)
    first = torch.where(torch.cat((ends, edge), 1), at, 0).cummax(1).values
    if causal:
        return Interval(first, causal=True)
    last = torch.where(torch.cat((edge, ends), 1), at, steps).flip(1).cummin(1).values.flip(1)
    return Interval(first, last)


def near(seen: Interval, window: int, tokens: Tensor) -> Interval:
    """Of what ``seen`` allows for ``tokens (B, T)`` what lies near: causal, the last ``window`` tokens, the own one
    counted; both ways, ``window`` tokens to each side."""
    rows, steps = tokens.shape
    at = torch.arange(steps, dtype=torch.int32, device=tokens.device).expand(rows, steps)
    begin = (at - (window - 1 if seen.causal else window)).clamp(min=0)
    first = begin if seen.first is None else torch.maximum(begin, seen.first)
    if seen.causal:
        return Interval(first.contiguous(), causal=True)
    end = (at + window).clamp(max=steps - 1)
    last = end if seen.last is None else torch.minimum(end, seen.last)
    return Interval(first.contiguous(), last.contiguous())


def across(batch: Batch) -> Interval:
    """From target to source: each token sees the source of its own document, whose tokens stand together.

    Padding (-1 on either side) sees the first key, so that softmax is finite; nothing is learned there.
    """
    keys = batch.source_documents
    if keys is None:
        return Interval()
    queries = torch.zeros_like(batch.tokens) if batch.documents is None else batch.documents
    same = (queries[:, :, None] == keys[:, None, :]) & (keys[:, None, :] >= 0)
    first = same.int().argmax(-1)  # 0 where there is none
    count = same.sum(-1, dtype=torch.int32)
    return Interval(first.int(), (first + count.clamp(min=1) - 1).int())
