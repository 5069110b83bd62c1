"""The runner over real pages: a transformer decoder reads the parts of a step in one pass (see ``nn.paged``)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from cutaway.device import free_bytes, memory_bytes
from cutaway.errors import MachineError
from cutaway.generate.track import Part
from cutaway.models.model import Model
from cutaway.nn.batched import BatchedStack
from cutaway.nn.paged import PAGE, PagedStack, Reading

SHARE = 0.25  # of the machine's memory, for pages: they take it when they are first written to
FREE_SHARE = 0.5  # of what is free on a GPU: they take it at once, and the step and its graphs need the rest
BATCHED_ON = frozenset({"cuda"})  # kinds of device where pages pay though no kernel is made for them


class PagedRunner:
    """A model over its pages, those of a CPU's kernels (``models.light``) or those of PyTorch's operations."""

    shares_pages = True

    def __init__(self, model: Model, pages: PagedStack | BatchedStack) -> None:
        self.model, self.pages, self.exact = model, pages, pages.exact
        self.vocab_size, self.context_length = model.vocab_size, model.context_length
        self.page_size, self.num_pages = PAGE, pages.count

    def run(self, parts: Sequence[Part], *, every: bool = False) -> Tensor:
        """See ``Runner``."""
        ends = np.cumsum([len(part.tokens) for part in parts])
        wanted = np.arange(ends[-1]) if every else ends[np.array([part.samples for part in parts], np.bool_)] - 1
        reading = Reading.of([(p.tokens, p.start, p.pages) for p in parts], wanted.tolist(), [p.adapter for p in parts])
        return self.model.read(reading, self.pages)

    def forget(self, sequence: int) -> None:
        """See ``Runner``: pages are taken over by whoever writes to them."""


def paged(model: Model, *, max_rows: int, cache_bytes: int | None = None) -> PagedRunner | None:
    """A runner for a model that has pages, where they give the same bits in any company or the device is one of
    ``BATCHED_ON``; else None. There are pages for ``max_rows`` whole contexts, or for as many as ``cache_bytes`` (a
    quarter of memory, on a GPU half of what is free there, if not given) have room for. Raises MachineError where
    ``cache_bytes`` are fewer than one context takes, for then no request might ask for all of it."""
    each, trial = model.page_bytes, model.new_pages(1)
    if each is None or trial is None or not (trial.exact or model.device.type in BATCHED_ON):
        return None
    whole = -(-model.context_length // PAGE)
    if cache_bytes is not None and cache_bytes < (whole + trial.spare) * each:
        held = max(0, cache_bytes // each - trial.spare) * PAGE
        raise MachineError(f"cache_bytes={cache_bytes} holds {held} tokens, and a context of this model has "
                           f"{model.context_length}", way_out=f"give it at least {(whole + trial.spare) * each}")
    room = _room(model) if cache_bytes is None else cache_bytes
    pages = model.new_pages(max(1, min(max_rows * whole, room // each - trial.spare)))
    return None if pages is None else PagedRunner(model, pages)


def _room(model: Model) -> int:
    """Bytes for a model's pages where nobody said how many."""
    return int(FREE_SHARE * free_bytes(model.device) if model.device.type == "cuda" else SHARE * memory_bytes())
