"""What the engine asks of a model: to read the parts of a step and give logits. ``StateRunner`` does it for any
LanguageModel through its carried state.

Rows that write share one batched state; those that read have their own until their prompt is read, and are then joined
to it. R rows, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from cutaway.generate.paged import paged
from cutaway.generate.prefill import append, under
from cutaway.generate.track import Part
from cutaway.models.model import LanguageModel, Model, State
from cutaway.models.recurrent import RecurrentConfig

log = logging.getLogger(__name__)
COMPACT = 0.75  # leave finished rows in place until a quarter is idle: a selection copies all the others
ENOUGH, ALIKE = 192, 0.7  # tokens that keep a processor busy; what part of the longest pads little


class Runner(Protocol):
    """Reads parts behind what it holds of their sequences."""

    vocab_size: int
    context_length: int
    page_size: int
    num_pages: int
    shares_pages: bool  # False: pages are a count alone, and no part begins in another's
    exact: bool  # tokens do not depend on batch mates, order, chunks or what was cached

    def run(self, parts: Sequence[Part], *, every: bool = False) -> Tensor:
        """Logits float32 ``(parts that sample, V)`` in their order; with ``every`` those of each token read, ``(tokens,
        V)``. What it holds of a sequence from ``start`` on is forgotten before."""

    def forget(self, sequence: int) -> None:
        """A sequence is done, cancelled or gives up its pages; unknown ones are ignored."""


def runner_for(model: LanguageModel, *, max_rows: int, cache_bytes: int | None = None) -> Runner:
    """The fastest there is for ``model``. ``cache_bytes`` are for its pages, see ``paged``; a runner that has none says
    so."""
    if isinstance(model, Model) and (
            over_pages := paged(model, max_rows=max_rows, cache_bytes=cache_bytes)) is not None:
        return over_pages
    if cache_bytes is not None:
        log.warning("cache_bytes does not bound this model: it keeps no pages")
    recurrent = isinstance(getattr(model, "config", None), RecurrentConfig)  # reads all rows in the time of the longest
    return StateRunner(model, max_rows=max_rows, alike=0.0 if recurrent else ALIKE)


@dataclass(frozen=True, slots=True)
class _Held:
    """What is carried of a sequence that is not writing: a row of a state that others may share, which never moves, and
    of the logits behind it."""

    state: State
    logits: Tensor
    row: int


class StateRunner:
    """Any LanguageModel. Its states grow as they must, so a page is a whole context and only counts sequences. Prompts
    that come together are read together where the shorter have at least ``alike`` of the tokens of the longest."""

    shares_pages = False

    def __init__(self, model: LanguageModel, *, max_rows: int, alike: float = ALIKE) -> None:
        self.model, self.alike = model, alike
        self.vocab_size, self.context_length = model.vocab_size, model.context_length
        self.page_size, self.num_pages = model.context_length, 4 * max_rows
        self.exact = not isinstance(model, nn.Module)  # a product's last digit depends on its shape
        self._held: dict[int, _Held] = {}
        self._state: State | None = None  # of the rows that write
        self._rows: dict[int, int] = {}  # where each of them is; others are idle
        self._lengths = np.zeros(0, np.int64)  # of all rows, idle ones too

    def forget(self, sequence: int) -> None:
        """See ``Runner``: its row is idle from now on, and leaves when that pays."""
        self._held.pop(sequence, None)
        if self._rows.pop(sequence, None) is not None and not self._rows:
            self._state = None

    @torch.inference_mode()
    def run(self, parts: Sequence[Part], *, every: bool = False) -> Tensor:
        """See ``Runner``. No part may read a sequence that writes otherwise than by a token, and all of those do."""
        writing = [i for i, part in enumerate(parts) if part.sequence in self._rows]
        out: list[tuple[list[int], Tensor]] = []
        if writing:
            out.append((writing, self._write([parts[i] for i in writing])))
        joining: list[tuple[State, list[Part]]] = []
        for places, state, logits in self._read(parts, every=every):
            some = [parts[i] for i in places]
            joining += self._settle(some, state, logits if not every else logits[-1:])
            if every:
                out.append((places * len(logits), logits))
            elif sampling := [i for i, part in enumerate(some) if part.samples]:
                out.append(([places[i] for i in sampling], _rows(logits, sampling)))
        if joining:
            self._join(joining)
        return self._ordered(out)

    def _ordered(self, out: Sequence[tuple[list[int], Tensor]]) -> Tensor:
        """The logits, each with the place of its part, in the order of those."""
        if not out:
            return torch.zeros(0, self.vocab_size)
        places = [place for some, _ in out for place in some]
        logits = out[0][1] if len(out) == 1 else torch.cat([each for _, each in out])
        order = sorted(range(len(places)), key=places.__getitem__)
        return _rows(logits, order)

    def _write(self, parts: Sequence[Part]) -> Tensor:
        """One token more of each row that writes."""
        assert self._state is not None and len(parts) == len(self._rows)
        self._compact()
        rows = [self._rows[part.sequence] for part in parts]
        tokens = np.zeros(len(self._lengths), np.int64)  # an idle row reads anything
        tokens[rows] = [part.tokens[0] for part in parts]
        adapters = np.full(len(self._lengths), -1)
        adapters[rows] = [part.adapter for part in parts]
        device = self._state.lengths.device
        with under(self.model, adapters.tolist()):
            logits = self.model.logits(torch.from_numpy(tokens)[:, None].to(device), self._state)
        self._lengths += 1
        return _rows(logits, rows)

    def _compact(self) -> None:
        """Take the idle rows out, if they are many or one of them is full."""
        assert self._state is not None
        rows = len(self._lengths)
        full = int(self._lengths.max()) >= self._state.capacity
        if len(self._rows) == rows or not (full or len(self._rows) <= COMPACT * rows):
            return
        keep = sorted(self._rows.values())
        self._state = self._state.select(torch.tensor(keep, device=self._state.lengths.device))
        self._lengths = self._lengths[keep]
        where = {row: i for i, row in enumerate(keep)}
        self._rows = {sequence: where[row] for sequence, row in self._rows.items()}

    def _read(self, parts: Sequence[Part], *, every: bool) -> Iterator[tuple[list[int], State, Tensor]]:
        """Read the parts that do not write, alike ones together: their places, state and logits."""
        begin: list[int] = []
        forks: dict[int, list[int]] = {}  # by the state they begin as
        for i, part in enumerate(parts):
            if part.like is not None:
                forks.setdefault(id(self._held[part.like].state), []).append(i)
            elif part.start == 0:
                begin.append(i)
            elif part.sequence not in self._rows:
                state = self._alone(part)
                yield [i], state, self._append([part], state, every=every)
        for places in self._together(begin, parts, alone=every):
            some = [parts[i] for i in places]
            sources, most = [p.source for p in some if p.source is not None], max(p.most for p in some)
            with under(self.model, [part.adapter for part in some]):
                state = (self.model.new_state(len(some), capacity=most, sources=sources) if sources else
                         self.model.new_state(len(some), capacity=most))
            yield places, state, self._append(some, state, every=every)
        for fork in forks.values():
            for places in self._together(fork, parts, alone=every):
                yield places, *self._forked([parts[i] for i in places])

    def _together(self, places: Iterable[int], parts: Sequence[Part], *, alone: bool) -> Iterator[list[int]]:
        """Parts that are read together: neighbours in length, so that little is padded; those that read nothing by
        themselves."""
        group: list[int] = []
        for i in sorted(places, key=lambda i: len(parts[i].tokens)):
            first, length = len(parts[group[0]].tokens) if group else 0, len(parts[i].tokens)
            apart = first < self.alike * length and len(group) * length >= ENOUGH
            if group and (alone or apart or (not first and length)):
                yield group
                group = []
            group.append(i)
        if group:
            yield group

    def _alone(self, part: Part) -> State:
        """The state of one that goes on to read."""
        held = self._held.pop(part.sequence)
        if len(held.logits) == 1:
            return held.state
        return held.state.select(torch.tensor([held.row], device=held.logits.device))

    def _forked(self, parts: Sequence[Part]) -> tuple[State, Tensor]:
        """Rows that begin as others, behind what they read themselves, if they do."""
        held = [self._held[part.like] for part in parts if part.like is not None]
        rows = torch.tensor([h.row for h in held], device=held[0].logits.device)
        state = held[0].state.select(rows)
        if not parts[0].tokens:
            return state, held[0].logits[rows]
        return state, self._append(parts, state, every=False)

    def _append(self, parts: Sequence[Part], state: State, *, every: bool) -> Tensor:
        with under(self.model, [part.adapter for part in parts]):
            if not every:
                return append(self.model, [part.tokens for part in parts], state)
            tokens = torch.tensor([parts[0].tokens], device=state.lengths.device)
            return self.model.logits(tokens, state, every=True)[0]

    def _settle(self, parts: Sequence[Part], state: State, logits: Tensor) -> list[tuple[State, list[Part]]]:
        """Hold the rows that have more to read or are others' beginning; the others, which are to be joined."""
        done = [i for i, part in enumerate(parts) if part.samples]
        for row, part in enumerate(parts):
            if not part.samples:
                self._held[part.sequence] = _Held(state, logits, row)
        if not done:
            return []
        if len(done) < len(parts):
            state = state.select(torch.tensor(done, device=state.lengths.device))
        return [(state, [parts[i] for i in done])]

    def _join(self, joining: Sequence[tuple[State, list[Part]]]) -> None:
        """More rows that write, behind those there are."""
        states, parts = [state for state, _ in joining], [part for _, some in joining for part in some]
        if self._state is None:
            self._state, states, self._lengths = states[0], states[1:], np.zeros(0, np.int64)
        many, most = len(self._lengths), max(part.most for part in parts)
        if states or self._state.capacity < most:
            self._state = self._state.join(states, capacity=most)
        self._rows |= {part.sequence: many + i for i, part in enumerate(parts)}
        self._lengths = np.concatenate([self._lengths, [part.start + len(part.tokens) for part in parts]])


def _rows(tensor: Tensor, rows: Sequence[int]) -> Tensor:
    """Some rows; not copied where they are all, in their order."""
    if len(rows) == len(tensor) and all(i == row for i, row in enumerate(rows)):
        return tensor
    return tensor[torch.tensor(rows, device=tensor.device)]
