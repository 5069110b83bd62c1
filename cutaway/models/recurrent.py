"""Recurrent models in three shapes: a language model (Mikolov 2010; with an LSTM and dropout between the layers,
Zaremba 2014, arXiv 1409.2329), a bidirectional encoder (Schuster & Paliwal 1997), and an encoder-decoder with attention
(Bahdanau 2014, arXiv 1409.0473; scores as Luong 2015, arXiv 1508.04025, has them).

Layers stand on a residual stream and are normalised before, as a transformer's are. B rows, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from cutaway.batch import Batch
from cutaway.errors import RequestError
from cutaway.models.cost import Cost
from cutaway.models.heads import Traits
from cutaway.models.transformer import EncoderDecoder, Shape
from cutaway.nn import init, mask
from cutaway.nn.attention import CrossAttention, Where
from cutaway.nn.cache import Memory
from cutaway.nn.norm import Norm
from cutaway.nn.recurrence import GATES, Cell, Recurrence, Resets
from cutaway.settings import Settings


class RecurrentConfig(Settings):
    """Sizes of a recurrent model; ``num_layers`` is that of each stack. An encoder's layers read both ways, each way
    with half of ``hidden_size``. Nothing in the model bounds ``context_length``: it is the most tokens of a row."""

    kind: Literal["recurrent"] = "recurrent"
    cell: Cell = "lstm"
    shape: Shape = "decoder"
    vocab_size: int = Field(ge=2)
    hidden_size: int = Field(ge=2)
    num_layers: int = Field(default=2, ge=1)
    context_length: int = Field(default=1 << 20, ge=2)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    tie_embeddings: bool = True
    norm_eps: float = Field(default=1e-5, gt=0)

    @model_validator(mode="after")
    def _halves(self) -> Self:
        if self.shape != "decoder" and self.hidden_size % 2:
            raise ValueError(f"hidden_size {self.hidden_size} must be even: half of it reads each way")
        return self

    @property
    def traits(self) -> Traits:
        """A label is read off an encoder's strongest sign of each feature (Conneau 2017, arXiv 1705.02364)."""
        return Traits(pooling="max" if self.shape == "encoder" else "last", generates=self.shape != "encoder",
                      reads_source=self.shape == "encoder-decoder")

    def layout(self, *, both_ways: bool, cross: bool = False) -> RecurrentLayout:
        """One of its stacks."""
        return RecurrentLayout(self.cell, self.hidden_size, self.num_layers, self.norm_eps, self.context_length,
                               both_ways=both_ways, cross=cross, dropout=self.dropout)

    def backbone(self) -> RecurrentStack | EncoderDecoder:
        """The stack or stacks, their weights not yet drawn."""
        embedding = init.embedding(self.vocab_size, self.hidden_size)
        if self.shape != "encoder-decoder":
            return RecurrentStack(embedding, self.layout(both_ways=self.shape == "encoder"))
        return EncoderDecoder(RecurrentStack(embedding, self.layout(both_ways=True)),
                              RecurrentStack(embedding, self.layout(both_ways=False, cross=True)))

    def cost(self) -> Cost:
        """The bill; ``parameters`` equals what ``build`` makes with a head of tokens (tested)."""
        d, layers, of = self.hidden_size, self.num_layers, GATES[self.cell]
        vocabulary = self.vocab_size * d
        head = 0 if self.tie_embeddings else vocabulary
        one_way, both_ways = d * d * (of.inputs + of.states), d * d * of.inputs + d * d // 2 * of.states
        rest = layers * d * (of.slots + 1) + d  # biases, and the norms before each layer and at the end
        state = layers * d * (1 if self.cell == "vanilla" else 2)
        if self.shape == "encoder":
            return Cost(embedding=vocabulary, blocks=layers * both_ways + rest, head=head,
                        matrix=layers * both_ways + vocabulary, attention=0, kv_values=0, both_ways=True)
        if self.shape == "decoder":
            return Cost(embedding=vocabulary, blocks=layers * one_way + rest, head=head,
                        matrix=layers * one_way + vocabulary, attention=0, kv_values=0, state_values=state)
        blocks = layers * (one_way + both_ways) + 4 * d * d + d + 2 * rest
        return Cost(embedding=vocabulary, blocks=blocks, head=head, matrix=layers * one_way + 2 * d * d + vocabulary,
                    attention=4 * d, kv_values=0, state_values=state, source_matrix=layers * both_ways + 2 * d * d)


