"""Convolution over tokens: dilated, causal (WaveNet, Oord 2016, arXiv 1609.03499; TCN, Bai 2018, arXiv 1803.01271),
gated (Dauphin 2017, arXiv 1612.08083), looking at a source in every layer (ConvS2S, Gehring 2017, arXiv 1705.03122).

A convolution is one matrix product over a token's taps laid side by side, which keeps the matrix units busy and lets a
tap that would reach into another document read zero. B rows, T tokens, S tokens of the source, D width, k taps.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_int, c_int64
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cutaway.errors import RequestError
from cutaway.nn import init, ops
from cutaway.nn.cache import Memory
from cutaway.nn.kernels import library_for, pointer
from cutaway.nn.linear import Linear
from cutaway.nn.norm import Norm


@dataclass(frozen=True, slots=True)
class Shift:
    """One tap: where ``x[:, source]`` is read for the tokens at ``target``, and where that is not allowed."""

    target: slice
    source: slice
    apart: Tensor | None  # (B, T', 1) bool: another document stands there


def shifts(offsets: Sequence[int], steps: int, documents: Tensor | None) -> list[Shift]:
    """A tap an offset (0 is the token itself, -1 the one before it), which stays inside the row and the document."""
    out = []
    for offset in offsets:
        low, high = min(max(0, -offset), steps), max(min(steps, steps - offset), 0)
        high = max(low, high)
        target, source = slice(low, high), slice(low + offset, high + offset) if high > low else slice(0, 0)
        apart = None
        if documents is not None and offset:
            apart = (documents[:, target] != documents[:, source])[..., None]
        out.append(Shift(target, source, apart))
    return out


class _Taps(torch.autograd.Function):
    """Each token's taps side by side; keeps nothing of ``x`` for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, parts: list[Shift]) -> Tensor:
        rows, steps, width = x.shape
        out = x.new_empty((rows, steps, len(parts), width))
        for j, part in enumerate(parts):
            out[:, : part.target.start, j] = 0
            out[:, part.target.stop :, j] = 0
            out[:, part.target, j] = x[:, part.source]
            if part.apart is not None:
                out[:, part.target, j].masked_fill_(part.apart, 0)
        ctx.parts = parts
        return out.view(rows, steps, -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        rows, steps, _ = grad.shape
        grad = grad.view(rows, steps, len(ctx.parts), -1)
        # the tap that is the token itself covers every place: the others are added to it
        whole = next((j for j, p in enumerate(ctx.parts) if p.target == p.source == slice(0, steps)), None)
        out = torch.zeros_like(grad[:, :, 0]) if whole is None else grad[:, :, whole].contiguous()
        for j, part in enumerate(ctx.parts):
            if j != whole:
                slope = grad[:, part.target, j]
                out[:, part.source] += slope if part.apart is None else slope.masked_fill(part.apart, 0)
        return out, None


class _FusedTaps(torch.autograd.Function):
    """The same in the kernels of ``csrc/convolution.c``; gradients are added up in float32 and rounded once."""

    @staticmethod
    def forward(ctx: Any, lib: ctypes.CDLL, x: Tensor, offsets: tuple[int, ...], documents: Tensor | None) -> Tensor:
        x = x.contiguous()
        rows, steps, width = x.shape
        documents = None if documents is None else documents.int().contiguous()
        out = torch.empty((rows, steps, len(offsets) * width), dtype=x.dtype)
        places = torch.tensor(offsets)
        lib.taps(pointer(x), pointer(documents), pointer(places), c_int64(rows), c_int64(steps),
                 c_int64(len(offsets)), c_int64(width * x.element_size()), pointer(out))
        ctx.lib, ctx.places, ctx.width = lib, places, width
        ctx.save_for_backward(documents)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None, None]:
        grad, (documents,) = grad.contiguous(), ctx.saved_tensors
        rows, steps, _ = grad.shape
        out = torch.empty((rows, steps, ctx.width), dtype=grad.dtype)
        ctx.lib.taps_grad(pointer(grad), pointer(documents), pointer(ctx.places), c_int64(rows), c_int64(steps),
                          c_int64(len(ctx.places)), c_int64(ctx.width), pointer(out),
                          c_int(grad.dtype == torch.bfloat16))
        return None, out, None, None


def taps(x: Tensor, offsets: Sequence[int], documents: Tensor | None = None) -> Tensor:
    """``x (B, T, D)`` -> ``(B, T, k D)``: what stands ``offsets`` away from each token, in their order, 0 where that is
    outside the row or another document of ``documents (B, T)``."""
    if tuple(offsets) == (0,):
        return x
    lib = library_for(x)
    if lib is not None:
        out: Tensor = _FusedTaps.apply(lib, x, tuple(offsets), documents)  # type: ignore[no-untyped-call]
        return out
    out = _Taps.apply(x, shifts(offsets, x.shape[1], documents))  # type: ignore[no-untyped-call]
    return out


