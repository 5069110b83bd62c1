"""A decoder over pages in PyTorch's own operations: one forward pass over a token of many sequences, each of which
finds its keys and values by a table of its pages (Kwon 2023, arXiv 2309.06180).

What ``nn.paged`` does on a CPU with weights laid out for it, this does on any device: the pages are a state behind
which the stack reads like behind any other. A library's product may depend on the batch by a bit, and so may a token.
B rows, T tokens, W pages of a row, S = W * PAGE keys.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cutaway.batch import Batch
from cutaway.nn.block import Stack
from cutaway.nn.cache import Memory
from cutaway.nn.captured import Capture, Replays, bucket
from cutaway.nn.paged import PAGE, PagedStack, Reading, laid_out

Rows = NDArray[np.int64]
ALIKE = 0.7  # prompts are padded together where the shortest has at least so much of the longest
PAIRS = 1 << 21  # query-key pairs of one pass over prompts: bounds the memory that masks and scores take
GATHERED = 1 << 14  # pages of one pass over single tokens, whose keys and values of a layer are laid side by side
_BEFORE, _COUNT, _HEAD = 0, 1, 2  # columns of what a pass is given: what a row has, what it reads; tokens, pages


class PagedCache:
    """Rows of pages as a state that one pass reads ``steps`` tokens behind: ``keys, values (layers, pages, PAGE, Hkv,
    D)``, ``table (B, W)`` says which pages a row has, ``lengths (B,)`` how many tokens they hold. Nothing here waits
    for the device.

    The last page is nobody's: tokens behind a row's ``counts`` are written there. A page is cleared when its first
    token is written, so that what others left there is not multiplied by 0.
    """

    memory: Memory | None = None
    even = False

    def __init__(self, keys: Tensor, values: Tensor, table: Tensor, lengths: Tensor, *, steps: int,
                 counts: Tensor | None = None) -> None:
        self.keys, self.values, self.table, self.lengths = keys, values, table, lengths
        self.capacity = self.longest = table.shape[1] * PAGE
        end = (lengths + (steps if counts is None else counts))[:, None]
        at = lengths[:, None] + torch.arange(steps, device=table.device)
        self._slots = (self._page(at // PAGE, at < end) * PAGE + at % PAGE).flatten()  # (B * T,)
        begun = (lengths[:, None] + PAGE - 1) // PAGE + torch.arange(-(-steps // PAGE), device=table.device)
        begun = self._page(begun, begun * PAGE < end).flatten()
        for side in (keys, values):
            side.index_fill_(1, begun, 0)

    def _page(self, index: Tensor, own: Tensor) -> Tensor:
        """Which pages stand at ``index (B, n)`` of the table; nobody's where not ``own``."""
        found = self.table.gather(1, index.clamp(max=self.table.shape[1] - 1))
        return torch.where(own, found, self.keys.shape[1] - 1)

    def write(self, layer: int, keys: Tensor, values: Tensor, counts: Tensor | None) -> tuple[Tensor, Tensor]:
        """See ``Carried``; ``counts`` are those that it was made with."""
        return self._through(self.keys[layer], keys), self._through(self.values[layer], values)

    def _through(self, pages: Tensor, new: Tensor) -> Tensor:
        """``new (B, T, Hkv, D)`` into a layer's pages, and all that the rows have, ``(B, Hkv, S, D)``."""
        pages.flatten(0, 1).index_copy_(0, self._slots, new.flatten(0, 1))
        rows, width = self.table.shape
        return pages.index_select(0, self.table.flatten()).view(rows, width * PAGE, *pages.shape[2:]).transpose(1, 2)

    def room(self, layer: int) -> None:
        """See ``Carried``: they lie in pages."""

    def advance(self, steps: int, counts: Tensor | None) -> None:
        """See ``Carried``."""
        self.lengths = self.lengths + (steps if counts is None else counts)


