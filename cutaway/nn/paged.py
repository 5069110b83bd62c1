"""Keys and values in pages, and a decoder that reads any pieces of many sequences in one pass over them (Kwon 2023,
arXiv 2309.06180).

On a CPU with weights laid out for it (``nn.linear``) all layers are one call of ``csrc/step.c``, and a token's bits do
not depend on what is read beside it, on how its prompt was cut, or on which of its pages another sequence wrote.
Elsewhere ``nn.batched`` does it.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import CDLL, POINTER, Structure, byref, c_float, c_int, c_int64, c_void_p, cast, pointer
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cutaway.batch import Batch
from cutaway.nn.block import Block, Stack
from cutaway.nn.kernels import pointer as address
from cutaway.nn.linear import PackedLinear, Plan
from cutaway.nn.norm import Norm

PAGE = 16  # tokens of a page: PAGE of csrc/paged.h


@dataclass(frozen=True, slots=True)
class Reading:
    """What some sequences read now: P of them, N tokens in all, of which R are followed by something that is wanted.

    ``tokens (N,)`` lie one sequence behind another, the tokens of sequence i from ``begins[i]`` to ``begins[i + 1]``;
    ``before (P,)`` of it lie in its ``pages (P, most)`` already, of which there are enough for all; ``wanted (R,)`` are
    places in ``tokens``. Sequence i has the adapter ``adapters[i]``, -1: none.
    """

    tokens: Tensor
    begins: NDArray[np.int32]
    before: NDArray[np.int32]
    pages: NDArray[np.int32]
    wanted: NDArray[np.int32]
    adapters: NDArray[np.int32]

    @classmethod
    def of(cls, parts: Sequence[tuple[Sequence[int], int, Sequence[int]]], wanted: Sequence[int],
           adapters: Sequence[int] | None = None) -> Reading:
        """Of ``(tokens, tokens before them, pages)`` for each sequence; none has an adapter if those are not given."""
        counts = [len(tokens) for tokens, _, _ in parts]
        assert all(counts), "every sequence reads something"
        pages = np.zeros((len(parts), max(len(own) for _, _, own in parts)), np.int32)
        for row, (_, _, own) in zip(pages, parts, strict=True):
            row[: len(own)] = own
        return cls(torch.tensor([t for tokens, _, _ in parts for t in tokens]),
                   np.cumsum([0, *counts], dtype=np.int32), np.array([before for _, before, _ in parts], np.int32),
                   pages, np.array(wanted, np.int32),
                   np.full(len(parts), -1, np.int32) if adapters is None else np.array(adapters, np.int32))

    @property
    def positions(self) -> NDArray[np.int64]:
        """Where in its sequence each token stands, ``(N,)``."""
        counts = np.diff(self.begins)
        return np.arange(len(self.tokens)) - np.repeat(self.begins[:-1] - self.before, counts)


class PagedStack:
    """A causal ``stack`` that is ``laid_out``, with room for ``count`` pages of its keys and values, which it keeps in
    ``dtype``."""

    exact = True  # a token's bits depend on nothing but its own sequence
    spare = 0  # pages beside those that are counted

    def __init__(self, stack: Stack, count: int, *, dtype: torch.dtype) -> None:
        self.stack, self.dtype, self.count = stack, dtype, count
        _, kv_heads, size = stack.layout.heads
        shape, device = (len(stack.blocks), count, kv_heads), stack.embedding.weight.device
        self.keys = torch.empty(*shape, size, PAGE, dtype=dtype, device=device)  # a page is cleared when it is begun
        self.values = torch.empty(*shape, PAGE, size, dtype=dtype, device=device)
        self._net = _net(stack, self.keys, self.values)

    @torch.inference_mode()
    def hidden(self, reading: Reading) -> Tensor:
        """Read; hidden states ``(R, width)`` where they are wanted."""
        positions = torch.from_numpy(reading.positions)
        batch = Batch(reading.tokens[None], positions=positions[None])
        x = self.stack._embedded(batch, None)[0].contiguous()
        # the embedding's rows may be the weight itself, which the pass would write to
        out = torch.empty((len(reading.wanted), x.shape[1]), dtype=self._net.dtype)
        given = (reading.begins, reading.before, reading.pages, reading.wanted, reading.adapters)
        parts = [np.ascontiguousarray(a, np.int32) for a in given]
        begins, before, pages, wanted, adapters = (a.ctypes.data for a in parts)
        ragged = _Ragged(len(reading.before), len(x), len(reading.wanted), begins, before, pages,
                         reading.pages.shape[1], wanted, adapters if (reading.adapters >= 0).any() else None)
        self._net.lib.step(byref(self._net.struct), byref(ragged), address(x), address(out))
        return out


def page_bytes(stack: Stack, dtype: torch.dtype) -> int:
    """What a page takes, in all layers."""
    _, kv_heads, size = stack.layout.heads
    return 2 * len(stack.blocks) * kv_heads * size * PAGE * dtype.itemsize


class _Ragged(Structure):
    """``Ragged`` of paged.h."""

    _fields_ = (("parts", c_int64), ("tokens", c_int64), ("outputs", c_int64), ("begins", c_void_p),
                ("before", c_void_p), ("pages", c_void_p), ("width", c_int64), ("wanted", c_void_p),
                ("adapters", c_void_p))


class _Look(Structure):
    """``Look`` of paged.h."""

    _fields_ = (("heads", c_int64), ("kv_heads", c_int64), ("size", c_int64), ("bf", c_int), ("cache_bf", c_int),
                ("scale", c_float), ("eps", c_float), ("query_norm", c_void_p), ("key_norm", c_void_p),
                ("cosines", c_void_p), ("sines", c_void_p), ("window", c_int64), ("keys", c_void_p),
                ("values", c_void_p))


class _Scale(Structure):
    """``Scale`` of step.c."""

    _fields_ = (("weight", c_void_p), ("bias", c_void_p))


class _Layer(Structure):
    """``Layer`` of step.c."""

    _fields_ = (("first", _Scale), ("mixed", _Scale), ("second", _Scale), ("fed", _Scale), ("qkv", Plan),
                ("out", Plan), ("up", Plan), ("down", Plan), ("look", _Look))


class _Struct(Structure):
    """``Net`` of step.c."""

    _fields_ = (("layers", c_int64), ("width", c_int64), ("eps", c_float), ("center", c_int), ("bf", c_int),
                ("layer", POINTER(_Layer)), ("last", _Scale))


@dataclass(frozen=True, slots=True)
class _Net:
    """A stack as step.c has it. What pointers point to belongs to the stack and its pages; ``layers`` is its own."""

    lib: CDLL
    struct: _Struct
    layers: object
    dtype: torch.dtype


def laid_out(stack: Stack) -> bool:
    """Whether step.c has all that the stack is made of, and its weights are laid out for it."""
    layout = stack.layout
    parts = [_products(block) for block in stack.blocks]
    known = layout.order != "post" and stack.bias is None and not layout.cross and layout.heads[2] % PAGE == 0
    here = stack.embedding.weight.device.type == "cpu"
    return known and here and None not in parts and len({p.dtype for part in parts if part for p in part}) == 1


def _net(stack: Stack, keys: Tensor, values: Tensor) -> _Net:
    """The stack for step.c."""
    layout = stack.layout
    packed = [part for part in map(_products, stack.blocks) if part is not None]
    whole = packed[0][0].plan.precision in (1, 3)  # int8 and int4 read float32
    dtype = torch.float32 if whole else packed[0][0].dtype
    layers = (_Layer * len(packed))()
    for index, (block, products) in enumerate(zip(stack.blocks, packed, strict=True)):
        assert isinstance(block, Block)
        norms = (block.attention_norm, block.attention_after, block.feedforward_norm, block.feedforward_after)
        look = _look(stack, block, keys[index], values[index], dtype)
        layers[index] = _Layer(*map(_scale, norms), *(p.plan for p in products), look)
    struct = _Struct(len(packed), layout.width, layout.eps, layout.norm == "layer", dtype == torch.bfloat16,
                     cast(pointer(layers), POINTER(_Layer)), _scale(stack.norm))
    return _Net(packed[0][0].lib, struct, layers, dtype)


def _products(block: nn.Module) -> tuple[PackedLinear, PackedLinear, PackedLinear, PackedLinear] | None:
    assert isinstance(block, Block)
    fed = list(block.feedforward) if isinstance(block.feedforward, nn.Sequential) else []
    found = [block.attention.qkv, block.attention.out, *fed]
    packed = [p for p in found if isinstance(p, PackedLinear)]
    return (packed[0], packed[1], packed[2], packed[3]) if len(packed) == len(found) == 4 else None


def _scale(norm: Norm | None) -> _Scale:
    return _Scale() if norm is None else _Scale(address(norm.weight), address(norm.bias))


def _look(stack: Stack, block: Block, keys: Tensor, values: Tensor, dtype: torch.dtype) -> _Look:
    layout, attention = stack.layout, block.attention
    table = stack._local_table if block.local else stack.rotary
    norms = [None if n is None else n.weight for n in (attention.query_norm, attention.key_norm)]
    angles = [None, None] if table is None else [table[0], table[1]]
    scale = layout.heads[2] ** -0.5 if layout.scale is None else layout.scale
    window = layout.window if block.local and layout.window is not None else 0
    return _Look(*layout.heads, dtype == torch.bfloat16, keys.dtype == torch.bfloat16, scale, layout.eps,
                 *map(address, norms), *map(address, angles), window, address(keys), address(values))
