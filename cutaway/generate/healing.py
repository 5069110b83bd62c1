"""Token healing: a prompt that ends inside of what would be one token is read without its last tokens, and the answer
has to begin with their bytes (Lundberg 2023, "prompt boundaries and token healing").

"http:" and then "//" are no tokens that follow each other in any text a model has learned from; "http" and "://" are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cutaway.errors import RequestError
from cutaway.generate.request import Constraint
from cutaway.generate.spelled import Spelled


@dataclass(frozen=True, slots=True)
class Healed:
    """The ``tokens`` that are read, and the bytes that an answer ``begins`` with; they are the prompt's own."""

    tokens: tuple[int, ...]
    begins: bytes


def healed(prompt: Sequence[int], vocabulary: Spelled, *, most: int = 1) -> Healed:
    """The prompt without its last tokens, as many as ``most``, where a longer token begins with their bytes; one token
    is always left, and a control token is never taken back."""
    found, data = Healed(tuple(prompt), b""), b""
    for count in range(1, min(most, len(prompt) - 1) + 1):
        token = prompt[-count]
        if not vocabulary.is_text(token):
            break
        data = vocabulary.bytes_of(token) + data
        if vocabulary.longer(data):
            found = Healed(tuple(prompt[:-count]), data)
    return found


@dataclass(frozen=True, slots=True)
class Beginning:
    """Answers that begin with some bytes (a Grammar): each token is a part of them, or holds the rest of them."""

    vocabulary: Spelled
    begins: bytes

    def begin(self, max_tokens: int, *, vocab_size: int | None = None) -> Constraint:
        """For one answer of a model of ``vocab_size`` ids. Raises RequestError where the bytes alone need more tokens
        than it may have."""
        way = self.vocabulary.tokens(self.begins)
        if way is None or len(way) > max_tokens:
            needed = "cannot be spelled" if way is None else f"takes {len(way)} tokens"
            raise RequestError(f"the end of the prompt {needed}, and max_tokens is {max_tokens}", where="healing")
        return _Begun(self.vocabulary, self.begins, max_tokens, self.vocabulary.padding(vocab_size))


class _Begun:
    """What is left of the bytes (a Constraint): once they are written, everything is allowed."""

    def __init__(self, vocabulary: Spelled, rest: bytes, left: int, padding: NDArray[np.uint32]) -> None:
        self._padding = padding
        self._words, self._rest, self._left = vocabulary, rest, left

    @property
    def done(self) -> bool:
        """Never: what follows the beginning is free."""
        return False

    def mask(self) -> NDArray[np.uint32] | None:
        """The ids that go on with the bytes, as long as the others fit into the tokens that are left."""
        if not self._rest:
            return None
        parts = [i for n in range(1, len(self._rest)) if (i := self._words.id_of(self._rest[:n])) is not None
                 and len(self._words.tokens(self._rest[n:]) or ()) < self._left]
        return np.concatenate([self._words.of([*parts, *self._words.starting(self._rest)]), self._padding])

    def accept(self, token: int) -> None:
        """Raises RequestError for a token that does not go on with the bytes."""
        if self._rest:
            data = self._words.bytes_of(token) if self._words.is_text(token) else b""
            if not data or not (data.startswith(self._rest) or self._rest.startswith(data)):
                raise RequestError(f"token {token} does not go on with {self._rest!r}", where="healing")
            self._rest = self._rest[len(data):]
        self._left -= 1