class BatchedStack:
    """A causal ``stack`` with room for ``count`` pages of its keys and values, which it keeps in ``dtype``, and one
    more that padding is written to.

    Steps of single tokens come in few shapes, rows and pages rounded up to powers of two, so that they can be
    captured; ``capture`` is the device's own if not given. Prompts are read padded, those of like length together.
    """

    exact = False  # a product's last digit depends on its shape
    spare = 1  # pages beside those that are counted

    def __init__(self, stack: Stack, count: int, *, dtype: torch.dtype, capture: Capture | None = None) -> None:
        self.stack, self.dtype, self.count = stack, dtype, count
        _, kv_heads, size = stack.layout.heads
        self.device = stack.embedding.weight.device
        shape = (len(stack.blocks), count + self.spare, PAGE, kv_heads, size)
        self.keys, self.values = (torch.empty(shape, dtype=dtype, device=self.device) for _ in range(2))
        self.steps = Replays(lambda sheet: self._read(sheet, 1)[:, 0], self.device, capture)
        self._whole = -(-stack.layout.context_length // PAGE)

    @torch.inference_mode()
    def hidden(self, reading: Reading) -> Tensor:
        """Read; hidden states ``(R, width)`` where they are wanted."""
        counts = np.diff(reading.begins)
        found, where = list[Tensor](), np.empty(len(reading.tokens), np.int64)
        start = 0
        for rows in self._singles(reading, np.flatnonzero(counts == 1)):
            sheet = _sheet(reading, rows, spare=self.count, many=bucket(len(rows)),
                           width=bucket(_width(reading, rows), self._whole))
            found.append(self.steps(sheet)[: len(rows)].clone())  # the next pass writes over it
            where[reading.begins[rows]] = start + np.arange(len(rows))
            start += len(rows)
        for rows, begin, steps in _pieces(counts, reading.before, np.flatnonzero(counts > 1)):
            sheet = _sheet(reading, rows, spare=self.count, begin=begin, steps=steps)
            found.append(self._read(torch.from_numpy(sheet).to(self.device), steps).flatten(0, 1))
            for row, own in enumerate(sheet[:, _COUNT].tolist()):
                first = reading.begins[rows[row]] + begin
                where[first : first + own] = start + row * steps + np.arange(own)
            start += len(rows) * steps
        wanted = where[reading.wanted]
        hidden = found[0] if len(found) == 1 else torch.cat(found)
        if len(wanted) == len(hidden) and bool((np.diff(wanted, prepend=-1) == 1).all()):
            return hidden
        return hidden[torch.from_numpy(wanted).to(self.device, non_blocking=True)]

    def _read(self, sheet: Tensor, steps: int) -> Tensor:
        """The pass over what ``_sheet`` laid out; hidden states ``(B, T, width)``."""
        tokens, table = sheet[:, _HEAD : _HEAD + steps], sheet[:, _HEAD + steps :]
        counts = None if steps == 1 else sheet[:, _COUNT]
        state = PagedCache(self.keys, self.values, table, sheet[:, _BEFORE], steps=steps, counts=counts)
        out: Tensor = self.stack(Batch(tokens), dtype=self.dtype, state=state, counts=counts)
        return out

    def _singles(self, reading: Reading, rows: Rows) -> Iterator[Rows]:
        """Rows that read one token, as many of one pass as their pages allow: all of them, or the longest apart."""
        rows = rows[np.argsort(-reading.before[rows], kind="stable")]
        while len(rows):
            most = max(1, GATHERED // bucket(_width(reading, rows[:1]), self._whole))
            many = min(len(rows), 1 << (most.bit_length() - 1))
            yield np.sort(rows[:many])
            rows = rows[many:]


def _sheet(reading: Reading, rows: Rows, *, spare: int, many: int | None = None, width: int | None = None,
           begin: int = 0, steps: int = 1) -> NDArray[np.int64]:
    """What a pass reads, ``(many, 2 + steps + width)``: how many tokens each of ``rows`` has, how many it reads, at
    most ``steps`` behind its first ``begin``, those, and its pages.

    More rows than there are read a token into the ``spare`` page. Behind a row's own pages its first one stands: what
    others left in theirs may not even be finite.
    """
    width = _width(reading, rows, begin + steps) if width is None else width
    sheet = np.zeros((len(rows) if many is None else many, _HEAD + steps + width), np.int64)
    sheet[len(rows) :, _COUNT], sheet[len(rows) :, _HEAD + steps :] = 1, spare
    firsts, ends = reading.begins[rows] + begin, reading.begins[rows + 1]
    own = sheet[: len(rows)]
    own[:, _BEFORE], own[:, _COUNT] = reading.before[rows] + begin, np.minimum(ends - firsts, steps)
    at = np.minimum(firsts[:, None] + np.arange(steps), ends[:, None] - 1)  # behind its last token that one again
    own[:, _HEAD : _HEAD + steps] = reading.tokens.numpy()[at]
    held = np.arange(width) * PAGE < (own[:, _BEFORE] + own[:, _COUNT])[:, None]
    columns = np.minimum(np.arange(width), reading.pages.shape[1] - 1)
    own[:, _HEAD + steps :] = np.where(held, reading.pages[rows][:, columns], reading.pages[rows, :1])
    return sheet


def _width(reading: Reading, rows: Rows, steps: int = 1) -> int:
    """Pages of the longest of some rows, when each has read at most so many of its tokens."""
    lengths = reading.before[rows] + np.minimum(np.diff(reading.begins)[rows], steps)
    return -(-int(lengths.max()) // PAGE)


def _pieces(counts: NDArray[np.int32], before: NDArray[np.int32], rows: Rows) -> Iterator[tuple[Rows, int, int]]:
    """Of ``rows`` that read ``counts`` tokens behind ``before``: which are read together, behind how many of those
    tokens, and how many of them."""
    rows = rows[np.argsort(-counts[rows], kind="stable")]
    while len(rows):
        longest = int(counts[rows[0]])
        many = int((counts[rows] >= ALIKE * longest).sum())
        group, rows = rows[:many], rows[many:]
        deepest = int((before[group] + counts[group]).max())
        steps = max(1, min(longest, PAIRS // (many * deepest)))
        for begin in range(0, longest, steps):
            yield group[counts[group] > begin], begin, min(steps, longest - begin)


def pages_of(stack: Stack, count: int, *, dtype: torch.dtype) -> PagedStack | BatchedStack:
    """Room for ``count`` pages of a causal stack: for the kernels where its weights are laid out for them."""
    return (PagedStack if laid_out(stack) else BatchedStack)(stack, count, dtype=dtype)
