"""Block and Stack: pre-norm residual layers (Xiong et al. 2020, arXiv 2002.04745) over token embeddings.

``causal`` and ``cross`` are the whole difference between the BERT, GPT and T5 shapes (as in x-transformers).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cutaway.batch import Batch
from cutaway.nn import init, mask
from cutaway.nn.attention import Attention, Biases, CrossAttention, Where
from cutaway.nn.cache import Carried, KVCache, Memory
from cutaway.nn.feedforward import Gated, Plain
from cutaway.nn.kernels import library_for
from cutaway.nn.linear import After
from cutaway.nn.memory import made_again
from cutaway.nn.norm import Norm, NormKind
from cutaway.nn.ops import Heads
from cutaway.nn.position import AnyStretch, RelativeBias, rotary_table

Order = Literal["pre", "post", "around"]  # where norms stand: before each part, behind each addition, before and behind


@dataclass(frozen=True, slots=True)
class Layout:
    """What a stack is made of; every difference between families is a value here."""

    width: int
    num_layers: int
    heads: Heads
    inner: int
    eps: float
    context_length: int
    causal: bool
    cross: bool = False
    norm: NormKind = "rms"
    norm_bias: bool = False
    order: Order = "pre"
    gated: bool = True
    activation: After = "silu"
    inner_bias: bool = False  # of a plain feed-forward
    attention_biases: Biases = "none"
    head_norm: bool = False  # of queries and keys
    positions: Literal["rotary", "relative", "learned"] = "rotary"
    theta: float = 10_000.0
    stretch: AnyStretch | None = None
    window: int | None = None  # how far local layers see: so many tokens, the own one counted; both ways, to each side
    local_layers: frozenset[int] = frozenset()
    local_theta: float | None = None
    scale: float | None = None  # of attention scores; 1 / sqrt(head size) where None
    embedding_scale: float = 1.0
    token_types: int = 0  # a vector is added to every token that says which of several texts it is of: the first
    norm_embedding: bool = False  # right behind the embedding
    first_norm: bool = True  # before the first attention
    dropout: float = 0.0


class Block(nn.Module):
    """Attention, over the source too where there is one, then feed-forward, each on the normalised residual stream
    and added to it.

    A block takes the residual ``x (B, T, D)`` and the ``delta`` its predecessor has yet to add, and gives the same
    pair: the addition then happens inside the next normalisation, in one pass over memory.
    """

    def __init__(self, layout: Layout, index: int) -> None:
        super().__init__()
        bare = index == 0 and not layout.first_norm
        self.attention_norm = _norm(layout, "none" if bare else layout.norm)
        self.attention = Attention(layout.width, layout.heads, scale=layout.scale, biases=layout.attention_biases,
                                   head_norm=layout.eps if layout.head_norm else None)
        if layout.cross:
            self.cross_norm = _norm(layout, layout.norm)
            self.cross = CrossAttention(layout.width, layout.heads, scale=layout.scale)
        self.feedforward_norm = _norm(layout, layout.norm)
        self.feedforward = _feedforward(layout)
        around = layout.order == "around"
        self.attention_after = _norm(layout, layout.norm) if around else None
        self.feedforward_after = _norm(layout, layout.norm) if around else None
        self.crossing, self.dropout, self.order = layout.cross, layout.dropout, layout.order
        self.local = index in layout.local_layers

    def forward(self, x: Tensor, delta: Tensor | None, where: Where, *, dtype: torch.dtype,
                cache: tuple[int, Carried] | None = None) -> tuple[Tensor, Tensor | None]:
        if self.order == "post":
            return self._post(x, where, dtype, cache), None
        x, h, light = _normed(self.attention_norm, x, delta, dtype)
        with light:
            mixed = self._added(self.attention(h, where, cache), self.attention_after)
        if self.crossing:
            x, h, light = _normed(self.cross_norm, x, mixed, dtype)
            with light:
                mixed = self._dropped(self.cross(h, where, cache))
        x, h, light = _normed(self.feedforward_norm, x, mixed, dtype)
        with light:
            return x, self._added(self.feedforward(h), self.feedforward_after)

    def _post(self, x: Tensor, where: Where, dtype: torch.dtype, cache: tuple[int, Carried] | None) -> Tensor:
        """Vaswani 2017: each part is added to what it read, and the sum is normalised."""
        mixed = self._dropped(self.attention(x.to(dtype), where, cache))
        x, h = self.attention_norm(x, mixed, dtype=dtype, post=True)
        out: Tensor = self.feedforward_norm(x, self._dropped(self.feedforward(h)), dtype=torch.float32)[1]
        return out

    def _added(self, mixed: Tensor, after: Norm | None) -> Tensor:
        if after is not None:
            mixed = after(mixed.float(), dtype=mixed.dtype)[1]
        return self._dropped(mixed)

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


def _norm(layout: Layout, kind: NormKind) -> Norm:
    return Norm(kind, layout.width, eps=layout.eps, bias=layout.norm_bias)


def _feedforward(layout: Layout) -> Gated | Plain:
    if not layout.gated:
        return Plain(layout.width, layout.inner, activation=layout.activation, bias=layout.inner_bias)
    assert layout.activation != "relu"
    return Gated(layout.width, layout.inner, activation=layout.activation)


def _normed(norm: Norm, x: Tensor, delta: Tensor | None,
            dtype: torch.dtype) -> tuple[Tensor, Tensor, AbstractContextManager[Any]]:
    """``norm``'s pair, and the context in which its second is made again instead of kept."""
    total, h = norm(x, delta, dtype=dtype)
    return total, h, made_again(h, lambda: norm(total, dtype=dtype)[1])


