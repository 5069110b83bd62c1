"""Who reads what in the next step of the model, without a tensor: continuous batching with prompts in chunks (Yu et al.
2022, Orca; Agrawal et al. 2023, arXiv 2308.16369), pages instead of reservations, recompute instead of swap.

The same calls give the same plans. A plan never depends on time.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Mapping

from cutaway.generate.kin import Kin
from cutaway.generate.pages import NONE_BEFORE, Key, Pages
from cutaway.generate.track import Ids, Part, Track, Work, age

REFILL = 0.25  # share of the rows that is free before more come, while nobody waits
BULK = 2**16  # prompt tokens of a step that nobody waits for
NOTHING: Mapping[int, Ids] = {}


class Scheduler:
    """Tracks that wait, read and write over a pool of pages.

    A step takes all that write, then chunks of prompts, the oldest first, then those that wait, as far as pages, rows
    and work allow. While somebody waits for the next token of one that writes, the chunks of a step cost no more than
    the step without them: nobody's next token takes more than twice as long. While nobody waits, prompts come first.
    When a track that writes finds no page, the youngest gives up its own, and later reads again what it had.

    ``shares`` says whether a page can be part of several tracks. Where it cannot, see ``Kin``.
    """

    def __init__(self, pages: Pages, *, max_rows: int, step_tokens: int = 2048, work: Work | None = None,
                 shares: bool = True) -> None:
        self.pages, self.max_rows, self.step_tokens, self.shares = pages, max_rows, step_tokens, shares
        self.work = Work() if work is None else work
        self.waiting: list[Track] = []
        self.reading: list[Track] = []
        self.writing: list[Track] = []  # in the order in which they began to
        self.left: list[int] = []  # numbers of which the runner need keep nothing
        self.preemptions = 0
        self._impatient = 0  # tracks whose next token somebody waits for
        self._kin = Kin()
        self._planned: list[tuple[Track, Part]] = []

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.waiting or self.reading or self.writing)

    def add(self, track: Track) -> None:
        """One more that waits."""
        self._impatient += not track.patient
        if not self.shares and track.anew is None:
            self._kin.add(track)
        insort(self.waiting, track, key=age)

    def drop(self, track: Track) -> None:
        """It is done, or wanted no more: its pages are free at once."""
        where = self.writing if track.writes else self.reading if track.pages else self.waiting
        where.remove(track)
        self._impatient -= not track.patient
        self._kin.remove(track)
        self._lay_down(track)
        self._disown(track)

    def plan(self, proposals: Mapping[int, Ids] = NOTHING) -> list[Part]:
        """The parts of the next step, those that write before those that read; empty only when idle.

        ``proposals``: tokens that may follow, by number; one that writes reads them too if there is room.
        """
        for beginning in self._kin.shared():
            insort(self.waiting, beginning, key=age)
        self._planned = []
        watched = bool(self._impatient) and any(not t.patient for t in self.writing)
        if watched or not self._read(self._alone()):
            self._write(proposals)
            if watched:
                self._read(self._beside())
        return [part for _, part in self._planned]

    def ran(self) -> None:
        """The plan was carried out, and what was drawn stands in ``tokens``."""
        size, shares = self.pages.size, self.shares
        for track, part in self._planned:
            track.read = part.start + len(part.tokens) - track.refused
            track.refused = 0
            if shares and track.read >= (track.learnt + 1) * size:
                self._learn(track)
            if track.writes:
                continue
            self._disown(track)
            track.kept = track.heirs is not None and track.read == len(track.tokens)
            if part.samples or track.kept:
                self.reading.remove(track)
            if part.samples:
                track.writes = True
                self.writing.append(track)
        self._planned = []

    def abort(self) -> list[Track]:
        """The step failed, and what the pages hold is not known: all that read or wrote are out, the oldest first."""
        running = sorted((*self.writing, *self.reading), key=age)
        for track in (*running, *self._kept()):
            self._lay_down(track)
        self.writing, self.reading, self._planned = [], [], []
        self.waiting = [t for t in self.waiting if t.heirs is None]
        for track in self.waiting:
            track.like = None
        self.pages.clear()
        lost = [t for t in running if t.heirs is None]
        self._impatient -= sum(not t.patient for t in lost)
        return lost

    def _alone(self) -> float:
        """Prompt tokens of a step while nobody waits for the next token of another."""
        return self.step_tokens if self._impatient else BULK

    def _beside(self) -> float:
        """Work that, added to a step of one token each, no more than doubles it; proposed tokens are part of it."""
        of = self.work.of
        return self.work.step + sum(2 * of(part.start, 1) - of(part.start, len(part.tokens))
                                    for _, part in self._planned)

    def _write(self, proposals: Mapping[int, Ids]) -> None:
        size = self.pages.size
        for track in list(self.writing):
            if track.writes and track.read >= len(track.pages) * size:
                self._provide(track)
        for track in self.writing:
            new: Ids = (track.tokens[-1],)
            if proposals and track.number in proposals:
                new += self._affordable(track, proposals[track.number])
            self._planned.append((track, Part(track.number, track.read, new, track.owned, True, track.most,
                                               adapter=track.adapter)))

    def _provide(self, track: Track) -> None:
        """A page for its next token, of the youngest if there is no other."""
        while (page := self.pages.take(1)) is None:
            youngest = max(self._kept() or [*self.writing, *self.reading], key=age)
            self._preempt(youngest)
            if youngest is track:
                return
        track.own(page)

    def _affordable(self, track: Track, proposal: Ids) -> Ids:
        """As much of a proposal as there is room for without harm to others."""
        proposal = proposal[: max(0, track.most - len(track.tokens) - 1)]
        more = self.pages.need(track.read + 1 + len(proposal)) - len(track.pages)
        if more > 0 and self.pages.fits(more + len(self.writing)):
            track.own(self.pages.take(more) or [])
        return proposal[: len(track.pages) * self.pages.size - track.read - 1]

    def _preempt(self, track: Track) -> None:
        """It gives up its pages."""
        if track.heirs is not None:
            self._dissolve(track)
            return
        self._lay_down(track)
        self.preemptions += 1
        (self.writing if track.writes else self.reading).remove(track)
        track.writes = False
        insort(self.waiting, track, key=age)

    def _lay_down(self, track: Track) -> None:
        """Its pages are free, or known and nobody's."""
        if track.pages:
            self.left.append(track.number)
            self.pages.release(track.pages)
        track.pages, track.owned, track.read, track.learnt, track.serial = [], (), 0, 0, NONE_BEFORE

    def _kept(self) -> list[Track]:
        """Beginnings that hold pages for others."""
        both = (*self.waiting, *self.reading)
        return list({t.like: None for t in both if t.like is not None and t.like.pages})

    def _disown(self, track: Track) -> None:
        """It has begun, or never will: nothing is kept for it."""
        beginning, track.like = track.like, None
        if beginning is not None and beginning.heirs is not None:
            beginning.heirs -= 1
            if not beginning.heirs:
                self._remove(beginning)

    def _dissolve(self, beginning: Track) -> None:
        """It is kept no more; those that were to begin as it read for themselves."""
        for track in (*self.waiting, *self.reading):
            if track.like is beginning:
                track.like, track.read = None, 0
        self._remove(beginning)

    def _remove(self, beginning: Track) -> None:
        if not beginning.kept:
            (self.reading if beginning.pages else self.waiting).remove(beginning)
        self._lay_down(beginning)
        self._disown(beginning)

    def _read(self, room: float) -> bool:
        """Plan chunks of prompts for so much work; whether there are any.

        Where somebody waits, each takes half of what is left, so that a short prompt gets on behind long ones; what
        nobody took goes to the oldest.
        """
        begin, share = len(self._planned), 0.5 if self._impatient else 1.0
        for track in self.reading:
            room -= self._chunk(track, room * share, first=len(self._planned) == begin)
        rows = self._rows()
        coming = {key for t in self.reading if (key := self._next(t)) is not None}
        for track in list(self.waiting):
            if room < 1 or rows < 1:
                break
            if track.like is not None and not track.like.kept:
                continue  # what it begins as is still being read
            known = self._known(track, coming)
            if known is None:
                continue  # another is reading what it needs
            if not self._admit(track, known):
                break
            rows -= track.rows
            room -= self._chunk(track, room * share, first=len(self._planned) == begin)
            if (key := self._next(track)) is not None:
                coming.add(key)
        for at in range(begin, len(self._planned)):
            room = self._extend(at, room)
        return len(self._planned) > begin

    def _rows(self) -> int:
        """Rows that may be filled; none while nobody waits and few are free, for several are read faster together."""
        rows = self.max_rows - len(self.writing) - sum(t.rows for t in self.reading)
        return 0 if self.writing and not self._impatient and rows < REFILL * self.max_rows else rows

    def _known(self, track: Track, coming: set[Key]) -> list[int] | None:
        """Pages that hold its beginning; None if one more is about to."""
        if not self.shares or track.anew is not None:
            return []
        pages, missing = self.pages.known(track.tokens, track.salt, most=len(track.tokens) - 1)
        return None if missing in coming else pages

    def _next(self, track: Track) -> Key | None:
        """The page that one which reads is going to fill next."""
        start, end = track.learnt * self.pages.size, (track.learnt + 1) * self.pages.size
        if not self.shares or end > len(track.tokens):
            return None
        return track.serial, track.salt, tuple(track.tokens[start:end])

    def _admit(self, track: Track, known: list[int]) -> bool:
        """Pages for all it has to read, if one is left for each that runs."""
        many, others = self.pages.need(len(track.tokens)) - len(known), len(self.writing) + len(self.reading)
        while not self.pages.fits(many + others, held=known):
            kept = self._kept()
            if others or not kept:
                return False
            self._preempt(max(kept, key=age))
        self.pages.hold(known)
        track.own(known + (self.pages.take(many) or []))
        track.learnt, track.serial = len(known), self.pages.after(known)
        track.read = len(known) * self.pages.size if track.like is None else track.like.read
        track.cached = track.read if track.cached is None else track.cached
        self.waiting.remove(track)
        self.reading.append(track)
        return True

    def _chunk(self, track: Track, room: float, *, first: bool) -> float:
        """Plan what it reads next, and what that costs. The first gets on by a token in any case."""
        left = len(track.tokens) - track.read
        count = min(left, max(self.work.fits(track.read, room), int(first)), track.anew or left)
        if left and not count:
            return 0.0
        new = tuple(track.tokens[track.read : track.read + count])
        like = None if track.like is None else track.like.number
        samples = count == left and track.heirs is None
        source = track.source if track.read == 0 else None
        self._planned.append((track, Part(track.number, track.read, new, track.owned, samples, track.most, like,
                                          source, track.adapter)))
        return self.work.of(track.read, count)

    def _extend(self, at: int, room: float) -> float:
        """Let what is planned there take more; the room that is left."""
        track, part = self._planned[at]
        if room < 1 or len(part.tokens) == len(track.tokens) - track.read:
            return room
        rest, self._planned = self._planned[at + 1 :], self._planned[:at]
        room += self.work.of(part.start, len(part.tokens))
        room -= self._chunk(track, room, first=True)
        self._planned += rest
        return room

    def _learn(self, track: Track) -> None:
        """What its full pages hold is known from now on."""
        size = self.pages.size
        while (end := (track.learnt + 1) * size) <= track.read:
            tokens = tuple(track.tokens[end - size : end])
            track.serial = self.pages.learn(track.pages[track.learnt], track.serial, track.salt, tokens)
            track.learnt += 1
