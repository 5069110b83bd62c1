"""Model = backbone + head, and the smallest protocol that anything able to continue a text satisfies."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cutaway.batch import Batch
from cutaway.errors import ModelError, RequestError
from cutaway.models.cost import Cost
from cutaway.models.heads import (
    AnyHead,
    Classes,
    ClassHead,
    Head,
    HeadKind,
    Pooler,
    Pooling,
    ScalarHead,
    TokenHead,
    Traits,
    Transform,
    Vector,
    VectorHead,
    pooled,
)
from cutaway.nn.batched import BatchedStack, pages_of
from cutaway.nn.beside import Rows
from cutaway.nn.block import Stack
from cutaway.nn.init import initialise
from cutaway.nn.paged import PagedStack, Reading, page_bytes

Sources = Sequence[Sequence[int]]


class State(Protocol):
    """What makes step t + 1 cheap: keys and values, a hidden vector, the last tokens."""

    lengths: Tensor

    @property
    def capacity(self) -> int: ...
    def select(self, rows: Tensor) -> Self: ...
    def join(self, others: Sequence[Self], *, capacity: int) -> Self: ...
    def truncate(self, lengths: Tensor) -> None: ...
    def copy(self) -> Self: ...


class LanguageModel(Protocol):
    """Reads tokens into a state and gives logits of what follows, beside sources where it was given some."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def context_length(self) -> int: ...
    @property
    def reads_source(self) -> bool: ...
    def new_state(self, rows: int, *, capacity: int, sources: Sources | None = None) -> State: ...
    def logits(self, tokens: Tensor, state: State, *, counts: Tensor | None = None, every: bool = False) -> Tensor: ...


@runtime_checkable
class Scorer(Protocol):
    """A LanguageModel that gives the probabilities of whole documents without those of all other tokens."""

    def score(self, tokens: NDArray[Any], starts: NDArray[Any]) -> NDArray[np.float64]:
        """``log p`` of each token ``(T,)`` given those before it in its document, 0 for a document's first; ``starts``:
        where each document begins, and the end."""


