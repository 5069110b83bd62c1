"""Filters of several widths over words, and the largest answer of each (Kim 2014, arXiv 1408.5882).

The filters of all widths are one product, a narrow one being a wide one with zeros at its edges. Only the window of the
largest answer learns: the kernel's backward pass has one window a filter and row, and not one a token.
Reading alone keeps no answer: windows lie one word apart in memory and are the rows of a product as they stand.
B rows, T words, E width of a word, F filters in all, N documents.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_int, c_int64
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cutaway.nn.convolution import centred, taps
from cutaway.nn.kernels import library_for, pointer


def answers(words: Tensor, filters: Sequence[Tensor], widths: Sequence[int], documents: Tensor | None, *,
            dtype: torch.dtype) -> Tensor:
    """What every filter says around each word, ``(B, T, F)`` in ``dtype``; ``words (B, T, E)`` float32, a filter's
    weight ``(F', width E)``. Words outside the row or in another document are zero."""
    size, window = words.shape[-1], centred(max(widths))
    wide = []
    for width, weight in zip(widths, filters, strict=True):
        own = centred(width)
        wide.append(F.pad(weight, ((own[0] - window[0]) * size, (window[-1] - own[-1]) * size)))
    return F.linear(taps(words.to(dtype), window, documents), torch.cat(wide).to(dtype))


def largest(words: Tensor, filters: Sequence[Tensor], widths: Sequence[int], documents: Tensor | None, *,
            dtype: torch.dtype) -> Tensor:
    """The largest of each filter's ``answers`` to a row's words, padding left out, ``(B, F)`` float32; -inf for a row
    of padding alone."""
    lib = library_for(words, *filters)
    if lib is not None and words.dtype == torch.float32 and all(f.dtype == torch.float32 for f in filters):
        out: Tensor = _Largest.apply(lib, words, documents, dtype, tuple(widths), *filters)  # type: ignore[no-untyped-call]
        return out
    said = answers(words, filters, widths, documents, dtype=dtype)
    if documents is not None:
        said = said.masked_fill((documents < 0)[..., None], -torch.inf)
    return said.max(1).values.float()


def read(tokens: Tensor, table: Tensor, filters: Sequence[Tensor], widths: Sequence[int],
         documents: Tensor | None) -> Tensor | None:
    """The largest of each filter's answers to each document, ``(N, F)`` float32, of products in bfloat16; for reading:
    no gradient. None where no kernel runs here. ``tokens (B, T)`` are rows of ``table (V, E)``; a row without
    documents of its own is one, and one of padding alone gives -inf."""
    lib = library_for(table, *filters)
    if lib is None or tokens.device.type != "cpu" or {table.dtype, *(f.dtype for f in filters)} != {torch.float32}:
        return None
    tokens = tokens.contiguous()
    if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < len(table):
        raise IndexError(f"a token is outside the vocabulary of {len(table)}")
    starts, lengths = spans(tokens, documents)
    own, table = [f.contiguous() for f in filters], table.contiguous()
    places = (ctypes.c_void_p * len(own))(*(f.data_ptr() for f in own))
    sizes = (c_int64 * len(own))(*widths)
    top = torch.empty((len(starts), sum(len(f) for f in own)))
    lib.filters_read(pointer(tokens), pointer(starts), pointer(lengths), c_int64(len(starts)), pointer(table),
                     c_int64(table.shape[1]), places, sizes, c_int64(len(own)), c_int64(len(own[0])), pointer(top))
    return top


def spans(tokens: Tensor, documents: Tensor | None) -> tuple[Tensor, Tensor]:
    """Where each document begins in the flat ``tokens (B, T)``, and its length; both ``(N,)``. A row has at least one,
    of no words where the row is padding alone."""
    rows, steps = tokens.shape
    if documents is None:
        return torch.arange(rows) * steps, torch.full((rows,), steps)
    begins = torch.ones((rows, steps), dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    begins[:, 1:] &= documents[:, 1:] >= 0
    starts = begins.flatten().nonzero().squeeze(1)
    read = (documents >= 0).flatten().cumsum(0)
    ends = torch.cat((starts[1:], torch.tensor([rows * steps])))
    return starts, read[ends - 1] - read[starts] + (documents.flatten()[starts] >= 0)


class _Largest(torch.autograd.Function):
    """``largest`` in the kernels of ``csrc/filters.c``."""

    @staticmethod
    def forward(ctx: Any, lib: ctypes.CDLL, words: Tensor, documents: Tensor | None, dtype: torch.dtype,
                widths: tuple[int, ...], *filters: Tensor) -> Tensor:
        documents = None if documents is None else documents.int().contiguous()
        read = words.to(dtype).contiguous()
        rows, steps, size = read.shape
        window, count, at = centred(max(widths)), sum(len(f) for f in filters), 0
        wide = torch.zeros((count, len(window), size), dtype=dtype)
        for width, weight in zip(widths, filters, strict=True):
            before = centred(width)[0] - window[0]
            wide[at : at + len(weight), before : before + width] = weight.view(-1, width, size)
            at += len(weight)
        said = F.linear(taps(read, window, documents), wide.view(count, -1))
        top, where = torch.empty((rows, count)), torch.empty((rows, count), dtype=torch.int32)
        lib.filters_max(pointer(said), pointer(documents), c_int64(rows), c_int64(steps), c_int64(count), pointer(top),
                        pointer(where), c_int(dtype == torch.bfloat16))
        ctx.lib, ctx.widths = lib, widths
        ctx.save_for_backward(read, documents, where, *filters)
        return top

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        read, documents, where, *filters = ctx.saved_tensors
        grad, (rows, steps, size) = grad.contiguous(), read.shape
        grad_words, grads, first = torch.zeros(read.shape), [], 0
        for width, weight in zip(ctx.widths, filters, strict=True):
            weight, grad_weight = weight.contiguous(), torch.zeros_like(weight)
            ctx.lib.filters_grad(
                pointer(read), c_int(read.dtype == torch.bfloat16), pointer(weight), pointer(documents),
                pointer(where), pointer(grad), c_int64(rows), c_int64(steps), c_int64(size),
                c_int64(where.shape[1]), c_int64(first), c_int64(len(weight)), c_int64(centred(width)[0]),
                c_int64(width), pointer(grad_words), pointer(grad_weight))
            grads.append(grad_weight)
            first += len(weight)
        return (None, grad_words, None, None, None, *grads)
