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
from cutaway.nn import init
from cutaway.nn.attention import Biases, CrossAttention
from cutaway.nn.block import Layout, Order, Stack
from cutaway.nn.cache import Memory
from cutaway.nn.position import Stretch
from cutaway.settings import Settings

Shape = Literal["decoder", "encoder", "encoder-decoder"]
READ = 2**21  # query-key pairs of one pass over sources: bounds the memory that attention scores take


class Variant(Settings):
    """What public families do otherwise than one another; each value is one of ``nn.block.Layout``'s.

    ``head_dim`` is the width of a head where it is not hidden_size / num_heads; what is said of heads and pooling is
    one of ``heads.Traits``.
    """

    family: str
    norm: Literal["rms", "layer"] = "rms"
    norm_bias: bool = False
    order: Order = "pre"
    gated: bool = True
    activation: Literal["silu", "gelu", "gelu_tanh", "relu"] = "silu"
    inner_bias: bool = False
    attention_biases: Biases = "none"
    head_norm: bool = False
    head_dim: int | None = Field(default=None, ge=1)
    positions: Literal["rotary", "relative", "learned"] = "rotary"
    stretch: Stretch | None = None
    window: int | None = Field(default=None, ge=1)
    local_layers: tuple[int, ...] = ()
    local_theta: float | None = Field(default=None, gt=1)
    score_scale: float | None = Field(default=None, gt=0)
    embedding_scale: float = Field(default=1.0, gt=0)
    token_types: int = Field(default=0, ge=0)
    norm_embedding: bool = False
    first_norm: bool = True
    head_scale: float | None = Field(default=None, gt=0)  # None: T5 scales before a tied head, others never
    head_transform: bool = False
    head_bias: bool = False
    transform_bias: bool = False
    pooler: bool = False
    class_bias: bool = True
    pooling: Literal["last", "mean", "first"] = "last"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.gated and (self.inner_bias or self.activation == "relu"):
            raise ValueError("a gated feed-forward has neither biases nor relu here")
        if self.local_layers and self.window is None:
            raise ValueError("local_layers see a window: say how wide it is")
        return self


# what we train from scratch: the plain member of the family whose format each shape is saved in
PLAIN: dict[str, Variant] = {
    "decoder": Variant(family="llama", class_bias=False),
    "encoder": Variant(family="modernbert", norm="layer", activation="gelu", norm_embedding=True, first_norm=False,
                       head_transform=True, pooling="mean"),
    "encoder-decoder": Variant(family="t5", activation="gelu_tanh", positions="relative", class_bias=False)}


