"""The transformer in three shapes from one set of blocks: decoder (Llama's: Touvron 2023, arXiv 2302.13971), encoder
(ModernBERT's: Warner 2024, arXiv 2412.13663) and encoder-decoder (T5 v1.1's: Raffel 2020, arXiv 1910.10683)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from cutaway.batch import Batch, lay_sources
from cutaway.errors import ModelError, RequestError
from cutaway.models.cost import Cost
from cutaway.models.heads import Traits
from cutaway.nn.attention import CrossAttention
from cutaway.nn.block import Layout, Stack
from cutaway.nn.cache import Memory
from cutaway.settings import Settings

Shape = Literal["decoder", "encoder", "encoder-decoder"]
READ = 2**21  # query-key pairs of one pass over sources: bounds the memory that attention scores take


class TransformerConfig(Settings):
    """Sizes of a transformer; ``head_size`` is ``hidden_size / num_heads``. ``num_layers`` is that of each stack."""

    kind: Literal["transformer"] = "transformer"
    shape: Shape = "decoder"
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
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.hidden_size % (2 * self.num_heads):
            raise ValueError(f"hidden_size {self.hidden_size} must be a multiple of 2 x num_heads {self.num_heads}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} must be a multiple of num_kv_heads {self.num_kv_heads}")
        if self.shape != "decoder" and self.num_heads != self.num_kv_heads:
            raise ValueError(f"num_kv_heads {self.num_kv_heads} must be num_heads {self.num_heads}: the public format "
                             f"of the {self.shape} knows no grouped heads")
        return self

    @property
    def head_size(self) -> int:
        """Width of one head."""
        return self.hidden_size // self.num_heads

    @property
    def heads(self) -> tuple[int, int, int]:
        """Query heads, key heads, and the width of one."""
        return self.num_heads, self.num_kv_heads, self.head_size

    @property
    def traits(self) -> Traits:
        """Those of each shape's public format: ModernBERT's dense layer before the head and mean of all tokens (only an
        encoder has seen the whole row at every token), T5's scale before a tied head, Llama's classes without bias."""
        if self.shape == "encoder":
            return Traits(family="modernbert", pooling="mean", generates=False, head_transform=True)
        if self.shape == "decoder":
            return Traits(family="llama", class_bias=False)
        return Traits(family="t5", reads_source=True, class_bias=False,
                      head_scale=self.hidden_size**-0.5 if self.tie_embeddings else 1.0)

    @property
    def score_scale(self) -> float:
        """What attention scores are multiplied with. T5 leaves them as they are and has smaller queries instead, which
        suits the relative steps of its optimizer and of no other: ours are as large as anybody's, and their scale a
        power of two, so that they go to its format and come back without losing a bit."""
        if self.shape == "encoder-decoder":
            return 2.0 ** -round(math.log2(self.head_size) / 2)
        return float(self.head_size**-0.5)

    def layout(self, *, causal: bool, cross: bool = False) -> Layout:
        """One of its stacks."""
        sizes = (self.hidden_size, self.num_layers, self.heads, self.intermediate_size, self.norm_eps,
                 self.context_length, causal, cross)
        if self.shape == "encoder":
            return Layout(*sizes, norm="layer", activation="gelu", theta=self.rope_theta, norm_embedding=True,
                          dropout=self.dropout)
        if self.shape == "encoder-decoder":
            return Layout(*sizes, activation="gelu_tanh", positions="relative", scale=self.score_scale,
                          dropout=self.dropout)
        return Layout(*sizes, theta=self.rope_theta, dropout=self.dropout)

    def backbone(self) -> Stack | EncoderDecoder:
        """The stack or stacks, their weights not yet drawn."""
        embedding = nn.Embedding(self.vocab_size, self.hidden_size)
        if self.shape != "encoder-decoder":
            return Stack(embedding, self.layout(causal=self.shape == "decoder"))
        return EncoderDecoder(Stack(embedding, self.layout(causal=False)),
                              Stack(embedding, self.layout(causal=True, cross=True)))

    def cost(self) -> Cost:
        """The bill; ``parameters`` equals what ``build`` makes with a head of tokens (tested)."""
        d, inner, layers = self.hidden_size, self.intermediate_size, self.num_layers
        heads, kv, size = self.heads
        matrices = d * (heads + 2 * kv) * size + heads * size * d + 3 * d * inner
        norms, vocabulary, head = 2 * d, self.vocab_size * d, 0 if self.tie_embeddings else self.vocab_size * d
        attention = layers * 4 * heads * size
        if self.shape == "encoder":  # a norm behind the embedding for the first attention's; dense and norm in the head
            return Cost(embedding=vocabulary, blocks=layers * (matrices + norms) + d, head=head + d * d + d,
                        matrix=layers * matrices + vocabulary + d * d, attention=attention, kv_values=0,
                        both_ways=True)
        if self.shape == "encoder-decoder":
            cross = 4 * d * heads * size
            blocks = layers * (2 * matrices + cross + 2 * norms + d) + 2 * d + 2 * 32 * heads
            return Cost(embedding=vocabulary, blocks=blocks, head=head, matrix=layers * (matrices + cross) + vocabulary,
                        attention=2 * attention, kv_values=2 * layers * kv * size, source_matrix=layers * matrices)
        return Cost(embedding=vocabulary, blocks=layers * (matrices + norms) + d, head=head,
                    matrix=layers * matrices + vocabulary, attention=attention, kv_values=2 * layers * kv * size)


class EncoderDecoder(nn.Module):
    """A stack that reads the source both ways, and one that writes the target and looks at what the first one saw."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder: Any = encoder  # of any architecture, with ``embedding`` and ``layout.context_length``
        self.decoder: Any = decoder  # takes ``memory`` in its forward pass and in ``new_state``

    @property
    def embedding(self) -> nn.Embedding:
        """The embedding that both share."""
        shared: nn.Embedding = self.encoder.embedding
        return shared

    def forward(self, batch: Batch, *, dtype: torch.dtype, state: Any = None,
                counts: Tensor | None = None) -> Tensor:
        """Hidden ``(B, T, D)`` of the target; behind a ``state``, whose memory holds the source already."""
        if state is not None:
            out: Tensor = self.decoder(batch, dtype=dtype, state=state, counts=counts)
            return out
        if batch.source is None:
            raise ModelError("an encoder-decoder reads a source, and the batch has none",
                             way_out="give the examples a source")
        if batch.source.shape[1] > self.encoder.layout.context_length:
            raise ModelError(f"a source of {batch.source.shape[1]} tokens is longer than the context of "
                             f"{self.encoder.layout.context_length}")
        memory = self.encoder(Batch(batch.source, documents=batch.source_documents), dtype=dtype)
        out = self.decoder(batch, dtype=dtype, memory=memory)
        return out

    def new_state(self, rows: int, *, capacity: int, dtype: torch.dtype,
                  sources: Sequence[Sequence[int]] | None = None) -> Any:
        """An empty state of the target behind ``sources``, one a row, which are read here and never again."""
        if sources is None or len(sources) != rows:
            raise RequestError(f"an encoder-decoder needs a source for each of its {rows} rows, got "
                               f"{0 if sources is None else len(sources)}", way_out="give each request a source")
        longest = max(map(len, sources))
        if longest > self.encoder.layout.context_length or not min(map(len, sources)):
            raise RequestError(f"a source of {longest or 0} tokens does not fit 1 to "
                               f"{self.encoder.layout.context_length}", way_out="shorten it, or give one")
        memory = self._remembered(sources, dtype)
        return self.decoder.new_state(rows, capacity=capacity, dtype=dtype, memory=memory)

    def _remembered(self, sources: Sequence[Sequence[int]], dtype: torch.dtype) -> Memory:
        """Keys and values of the sources, read a few at a time where they are long."""
        longest, device = max(map(len, sources)), self.embedding.weight.device
        layers = [m for m in self.decoder.modules() if isinstance(m, CrossAttention)]
        shape = (len(sources), layers[0].heads[1], longest, layers[0].heads[2])
        keys, values = ([torch.zeros(shape, dtype=dtype, device=device) for _ in layers] for _ in range(2))
        real = torch.zeros(shape[0], longest, dtype=torch.bool, device=device)
        each = max(1, READ // longest**2)
        for start in range(0, len(sources), each):
            laid = [[np.asarray(s, np.int64)] for s in sources[start : start + each]]
            tokens, documents = (t.to(device) for t in lay_sources(laid, pad_id=0))
            rows, width = slice(start, start + len(laid)), tokens.shape[1]
            real[rows, :width] = documents >= 0
            even = bool(real[rows, :width].all())
            hidden = self.encoder(Batch(tokens, documents=None if even else documents), dtype=dtype)
            for cross, k, v in zip(layers, keys, values, strict=True):
                k[rows, :, :width], v[rows, :, :width] = cross.keys_values(hidden)
        return Memory(tuple(keys), tuple(values), real)
