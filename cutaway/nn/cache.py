"""Carried state of a decoder: keys and values of the tokens already read, one pair of tensors a layer.

Layout ``(B, num_kv_heads, capacity, head_size)``: the keys of one head are contiguous, so that a batched product reads
them where they are; with the tokens first, each step would copy the whole cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from cutaway.errors import RequestError


@dataclass(frozen=True, slots=True)
class Memory:
    """What a decoder looks at of M sources: keys and values of every layer ``(M, Hkv, S, D)``, made once, and which
    places hold a token ``(M, S)``. A source serves ``each`` rows of the state, one behind another: hypotheses of one
    beam share it."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    real: Tensor
    each: int = 1

    def select(self, rows: Tensor) -> Memory:
        """The memory of some rows of the state, in the order given (rows may repeat); shared as long as neighbours that
        share a source come in equal numbers, and not even copied where the sources stay the same."""
        owners, counts = torch.unique_consecutive(rows // self.each, return_counts=True)
        each = int(counts[0]) if len(counts) else 1
        if bool((counts != each).any()):
            owners, each = rows // self.each, 1
        if torch.equal(owners, torch.arange(len(self.real), device=rows.device)):
            return replace(self, each=each)
        return Memory(tuple(k[owners] for k in self.keys), tuple(v[owners] for v in self.values), self.real[owners],
                      each)

    def join(self, others: Sequence[Memory]) -> Memory:
        """The memory of this state's rows, then of those of others; neighbours go on sharing a source as far as that
        is possible for all of them."""
        each = math.gcd(*(m.each for m in (self, *others)))
        width = max(m.real.shape[1] for m in (self, *others))
        alike = [m._spread(m.each // each, width) for m in (self, *others)]
        keys, values = (tuple(torch.cat(layer) for layer in zip(*(getattr(m, side) for m in alike), strict=True))
                        for side in ("keys", "values"))
        return Memory(keys, values, torch.cat([m.real for m in alike]), each)

    def _spread(self, times: int, width: int) -> Memory:
        """Each source so many times, with so many places."""
        if times == 1 and width == self.real.shape[1]:
            return self
        more = width - self.real.shape[1]
        keys, values = (tuple(F.pad(t, (0, 0, 0, more)).repeat_interleave(times, 0) for t in side)
                        for side in (self.keys, self.values))
        return Memory(keys, values, F.pad(self.real, (0, more)).repeat_interleave(times, 0), self.each // times)


class Carried(Protocol):
    """What a decoder reads behind: keys and values of B sequences of ``lengths (B,)``, wherever they are kept."""

    lengths: Tensor
    longest: int  # no row has more tokens
    even: bool  # whether all rows are known to be equally long
    memory: Memory | None

    @property
    def capacity(self) -> int:
        """Tokens a row has room for."""

    def write(self, layer: int, keys: Tensor, values: Tensor, counts: Tensor | None) -> tuple[Tensor, Tensor]:
        """Put ``(B, T, Hkv, D)`` behind each row's tokens (only its first ``counts``); returns its keys and values
        ``(B, Hkv, S, D)``, S being ``longest + T`` and no more than ``capacity``. Lengths do not move: see
        ``advance``. What lies behind a row's own tokens is finite."""

    def room(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """A layer's whole keys and values ``(B, Hkv, capacity, D)``, for a kernel that appends one token a row itself;
        None where they do not lie so."""

    def advance(self, steps: int, counts: Tensor | None) -> None:
        """Count the tokens just written: ``steps`` a row, or ``counts (B,)``."""


class KVCache:
    """Keys and values of ``rows`` sequences of differing ``lengths (B,)``, room for ``capacity`` tokens each; with the
    ``memory`` of their sources where there is one."""

    def __init__(self, keys: list[Tensor], values: list[Tensor], lengths: Tensor, memory: Memory | None = None) -> None:
        self.keys, self.values, self.lengths, self.memory = keys, values, lengths, memory
        self.longest = int(lengths.max()) if len(lengths) else 0
        self.even = bool((lengths == self.longest).all())
        self._spare: tuple[list[Tensor], list[Tensor]] | None = None  # what ``reordered`` writes to
        self._store: tuple[list[Tensor], list[Tensor]] | None = None  # of which these are the first rows

    @property
    def capacity(self) -> int:
        """Tokens a row has room for."""
        return self.keys[0].shape[2]

    def write(self, layer: int, keys: Tensor, values: Tensor, counts: Tensor | None) -> tuple[Tensor, Tensor]:
        """Append ``(B, T, Hkv, D)`` behind each row's tokens (only its first ``counts``); returns all keys and values
        up to the longest row, ``(B, Hkv, S, D)``. Lengths do not move: see ``advance``."""
        steps = keys.shape[1]
        end = self.longest + steps
        if end > self.capacity and (counts is None or int((self.lengths + counts).max()) > self.capacity):
            raise RequestError(f"{end} tokens do not fit a cache of {self.capacity}",
                               way_out="start the state with a larger capacity")
        end = min(end, self.capacity)
        k, v = self.keys[layer], self.values[layer]
        if self.even and self.longest + steps <= self.capacity:
            k[:, :, self.longest : end], v[:, :, self.longest : end] = keys.transpose(1, 2), values.transpose(1, 2)
        elif steps == 1 and counts is None:
            row = torch.arange(len(keys), device=keys.device)
            k[row, :, self.lengths], v[row, :, self.lengths] = keys[:, 0], values[:, 0]
        else:
            at = self.lengths[:, None] + torch.arange(steps, device=keys.device)
            valid = at < (self.capacity if counts is None else self.lengths[:, None] + counts[:, None])
            row, column = valid.nonzero(as_tuple=True)
            where = at[row, column]
            k[row, :, where], v[row, :, where] = keys[row, column], values[row, column]
        return k[:, :, :end], v[:, :, :end]

    def room(self, layer: int) -> tuple[Tensor, Tensor]:
        """A layer's whole keys and values, for a kernel that appends one token a row itself."""
        if self.longest >= self.capacity:
            raise RequestError(f"{self.longest + 1} tokens do not fit a cache of {self.capacity}",
                               way_out="start the state with a larger capacity")
        return self.keys[layer], self.values[layer]

    def advance(self, steps: int, counts: Tensor | None) -> None:
        """Count the tokens just written: ``steps`` a row, or ``counts (B,)``."""
        self._at(self.lengths + (steps if counts is None else counts))

    def _at(self, lengths: Tensor) -> None:
        self.lengths = lengths
        self.longest = int(lengths.max()) if len(lengths) else 0
        self.even = bool((lengths == self.longest).all())

    def select(self, rows: Tensor) -> KVCache:
        """The state of some rows, in the order given (rows may repeat)."""
        memory = None if self.memory is None else self.memory.select(rows)
        keys, values = ([self._some(t, rows) for t in side] for side in (self.keys, self.values))
        return KVCache(keys, values, self.lengths[rows], memory)

    def _some(self, tensor: Tensor, rows: Tensor) -> Tensor:
        if self.longest == self.capacity or torch.is_grad_enabled():
            return tensor[rows]
        out = tensor.new_zeros((len(rows), *tensor.shape[1:]))  # where nothing was read, no memory is touched
        torch.index_select(tensor[:, :, : self.longest], 0, rows, out=out[:, :, : self.longest])
        return out

    def join(self, others: Sequence[KVCache], *, capacity: int) -> KVCache:
        """The rows of this state, then those of others, with room for ``capacity`` tokens or more. This state is used
        up: where it has spare rows, what comes is written there and nothing else moves."""
        many, total = len(self.lengths), sum(len(s.lengths) for s in (self, *others))
        store = self._store
        if store is None or len(store[0][0]) < total or capacity > self.capacity:
            store = self._larger(total + total // 4 if others else total, max(capacity, self.capacity))
        for other in others:
            end = many + len(other.lengths)
            for to, came in zip(store, (other.keys, other.values), strict=True):
                for mine, new in zip(to, came, strict=True):
                    mine[many:end, :, : other.longest] = new[:, :, : other.longest]
            many = end
        memory = None if self.memory is None else self.memory.join([o.memory for o in others if o.memory is not None])
        keys, values = ([t[:total] for t in side] for side in store)
        joined = KVCache(keys, values, torch.cat([s.lengths for s in (self, *others)]), memory)
        joined._store = store
        return joined

    def _larger(self, rows: int, capacity: int) -> tuple[list[Tensor], list[Tensor]]:
        """What was read, in tensors with more room."""
        sides: tuple[list[Tensor], list[Tensor]] = ([], [])
        for side, tensors in zip(sides, (self.keys, self.values), strict=True):
            for tensor in tensors:
                new = tensor.new_zeros((rows, tensor.shape[1], capacity, tensor.shape[3]))
                new[: len(tensor), :, : self.longest] = tensor[:, :, : self.longest]
                side.append(new)
        return sides

    def reordered(self, rows: Tensor) -> KVCache:
        """``select`` for a caller that is done with this state: two of them take turns in the same memory, and only
        what was read moves. A beam turns its rows at every token."""
        spare = self._spare
        if spare is None or len(spare[0][0]) < len(rows):
            shape = (len(rows), *self.keys[0].shape[1:])
            spare = tuple([k.new_zeros(shape) for k in side] for side in (self.keys, self.values))  # type: ignore[assignment]
        assert spare is not None
        for old, new in zip((self.keys, self.values), spare, strict=True):
            for layer, tensor in enumerate(old):
                new[layer] = new[layer][: len(rows)]
                torch.index_select(tensor[:, :, : self.longest], 0, rows, out=new[layer][:, :, : self.longest])
        memory = None if self.memory is None else self.memory.select(rows)
        moved = KVCache(*spare, self.lengths[rows], memory)
        moved._spare = (self.keys, self.values)
        return moved

    def truncate(self, lengths: Tensor) -> None:
        """Forget what is behind ``lengths (B,)``; longer than what is there is refused."""
        if bool((lengths > self.lengths).any()):
            raise RequestError("a state cannot be truncated to more tokens than it holds")
        self._at(lengths.clone())

    def copy(self) -> KVCache:
        """An independent copy; the memory never changes and is shared."""
        keys, values = ([t.clone() for t in side] for side in (self.keys, self.values))
        return KVCache(keys, values, self.lengths.clone(), self.memory)