class Architecture(Protocol):
    """A configuration that says everything about a backbone; each kind is one file of ``models/``."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def context_length(self) -> int: ...
    @property
    def norm_eps(self) -> float: ...
    @property
    def dropout(self) -> float: ...
    @property
    def tie_embeddings(self) -> bool: ...
    @property
    def traits(self) -> Traits: ...
    def backbone(self) -> nn.Module: ...
    def cost(self) -> Cost: ...
    def model_dump(self) -> dict[str, Any]: ...


class Model(nn.Module):
    """A backbone and a head. Parameters are float32 masters; ``compute_dtype`` is the arithmetic of the products.

    A backbone has its ``embedding``; called with a Batch, ``dtype`` and, behind a state, ``state`` and ``counts``, it
    gives hidden states ``(B, T, D)``; one that generates makes its ``new_state``.
    """

    def __init__(self, config: Any, backbone: nn.Module, head: AnyHead) -> None:
        super().__init__()
        self.config: Any = config
        self.backbone: Any = backbone  # before the head, so that a tied weight bears the embedding's name
        self.head = head
        self.compute_dtype = torch.float32
        self.adapters: tuple[str, ...] = ()  # those that rows may have, see ``models.beside``
        self.rows = Rows()

    @property
    def head_kind(self) -> HeadKind:
        """Which head this model has."""
        kinds: dict[type[nn.Module], HeadKind] = {TokenHead: "tokens", ScalarHead: "scalar", ClassHead: "classes",
                                                  VectorHead: "vector"}
        return kinds[type(self.head)]

    @property
    def head_spec(self) -> Head:
        """What ``build`` needs to make such a head again."""
        if isinstance(self.head, ClassHead):
            return self.head.classes
        if isinstance(self.head, VectorHead):
            return self.head.vector
        return "tokens" if isinstance(self.head, TokenHead) else "scalar"

    @property
    def vocab_size(self) -> int:
        """Entries of the vocabulary."""
        return int(self.config.vocab_size)

    @property
    def context_length(self) -> int:
        """Most tokens a sequence may have."""
        return int(self.config.context_length)

    @property
    def reads_source(self) -> bool:
        """Whether it writes beside a source."""
        return bool(self.config.traits.reads_source)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def hidden(self, batch: Batch) -> Tensor:
        """``(B, T, D)`` in ``compute_dtype``. Raises ModelError where a row is longer than the context."""
        self._fits(batch)
        out: Tensor = self.backbone(batch, dtype=self.compute_dtype)
        return out

    def pooled(self, batch: Batch) -> Tensor:
        """One vector a row ``(B, D)``, as ``pooling`` says. A backbone that has ``pooled`` gives it without its hidden
        states."""
        how = self.pooling
        if hasattr(self.backbone, "pooled"):
            self._fits(batch)
            out: Tensor = self.backbone.pooled(batch, dtype=self.compute_dtype)
            return out
        return pooled(self.hidden(batch), batch.documents, how)

    @property
    def pooling(self) -> Pooling:
        """Where a row's vector is read off its hidden states: as the architecture reads a label, or as a head of
        vectors says; one that says nothing takes the mean, but behind a maximum over time that."""
        how: Pooling = self.config.traits.pooling
        if not isinstance(self.head, VectorHead):
            return how
        return self.head.vector.pooling or ("max" if how == "max" else "mean")

    def _fits(self, batch: Batch) -> None:
        longest = batch.tokens.shape[1]
        if longest > self.context_length and batch.positions is not None:  # of several documents behind one another
            longest = int(batch.positions.max()) + 1
        if longest > self.context_length:
            raise ModelError(f"a row of {longest} tokens is longer than the context of {self.context_length}")

    def forward(self, batch: Batch) -> Tensor:
        """Float32: logits ``(B, T, V)``, scalars ``(B, T)``, logits of classes ``(B, C)`` or vectors ``(B, D)``."""
        reads_rows = isinstance(self.head, ClassHead | VectorHead)
        out: Tensor = self.head(self.pooled(batch) if reads_rows else self.hidden(batch))
        return out

    def new_state(self, rows: int, *, capacity: int, sources: Sources | None = None) -> State:
        """Nothing read yet of ``rows`` sequences of up to ``capacity`` tokens, beside ``sources`` where the model reads
        them. Raises RequestError for what does not fit, and ModelError for a model that writes no text."""
        if capacity > self.context_length:
            raise RequestError(f"{capacity} tokens are more than the context of {self.context_length}")
        if not self.config.traits.generates:
            raise ModelError("an encoder reads and does not write", way_out="name a decoder or an encoder-decoder")
        if not self.reads_source:
            if sources is not None:
                raise RequestError("this model reads no source", way_out="put the text into the prompt")
            state: State = self.backbone.new_state(rows, capacity=capacity, dtype=self.compute_dtype)
            return state
        state = self.backbone.new_state(rows, capacity=capacity, dtype=self.compute_dtype, sources=sources)
        return state

    @property
    def _pages(self) -> Stack | None:
        """What keeps its keys and values in pages: a decoder, whole."""
        return self.backbone if isinstance(self.backbone, Stack) and self.config.traits.generates else None

    @property
    def page_bytes(self) -> int | None:
        """What a page of keys and values takes; None where the model has no such pages."""
        return None if self._pages is None else page_bytes(self._pages, self.compute_dtype)

    def new_pages(self, count: int) -> PagedStack | BatchedStack | None:
        """Room for ``count`` pages of keys and values of many sequences; None where the model has no such pages."""
        if self._pages is None:
            return None
        return pages_of(self._pages, count, dtype=self.compute_dtype, rows=self.rows)

    def read(self, reading: Reading, pages: PagedStack | BatchedStack) -> Tensor:
        """Logits ``(R, V)`` at the places of ``reading`` where they are wanted; the pages hold what was read."""
        out: Tensor = self.head(pages.hidden(reading))
        return out

    def logits(self, tokens: Tensor, state: State, *, counts: Tensor | None = None, every: bool = False) -> Tensor:
        """Read ``tokens (B, T)`` (the first ``counts`` of each row) behind ``state``; logits after the last one
        ``(B, V)``, or after each ``(B, T, V)``. The state moves on."""
        hidden = self.backbone(Batch(tokens), dtype=self.compute_dtype, state=state, counts=counts)
        if not every:
            rows = torch.arange(len(tokens), device=tokens.device)
            hidden = hidden[:, -1] if counts is None else hidden[rows, counts - 1]
        out: Tensor = self.head(hidden)
        return out


def build(config: Architecture, *, head: Head = "tokens", seed: int = 0,
          compute_dtype: torch.dtype = torch.float32) -> Model:
    """A freshly initialised model; equal seeds give equal weights on every device."""
    model = blank(config, head=head, compute_dtype=compute_dtype)
    initialise(model, seed=seed, num_layers=config.num_layers, width=config.hidden_size)
    return model


def blank(config: Architecture, *, head: Head = "tokens", compute_dtype: torch.dtype = torch.float32) -> Model:
    """A model whose weights say nothing yet: they are about to be read from a file."""
    backbone = config.backbone()
    model = Model(config, backbone, _head(config, backbone, head))
    model.compute_dtype = compute_dtype
    return model


def _head(config: Architecture, backbone: Any, head: Head) -> AnyHead:
    width = config.hidden_size
    traits = config.traits
    transform = Transform(width, eps=config.norm_eps, bias=traits.transform_bias) if traits.head_transform else None
    if head == "tokens":
        tied = config.tie_embeddings
        weight = backbone.embedding.weight if tied else nn.Parameter(torch.empty(config.vocab_size, width))
        assert isinstance(weight, nn.Parameter)
        return TokenHead(weight, transform=transform, scale=traits.head_scale, bias=traits.head_bias)
    if isinstance(head, Classes):
        return ClassHead(width, head, transform=Pooler(width) if traits.pooler else transform, bias=traits.class_bias,
                         dropout=config.dropout)
    return VectorHead(head) if isinstance(head, Vector) else ScalarHead(width)


def with_head(model: Model, head: Head, *, seed: int = 0) -> Model:
    """A copy of the backbone under a fresh head: how a reward model or a classifier starts from a language model."""
    fresh = build(model.config, head=head, seed=seed, compute_dtype=model.compute_dtype).to(model.device)
    fresh.backbone = copy.deepcopy(model.backbone)
    if isinstance(fresh.head, TokenHead) and model.config.tie_embeddings:
        fresh.head.weight = fresh.backbone.embedding.weight
    return fresh
