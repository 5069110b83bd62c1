"""Heads: what is read off the hidden states. Tokens (logits over the vocabulary), a scalar a position, classes or a
vector a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cutaway.errors import ModelError
from cutaway.nn.linear import Linear
from cutaway.nn.norm import Norm

Pooling = Literal["last", "mean", "max"]


@dataclass(frozen=True, slots=True)
class Traits:
    """What a config's models are to all that use them.

    ``family``: the format they are saved in; ``pooling``: where a label is read off a row; ``generates``: they continue
    a text; ``reads_source``: they write beside a source; ``head_scale``: what hidden states are multiplied with before
    a head of tokens; ``head_transform``: a dense layer and a norm stand before the head; ``class_bias``: a head of
    classes has a bias.
    """

    family: str = "own"
    pooling: Pooling = "last"
    generates: bool = True
    reads_source: bool = False
    head_scale: float = 1.0
    head_transform: bool = False
    class_bias: bool = True


@dataclass(frozen=True, slots=True)
class Classes:
    """A head of classes by their names; ``multi_label``: any number of them may hold at once."""

    labels: tuple[str, ...]
    multi_label: bool = False

    def __post_init__(self) -> None:
        if len(set(self.labels)) < max(2 - self.multi_label, len(self.labels)):
            raise ModelError(f"{len(self.labels)} classes of {len(set(self.labels))} names cannot be told apart",
                             way_out="give at least two different labels")


@dataclass(frozen=True, slots=True)
class Vector:
    """A head of one vector a row: the mean of its hidden states, of length 1."""


HeadKind = Literal["tokens", "scalar", "classes", "vector"]
Head = Literal["tokens", "scalar"] | Classes | Vector


def kind_of(head: Head) -> HeadKind:
    """The name of a head."""
    if isinstance(head, str):
        return head
    return "classes" if isinstance(head, Classes) else "vector"


class Transform(nn.Module):
    """Dense, GELU, norm: what ModernBERT has before its head."""

    def __init__(self, width: int, *, eps: float) -> None:
        super().__init__()
        self.dense = Linear(width, width)
        self.norm = Norm("layer", width, eps=eps)

    def forward(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.norm(F.gelu(self.dense(hidden)).float(), dtype=hidden.dtype)[1]
        return out


class TokenHead(nn.Module):
    """Hidden ``(…, D)`` -> logits ``(…, V)`` in float32; the weight may be the embedding's own. With a ``scale`` below
    1 the same logits take a weight larger by as much: it is drawn so, and learned at such a rate (train.optimizer)."""

    def __init__(self, weight: Tensor, *, transform: Transform | None = None, scale: float = 1.0) -> None:
        super().__init__()
        assert isinstance(weight, nn.Parameter)
        self.weight, self.transform, self.scale = weight, transform, scale

    def features(self, hidden: Tensor) -> Tensor:
        """What the weight is multiplied with, ``(…, D)``."""
        if self.transform is not None:
            hidden = self.transform(hidden)
        return hidden if self.scale == 1.0 else hidden * self.scale

    def forward(self, hidden: Tensor) -> Tensor:
        return F.linear(self.features(hidden), self.weight.to(hidden.dtype)).float()

    def adjust_initial(self) -> None:
        """Scaled logits begin as far from the uniform line as others."""
        if self.scale != 1.0:
            with torch.no_grad():
                self.weight.div_(self.scale)


class ScalarHead(nn.Module):
    """Hidden ``(…, D)`` -> one float32 number ``(…)``: a reward or a value."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, width))

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden.float() @ self.weight[0]


class ClassHead(nn.Module):
    """Pooled hidden ``(B, D)`` -> a float32 logit a class ``(B, C)``."""

    def __init__(self, width: int, classes: Classes, *, transform: Transform | None = None, bias: bool = True,
                 dropout: float = 0.0) -> None:
        super().__init__()
        self.classes, self.transform, self.dropout = classes, transform, dropout
        self.weight = nn.Parameter(torch.empty(len(classes.labels), width))
        self.bias = nn.Parameter(torch.empty(len(classes.labels))) if bias else None

    def forward(self, pooled: Tensor) -> Tensor:
        if self.transform is not None:
            pooled = self.transform(pooled)
        if self.dropout:
            pooled = F.dropout(pooled, self.dropout, self.training)
        return F.linear(pooled.float(), self.weight, self.bias)


class VectorHead(nn.Module):
    """Pooled hidden ``(B, D)`` -> a float32 vector of length 1 ``(B, D)``."""

    def forward(self, pooled: Tensor) -> Tensor:
        return F.normalize(pooled.float(), dim=-1)


AnyHead = TokenHead | ScalarHead | ClassHead | VectorHead


def pooled(hidden: Tensor, documents: Tensor | None, how: Pooling) -> Tensor:
    """One vector a row ``(B, D)`` of ``hidden (B, T, D)``, padding (-1 in ``documents``) left out; where rows hold
    several documents, one a document ``(N, D)``, row by row."""
    if documents is None:
        documents = torch.zeros(hidden.shape[:2], dtype=torch.int32, device=hidden.device)
    elif bool((documents > 0).any()):
        return _of_each(hidden, documents, how)
    real = documents >= 0
    if how == "last":
        last = (real * torch.arange(1, real.shape[1] + 1, device=real.device)).argmax(1)
        return hidden[torch.arange(len(hidden), device=hidden.device), last]
    if how == "max":
        return hidden.masked_fill(~real[..., None], -torch.inf).amax(1)
    mean = (hidden.float() * real[..., None]).sum(1) / real.sum(1, keepdim=True).clamp(min=1)
    return mean.to(hidden.dtype)


def _of_each(hidden: Tensor, documents: Tensor, how: Pooling) -> Tensor:
    """``pooled`` of packed rows: a document's tokens stand together."""
    real = documents >= 0
    rows = torch.arange(len(documents), device=documents.device)[:, None] * documents.shape[1]
    lengths = torch.unique_consecutive((rows + documents)[real], return_counts=True)[1]
    tokens = hidden[real]
    if how == "last":
        return tokens[lengths.cumsum(0) - 1]
    # a mean in float32: bfloat16 would lose words of a long text in its sum
    summed = tokens.float() if how == "mean" else tokens
    return torch.segment_reduce(summed, how, lengths=lengths, axis=0).to(hidden.dtype)