@dataclass(frozen=True, slots=True)
class RecurrentLayout:
    """What a recurrent stack is made of."""

    cell: Cell
    width: int
    num_layers: int
    eps: float
    context_length: int
    both_ways: bool
    cross: bool = False
    dropout: float = 0.0


class RecurrentState:
    """Each layer's state behind ``lengths (B,)`` tokens: ``hidden`` and ``carry``, ``(B, D)`` each; with the ``memory``
    of the sources where there is one. Its size is the same whatever was read."""

    def __init__(self, layers: list[tuple[Tensor, Tensor]], lengths: Tensor, capacity: int,
                 memory: Memory | None = None) -> None:
        self.layers, self.lengths, self.memory = layers, lengths, memory
        self._capacity, self._room = capacity, capacity - int(lengths.max()) if len(lengths) else capacity

    @property
    def capacity(self) -> int:
        """Tokens a row may read."""
        return self._capacity

    def take(self, steps: int, counts: Tensor | None) -> None:
        """Count tokens about to be read: ``steps`` a row, or ``counts (B,)``. Raises RequestError for too many."""
        lengths = self.lengths + (steps if counts is None else counts)
        room = self._room - steps if counts is None or not len(lengths) else self._capacity - int(lengths.max())
        if room < 0:
            raise RequestError(f"{self._capacity - room} tokens do not fit a state of {self._capacity}",
                               way_out="start the state with a larger capacity")
        self.lengths, self._room = lengths, room

    def select(self, rows: Tensor) -> RecurrentState:
        """The state of some rows, in the order given (rows may repeat)."""
        memory = None if self.memory is None else self.memory.select(rows)
        return RecurrentState([(h[rows], c[rows]) for h, c in self.layers], self.lengths[rows], self._capacity, memory)

    def join(self, others: Sequence[RecurrentState], *, capacity: int) -> RecurrentState:
        """The rows of this state, then those of others; ``capacity`` tokens may be read, or as many as before."""
        alike = (self, *others)
        memory = None if self.memory is None else self.memory.join([o.memory for o in others if o.memory is not None])
        layers = [(torch.cat([h for h, _ in pairs]), torch.cat([c for _, c in pairs]))
                  for pairs in zip(*(s.layers for s in alike), strict=True)]
        return RecurrentState(layers, torch.cat([s.lengths for s in alike]), max(capacity, self._capacity), memory)

    def truncate(self, lengths: Tensor) -> None:
        """Only to the length it has: what a row was before its last token is not kept."""
        if not torch.equal(lengths, self.lengths):
            raise RequestError("a recurrent state keeps nothing of earlier tokens and cannot be truncated",
                               way_out="copy the state before reading on")

    def copy(self) -> RecurrentState:
        """An independent copy; the memory never changes and is shared."""
        layers = [(h.clone(), c.clone()) for h, c in self.layers]
        return RecurrentState(layers, self.lengths.clone(), self._capacity, self.memory)


