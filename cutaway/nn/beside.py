"""What adapters add to a linear map, to each row that of its own: many adapters share one base in one batch (LoRA: Hu
2021, arXiv 2106.09685; one base under many: Chen 2023, Punica, arXiv 2310.18547). For reading alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ctypes import Structure, c_int, c_int64, c_void_p
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cutaway.nn.kernels import pointer

PANEL, LANES = 32, 16  # outputs whose weights lie together, and how many of them have ranks of their own: csrc


Parts = tuple[tuple[int, int], ...]


class Pair(NamedTuple):
    """What one adapter adds to one linear map: ``up[i] (down[i] x)`` to the rows of its part i. A part is a matrix of
    its own in a public format (queries, keys, values); one of rank 0 gets nothing."""

    down: tuple[Tensor, ...]  # (rank, inputs)
    up: tuple[Tensor, ...]  # (rows, rank), the scale in it

    @property
    def parts(self) -> Parts:
        """How many rows each part has, and its rank."""
        return tuple(up.shape for up in self.up)  # type: ignore[misc]


class Rows:
    """Which adapter each row has of what is read now, by number, -1: none; one number for all rows, or one a row. All
    maps of a model share it."""

    def __init__(self) -> None:
        self.which: NDArray[np.int32] | None = None  # None: no row has one
        self._places: dict[int, Tensor] = {}

    @contextmanager
    def of(self, which: Sequence[int]) -> Iterator[None]:
        """For what is read meanwhile."""
        some = {*which}
        self.which = None if some <= {-1} else np.array([*some] if len(some) == 1 else which, np.int32)
        try:
            yield
        finally:
            self.which, self._places = None, {}

    def places(self, number: int, device: torch.device) -> Tensor:
        """The rows that have an adapter, found once for all maps."""
        assert self.which is not None
        if number not in self._places:
            rows = torch.from_numpy((self.which == number).nonzero()[0])
            self._places[number] = rows.to(device, non_blocking=True)
        return self._places[number]

    def each(self, tokens: int) -> NDArray[np.int32] | None:
        """The adapter of each of so many tokens, as many of every row, for the kernels; None where none has one."""
        if self.which is None:
            return None
        assert tokens % len(self.which) == 0, "each row of what is read has its adapter"
        return np.repeat(self.which, tokens // len(self.which))


class Beside(nn.Module):
    """The pairs of all adapters for one linear map, None where one adds nothing to it."""

    def __init__(self, rows: Rows, pairs: Sequence[Pair | None]) -> None:
        super().__init__()
        self.rows = rows
        self.parts = tuple(None if pair is None else pair.parts for pair in pairs)
        for number, pair in enumerate(pairs):
            if pair is not None:  # buffers go along to another device
                self.register_buffer(f"down{number}", torch.cat(pair.down), persistent=False)
                self.register_buffer(f"up{number}", torch.block_diag(*pair.up), persistent=False)

    def whole(self, number: int) -> tuple[Tensor, Tensor]:
        """An adapter's ``down (rank, inputs)`` and ``up (outputs, rank)``, all parts laid together."""
        return self.get_buffer(f"down{number}"), self.get_buffer(f"up{number}")

    def forward(self, out: Tensor, x: Tensor) -> Tensor:
        """``out (B, …, outputs)`` of ``x (B, …, inputs)``, with what each row's adapter adds to it."""
        which = self.rows.which
        if which is None:
            return out
        if len(which) == 1:
            return out + self._of(int(which[0]), x)
        assert len(which) == len(x), "each row of what is read has its adapter"
        out = out.clone()
        for number in sorted({*which.tolist()} - {-1}):
            rows = self.rows.places(number, x.device)
            out[rows] += self._of(number, x[rows])
        return out

    def _of(self, number: int, x: Tensor) -> Tensor | int:
        """What one adapter adds."""
        if self.parts[number] is None:
            return 0
        down, up = (half.to(x.dtype) for half in self.whole(number))
        return (x @ down.T) @ up.T


class Struct(Structure):
    """``Beside`` of beside.h."""

    _fields_ = (("rank", c_int64), ("down", c_void_p), ("up", c_void_p), ("first", c_void_p), ("at", c_void_p),
                ("bf", c_int))


class Laid:
    """The pairs of a ``Beside`` for the kernels, in ``dtype``; rows in the order of ``row_of`` of linear.c where the
    map is ``gated``."""

    def __init__(self, beside: Beside, outputs: int, *, gated: bool, dtype: torch.dtype) -> None:
        order = _order(outputs, gated=gated)
        self._kept: list[object] = []  # what the structs point to
        self.structs, self.rank = (Struct * len(beside.parts))(), 0
        for number, parts in enumerate(beside.parts):
            if parts is not None:
                self.structs[number] = self._laid(*beside.whole(number), *_ranks(parts, order), order, dtype)
                self.rank = max(self.rank, self.structs[number].rank)

    def _laid(self, down: Tensor, up: Tensor, first: NDArray[np.int32], count: NDArray[np.int32],
              order: NDArray[np.int64], dtype: torch.dtype) -> Struct:
        rows = torch.from_numpy(order).view(-1, PANEL // LANES, LANES)  # of each half of each panel
        up = torch.cat((up, torch.zeros(1, up.shape[1])))  # what is filled up reads zeros
        panels = [torch.cat([up[own][:, begin : begin + many].T for own, begin in zip(halves, begins, strict=True)], 1)
                  for halves, begins, many in zip(rows, first.tolist(), count.tolist(), strict=True)]
        down, up = down.to(dtype).contiguous(), torch.cat(panels).to(dtype).contiguous()
        at = np.concatenate([[0], np.cumsum(count)]).astype(np.int32)
        self._kept += [down, up, first, at]
        return Struct(len(down), pointer(down), pointer(up), first.ctypes.data, at.ctypes.data,
                      int(dtype == torch.bfloat16))


def _order(outputs: int, *, gated: bool) -> NDArray[np.int64]:
    """The rows of a weight as panels have them, -1 behind the last."""
    if gated:
        return np.arange(outputs).reshape(2, -1, LANES).transpose(1, 0, 2).flatten()
    padded = -(-outputs // PANEL) * PANEL
    return np.where(np.arange(padded) < outputs, np.arange(padded), -1)


def _ranks(parts: Parts, order: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """For each half of a panel the first of the ranks that its rows have ``(panels, 2)``, and how many the panel reads
    of them ``(panels,)``: of both halves as many, for they are read together."""
    ends = np.cumsum([rank for _, rank in parts])
    starts = ends - [rank for _, rank in parts]
    part = np.append(np.repeat(np.arange(len(parts)), [rows for rows, _ in parts]), -1)  # of each row
    of = part[order].reshape(-1, PANEL // LANES, LANES)
    low = np.where(of < 0, ends[-1], starts[of]).min(2)
    high = np.where(of < 0, 0, ends[of]).max(2)
    count = np.maximum(high - low, 0).max(1)
    return np.minimum(low, ends[-1] - count[:, None]).astype(np.int32), count.astype(np.int32)
