"""Which key each query may see, as small frozen values combined with ``&`` and made dense only where a kernel asks.

B rows, T queries, S keys.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Mask:
    """``allowed(query_index (T,1), key_index (1,S)) -> bool (T,S) or (B,T,S)``."""

    allowed: Callable[[Tensor, Tensor], Tensor]

    def __and__(self, other: Mask) -> Mask:
        return Mask(lambda q, k: self.allowed(q, k) & other.allowed(q, k))

    def dense(self, queries: int, keys: int, device: torch.device) -> Tensor:
        """Boolean ``(B or 1, 1, T, S)``, True where a query may look."""
        q = torch.arange(queries, device=device)[:, None]
        k = torch.arange(keys, device=device)[None, :]
        seen = self.allowed(q, k)
        return seen[None, None] if seen.ndim == 2 else seen[:, None]


def causal() -> Mask:
    """A query sees itself and what is before it."""
    return Mask(lambda q, k: k <= q)


def same_document(documents: Tensor) -> Mask:
    """In a packed row a query sees its own document only; padding (-1) sees itself, so that softmax is finite."""
    same, real = documents[:, :, None] == documents[:, None, :], (documents >= 0)[:, None, :]
    return Mask(lambda q, k: same & (real | (q == k)))


def cached(lengths: Tensor) -> Mask:
    """Query t of a row whose cache holds ``lengths (B,)`` tokens stands at position ``lengths + t``."""
    return Mask(lambda q, k: k <= lengths[:, None, None] + q)


def across(queries: Tensor, keys: Tensor) -> Mask:
    """From target to source: token t of ``queries (B, T)`` sees the source of its own document in ``keys (B, S)``.

    Padding (-1 on either side) sees the first key, so that softmax is finite; nothing is learned there.
    """
    same = (queries[:, :, None] == keys[:, None, :]) & (keys[:, None, :] >= 0)
    nothing = ~same.any(-1, keepdim=True)
    return Mask(lambda q, k: same | (nothing & (k == 0)))