class RecurrentBlock(nn.Module):
    """A recurrent layer, one for each way it reads, on the normalised residual stream ``(T, B, D)`` and added to it."""

    def __init__(self, layout: RecurrentLayout) -> None:
        super().__init__()
        width = layout.width // 2 if layout.both_ways else layout.width
        self.norm = Norm("rms", layout.width, eps=layout.eps)
        self.forth = Recurrence(layout.width, width, cell=layout.cell)
        self.back = Recurrence(layout.width, width, cell=layout.cell, reverse=True) if layout.both_ways else None

    def forward(self, x: Tensor, delta: Tensor | None, resets: tuple[Resets | None, Resets | None], *,
                dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The residual and what is to be added to it; ``resets`` of the two ways."""
        x, h = self.norm(x, delta, dtype=dtype)
        mixed = self.forth(h, resets[0])
        return x, mixed if self.back is None else torch.cat((mixed, self.back(h, resets[1])), -1)

    def behind(self, x: Tensor, delta: Tensor | None, state: tuple[Tensor, Tensor], counts: Tensor | None, *,
               dtype: torch.dtype) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """The same behind a state, and the state after the first ``counts`` tokens of each row."""
        x, h = self.norm(x, delta, dtype=dtype)
        trace = self.forth.behind(h, state)
        if counts is None:
            after = trace.hidden[-1].clone(), trace.carry[-1].clone()  # a view would keep all that was read
        else:
            rows = torch.arange(len(counts), device=counts.device)
            after = trace.hidden[counts, rows], trace.carry[counts, rows]
        return x, trace.hidden[1:], after


class RecurrentStack(nn.Module):
    """Embedding, layers and a last norm; looking at a source, attention stands behind the first layer, so that all
    others read what it found. ``embedding`` may be shared with another stack."""

    def __init__(self, embedding: nn.Embedding, layout: RecurrentLayout) -> None:
        super().__init__()
        self.embedding, self.layout = embedding, layout
        self.blocks = nn.ModuleList(RecurrentBlock(layout) for _ in range(layout.num_layers))
        if layout.cross:
            self.cross_norm = Norm("rms", layout.width, eps=layout.eps)
            self.cross = CrossAttention(layout.width, (1, 1, layout.width))
        self.norm = Norm("rms", layout.width, eps=layout.eps)

    def forward(self, batch: Batch, *, dtype: torch.dtype, state: RecurrentState | None = None,
                counts: Tensor | None = None, memory: Tensor | None = None) -> Tensor:
        """``batch.tokens (B, T)`` -> hidden ``(B, T, D)`` in ``dtype``; with a ``state``, behind what it holds, and
        with the hidden states of a source in ``memory``, looking at those."""
        if state is not None:
            state.take(batch.tokens.shape[1], counts)
        documents = None if batch.documents is None else batch.documents.T
        resets = Resets.of(documents, reverse=False), Resets.of(documents, reverse=True)
        x = self._dropped(F.embedding(batch.tokens.T, self.embedding.weight).float())  # (T, B, D)
        delta: Tensor | None = None
        for layer, block in enumerate(self.blocks):
            assert isinstance(block, RecurrentBlock)
            if state is None:
                x, delta = block(x, delta, resets, dtype=dtype)
            else:
                x, delta, state.layers[layer] = block.behind(x, delta, state.layers[layer], counts, dtype=dtype)
            delta = self._dropped(delta)
            if layer == 0 and self.layout.cross:
                x, delta = self._look(x, delta, batch, state, memory, dtype=dtype)
        h: Tensor = self.norm(x, delta, dtype=dtype)[1]
        return h.transpose(0, 1)

    def new_state(self, rows: int, *, capacity: int, dtype: torch.dtype,
                  memory: Memory | None = None) -> RecurrentState:
        """The empty state of ``rows`` sequences of up to ``capacity`` tokens."""
        device, shape = self.embedding.weight.device, (rows, self.layout.width)
        layers = [(torch.zeros(shape, dtype=dtype, device=device), torch.zeros(shape, device=device))
                  for _ in self.blocks]
        return RecurrentState(layers, torch.zeros(rows, dtype=torch.long, device=device), capacity, memory)

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.layout.dropout, self.training) if self.layout.dropout else x

    def _look(self, x: Tensor, delta: Tensor, batch: Batch, state: RecurrentState | None, memory: Tensor | None, *,
              dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Attention over the source, for the residual and what is to be added to it."""
        x, h = self.cross_norm(x, delta, dtype=dtype)
        h = h.transpose(0, 1)
        if state is not None:
            assert state.memory is not None
            where = Where(None, real=state.memory.real[:, None, None, :])
            found = self.cross(h, where, (0, state))
        else:
            found = self.cross(h, Where(None, memory=memory, source=mask.across(batch)))
        return x, self._dropped(found.transpose(0, 1))