def centred(width: int) -> range:
    """Offsets of a window that sees as far behind as before, one further before where ``width`` is even."""
    return range(-((width - 1) // 2), width // 2 + 1)


@dataclass(frozen=True, slots=True)
class Layout:
    """What a stack of convolutions is made of. ``kernels`` and ``dilations`` name every layer's own."""

    width: int
    kernels: tuple[int, ...]
    dilations: tuple[int, ...]
    eps: float
    causal: bool
    gated: bool = True
    cross: bool = False
    positions: int = 0  # learned positions; none where 0
    dropout: float = 0.0

    def offsets(self, layer: int) -> tuple[int, ...]:
        """Where a layer's taps stand, the farthest behind first."""
        kernel, dilation = self.kernels[layer], self.dilations[layer]
        steps = range(1 - kernel, 1) if self.causal else centred(kernel)
        return tuple(dilation * step for step in steps)

    @property
    def reach(self) -> tuple[int, ...]:
        """How many inputs behind the present one each layer reads."""
        return tuple((k - 1) * d for k, d in zip(self.kernels, self.dilations, strict=True))


class ConvolutionState:
    """The last inputs of each layer, as many as it reads, in a ring: the input of position p lies at p modulo the size.
    ``past[layer] (B, reach, D)``, zero before a row's first token; ``lengths (B,)`` counts all that were read."""

    def __init__(self, past: list[Tensor], lengths: Tensor, capacity: int, memory: Memory | None = None) -> None:
        self.past, self.lengths, self._capacity, self.memory = past, lengths, capacity, memory

    @property
    def capacity(self) -> int:
        """Tokens a row may read."""
        return self._capacity

    def taps(self, layer: int, h: Tensor, offsets: Sequence[int], counts: Tensor | None) -> Tensor:
        """The taps ``(B, T, k D)`` of ``h (B, T, D)`` behind what was read; ``h`` (the first ``counts`` of each row)
        becomes the past. Lengths do not move: see ``advance``."""
        past, steps = self.past[layer], h.shape[1]
        reach = past.shape[1]
        if not reach:
            return h
        row = torch.arange(len(h), device=h.device)[:, None]
        if steps == 1 and counts is None:
            back = torch.tensor(offsets[:-1], device=h.device)
            before = past[row, (self.lengths[:, None] + back) % reach]
            past[row, self.lengths[:, None] % reach] = h
            return torch.cat((before, h), 1).view(len(h), 1, -1)
        each = torch.arange(reach, device=h.device)
        line = torch.cat((past[row, (self.lengths[:, None] + each) % reach], h), 1)
        read = torch.full_like(self.lengths, steps) if counts is None else counts
        kept = read[:, None] + each
        past[row, (self.lengths[:, None] + kept) % reach] = line[row, kept]
        return torch.cat([line[:, reach + o : reach + o + steps] for o in offsets], -1)

    def advance(self, steps: int, counts: Tensor | None) -> None:
        """Count the tokens just read: ``steps`` a row, or ``counts (B,)``."""
        self.lengths = self.lengths + (steps if counts is None else counts)

    def room(self, steps: int, counts: Tensor | None) -> None:
        """RequestError where that many more tokens are too many."""
        longest = int((self.lengths + (steps if counts is None else counts)).max())
        if longest > self._capacity:
            raise RequestError(f"{longest} tokens do not fit a state of {self._capacity}",
                               way_out="start the state with a larger capacity")

    def select(self, rows: Tensor) -> ConvolutionState:
        """The state of some rows, in the order given (rows may repeat)."""
        memory = None if self.memory is None else self.memory.select(rows)
        return ConvolutionState([p[rows] for p in self.past], self.lengths[rows], self._capacity, memory)

    def join(self, others: Sequence[ConvolutionState], *, capacity: int) -> ConvolutionState:
        """The rows of this state, then those of others; ``capacity`` tokens may be read, or as many as before."""
        alike = (self, *others)
        memory = None if self.memory is None else self.memory.join([o.memory for o in others if o.memory is not None])
        past = [torch.cat(layer) for layer in zip(*(s.past for s in alike), strict=True)]
        return ConvolutionState(past, torch.cat([s.lengths for s in alike]), max(capacity, self._capacity), memory)

    def truncate(self, lengths: Tensor) -> None:
        """Only to the length it has: what a layer read before its last inputs is not kept."""
        if not torch.equal(lengths, self.lengths):
            raise RequestError("a convolution's state keeps its last inputs only and cannot be truncated")

    def copy(self) -> ConvolutionState:
        """An independent copy; the memory never changes and is shared."""
        return ConvolutionState([p.clone() for p in self.past], self.lengths.clone(), self._capacity, self.memory)


@dataclass(frozen=True, slots=True)
class Around:
    """What all layers of one forward pass share."""

    documents: Tensor | None = None  # (B, T) packed documents
    counts: Tensor | None = None  # (B,) real tokens of each row when reading behind a state
    words: Tensor | None = None  # (B, T, D) what the stack reads, beside which a source is looked at
    keys: Tensor | None = None  # (M, 1, S, D) of the sources; M is B, or less where rows behind a state share them
    values: Tensor | None = None  # (M, 1, S, D)
    seen: Tensor | None = None  # (M, 1, T or 1, S) dense mask over the source


class Block(nn.Module):
    """Norm, convolution, gate or ReLU, dense; added to the residual stream as in ``nn.block``. With ``cross`` the gated
    value looks at the source, asked together with the words, before the dense layer (as in ConvS2S)."""

    def __init__(self, layout: Layout, layer: int) -> None:
        super().__init__()
        width = layout.width
        self.offsets, self.gated, self.dropout = layout.offsets(layer), layout.gated, layout.dropout
        self.norm = Norm("rms", width, eps=layout.eps)
        self.convolution = Linear(layout.kernels[layer] * width, (1 + layout.gated) * width)
        if layout.cross:
            self.query = Linear(width, width)
        self.out = Linear(width, width)
        self.crossing = layout.cross

    def forward(self, x: Tensor, delta: Tensor | None, around: Around, *, dtype: torch.dtype,
                cache: tuple[int, ConvolutionState] | None = None) -> tuple[Tensor, Tensor]:
        """The residual ``x (B, T, D)`` and the ``delta`` its predecessor has yet to add -> the same pair."""
        total, h = self.norm(x, delta, dtype=dtype)
        x = x.clone() if delta is None else total  # FSDP2 gives a block views and wants none back
        if cache is None:
            side = taps(h, self.offsets, around.documents)
        else:
            side = cache[1].taps(cache[0], h, self.offsets, around.counts)
        mixed = self.convolution(side)
        mixed = F.glu(mixed) if self.gated else F.relu(mixed)
        if self.crossing:
            mixed = mixed + self._looked_up(mixed, around)
        delta = self.out(mixed)
        return x, F.dropout(delta, self.dropout, self.training) if self.dropout else delta

    def _looked_up(self, mixed: Tensor, around: Around) -> Tensor:
        assert around.words is not None and around.keys is not None and around.values is not None
        q = self.query(mixed) + around.words
        # rows that share a source are queries of one product
        rows = q.reshape(len(around.keys), 1, -1, q.shape[-1])
        return ops.attend(rows, around.keys, around.values, seen=around.seen).reshape(q.shape)


class ConvolutionStack(nn.Module):
    """Embedding, blocks and a last norm. ``embedding`` may be shared with another stack."""

    def __init__(self, embedding: nn.Embedding, layout: Layout) -> None:
        super().__init__()
        self.embedding, self.layout = embedding, layout
        if layout.positions:
            self.position_embedding = init.embedding(layout.positions, layout.width)
        self.blocks = nn.ModuleList(Block(layout, i) for i in range(len(layout.kernels)))
        self.norm = Norm("rms", layout.width, eps=layout.eps)

    def words(self, tokens: Tensor, positions: Tensor | None) -> Tensor:
        """Embedded tokens ``(B, T, D)`` float32, their places (``positions (B, T)``, or 0 .. T-1) added."""
        x = F.embedding(tokens, self.embedding.weight).float()
        if self.layout.positions:
            table = self.position_embedding.weight
            # a padded token may stand behind the table's end: nobody reads it
            x = x + (table[: x.shape[1]] if positions is None else table[positions.clamp(max=len(table) - 1)])
        return F.dropout(x, self.layout.dropout, self.training) if self.layout.dropout else x

    def forward(self, x: Tensor, around: Around, *, dtype: torch.dtype,
                state: ConvolutionState | None = None) -> Tensor:
        """``words`` -> hidden ``(B, T, D)`` in ``dtype``; with a ``state``, behind what it holds."""
        steps = x.shape[1]
        if state is not None:
            state.room(steps, around.counts)
        delta: Tensor | None = None
        for layer, block in enumerate(self.blocks):
            x, delta = block(x, delta, around, dtype=dtype, cache=None if state is None else (layer, state))
        h: Tensor = self.norm(x, delta, dtype=dtype)[1]
        if state is not None:
            state.advance(steps, around.counts)
        return h

    def new_state(self, rows: int, *, capacity: int, dtype: torch.dtype,
                  memory: Memory | None = None) -> ConvolutionState:
        """Nothing read yet of ``rows`` sequences of up to ``capacity`` tokens."""
        device = self.embedding.weight.device
        past = [torch.zeros((rows, reach, self.layout.width), dtype=dtype, device=device)
                for reach in self.layout.reach]
        return ConvolutionState(past, torch.zeros(rows, dtype=torch.long, device=device), capacity, memory)


def places(documents: Tensor | None) -> Tensor | None:
    """How many tokens of its document stand before each token of ``documents (B, T)``; None for 0 .. T-1."""
    if documents is None:
        return None
    at = torch.arange(documents.shape[1], device=documents.device).expand(documents.shape)
    first = torch.zeros_like(at)
    first[:, 1:] = torch.where(documents[:, 1:] != documents[:, :-1], at[:, 1:], 0)
    return at - first.cummax(1).values
