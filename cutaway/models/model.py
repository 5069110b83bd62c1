"""Model = backbone + head, and the smallest protocol that anything able to continue a text satisfies."""

from __future__ import annotations

import copy
from typing import Any, Literal, Protocol, Self, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cutaway.batch import Batch
from cutaway.errors import ModelError, RequestError
from cutaway.models.heads import ScalarHead, TokenHead
from cutaway.models.transformer import TransformerConfig
from cutaway.nn.block import Stack
from cutaway.nn.cache import KVCache
from cutaway.nn.init import initialise
from cutaway.nn.linear import Linear

HeadKind = Literal["tokens", "scalar"]


class State(Protocol):
    """What makes step t + 1 cheap: keys and values, a hidden vector, the last tokens."""

    lengths: Tensor

    @property
    def capacity(self) -> int: ...
    def select(self, rows: Tensor) -> Self: ...
    def truncate(self, lengths: Tensor) -> None: ...
    def copy(self) -> Self: ...


class LanguageModel(Protocol):
    """Reads tokens into a state and gives logits of what follows."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def context_length(self) -> int: ...
    def new_state(self, rows: int, *, capacity: int) -> State: ...
    def logits(self, tokens: Tensor, state: State, *, counts: Tensor | None = None, every: bool = False) -> Tensor: ...


@runtime_checkable
class Scorer(Protocol):
    """A LanguageModel that gives the probabilities of whole documents without those of all other tokens."""

    def score(self, tokens: NDArray[Any], starts: NDArray[Any]) -> NDArray[np.float64]:
        """``log p`` of each token ``(T,)`` given those before it in its document, 0 for a document's first; ``starts``:
        where each document begins, and the end."""


class Model(nn.Module):
    """A backbone and a head. Parameters are float32 masters; ``compute_dtype`` is the arithmetic of the products."""

    def __init__(self, config: TransformerConfig, backbone: Stack, head: TokenHead | ScalarHead) -> None:
        super().__init__()
        self.config, self.backbone, self.head = config, backbone, head
        self.compute_dtype = torch.float32

    @property
    def head_kind(self) -> HeadKind:
        """Which head this model has."""
        return "tokens" if isinstance(self.head, TokenHead) else "scalar"

    @property
    def vocab_size(self) -> int:
        """Entries of the vocabulary."""
        return self.config.vocab_size

    @property
    def context_length(self) -> int:
        """Most tokens a sequence may have."""
        return self.config.context_length

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def hidden(self, batch: Batch) -> Tensor:
        """``(B, T, D)`` in ``compute_dtype``. Raises ModelError where a row is longer than the context."""
        if batch.tokens.shape[1] > self.context_length:
            raise ModelError(f"a row of {batch.tokens.shape[1]} tokens is longer than the context of "
                             f"{self.context_length}")
        out: Tensor = self.backbone(batch.tokens, dtype=self.compute_dtype, positions=batch.positions,
                                    documents=batch.documents)
        return out

    def forward(self, batch: Batch) -> Tensor:
        """Logits ``(B, T, V)`` or scalars ``(B, T)``, float32."""
        out: Tensor = self.head(self.hidden(batch))
        return out

    def new_state(self, rows: int, *, capacity: int) -> KVCache:
        """An empty cache for ``rows`` sequences of up to ``capacity`` tokens."""
        if capacity > self.context_length:
            raise RequestError(f"{capacity} tokens are more than the context of {self.context_length}")
        c = self.config
        shape = (rows, c.num_kv_heads, capacity, c.head_size)
        keys, values = ([torch.zeros(shape, dtype=self.compute_dtype, device=self.device) for _ in range(c.num_layers)]
                        for _ in range(2))
        return KVCache(keys, values, torch.zeros(rows, dtype=torch.long, device=self.device))

    def logits(self, tokens: Tensor, state: State, *, counts: Tensor | None = None, every: bool = False) -> Tensor:
        """Read ``tokens (B, T)`` (the first ``counts`` of each row) behind ``state``; logits after the last one
        ``(B, V)``, or after each ``(B, T, V)``. The state moves on."""
        assert isinstance(state, KVCache)
        hidden = self.backbone(tokens, dtype=self.compute_dtype, state=state, counts=counts)
        if not every:
            rows = torch.arange(len(tokens), device=tokens.device)
            hidden = hidden[:, -1] if counts is None else hidden[rows, counts - 1]
        out: Tensor = self.head(hidden)
        return out


def build(config: TransformerConfig, *, head: HeadKind = "tokens", seed: int = 0,
          compute_dtype: torch.dtype = torch.float32) -> Model:
    """A freshly initialised model; equal seeds give equal weights on every device."""
    backbone = config.stack()
    tied = backbone.embedding.weight if config.tie_embeddings else nn.Parameter(
        torch.empty(config.vocab_size, config.hidden_size))
    model = Model(config, backbone, TokenHead(tied) if head == "tokens" else ScalarHead(config.hidden_size))
    initialise(model, seed=seed, num_layers=config.num_layers, width=config.hidden_size)
    model.compute_dtype = compute_dtype
    return model


def with_head(model: Model, head: HeadKind, *, seed: int = 0) -> Model:
    """A copy of the backbone under a fresh head: how a reward model starts from a language model."""
    fresh = build(model.config, head=head, seed=seed, compute_dtype=model.compute_dtype).to(model.device)
    fresh.backbone = copy.deepcopy(model.backbone)
    if isinstance(fresh.head, TokenHead) and model.config.tie_embeddings:
        fresh.head = TokenHead(fresh.backbone.embedding.weight)
    return fresh


def for_sampling(model: Model) -> Model:
    """A copy whose products find their weights already in ``compute_dtype``, for many tokens between two updates.

    The same numbers as ``model``, which would make the same cast at every token; a quarter of a small model's time.
    """
    if model.compute_dtype == torch.float32:
        return model
    light = copy.deepcopy(model)
    with torch.no_grad():
        if isinstance(light.head, TokenHead):  # apart from the embedding, whose rows stay float32
            light.head = TokenHead(nn.Parameter(light.head.weight.to(model.compute_dtype)))
        for part in light.modules():
            if isinstance(part, Linear):
                part.weight = nn.Parameter(part.weight.to(model.compute_dtype))
    return light.eval()
