"""One text of parts, some of which hold control tokens and some of which only look as if they did, as ids and weights.

What stands between two control tokens is encoded as one, whoever wrote it: a space of a template and the word behind it
are one token, as they are where the whole text is encoded at once.
"""

from __future__ import annotations

import re

from cutaway.text.tokenizer import Tokenizer


class Line:
    """Parts in their order; ``finished`` gives the ids of all and as many weights. A token weighs what the heaviest
    part does that it has a letter of."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._control = tokenizer.control_flags
        names = sorted(self._control, key=len, reverse=True)
        self._names = re.compile("(" + "|".join(map(re.escape, names)) + ")")
        self._ids: list[int] = []
        self._weights: list[float] = []
        self._run: list[tuple[str, float]] = []
        self._bare = False  # the token before takes the space behind it

    def content(self, text: str, *, weight: float) -> None:
        """What a person wrote: text, whatever it spells."""
        self._run.append((text, weight))

    def own(self, text: str, *, weight: float) -> None:
        """A template's text, whose control tokens are tokens."""
        for i, piece in enumerate(self._names.split(text)):
            if i % 2 == 0:
                self._run.append((piece, weight))
                continue
            number, takes_before, takes_behind = self._control[piece]
            self._flush(bare=takes_before)
            self._ids.append(number)
            self._weights.append(weight)
            self._bare = takes_behind

    def finished(self) -> tuple[list[int], list[float]]:
        """All ids and weights."""
        self._flush()
        return self._ids, self._weights

    def _flush(self, *, bare: bool = False) -> None:
        text = "".join(part for part, _ in self._run)
        heavy = [weight for part, weight in self._run for _ in part]
        begin = len(text) - len(text.lstrip()) if self._bare else 0
        end = max(begin, len(text.rstrip())) if bare else len(text)
        ids, places = self._tokenizer.encode_places(text[begin:end], first=not self._ids)
        self._ids += ids
        # a token of no letter, as a space that nobody wrote is, weighs what the next letter does
        self._weights += [max(heavy[begin + a : begin + max(b, a + 1)], default=0.0) for a, b in places]
        self._run, self._bare = [], False
