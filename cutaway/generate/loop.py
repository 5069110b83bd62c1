"""The one loop behind every answer: plan a step, let the runner read, draw, and hand out what came of it.

Continuous batching over pages; a request that fails is alone in it. R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cutaway.errors import ModelError, RequestError
from cutaway.generate.draw import Draw, Live, Taker, Tick, scored
from cutaway.generate.pages import Pages
from cutaway.generate.request import Request, Scores
from cutaway.generate.runner import Runner
from cutaway.generate.scheduler import Scheduler
from cutaway.generate.track import Part, Track, Work

LOGITS = 1 << 25  # numbers of logits that exist at once where a prompt's are wanted: 128 MiB


@dataclass(frozen=True, slots=True)
class Stats:
    """Where an engine stands, and what it has done since it was made."""

    running: int
    waiting: int
    pages_used: int
    pages_cached: int
    pages_free: int
    prompt_tokens: int  # of the requests that were begun
    cached_tokens: int  # of these, read for another before
    generated_tokens: int
    preemptions: int


class Loop:
    """Requests under way, each with the taker that its tokens go to."""

    def __init__(self, runner: Runner, *, max_rows: int, step_tokens: int, work: Work) -> None:
        self.runner, self.pages = runner, Pages(runner.num_pages, runner.page_size)
        self._scheduler = Scheduler(self.pages, max_rows=max_rows, step_tokens=step_tokens, work=work,
                                    shares=runner.shares_pages)
        self._live: dict[int, Live] = {}
        self._draw: Draw | None = None
        self._routes: list[tuple[Taker, NDArray[np.int64]]] = []  # whose the rows are that draw
        self._next = 0
        self._prompt_tokens = self._cached_tokens = self._generated_tokens = 0

    def check(self, request: Request, name: str) -> None:
        """RequestError for one that could never be served with the pages there are."""
        assert not isinstance(request.max_tokens, str)
        most, room = len(request.tokens) + request.max_tokens - 1, self.pages.count * self.pages.size
        if most > room:  # the last token is drawn and not read
            raise RequestError(f"a prompt of {len(request.tokens)} tokens and max_tokens {request.max_tokens} need "
                               f"room for {most}, and all pages together have {room}", where=name,
                               way_out="lower max_tokens, shorten the prompt, or give the engine more pages")

    def submit(self, request: Request, taker: Taker, *, salt: str = "", patient: bool = False) -> int:
        """Take in a request that was checked; its ticket. Tickets are given one after another."""
        ticket, self._next = self._next, self._next + 1
        assert not isinstance(request.max_tokens, str)
        anew = None if request.prompt_logprobs is None else max(1, LOGITS // self.runner.vocab_size)
        track = Track(ticket, list(request.tokens), len(request.tokens) + request.max_tokens, salt, request.source,
                      patient, anew, order=(ticket, 2))
        self._live[ticket] = Live(request, track, taker)
        self._scheduler.add(track)
        return ticket

    def cancel(self, ticket: int) -> bool:
        """Nothing more comes of a request, and its pages are free at once; whether it was under way. Raises
        RequestError for a ticket that was never given."""
        if not 0 <= ticket < self._next:
            raise RequestError(f"there is no request {ticket}", way_out="name a ticket that submit returned")
        live = self._live.pop(ticket, None)
        if live is not None:
            self._scheduler.drop(live.track)
            self._forget()
        return live is not None

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return self._scheduler.idle

    def stats(self) -> Stats:
        """The counts of now and so far."""
        running = sum(bool(live.track.pages) for live in self._live.values())
        return Stats(running, len(self._live) - running, self.pages.used, self.pages.cached, self.pages.free,
                     self._prompt_tokens, self._cached_tokens, self._generated_tokens, self._scheduler.preemptions)

    @torch.inference_mode()
    def step(self) -> None:
        """One step of the model. Its failure is that of all requests that were running; those that wait go on."""
        try:
            parts = self._scheduler.plan()
            self._forget()
            lives, logits = self._run(parts)
            drawn = self._drawn(lives, logits) if lives else None
            self._scheduler.ran()
        except BaseException as error:
            self._fail(error)
            if not isinstance(error, Exception):
                raise
            return
        if drawn is not None:
            self._settle(*drawn)
        self._forget()

    def _run(self, parts: Sequence[Part]) -> tuple[list[Live], Tensor]:
        """Let the runner read; the requests that draw now, and the logits they draw from."""
        anew = [part for part in parts if (live := self._live.get(part.sequence)) is not None
                and live.track.anew is not None]
        if not anew:
            return [self._live[part.sequence] for part in parts if part.samples], self.runner.run(parts)
        rest = [part for part in parts if part not in anew]
        found = [self.runner.run(rest)] if rest else []
        logits, start = self.runner.run(anew, every=True), 0
        for part in anew:
            mine, start = logits[start : start + len(part.tokens)], start + len(part.tokens)
            self._score(self._live[part.sequence], part, mine)
            found += [mine[-1:]] if part.samples else []
        lives = [self._live[part.sequence] for part in (*rest, *anew) if part.samples]
        return lives, torch.cat(found) if found else logits[:0]

    def _score(self, live: Live, part: Part, logits: Tensor) -> None:
        """What a chunk of a prompt says of the tokens behind each of its own."""
        wanted = live.request.prompt_logprobs
        assert wanted is not None
        targets = live.request.tokens[part.start + 1 : part.start + 1 + len(part.tokens)]
        more = scored(logits[: len(targets)], targets, wanted) if targets else Scores(())
        before = live.prompt if live.prompt is not None and part.start else Scores(())
        live.prompt = Scores(before.logprobs + more.logprobs, before.alternatives + more.alternatives)
        if part.samples:
            live.track.anew = None  # if it has to read again, then not for their sake

    def _drawn(self, lives: list[Live], logits: Tensor) -> tuple[Tick, list[tuple[int, Exception]]]:
        if self._draw is None or self._draw.lives != lives:
            self._draw = Draw(lives, self._draw, vocab_size=self.runner.vocab_size, device=logits.device)
            rows: dict[Taker, list[int]] = {}
            for row, live in enumerate(lives):
                rows.setdefault(live.taker, []).append(row)
            self._routes = [(taker, np.array(some)) for taker, some in rows.items()]
        return self._draw(logits)

    def _settle(self, tick: Tick, lost: list[tuple[int, Exception]]) -> None:
        """End what has come to its end, and give every taker its own."""
        assert self._draw is not None
        for live in self._draw.lives:
            if not live.opened:
                self._prompt_tokens += len(live.request.tokens)
                self._cached_tokens += live.track.cached or 0
        self._generated_tokens += len(tick.tokens) - len(lost)
        failed = {row for row, _ in lost}
        ended = {*(tick.finish > 0).nonzero()[0].tolist(), *failed}
        for row in ended:
            live = self._draw.lives[row]
            del self._live[live.track.number]
            self._scheduler.drop(live.track)
        for taker, rows in self._routes:
            mine = np.array([row for row in rows.tolist() if row not in failed]) if failed else rows
            if len(mine):
                taker.take(tick.select(mine), [self._draw.lives[row] for row in mine.tolist()])
        for live in self._draw.lives:
            live.opened = True
        for row, error in lost:
            self._draw.lives[row].taker.fail(self._draw.lives[row], error)

    def _fail(self, error: BaseException) -> None:
        """A step failed: all that were running end in ``error``, and no page is known to hold anything."""
        why = error if isinstance(error, Exception) else ModelError("a step was interrupted")
        self._draw = None
        for track in self._scheduler.abort():
            live = self._live.pop(track.number)
            live.taker.fail(live, why)
        self._forget()

    def _forget(self) -> None:
        """Let the runner forget what has left."""
        for number in self._scheduler.left:
            self.runner.forget(number)
        self._scheduler.left.clear()
