"""Block and Stack: pre-norm residual layers (Xiong et al. 2020, arXiv 2002.04745) over token embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cutaway.nn import mask
from cutaway.nn.attention import Attention, Where
from cutaway.nn.cache import KVCache
from cutaway.nn.feedforward import Gated
from cutaway.nn.kernels import library_for
from cutaway.nn.memory import made_again
from cutaway.nn.norm import RMSNorm
from cutaway.nn.position import rotary_table


class Block(nn.Module):
    """Attention, then feed-forward, each on the normalised residual stream and added to it.

    A block takes the residual ``x (B, T, D)`` and the ``delta`` its predecessor has yet to add, and gives the same
    pair: the addition then happens inside the next normalisation, in one pass over memory.
    """

    def __init__(self, width: int, *, heads: tuple[int, int, int], inner: int, eps: float) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(width, eps=eps)
        self.attention = Attention(width, num_heads=heads[0], num_kv_heads=heads[1], head_size=heads[2])
        self.feedforward_norm = RMSNorm(width, eps=eps)
        self.feedforward = Gated(width, inner)

    def forward(self, x: Tensor, delta: Tensor | None, where: Where, *, dtype: torch.dtype,
                cache: tuple[int, KVCache] | None = None) -> tuple[Tensor, Tensor]:
        first, h = self.attention_norm(x, delta, dtype=dtype)
        with made_again(h, lambda: self.attention_norm(first, dtype=dtype)[1]):
            mixed = self.attention(h, where, cache)
        second, h = self.feedforward_norm(first, mixed, dtype=dtype)
        with made_again(h, lambda: self.feedforward_norm(second, dtype=dtype)[1]):
            return second, self.feedforward(h)


class Stack(nn.Module):
    """Embedding, blocks and a last norm; ``causal`` is what makes it a decoder.

    Raises no error of its own: lengths are checked by the model that owns it.
    """

    rotary: Tensor

    def __init__(self, vocab_size: int, width: int, *, num_layers: int, heads: tuple[int, int, int], inner: int,
                 eps: float, theta: float, context_length: int, causal: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width)
        self.blocks = nn.ModuleList(Block(width, heads=heads, inner=inner, eps=eps) for _ in range(num_layers))
        self.norm = RMSNorm(width, eps=eps)
        self.heads, self.causal, self.theta, self.context_length = heads, causal, theta, context_length
        self.register_buffer("rotary", rotary_table(heads[2], context_length, theta=theta), persistent=False)

    def forward(self, tokens: Tensor, *, dtype: torch.dtype, positions: Tensor | None = None,
                documents: Tensor | None = None, state: KVCache | None = None,
                counts: Tensor | None = None) -> Tensor:
        """``tokens (B, T)`` -> hidden ``(B, T, width)`` in ``dtype``; with a ``state``, behind what it holds."""
        where = self._where(tokens, positions, documents, state, counts)
        x = F.embedding(tokens, self.embedding.weight).float()
        delta: Tensor | None = None
        for layer, block in enumerate(self.blocks):
            x, delta = block(x, delta, where, dtype=dtype, cache=None if state is None else (layer, state))
        h: Tensor = self.norm(x, delta, dtype=dtype)[1]
        if state is not None:
            state.advance(tokens.shape[1], counts)
        return h

    @contextmanager
    def compiled(self, on: bool = True) -> Iterator[None]:
        """Inside, every block runs through ``torch.compile``, as torchtitan does it: one graph a block; or plainly."""
        before = [block._compiled_call_impl for block in self.blocks]
        for block in self.blocks:
            if on:
                block.compile()
            else:
                block._compiled_call_impl = None  # torch has no public way back
        try:
            yield
        finally:
            for block, was in zip(self.blocks, before, strict=True):
                block._compiled_call_impl = was

    def _where(self, tokens: Tensor, positions: Tensor | None, documents: Tensor | None, state: KVCache | None,
               counts: Tensor | None) -> Where:
        steps = tokens.shape[1]
        table = self.rotary
        if state is None:
            rotary = table[:, None, :steps] if positions is None else table[:, positions]
            return Where(rotary, documents=documents, causal=self.causal)
        alone = steps == 1 and counts is None and not torch.is_grad_enabled()
        lib = library_for(table, state.keys[0]) if alone else None
        if lib is not None:
            return Where(table, step=lib)
        at = state.lengths[:, None] + torch.arange(steps, device=tokens.device)
        # a padded token may stand behind the table's end: its angle is never used
        rotary = table[:, at.clamp(max=self.context_length - 1)]
        end = min(state.longest + steps, state.capacity)
        alone = steps == 1 and state.even  # one query, equal lengths: all it could see is allowed
        seen = None if alone else mask.cached(state.lengths).dense(steps, end, tokens.device)
        return Where(rotary, seen=seen, causal=self.causal, counts=counts)
