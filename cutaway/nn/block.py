"""Block and Stack: pre-norm residual layers (Xiong et al. 2020, arXiv 2002.04745) over token embeddings.

``causal`` and ``cross`` are the whole difference between the BERT, GPT and T5 shapes (as in x-transformers).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cutaway.batch import Batch
from cutaway.nn import mask
from cutaway.nn.attention import Attention, CrossAttention, Where
from cutaway.nn.cache import KVCache, Memory
from cutaway.nn.feedforward import Gated
from cutaway.nn.kernels import library_for
from cutaway.nn.memory import made_again
from cutaway.nn.norm import Norm, NormKind
from cutaway.nn.ops import Activation, Heads
from cutaway.nn.position import RelativeBias, rotary_table


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
    activation: Activation = "silu"
    positions: Literal["rotary", "relative"] = "rotary"
    theta: float = 10_000.0
    scale: float | None = None  # of attention scores; 1 / sqrt(head size) where None
    norm_embedding: bool = False  # right behind the embedding, instead of before the first attention
    dropout: float = 0.0


class Block(nn.Module):
    """Attention, over the source too where there is one, then feed-forward, each on the normalised residual stream
    and added to it.

    A block takes the residual ``x (B, T, D)`` and the ``delta`` its predecessor has yet to add, and gives the same
    pair: the addition then happens inside the next normalisation, in one pass over memory.
    """

    def __init__(self, layout: Layout, *, first: bool) -> None:
        super().__init__()
        bare = first and layout.norm_embedding
        self.attention_norm = Norm("none" if bare else layout.norm, layout.width, eps=layout.eps)
        self.attention = Attention(layout.width, layout.heads, scale=layout.scale)
        if layout.cross:
            self.cross_norm = Norm(layout.norm, layout.width, eps=layout.eps)
            self.cross = CrossAttention(layout.width, layout.heads, scale=layout.scale)
        self.feedforward_norm = Norm(layout.norm, layout.width, eps=layout.eps)
        self.feedforward = Gated(layout.width, layout.inner, activation=layout.activation)
        self.crossing, self.dropout = layout.cross, layout.dropout

    def forward(self, x: Tensor, delta: Tensor | None, where: Where, *, dtype: torch.dtype,
                cache: tuple[int, KVCache] | None = None) -> tuple[Tensor, Tensor]:
        x, h, light = _normed(self.attention_norm, x, delta, dtype)
        with light:
            mixed = self._dropped(self.attention(h, where, cache))
        if self.crossing:
            x, h, light = _normed(self.cross_norm, x, mixed, dtype)
            with light:
                mixed = self._dropped(self.cross(h, where, cache))
        x, h, light = _normed(self.feedforward_norm, x, mixed, dtype)
        with light:
            return x, self._dropped(self.feedforward(h))

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


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

    def __init__(self, embedding: nn.Embedding, layout: Layout) -> None:
        super().__init__()
        self.embedding, self.layout = embedding, layout
        if layout.norm_embedding:
            self.embedding_norm = Norm(layout.norm, layout.width, eps=layout.eps)
        self.blocks = nn.ModuleList(Block(layout, first=i == 0) for i in range(layout.num_layers))
        self.norm = Norm(layout.norm, layout.width, eps=layout.eps)
        rotary = layout.positions == "rotary"
        table = rotary_table(layout.heads[2], layout.context_length, theta=layout.theta) if rotary else None
        self.register_buffer("rotary", table, persistent=False)
        self.bias = None if rotary else RelativeBias(layout.heads[0], both_ways=not layout.causal)

    def forward(self, batch: Batch, *, dtype: torch.dtype, state: KVCache | None = None,
                counts: Tensor | None = None, memory: Tensor | None = None) -> Tensor:
        """``batch.tokens (B, T)`` -> hidden ``(B, T, width)`` in ``dtype``; with a ``state``, behind what it holds, and
        with the hidden states of a source in ``memory``, looking at those."""
        where = self._where(batch, memory) if state is None else self._behind(batch.tokens, state, counts)
        x = F.embedding(batch.tokens, self.embedding.weight).float()
        if self.layout.norm_embedding:
            x = self.embedding_norm(x, dtype=torch.float32)[1]
        if self.layout.dropout:
            x = F.dropout(x, self.layout.dropout, self.training)
        delta: Tensor | None = None
        for layer, block in enumerate(self.blocks):
            x, delta = block(x, delta, where, dtype=dtype, cache=None if state is None else (layer, state))
        h: Tensor = self.norm(x, delta, dtype=dtype)[1]
        if state is not None:
            state.advance(batch.tokens.shape[1], counts)
        return h

    def new_state(self, rows: int, *, capacity: int, dtype: torch.dtype, memory: Memory | None = None) -> KVCache:
        """An empty cache for ``rows`` sequences of up to ``capacity`` tokens."""
        _, num_kv_heads, head_size = self.layout.heads
        device, shape = self.embedding.weight.device, (rows, num_kv_heads, capacity, head_size)
        keys, values = ([torch.zeros(shape, dtype=dtype, device=device) for _ in self.blocks] for _ in range(2))
        return KVCache(keys, values, torch.zeros(rows, dtype=torch.long, device=device), memory)

    def _where(self, batch: Batch, memory: Tensor | None) -> Where:
        steps, rotary = batch.tokens.shape[1], None
        if self.rotary is not None:
            rotary = self.rotary[:, None, :steps] if batch.positions is None else self.rotary[:, batch.positions]
        table = None if self.bias is None else self.bias.table(steps, steps)
        source = mask.Interval() if memory is None else mask.across(batch)
        keys = mask.within(batch.documents, causal=self.layout.causal)
        return Where(rotary, keys, table, memory=memory, source=source)

    def _behind(self, tokens: Tensor, state: KVCache, counts: Tensor | None) -> Where:
        steps = tokens.shape[1]
        over = None if state.memory is None else state.memory.real[:, None, None, :]
        alone = steps == 1 and counts is None and not torch.is_grad_enabled()
        if self.rotary is not None and alone:
            lib = library_for(self.rotary, state.keys[0])
            if lib is not None:
                return Where(self.rotary, step=lib, real=over)
        at = state.lengths[:, None] + torch.arange(steps, device=tokens.device)
        end = min(state.longest + steps, state.capacity)
        rotary = bias = None
        if self.rotary is not None:
            # a padded token may stand behind the table's end: its angle is never used
            rotary = self.rotary[:, at.clamp(max=self.layout.context_length - 1)]
        if self.bias is not None:
            same = at[:1] if state.even else at  # one row's biases are every row's
            bias = self.bias(same, torch.arange(end, device=tokens.device))
        alone = steps == 1 and state.even  # one query, equal lengths: all it could see is allowed
        seen = None if alone else mask.Interval(last=at).dense(steps, end, tokens.device)
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
