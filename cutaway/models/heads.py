"""Heads: what is read off the hidden states. Tokens (logits over the vocabulary), a scalar a position, classes or a
vector a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cutaway.errors import ModelError
from cutaway.nn.linear import Linear, PackedLinear
from cutaway.nn.norm import Norm

Pooling = Literal["last", "mean", "max", "first"]


@dataclass(frozen=True, slots=True)
class Traits:
    """What a config's models are to all that use them.

    ``family``: the format they are saved in; ``pooling``: where a label is read off a row; ``generates``: they continue
    a text; ``reads_source``: they write beside a source; ``head_scale``: what hidden states are multiplied with before
    a head of tokens; ``head_transform``: a dense layer and a norm stand before the head, with ``transform_bias`` in
    both; ``pooler``: before one of classes it is a dense layer and tanh instead; ``head_bias`` and ``class_bias``: a
    head of tokens, of classes has a bias; ``packs``: texts are read faster behind one another than each in a row.
    """

    family: str = "own"
    pooling: Pooling = "last"
    generates: bool = True
    reads_source: bool = False
    head_scale: float = 1.0
    head_transform: bool = False
    transform_bias: bool = False
    pooler: bool = False
    head_bias: bool = False
    class_bias: bool = True
    packs: bool = False


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
    """A head of one vector a row: its hidden states pooled (None: their mean, or their maximum where the architecture
    reads its labels off that), and with ``unit`` of length 1."""

    pooling: Pooling | None = None
    unit: bool = True


HeadKind = Literal["tokens", "scalar", "classes", "vector"]
Head = Literal["tokens", "scalar"] | Classes | Vector


def kind_of(head: Head) -> HeadKind:
    """The name of a head."""
    if isinstance(head, str):
        return head
    return "classes" if isinstance(head, Classes) else "vector"


class Transform(nn.Module):
    """Dense, GELU, norm: what ModernBERT and BERT have before a head."""

    def __init__(self, width: int, *, eps: float, bias: bool = False) -> None:
        super().__init__()
        self.dense = Linear(width, width, bias=bias)
        self.norm = Norm("layer", width, eps=eps, bias=bias)

    def forward(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.norm(F.gelu(self.dense(hidden)).float(), dtype=hidden.dtype)[1]
        return out


class Pooler(nn.Module):
    """Dense and tanh: what BERT has between the first token and its classes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = Linear(width, width, bias=True)

    def forward(self, pooled: Tensor) -> Tensor:
        return torch.tanh(self.dense(pooled))


class TokenHead(nn.Module):
    """Hidden ``(…, D)`` -> logits ``(…, V)`` in float32; the weight may be the embedding's own. With a ``scale`` below
    1 the same logits take a weight larger by as much: it is drawn so, and learned at such a rate (train.optimizer)."""

    def __init__(self, weight: Tensor, *, transform: Transform | None = None, scale: float = 1.0,
                 bias: bool = False) -> None:
        super().__init__()
        assert isinstance(weight, nn.Parameter)
        self.weight, self.transform, self.scale = weight, transform, scale
        self.bias = nn.Parameter(torch.empty(len(weight))) if bias else None
        self.packed: PackedLinear | None = None  # the weight and the bias, for reading

    def features(self, hidden: Tensor) -> Tensor:
        """What the weight is multiplied with, ``(…, D)``."""
        if self.transform is not None:
            hidden = self.transform(hidden)
        return hidden if self.scale == 1.0 else hidden * self.scale

    def factors(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Features and a weight whose product is the logits: a bias is one more column that meets ones."""
        features = self.features(hidden)
        if self.bias is None:
            return features, self.weight
        return F.pad(features, (0, 1), value=1.0), torch.cat((self.weight, self.bias[:, None]), 1)

    def forward(self, hidden: Tensor) -> Tensor:
        if self.packed is not None:
            out: Tensor = self.packed(self.features(hidden), dtype=torch.float32)
            return out
        logits = F.linear(self.features(hidden), self.weight.to(hidden.dtype)).float()
        return logits if self.bias is None else logits + self.bias

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

    def __init__(self, width: int, classes: Classes, *, transform: Transform | Pooler | None = None, bias: bool = True,
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
    """Pooled hidden ``(B, D)`` -> a float32 vector ``(B, D)``, of length 1 where ``vector`` says so."""

    def __init__(self, vector: Vector) -> None:
        super().__init__()
        self.vector = vector

    def forward(self, pooled: Tensor) -> Tensor:
        return F.normalize(pooled.float(), dim=-1) if self.vector.unit else pooled.float()


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
    if how == "first":
        return hidden[:, 0]
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
    if how in ("last", "first"):
        ends = lengths.cumsum(0)
        return tokens[ends - 1 if how == "last" else ends - lengths]
    # a mean in float32: bfloat16 would lose words of a long text in its sum
    summed = tokens.float() if how == "mean" else tokens
    return torch.segment_reduce(summed, how, lengths=lengths, axis=0).to(hidden.dtype)
