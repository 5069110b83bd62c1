"""What a model costs, from its configuration alone: parameters, FLOPs, cache and weight bytes (Kaplan et al. 2020).

A multiply and an add are two FLOPs; only matrix products and attention are counted, as in PaLM's MFU.
"""

from __future__ import annotations

from dataclasses import dataclass

from cutaway.models.transformer import TransformerConfig


@dataclass(frozen=True, slots=True)
class Cost:
    """Parameters by part, and FLOPs of one token."""

    embedding: int
    blocks: int
    head: int
    matrix: int  # entries a token is multiplied with, head included
    attention: int  # FLOPs a token spends on each token it looks at
    kv_values: int  # numbers cached a token

    @property
    def parameters(self) -> int:
        """All parameters (a tied head counts once)."""
        return self.embedding + self.blocks + self.head

    def forward_flops(self, context: int) -> float:
        """FLOPs of one token of a causal sequence of ``context`` tokens, which sees (context + 1) / 2 on average."""
        return 2.0 * self.matrix + self.attention * (context + 1) / 2

    def train_flops(self, context: int) -> float:
        """Forward and backward: the backward pass is two forward passes of products."""
        return 3.0 * self.forward_flops(context)

    def weight_bytes(self, bytes_each: float = 4.0) -> float:
        """Bytes of the weights at ``bytes_each``."""
        return self.parameters * bytes_each

    def kv_bytes(self, bytes_each: float = 2.0) -> float:
        """Cache bytes of one token."""
        return self.kv_values * bytes_each


def cost(config: TransformerConfig) -> Cost:
    """The bill of a transformer; ``parameters`` equals what ``build`` makes (tested)."""
    d, inner, layers = config.hidden_size, config.intermediate_size, config.num_layers
    heads, kv, size = config.num_heads, config.num_kv_heads, config.head_size
    matrices = d * (heads + 2 * kv) * size + heads * size * d + 3 * d * inner
    vocabulary = config.vocab_size * d
    return Cost(embedding=vocabulary, blocks=layers * (matrices + 2 * d) + d,
                head=0 if config.tie_embeddings else vocabulary, matrix=layers * matrices + vocabulary,
                attention=layers * 4 * heads * size, kv_values=2 * layers * kv * size)