class TransformerConfig(Settings):
    """Sizes of a transformer; ``num_layers`` is that of each stack. ``variant`` is what a public family does otherwise,
    and None the plain form of the shape."""

    kind: Literal["transformer"] = "transformer"
    shape: Shape = "decoder"
    vocab_size: int = Field(ge=2)
    hidden_size: int = Field(ge=2)
    num_layers: int = Field(ge=1)
    num_heads: int = Field(ge=1)
    num_kv_heads: int = Field(ge=1)
    intermediate_size: int = Field(ge=1)
    context_length: int = Field(ge=2, le=1 << 21)  # a table of rotary angles is made for all of it
    rope_theta: float = Field(default=10_000.0, gt=1)
    norm_eps: float = Field(default=1e-5, gt=0)
    tie_embeddings: bool = True
    dropout: float = Field(default=0.0, ge=0, lt=1)
    variant: Variant | None = None

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.made.head_dim is None and self.hidden_size % (2 * self.num_heads):
            raise ValueError(f"hidden_size {self.hidden_size} must be a multiple of 2 x num_heads {self.num_heads}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} must be a multiple of num_kv_heads {self.num_kv_heads}")
        if self.shape != "decoder" and self.num_heads != self.num_kv_heads:
            raise ValueError(f"num_kv_heads {self.num_kv_heads} must be num_heads {self.num_heads}: the public format "
                             f"of the {self.shape} knows no grouped heads")
        return self

    @property
    def made(self) -> Variant:
        """The variant, the shape's plain one where none is given."""
        return PLAIN[self.shape] if self.variant is None else self.variant

    @property
    def head_size(self) -> int:
        """Width of one head."""
        return self.made.head_dim or self.hidden_size // self.num_heads

    @property
    def heads(self) -> tuple[int, int, int]:
        """Query heads, key heads, and the width of one."""
        return self.num_heads, self.num_kv_heads, self.head_size

    @property
    def traits(self) -> Traits:
        """Those of its public format: an encoder's dense layer before the head and mean of all tokens (only an encoder
        has seen the whole row at every token), T5's scale before a tied head, Llama's classes without bias."""
        made, pair = self.made, self.shape == "encoder-decoder"
        rule = self.hidden_size**-0.5 if pair and self.tie_embeddings else 1.0
        scale = made.head_scale or rule
        return Traits(family=made.family, pooling=made.pooling, generates=self.shape != "encoder", reads_source=pair,
                      class_bias=made.class_bias, head_scale=scale, head_transform=made.head_transform,
                      transform_bias=made.transform_bias, pooler=made.pooler, head_bias=made.head_bias, packs=not pair)

    @property
    def score_scale(self) -> float:
        """What attention scores are multiplied with. T5 leaves them as they are and has smaller queries instead, which
        suits the relative steps of its optimizer and of no other: ours are as large as anybody's, and their scale a
        power of two, so that they go to its format and come back without losing a bit."""
        if self.shape == "encoder-decoder":
            return 2.0 ** -round(math.log2(self.head_size) / 2)
        return self.made.score_scale or float(self.head_size**-0.5)

    def layout(self, *, causal: bool, cross: bool = False) -> Layout:
        """One of its stacks."""
        made = self.made
        special = self.shape == "encoder-decoder" or made.score_scale is not None
        return Layout(
            self.hidden_size, self.num_layers, self.heads, self.intermediate_size, self.norm_eps, self.context_length,
            causal, cross, norm=made.norm, norm_bias=made.norm_bias, order=made.order, gated=made.gated,
            activation=made.activation, inner_bias=made.inner_bias, attention_biases=made.attention_biases,
            head_norm=made.head_norm, positions=made.positions, theta=self.rope_theta, stretch=made.stretch,
            window=made.window, local_layers=frozenset(made.local_layers), local_theta=made.local_theta,
            scale=self.score_scale if special else None, embedding_scale=made.embedding_scale,
            token_types=made.token_types, norm_embedding=made.norm_embedding, first_norm=made.first_norm,
            dropout=self.dropout)

    def backbone(self) -> Stack | EncoderDecoder:
        """The stack or stacks, their weights not yet drawn."""
        embedding = init.embedding(self.vocab_size, self.hidden_size)
        if self.shape != "encoder-decoder":
            return Stack(embedding, self.layout(causal=self.shape == "decoder"))
        return EncoderDecoder(Stack(embedding, self.layout(causal=False)),
                              Stack(embedding, self.layout(causal=True, cross=True)))

    def cost(self) -> Cost:
        """The bill; ``parameters`` equals what ``build`` makes with a head of tokens (tested)."""
        made, d, inner, layers = self.made, self.hidden_size, self.intermediate_size, self.num_layers
        heads, kv, size = self.heads
        matrices = d * (heads + 2 * kv) * size + heads * size * d + (3 if made.gated else 2) * d * inner
        norm = d * (1 + made.norm_bias)
        vocabulary, head = self.vocab_size * d, 0 if self.tie_embeddings else self.vocab_size * d
        attention = layers * 4 * heads * size
        each = matrices + (4 if made.order == "around" else 2) * norm + 2 * size * made.head_norm
        each += {"none": 0, "qkv": 1, "all": 1}[made.attention_biases] * (heads + 2 * kv) * size
        each += d * (made.attention_biases == "all") + (inner + d) * made.inner_bias
        if self.shape == "encoder-decoder":
            cross = 4 * d * heads * size
            blocks = layers * (2 * matrices + cross + 2 * 2 * d + d) + 2 * d + 2 * 32 * heads
            return Cost(embedding=vocabulary, blocks=blocks, head=head, matrix=layers * (matrices + cross) + vocabulary,
                        attention=2 * attention, kv_values=2 * layers * kv * size, source_matrix=layers * matrices)
        places = self.context_length * d if made.positions == "learned" else 0
        norms = norm * (made.norm_embedding + (made.order != "post") - (not made.first_norm))
        blocks = layers * each + norms + places + made.token_types * d
        transform = d * d + d * made.transform_bias + norm if made.head_transform else 0
        return Cost(embedding=vocabulary, blocks=blocks, head=head + transform + self.vocab_size * made.head_bias,
                    matrix=layers * matrices + vocabulary + d * d * made.head_transform, attention=attention,
                    kv_values=0 if self.shape == "encoder" else 2 * layers * kv * size,
                    both_ways=self.shape == "encoder")


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
