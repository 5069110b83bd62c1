"""The one loop behind every answer: plan a step, let the runner read, draw, and hand out what came of it.

Continuous batching over pages; a request that fails is alone in it. R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cutaway.errors import ModelError, RequestError
from cutaway.generate.draw import Draw, Guess, Live, Taker, Tick, scored
from cutaway.generate.pages import Pages
from cutaway.generate.prefill import numbers
from cutaway.generate.request import Request, Scores
from cutaway.generate.runner import Runner
from cutaway.generate.scheduler import Scheduler
from cutaway.generate.track import Part, Track, Work

PROPOSED = 5  # tokens of a step at most, of all rows: five more cost as much as a step and a half (int4, AVX2)
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


@dataclass(frozen=True, slots=True)
class _Round:
    """Rows that drew a token; some are lost."""

    draw: Draw
    tick: Tick
    lost: dict[int, Exception]

    def going(self) -> list[Live]:
        """Those whose answer goes on."""
        ends = self.tick.finish.tolist()
        return [live for row, live in enumerate(self.draw.lives) if not ends[row] and row not in self.lost]


class Loop:
    """Requests under way, each with the taker that its tokens go to.

    What a request's own ``Guess``, if they are made, says may follow is read along with its last token, a few tokens
    of all rows together; tokens are drawn behind it one after another while they are the proposed ones.
    """

    def __init__(self, runner: Runner, *, max_rows: int, step_tokens: int, work: Work,
                 guess: Callable[[], Guess] | None = None, adapters: Sequence[str] = ()) -> None:
        if guess is not None and not runner.shares_pages:
            raise ModelError("what was read of proposed tokens cannot be taken back here",
                             way_out="leave speculation out: only a model whose cache has pages can do it")
        self.runner, self.pages = runner, Pages(runner.num_pages, runner.page_size)
        self._adapters = numbers(adapters)
        self._guess = guess
        self._scheduler = Scheduler(self.pages, max_rows=max_rows, step_tokens=step_tokens, work=work,
                                    shares=runner.shares_pages)
        self._live: dict[int, Live] = {}
        self._draw: Draw | None = None
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
        adapter = self._adapters[request.adapter]
        shared = salt if adapter < 0 else f"{salt}\0{adapter}"  # what was read under one adapter is no other's
        track = Track(ticket, list(request.tokens), len(request.tokens) + request.max_tokens, shared, request.source,
                      adapter, patient, anew, order=(ticket, 2))
        self._live[ticket] = Live(request, track, taker, guess=None if self._guess is None else self._guess())
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
        running = len(self._scheduler.writing) + sum(track.heirs is None for track in self._scheduler.reading)
        return Stats(running, len(self._live) - running, self.pages.used, self.pages.cached, self.pages.free,
                     self._prompt_tokens, self._cached_tokens, self._generated_tokens, self._scheduler.preemptions)

    @torch.inference_mode()
    def step(self) -> None:
        """One step of the model. Its failure is that of all requests that were running; those that wait go on."""
        try:
            parts = self._scheduler.plan(self._proposals())
            self._forget()
            if not parts:
                assert self._scheduler.idle
                return
            rounds = self._drawn(*self._run(parts))
            self._scheduler.ran()
        except BaseException as error:
            self._fail(error)
            if not isinstance(error, Exception):
                raise
            return
        for one in rounds:
            self._settle(one)
        self._forget()

    def _proposals(self) -> dict[int, tuple[int, ...]]:
        """What may follow the last token of those that write; nothing while there are prompts to read, which are worth
        more."""
        writing = self._scheduler.writing
        if self._guess is None or not writing or self._scheduler.reading or self._scheduler.waiting:
            return {}
        room, found = PROPOSED // len(writing), {}
        for track in writing if room else ():
            guess = self._live[track.number].guess
            if guess is not None and (tokens := guess.propose(track.tokens, room)):
                found[track.number] = tokens
        return found

    def _run(self, parts: Sequence[Part]) -> tuple[list[tuple[Live, Part]], Tensor, dict[Live, Tensor]]:
        """Let the runner read; who draws now, the logits they draw from, and those behind each proposed token."""
        wide = [part for part in parts if (live := self._live.get(part.sequence)) is not None
                and (live.track.anew is not None or (live.track.writes and len(part.tokens) > 1))]
        if not wide:
            return self._whose(parts), self.runner.run(parts), {}
        along = [part for part in parts if len(part.tokens) == 1 and part.sequence in self._live and part not in wide]
        rest = [part for part in parts if part not in wide and part not in along]
        found = [self.runner.run(rest)] if rest else []
        every = [*wide, *along]  # in one pass over the weights
        logits, start, behind = self.runner.run(every, every=True), 0, {}
        for part in every:
            live, count = self._live[part.sequence], len(part.tokens)
            mine, start = logits[start : start + count], start + count
            if live.track.writes:
                if count > 1:
                    behind[live] = mine[1:]
                found.append(mine[:1])
                continue
            if live.track.anew is not None:
                self._score(live, part, mine)
            found += [mine[-1:]] if part.samples else []
        return self._whose([*rest, *every]), torch.cat(found) if found else logits[:0], behind

    def _whose(self, parts: Sequence[Part]) -> list[tuple[Live, Part]]:
        return [(self._live[part.sequence], part) for part in parts if part.samples]

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

    def _drawn(self, whose: Sequence[tuple[Live, Part]], logits: Tensor, behind: dict[Live, Tensor]) -> list[_Round]:
        """A token of each row, and more of those whose tokens are the proposed ones."""
        lives = [live for live, _ in whose]
        if not lives:
            return []
        if self._draw is None or self._draw.lives != lives:
            self._draw = Draw(lives, self._draw, vocab_size=self.runner.vocab_size, device=logits.device)
        rounds = [_Round(self._draw, *self._draw(logits))]
        if not behind:
            return rounds
        proposed = {live: part.tokens[1:] for live, part in whose if live in behind}
        while going := [live for live in rounds[-1].going() if live in behind
                        and len(rounds) <= len(proposed[live])
                        and live.track.tokens[-1] == proposed[live][len(rounds) - 1]]:
            logits = torch.stack([behind[live][len(rounds) - 1] for live in going])
            draw = rounds[-1].draw
            if going != draw.lives:
                draw = Draw(going, draw, vocab_size=self.runner.vocab_size, device=logits.device)
            rounds.append(_Round(draw, *draw(logits)))
        if any(one.draw is not self._draw for one in rounds):
            self._draw = None  # its rows have come unequally far
        for live, tokens in proposed.items():
            accepted = sum(live in one.draw.lives for one in rounds) - 1
            live.track.refused = len(tokens) - accepted
            if live.guess is not None:
                live.guess.note(len(tokens), accepted)
        return rounds

    def _settle(self, one: _Round) -> None:
        """End what has come to its end, and give every taker its own."""
        tick, lives = one.tick, one.draw.lives
        for live in lives:
            if not live.opened:
                self._prompt_tokens += len(live.request.tokens)
                self._cached_tokens += live.track.cached or 0
        self._generated_tokens += len(tick.tokens) - len(one.lost)
        for row in sorted({*(tick.finish > 0).nonzero()[0].tolist(), *one.lost}):
            del self._live[lives[row].track.number]
            self._scheduler.drop(lives[row].track)
        for taker, rows in one.draw.routes:
            mine = np.array([row for row in rows.tolist() if row not in one.lost], np.int64) if one.lost else rows
            if len(mine):
                taker.take(tick.select(mine), [lives[row] for row in mine.tolist()])
        for live in lives:
            live.opened = True
        for row, error in one.lost.items():
            lives[row].taker.fail(lives[row], error)

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
