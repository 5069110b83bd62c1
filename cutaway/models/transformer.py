"""The transformer's configuration and backbone; the decoder has Llama's shape (Touvron 2023, arXiv 2302.13971)."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from cutaway.nn.block import Stack
from cutaway.settings import Settings


class TransformerConfig(Settings):
    """Sizes of a transformer; ``head_size`` is ``hidden_size / num_heads``."""

    kind: Literal["transformer"] = "transformer"
    shape: Literal["decoder"] = "decoder"
    vocab_size: int = Field(ge=2)
    hidden_size: int = Field(ge=2)
    num_layers: int = Field(ge=1)
    num_heads: int = Field(ge=1)
    num_kv_heads: int = Field(ge=1)
    intermediate_size: int = Field(ge=1)
    context_length: int = Field(ge=2)
    rope_theta: float = Field(default=10_000.0, gt=1)
    norm_eps: float = Field(default=1e-5, gt=0)
    tie_embeddings: bool = True

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.hidden_size % (2 * self.num_heads):
            raise ValueError(f"hidden_size {self.hidden_size} must be a multiple of 2 x num_heads {self.num_heads}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} must be a multiple of num_kv_heads {self.num_kv_heads}")
        return self

    @property
    def head_size(self) -> int:
        """Width of one head."""
        return self.hidden_size // self.num_heads

    def stack(self) -> Stack:
        """The backbone, its weights not yet drawn."""
        return Stack(self.vocab_size, self.hidden_size, num_layers=self.num_layers,
                     heads=(self.num_heads, self.num_kv_heads, self.head_size), inner=self.intermediate_size,
                     eps=self.norm_eps, theta=self.rope_theta, context_length=self.context_length, causal=True)