class Stack(nn.Module):
    """Embedding, blocks and a last norm. ``embedding`` may be shared with another stack.

    Raises no error of its own: lengths are checked by the model that owns it.
    """

    rotary: Tensor | None
    local_rotary: Tensor | None

    def __init__(self, embedding: nn.Embedding, layout: Layout) -> None:
        super().__init__()
        self.embedding, self.layout = embedding, layout
        learned = layout.positions == "learned"
        self.positions = init.embedding(layout.context_length, layout.width) if learned else None
        self.token_types = init.embedding(layout.token_types, layout.width) if layout.token_types else None
        if layout.norm_embedding:
            self.embedding_norm = _norm(layout, layout.norm)
        self.blocks = nn.ModuleList(Block(layout, i) for i in range(layout.num_layers))
        self.norm = _norm(layout, "none" if layout.order == "post" else layout.norm)
        self.register_buffer("rotary", self._table(layout.theta, layout.stretch), persistent=False)
        other = layout.local_theta is not None and bool(layout.local_layers)
        self.register_buffer("local_rotary", self._table(layout.local_theta or 1.0, None) if other else None,
                             persistent=False)
        relative = layout.positions == "relative"
        self.bias = RelativeBias(layout.heads[0], both_ways=not layout.causal) if relative else None

    def _table(self, theta: float, stretch: AnyStretch | None) -> Tensor | None:
        if self.layout.positions != "rotary":
            return None
        return rotary_table(self.layout.heads[2], self.layout.context_length, theta=theta, stretch=stretch)

    def forward(self, batch: Batch, *, dtype: torch.dtype, state: Carried | None = None,
                counts: Tensor | None = None, memory: Tensor | None = None) -> Tensor:
        """``batch.tokens (B, T)`` -> hidden ``(B, T, width)`` in ``dtype``; with a ``state``, behind what it holds, and
        with the hidden states of a source in ``memory``, looking at those."""
        where = self._where(batch, memory) if state is None else self._behind(batch.tokens, state, counts)
        x = self._embedded(batch, state)
        delta: Tensor | None = None
        for layer, block in enumerate(self.blocks):
            x, delta = block(x, delta, where[bool(block.local)], dtype=dtype,
                             cache=None if state is None else (layer, state))
        h: Tensor = self.norm(x, delta, dtype=dtype)[1]
        if state is not None:
            state.advance(batch.tokens.shape[1], counts)
        return h

    def _embedded(self, batch: Batch, state: Carried | None) -> Tensor:
        """What stands at each place before the first block, ``(B, T, width)`` float32."""
        x = F.embedding(batch.tokens, self.embedding.weight).float()
        if self.layout.embedding_scale != 1.0:
            x = x * self.layout.embedding_scale
        if self.positions is not None:
            at = batch.positions
            if at is None:
                at = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)
                at = at if state is None else state.lengths[:, None] + at
            # a padded token may stand behind the table's end: nobody looks at it
            x = x + self.positions(at.clamp(max=self.layout.context_length - 1))
        if self.token_types is not None:
            x = x + self.token_types.weight[0]
        if self.layout.norm_embedding:
            x = self.embedding_norm(x, dtype=torch.float32)[1]
        return F.dropout(x, self.layout.dropout, self.training) if self.layout.dropout else x

    def new_state(self, rows: int, *, capacity: int, dtype: torch.dtype, memory: Memory | None = None) -> KVCache:
        """An empty cache for ``rows`` sequences of up to ``capacity`` tokens."""
        _, num_kv_heads, head_size = self.layout.heads
        device, shape = self.embedding.weight.device, (rows, num_kv_heads, capacity, head_size)
        keys, values = ([torch.zeros(shape, dtype=dtype, device=device) for _ in self.blocks] for _ in range(2))
        return KVCache(keys, values, torch.zeros(rows, dtype=torch.long, device=device), memory)

    def _where(self, batch: Batch, memory: Tensor | None) -> tuple[Where, Where]:
        """What all layers share, and what local ones do."""
        steps = batch.tokens.shape[1]
        table = None if self.bias is None else self.bias.table(steps, steps)
        source = mask.Interval() if memory is None else mask.across(batch)
        keys = mask.within(batch.documents, causal=self.layout.causal)
        where = Where(self._turned(self.rotary, batch.positions, steps), keys, table, memory=memory, source=source)
        if not self.layout.local_layers or self.layout.window is None:
            return where, where
        near = mask.near(keys, self.layout.window, batch.tokens)
        turned = self._turned(self._local_table, batch.positions, steps)
        return where, replace(where, rotary=turned, keys=near)

    @property
    def _local_table(self) -> Tensor | None:
        return self.rotary if self.local_rotary is None else self.local_rotary

    @staticmethod
    def _turned(table: Tensor | None, positions: Tensor | None, steps: int) -> Tensor | None:
        if table is None:
            return None
        return table[:, None, :steps] if positions is None else table[:, positions]

    def _behind(self, tokens: Tensor, state: Carried, counts: Tensor | None) -> tuple[Where, Where]:
        where = self._seen(tokens, state, counts, self.rotary, None)
        if not self.layout.local_layers:
            return where, where
        return where, self._seen(tokens, state, counts, self._local_table, self.layout.window)

    def _seen(self, tokens: Tensor, state: Carried, counts: Tensor | None, table: Tensor | None,
              window: int | None) -> Where:
        """What layers share behind a state, those that see ``window`` tokens or those that see all."""
        steps = tokens.shape[1]
        over = None if state.memory is None else state.memory.real[:, None, None, :]
        window = None if window is not None and state.longest + steps <= window else window
        alone = steps == 1 and counts is None and window is None and not torch.is_grad_enabled()
        if table is not None and alone and (room := state.room(0)) is not None:
            lib = library_for(table, *room)
            if lib is not None:
                return Where(table, step=lib, real=over)
        at = state.lengths[:, None] + torch.arange(steps, device=tokens.device)
        end = min(state.longest + steps, state.capacity)
        rotary = bias = None
        if table is not None:
            # a padded token may stand behind the table's end: its angle is never used
            rotary = table[:, at.clamp(max=self.layout.context_length - 1)]
        if self.bias is not None:
            same = at[:1] if state.even else at  # one row's biases are every row's
            bias = self.bias(same, torch.arange(end, device=tokens.device))
        alone = steps == 1 and state.even and window is None  # equal lengths: all that one query could see is allowed
        begin = None if window is None else (at - (window - 1)).clamp(min=0)
        seen = None if alone else mask.Interval(begin, at).dense(steps, end, tokens.device)
        return Where(rotary, bias=bias, seen=seen, counts=counts, real=over)


@contextmanager
def compiled(module: nn.Module, on: bool = True) -> Iterator[None]:
    """Inside, every block runs through ``torch.compile``, as torchtitan does it: one graph a block; or plainly."""
    blocks = [m for m in module.modules() if isinstance(m, Block)]
    before = [block._compiled_call_impl for block in blocks]
    for block in blocks:
        if on:
            block.compile()
        else:
            block._compiled_call_impl = None  # torch has no public way back
    try:
        yield
    finally:
        for block, was in zip(blocks, before, strict=True):
            block._compiled_call_impl = was
