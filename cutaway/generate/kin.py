"""What prompts that come together have in common, for runners that cannot share pages: it is read once, as a track of
its own, and kept until all that begin with it have begun."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cutaway.generate.track import Ids, Track

SHARED = 32  # tokens that unequal prompts must begin with to be read once for all: fewer cost less than the copy


class Kin:
    """Tracks that have just come, and what those of equal salt have in common: equal prompts (beside equal sources),
    and then the beginning of unequal ones."""

    def __init__(self) -> None:
        self._new: list[Track] = []
        self._made = 0

    def add(self, track: Track) -> None:
        """One more that has come."""
        self._new.append(track)

    def remove(self, track: Track) -> None:
        """It has gone again."""
        if track in self._new:
            self._new.remove(track)

    def shared(self) -> list[Track]:
        """The beginnings that those who came since the last call have in common; they are their heirs."""
        new, self._new = self._new, []
        if len(new) < 2:
            return []
        equal: dict[tuple[str, Ids | None, Ids], list[Track]] = {}
        for track in new:
            equal.setdefault((track.salt, track.source, tuple(track.tokens)), []).append(track)
        made: list[Track] = []
        near: dict[tuple[str, Ids], list[tuple[Ids, Track]]] = {}
        for (salt, source, tokens), tracks in equal.items():
            first = tracks[0] if len(tracks) == 1 else self._beginning(tokens, tracks, level=1)
            made += [first] if len(tracks) > 1 else []
            if source is None and len(tokens) >= SHARED:
                near.setdefault((salt, tokens[:SHARED]), []).append((tokens, first))
        for some in near.values():
            if len(some) > 1:
                made.append(self._beginning(_common([t for t, _ in some]), [t for _, t in some], level=0))
        return made

    def _beginning(self, tokens: Ids, tracks: Sequence[Track], *, level: int) -> Track:
        self._made -= 1  # requests have numbers from 0 on
        made = Track(self._made, list(tokens), max(t.most for t in tracks), source=tracks[0].source,
                     adapter=tracks[0].adapter, patient=all(t.patient for t in tracks),
                     order=(min(t.order for t in tracks)[0], level), heirs=len(tracks))
        for track in tracks:
            track.like = made
        return made


def _common(prompts: Iterable[Ids]) -> Ids:
    """What all of them begin with."""
    prompts = list(prompts)
    low, high = min(prompts), max(prompts)  # between the two lie all others
    end = min(len(low), len(high))
    return low[: next((i for i in range(end) if low[i] != high[i]), end)]
