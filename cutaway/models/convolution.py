"""Convolutional networks in three shapes: a causal language model (WaveNet, TCN, gated convolutions), Kim's sentence
classifier (2014, arXiv 1408.5882) and a sequence-to-sequence model (ConvS2S, Gehring 2017, arXiv 1705.03122)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle, islice
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from cutaway.batch import Batch, lay_sources
from cutaway.errors import ModelError, RequestError
from cutaway.models.cost import Cost
from cutaway.models.heads import Traits, pooled
from cutaway.nn import init, mask
from cutaway.nn.cache import Memory
from cutaway.nn.convolution import (
    Around,
    ConvolutionStack,
    ConvolutionState,
    Layout,
    places,
)
from cutaway.nn.filters import answers, largest, read
from cutaway.settings import Settings

Shape = Literal["decoder", "encoder", "encoder-decoder"]
Sizes = tuple[Annotated[int, Field(ge=1)], ...]


class ConvolutionConfig(Settings):
    """Sizes of a convolutional network. ``kernel_sizes`` and ``dilations`` are those of the layers, over and over;
    in an encoder all widths stand side by side over the words, ``hidden_size`` is the filters of all of them together
    and ``embedding_size`` the width of a word. Not given, they are what the shape's paper has.

    ``gated`` multiplies with a learned gate; without it the layers have a ReLU, and copy further (TCN's table 5).
    """

    kind: Literal["convolution"] = "convolution"
    shape: Shape = "decoder"
    vocab_size: int = Field(ge=2)
    hidden_size: int = Field(ge=1)
    num_layers: int = Field(default=1, ge=1)
    kernel_sizes: Sizes = (3,)
    dilations: Sizes = (1,)
    gated: bool = True
    embedding_size: int = Field(ge=1)
    context_length: int = Field(default=1 << 16, ge=2)
    norm_eps: float = Field(default=1e-5, gt=0)
    tie_embeddings: bool = True
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="before")
    @classmethod
    def _by_shape(cls, tree: Any) -> Any:
        if not isinstance(tree, dict):
            return tree
        usual: dict[str, dict[str, Any]] = {
            "decoder": {"dilations": (1, 2, 4, 8)},
            "encoder": {"kernel_sizes": (3, 4, 5), "gated": False, "dropout": 0.5},
            "encoder-decoder": {"context_length": 1024}}
        # behind a validator of the raw tree JSON's lists are no tuples any more
        given = {k: tuple(v) if isinstance(v, list) else v for k, v in tree.items()}
        filled = {**usual.get(str(tree.get("shape", "decoder")), {}), **given}
        if "hidden_size" in filled:
            filled.setdefault("embedding_size", filled["hidden_size"])
        return filled

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not self.kernel_sizes or not self.dilations:
            raise ValueError("kernel_sizes and dilations need at least one entry")
        if self.shape != "encoder":
            if self.embedding_size != self.hidden_size:
                raise ValueError(f"embedding_size {self.embedding_size} must be hidden_size {self.hidden_size}: only "
                                 "an encoder has words of another width")
            return self
        if self.hidden_size % len(self.kernel_sizes):
            raise ValueError(f"hidden_size {self.hidden_size} must be a multiple of the {len(self.kernel_sizes)} "
                             "widths of its filters")
        if self.num_layers != 1 or self.dilations != (1,) or self.gated:
            raise ValueError("an encoder is one layer of filters, neither dilated nor gated")
        if self.tie_embeddings and self.embedding_size != self.hidden_size:
            raise ValueError(f"words of width {self.embedding_size} cannot be tied to a head of {self.hidden_size}; "
                             "set tie_embeddings to false")
        return self

    @property
    def kernels(self) -> tuple[int, ...]:
        """The taps of each layer."""
        return tuple(islice(cycle(self.kernel_sizes), self.num_layers))

    @property
    def steps(self) -> tuple[int, ...]:
        """The dilation of each layer."""
        return tuple(islice(cycle(self.dilations), self.num_layers))

    @property
    def receptive_field(self) -> int:
        """Tokens a hidden state is made of: its own and those before it, or the widest filter's."""
        if self.shape == "encoder":
            return max(self.kernel_sizes)
        return 1 + sum((k - 1) * d for k, d in zip(self.kernels, self.steps, strict=True))

    @property
    def traits(self) -> Traits:
        """A label is read off each filter's largest answer, as in Kim's."""
        return Traits(pooling="max" if self.shape == "encoder" else "last", generates=self.shape != "encoder",
                      reads_source=self.shape == "encoder-decoder")

    def layout(self, *, causal: bool, cross: bool = False) -> Layout:
        """One of its stacks."""
        positions = self.context_length if self.shape == "encoder-decoder" else 0
        return Layout(self.hidden_size, self.kernels, self.steps, self.norm_eps, causal, self.gated, cross, positions,
                      self.dropout)

    def backbone(self) -> CausalConvolution | WordFilters | ConvolutionPair:
        """The network, its weights not yet drawn."""
        embedding = init.embedding(self.vocab_size, self.embedding_size)
        if self.shape == "encoder":
            return WordFilters(embedding, self.kernel_sizes, self.hidden_size)
        if self.shape == "decoder":
            return CausalConvolution(ConvolutionStack(embedding, self.layout(causal=True)))
        return ConvolutionPair(ConvolutionStack(embedding, self.layout(causal=False)),
                               ConvolutionStack(embedding, self.layout(causal=True, cross=True)))

    def cost(self) -> Cost:
        """The bill; ``parameters`` equals what ``build`` makes with a head of tokens (tested)."""
        d, taken = self.hidden_size, self.vocab_size * self.hidden_size
        vocabulary, head = self.vocab_size * self.embedding_size, 0 if self.tie_embeddings else taken
        if self.shape == "encoder":
            filters = sum(self.kernel_sizes) * self.embedding_size * d // len(self.kernel_sizes)
            return Cost(embedding=vocabulary, blocks=filters + d, head=head, matrix=filters + taken, attention=0,
                        kv_values=0, both_ways=True)
        layers = sum(k * d * (1 + self.gated) * d + d * d for k in self.kernels)
        norms, state = (self.num_layers + 1) * d, (self.receptive_field - 1) * d
        if self.shape == "decoder":
            return Cost(embedding=vocabulary, blocks=layers + norms, head=head, matrix=layers + taken, attention=0,
                        kv_values=0, state_values=state)
        queries, positions = self.num_layers * d * d, 2 * self.context_length * d
        # a token looks at the whole source: counted as if that were as long as the target
        return Cost(embedding=vocabulary, blocks=2 * (layers + norms) + queries + positions, head=head,
                    matrix=layers + queries + taken, attention=4 * self.num_layers * d, kv_values=0,
                    state_values=state, both_ways=True, source_matrix=layers)


class CausalConvolution(nn.Module):
    """A stack that reads tokens: each sees what stands before it, as far as the receptive field."""

    def __init__(self, stack: ConvolutionStack) -> None:
        super().__init__()
        self.stack = stack

    @property
    def embedding(self) -> nn.Embedding:
        """The stack's own."""
        return self.stack.embedding

    def forward(self, batch: Batch, *, dtype: torch.dtype, state: ConvolutionState | None = None,
                counts: Tensor | None = None) -> Tensor:
        """``batch.tokens (B, T)`` -> hidden ``(B, T, D)`` in ``dtype``; with a ``state``, behind what it holds."""
        around = Around(batch.documents if state is None else None, counts)
        out: Tensor = self.stack(self.stack.words(batch.tokens, None), around, dtype=dtype, state=state)
        return out

    def new_state(self, rows: int, *, capacity: int, dtype: torch.dtype) -> ConvolutionState:
        """Nothing read yet of ``rows`` sequences of up to ``capacity`` tokens."""
        return self.stack.new_state(rows, capacity=capacity, dtype=dtype)


class WordFilters(nn.Module):
    """Kim's network: filters of several widths over the words, centred on each, and the largest answer of each filter.

    Words behind the edge of the text are zero, so that a text may be shorter than its widest filter.
    """

    def __init__(self, embedding: nn.Embedding, widths: Sequence[int], hidden_size: int) -> None:
        super().__init__()
        self.embedding, self.widths = embedding, tuple(widths)
        each, size = hidden_size // len(self.widths), embedding.embedding_dim
        self.filters = nn.ParameterList(nn.Parameter(torch.empty(each, width * size)) for width in self.widths)
        self.bias = nn.Parameter(torch.empty(hidden_size))

    def forward(self, batch: Batch, *, dtype: torch.dtype) -> Tensor:
        """``batch.tokens (B, T)`` -> the filters' answers around each token ``(B, T, D)`` in ``dtype``."""
        said = answers(self._words(batch), [*self.filters], self.widths, batch.documents, dtype=dtype)
        return F.relu(said + self.bias.to(dtype))

    def pooled(self, batch: Batch, *, dtype: torch.dtype) -> Tensor:
        """The largest of each filter's answers to a row ``(B, D)``, or to each document of packed rows ``(N, D)``: the
        maximum of ``forward``, whose bias and ReLU, which keep the order, come behind it. A row of padding alone gives
        zeros."""
        top = None
        if dtype == torch.bfloat16 and not torch.is_grad_enabled():
            top = read(batch.tokens, self.embedding.weight, [*self.filters], self.widths, batch.documents)
        if top is not None:
            return F.relu(top + self.bias).to(dtype)
        several = batch.documents is not None and bool((batch.documents > 0).any())
        if several:
            return pooled(self(batch, dtype=dtype), batch.documents, "max")
        top = largest(self._words(batch), [*self.filters], self.widths, batch.documents, dtype=dtype)
        return F.relu(top + self.bias).to(dtype)

    def _words(self, batch: Batch) -> Tensor:
        return F.embedding(batch.tokens, self.embedding.weight).float()


class ConvolutionPair(nn.Module):
    """A stack that reads the source both ways, and a causal one whose every layer looks at it."""

    def __init__(self, encoder: ConvolutionStack, decoder: ConvolutionStack) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    @property
    def embedding(self) -> nn.Embedding:
        """The embedding that both share."""
        return self.encoder.embedding

    def forward(self, batch: Batch, *, dtype: torch.dtype, state: ConvolutionState | None = None,
                counts: Tensor | None = None) -> Tensor:
        """Hidden ``(B, T, D)`` of the target; behind a ``state``, whose memory holds the source already."""
        if state is not None:
            assert state.memory is not None
            at = state.lengths[:, None] + torch.arange(batch.tokens.shape[1], device=batch.tokens.device)
            memory = state.memory
            return self._decoded(batch.tokens, at, Around(counts=counts, keys=memory.keys[0], values=memory.values[0],
                                                          seen=memory.real[:, None, None]), dtype, state)
        if batch.source is None:
            raise ModelError("an encoder-decoder reads a source, and the batch has none",
                             way_out="give the examples a source")
        if batch.source.shape[1] > self.encoder.layout.positions:
            raise ModelError(f"a source of {batch.source.shape[1]} tokens is longer than the context of "
                             f"{self.encoder.layout.positions}")
        keys, values = self._read(batch.source, batch.source_documents, dtype)
        sizes = batch.tokens.shape[1], batch.source.shape[1]
        seen = mask.across(batch).dense(*sizes, batch.tokens.device)
        around = Around(batch.documents, keys=keys, values=values, seen=seen)
        return self._decoded(batch.tokens, batch.positions, around, dtype, None)

    def _decoded(self, tokens: Tensor, positions: Tensor | None, around: Around, dtype: torch.dtype,
                 state: ConvolutionState | None) -> Tensor:
        words = self.decoder.words(tokens, positions)
        out: Tensor = self.decoder(words, replace(around, words=words.to(dtype)), dtype=dtype, state=state)
        return out

    def _read(self, source: Tensor, documents: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """What is looked for in a source and what is found there, each ``(B, 1, S, D)``: its hidden states, and those
        with the words added."""
        words = self.encoder.words(source, places(documents))
        hidden = self.encoder(words, Around(documents), dtype=dtype)
        return hidden[:, None], (hidden + words.to(dtype))[:, None]

    def new_state(self, rows: int, *, capacity: int, dtype: torch.dtype,
                  sources: Sequence[Sequence[int]] | None = None) -> ConvolutionState:
        """Nothing read yet behind ``sources``, one a row, which are read here and never again."""
        if sources is None or len(sources) != rows:
            raise RequestError(f"an encoder-decoder needs a source for each of its {rows} rows, got "
                               f"{0 if sources is None else len(sources)}", way_out="give each request a source")
        longest = max(map(len, sources))
        if longest > self.encoder.layout.positions or not min(map(len, sources)):
            raise RequestError(f"a source of {longest or 0} tokens does not fit 1 to {self.encoder.layout.positions}",
                               way_out="shorten it, or give one")
        tokens, documents = lay_sources([[np.asarray(s, np.int64)] for s in sources], pad_id=0)
        device = self.embedding.weight.device
        tokens, documents = tokens.to(device), documents.to(device)
        keys, values = self._read(tokens, documents, dtype)
        return self.decoder.new_state(rows, capacity=capacity, dtype=dtype,
                                      memory=Memory((keys,), (values,), documents >= 0))
