"""A decoder over pages in PyTorch's own operations: one forward pass over a token of many sequences, each of which
finds its keys and values by a table of its pages (Kwon 2023, arXiv 2309.06180).

What ``nn.paged`` does on a CPU with weights laid out for it, this does on any device: the pages are a state behind
which the stack reads like behind any other. A library's product may depend on the batch by a bit, and so may a token.
B rows, T tokens, W pages of a row, S = W * PAGE keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cutaway.batch import Batch
from cutaway.nn import beside
from cutaway.nn.block import Stack
from cutaway.nn.cache import Memory
from cutaway.nn.captured import Capture, Replays, bucket
from cutaway.nn.paged import PAGE, PagedStack, Reading, laid_out

Rows = NDArray[np.int64]
ALIKE = 0.7  # prompts are padded together where the shortest has at least so much of the longest
PAIRS = 1 << 21  # query-key pairs of one pass over prompts: bounds the memory that masks and scores take
PIECE = 64  # tokens of each prompt that such a pass reads at least, for each gathers all that is behind it
FEW, JOINED = 8, 64  # tokens of a row, and of all rows with their padding, that are read beside single ones
GATHERED = 1 << 14  # pages of one pass, whose keys and values of a layer are laid side by side
_BEFORE, _COUNT, _HEAD = 0, 1, 2  # columns of what a pass is given: what a row has, what it reads; tokens, pages


class PagedCache:
    """Rows of pages as a state that one pass reads ``steps`` tokens behind: ``keys, values (layers, pages, PAGE, Hkv,
    D)``, ``table (B, W)`` says which pages a row has, ``lengths (B,)`` how many tokens they hold. Nothing here waits
    for the device.

    The last page is nobody's: tokens behind a row's ``counts`` are written there. A page is cleared when its first
    token is written, so that what others left there is not multiplied by 0; where a row has yet to begin a page its
    table names one that holds finite numbers.
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

    Steps of single tokens, and of few more, come in few shapes, so that they can be captured; ``capture`` is the
    device's own if not given. Prompts are read padded, those of like length together. ``adapters`` tells the linear
    maps which of them each row has; steps with some are not captured, for which rows have which is new each time.
    """

    exact = False  # a product's last digit depends on its shape
    spare = 1  # pages beside those that are counted

    def __init__(self, stack: Stack, count: int, *, dtype: torch.dtype, capture: Capture | None = None,
                 adapters: beside.Rows | None = None) -> None:
        self.stack, self.dtype, self.count = stack, dtype, count
        self._adapters = beside.Rows() if adapters is None else adapters
        _, kv_heads, size = stack.layout.heads
        self.device = stack.embedding.weight.device
        shape = (len(stack.blocks), count + self.spare, PAGE, kv_heads, size)
        self.keys, self.values = (torch.empty(shape, dtype=dtype, device=self.device) for _ in range(2))
        self.replays = Replays(self.device, capture)
        self._whole = -(-stack.layout.context_length // PAGE)

    @torch.inference_mode()
    def hidden(self, reading: Reading) -> Tensor:
        """Read; hidden states ``(R, width)`` where they are wanted."""
        found, where, start = list[Tensor](), np.empty(len(reading.tokens), np.int64), 0
        for part in _passes(reading, self._whole):
            sheet, steps = _sheet(reading, part, spare=self.count), part.steps
            which = np.full(part.many, -1)
            which[: len(part.rows)] = reading.adapters[part.rows]
            with self._adapters.of(which.tolist()):
                if part.often and self._adapters.which is None:
                    out = self.replays(self._read, sheet, steps).clone()  # the next pass writes over it
                else:
                    out = self._read(torch.from_numpy(sheet).to(self.device, non_blocking=True), steps)
            out = out[: len(part.rows)]
            found.append(out.flatten(0, 1))
            at, real = np.arange(steps), np.arange(steps) < sheet[: len(part.rows), _COUNT, None]
            places = start + np.arange(real.size).reshape(real.shape)
            where[(reading.begins[part.rows, None] + part.begin + at)[real]] = places[real]
            start += real.size
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


@dataclass(frozen=True, slots=True)
class _Pass:
    """Which sequences are read together, at most ``steps`` tokens each behind the first ``begin`` of theirs now, with
    ``width`` pages, filled up to ``many`` rows. What comes ``often`` has one of few shapes."""

    rows: Rows
    begin: int
    steps: int
    many: int
    width: int
    often: bool


def _passes(reading: Reading, whole: int) -> Iterator[_Pass]:
    """All of a reading. Who reads few tokens (one and some proposed) is in one pass with those that read one: padding
    costs less than to fetch the weights again."""
    counts = np.diff(reading.begins)
    few = np.flatnonzero(counts <= FEW)
    steps = bucket(int(counts[few].max(initial=1)))
    if bucket(max(1, len(few))) * steps > JOINED:
        few, steps = np.flatnonzero(counts == 1), 1
    rest = np.setdiff1d(np.arange(len(counts)), few)
    few = few[np.argsort(-reading.before[few], kind="stable")]
    while len(few):  # all of them, or the longest apart
        width = bucket(_width(reading, few, steps), whole)
        many = min(len(few), bucket(1 + GATHERED // width) // 2 or 1)
        yield _Pass(np.sort(few[:many]), 0, steps, bucket(many), width, often=True)
        few = few[many:]
    yield from _prompts(reading, counts, rest)


def _prompts(reading: Reading, counts: NDArray[np.int32], rows: Rows) -> Iterator[_Pass]:
    """Those that read many, the longest first, as far as they are alike."""
    rows = rows[np.argsort(-counts[rows], kind="stable")]
    while len(rows):
        longest = int(counts[rows[0]])
        alike = rows[counts[rows] >= ALIKE * longest]
        deepest = int((reading.before[alike] + counts[alike]).max())
        many = max(1, min(len(alike), GATHERED // -(-deepest // PAGE), PAIRS // (PIECE * deepest)))
        group, rows = rows[:many], rows[many:]
        steps = max(1, min(longest, PAIRS // (many * deepest)))
        for begin in range(0, longest, steps):
            some, now = group[counts[group] > begin], min(steps, longest - begin)
            yield _Pass(some, begin, now, len(some), _width(reading, some, begin + now), often=False)


def _width(reading: Reading, rows: Rows, steps: int) -> int:
    """Pages of the longest of some rows, when each has read at most so many of its tokens."""
    lengths = reading.before[rows] + np.minimum(np.diff(reading.begins)[rows], steps)
    return -(-int(lengths.max()) // PAGE)


def _sheet(reading: Reading, part: _Pass, *, spare: int) -> NDArray[np.int64]:
    """What a pass reads, ``(many, 2 + steps + width)``: how many tokens each row has, how many it reads, those, and its
    pages.

    Rows of nobody write to the ``spare`` page. Behind a row's own pages its first one stands: what others left
    in theirs may not even be finite.
    """
    rows, steps = part.rows, part.steps
    sheet = np.zeros((part.many, _HEAD + steps + part.width), np.int64)
    sheet[len(rows) :, _HEAD + steps :] = spare
    firsts, ends = reading.begins[rows] + part.begin, reading.begins[rows + 1]
    own = sheet[: len(rows)]
    own[:, _BEFORE], own[:, _COUNT] = reading.before[rows] + part.begin, np.minimum(ends - firsts, steps)
    at = np.minimum(firsts[:, None] + np.arange(steps), ends[:, None] - 1)  # behind its last token that one again
    own[:, _HEAD : _HEAD + steps] = reading.tokens.numpy()[at]
    held = np.arange(part.width) * PAGE < (own[:, _BEFORE] + own[:, _COUNT])[:, None]
    columns = np.minimum(np.arange(part.width), reading.pages.shape[1] - 1)
    own[:, _HEAD + steps :] = np.where(held, reading.pages[rows][:, columns], reading.pages[rows, :1])
    return sheet


def pages_of(stack: Stack, count: int, *, dtype: torch.dtype, rows: beside.Rows) -> PagedStack | BatchedStack:
    """Room for ``count`` pages of a causal stack, whose linear maps look at ``rows``: for the kernels where its weights
    are laid out for them."""
    if laid_out(stack):
        return PagedStack(stack, count, dtype=dtype)
    return BatchedStack(stack, count, dtype=dtype, adapters=rows)
