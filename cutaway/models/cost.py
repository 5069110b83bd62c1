"""What a model costs, from its configuration alone: parameters, FLOPs, state and weight bytes (Kaplan et al. 2020).

A multiply and an add are two FLOPs; only matrix products and attention are counted, as in PaLM's MFU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Cost:
    """Parameters by part, and FLOPs of one token."""

    embedding: int
    blocks: int
    head: int
    matrix: int  # entries a token is multiplied with, head included
    attention: int  # FLOPs a token spends on each token it looks at
    kv_values: int  # numbers carried for each token read
    state_values: int = 0  # numbers carried whatever was read
    both_ways: bool = False  # a token looks at those behind it too
    source_matrix: int = 0  # entries a token of the source is multiplied with

    @property
    def parameters(self) -> int:
        """All parameters (a tied head counts once)."""
        return self.embedding + self.blocks + self.head

    def forward_flops(self, context: int) -> float:
        """FLOPs of one token of a sequence of ``context`` tokens; a causal one sees (context + 1) / 2 on average."""
        seen = context if self.both_ways else (context + 1) / 2
        return 2.0 * self.matrix + self.attention * seen

    def train_flops(self, context: int) -> float:
        """Forward and backward: the backward pass is two forward passes of products."""
        return 3.0 * self.forward_flops(context)

    def weight_bytes(self, bytes_each: float = 4.0) -> float:
        """Bytes of the weights at ``bytes_each``."""
        return self.parameters * bytes_each

    def kv_bytes(self, bytes_each: float = 2.0) -> float:
        """Bytes carried for one token."""
        return self.kv_values * bytes_each

    def state_bytes(self, tokens: int, bytes_each: float = 4.0) -> float:
        """Bytes carried behind so many tokens."""
        return (self.state_values + self.kv_values * tokens) * bytes_each


class Billed(Protocol):
    """A configuration that knows its cost."""

    def cost(self) -> Cost: ...


def cost(config: Billed) -> Cost:
    """The bill of an architecture; ``parameters`` equals what ``build`` makes (tested)."""
    return config.cost()
