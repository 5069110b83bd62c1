"""A vocabulary as bytes, for rules about text: llguidance's tokenizers made of ours, and sets of ids as bits.

V ids, W = ceil(V / 32) words of 32 bits.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cutaway.errors import RequestError
from cutaway.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLTokenizer

_BEGINS = b'{[",'  # what begins a value or a key of JSON, or promises one
_INVALID = 0xFF  # begins no text; llguidance marks control tokens by it


class Spelled:
    """The bytes of each id. Control tokens and ids that begin with no byte of UTF-8 have none and are never text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        if tokenizer.spelling.name == "words":
            raise RequestError("a vocabulary of whole words (WordPiece with ##) does not say where spaces stand, so no "
                               "rule can hold in it", where="constraint",
                               way_out="use a model with a tokenizer over bytes or with SentencePiece's")
        self.tokenizer, self.stop_ids = tokenizer, tokenizer.stop_ids
        found = [tokenizer.bytes_of([i]) for i in range(tokenizer.vocab_size)]
        self._bytes = [b"" if data[:1] == bytes([_INVALID]) else data for data in found]
        self._ids = {data: i for i, data in reversed(list(enumerate(self._bytes))) if data}
        self._longest = max(map(len, self._ids), default=0)
        self._begun = np.array([sum(b in _BEGINS for b in data) for data in self._bytes], np.int64)
        self._is_text = np.array([bool(data) for data in self._bytes], np.bool_)
        self.most_begun = int(self._begun.max(initial=0))
        self.texts, self.stops = self._bits(self._is_text), self.of(self.stop_ids)
        self.texts_or_stops = self.texts | self.stops

    def bytes_of(self, token: int) -> bytes:
        """The bytes of one id."""
        return self._bytes[token]

    def is_text(self, token: int) -> bool:
        """Whether an id is in the vocabulary and stands for bytes."""
        return 0 <= token < len(self._bytes) and bool(self._bytes[token])

    def begun(self, token: int) -> int:
        """How many values or keys of JSON an id can begin."""
        return int(self._begun[token])

    def begins(self, most: int) -> NDArray[np.uint32]:
        """The ids that begin at most so many."""
        return self._at_most[min(most, self.most_begun)]

    @cached_property
    def _at_most(self) -> list[NDArray[np.uint32]]:
        return [self._bits(self._is_text & (self._begun <= n)) for n in range(self.most_begun + 1)]

    @cached_property
    def characters(self) -> NDArray[np.uint32]:
        """The ids of whole characters that stand for themselves in a JSON string."""
        return self._bits(np.array([_plain(data) for data in self._bytes], np.bool_))

    def only(self, token: int) -> NDArray[np.uint32]:
        """One id."""
        return self.of((token,))

    def ids(self, words: NDArray[np.uint32], most: int | None = None) -> list[int]:
        """The ids whose bits are set, in order; the first ``most`` of them, if given."""
        bits = np.unpackbits(words.astype("<u4").view(np.uint8), bitorder="little")
        found: list[int] = np.flatnonzero(bits)[:most].tolist()
        return found

    def of(self, ids: Iterable[int]) -> NDArray[np.uint32]:
        """The bits of some ids."""
        chosen = np.zeros(len(self._bytes), np.bool_)
        chosen[list(ids)] = True
        return self._bits(chosen)

    def _bits(self, chosen: NDArray[np.bool_]) -> NDArray[np.uint32]:
        padded = np.zeros(-(-len(chosen) // 32) * 32, np.bool_)
        padded[: len(chosen)] = chosen
        return np.packbits(padded, bitorder="little").view("<u4").astype(np.uint32)

    def padding(self, vocab_size: int | None) -> NDArray[np.uint32]:
        """Words of no ids, for a model with more ids than the tokenizer. Raises RequestError for one with fewer."""
        if vocab_size is not None and vocab_size < len(self._bytes):
            raise RequestError(f"a tokenizer of {len(self._bytes)} ids does not fit a model of {vocab_size}",
                               way_out="use the tokenizer in the model's own folder")
        return np.zeros(-(-(vocab_size or 0) // 32) - len(self.texts) if vocab_size else 0, np.uint32)

    def tokens(self, data: bytes) -> tuple[int, ...] | None:
        """Ids that spell the bytes, each as long as can be; None if there are none."""
        out, at = [], 0
        while at < len(data):
            for size in range(min(self._longest, len(data) - at), 0, -1):
                token = self._ids.get(data[at : at + size])
                if token is not None:
                    out.append(token)
                    at += size
                    break
            else:
                return None
        return tuple(out)

    @cached_property
    def _sorted(self) -> list[tuple[bytes, int]]:
        return sorted((data, i) for i, data in enumerate(self._bytes) if data)

    def starting(self, data: bytes) -> list[int]:
        """The ids whose bytes begin with these."""
        found = []
        for at in range(bisect_left(self._sorted, (data, -1)), len(self._sorted)):
            if not self._sorted[at][0].startswith(data):
                break
            found.append(self._sorted[at][1])
        return found

    def longer(self, data: bytes) -> bool:
        """Whether an id has these bytes and more."""
        return any(len(self._bytes[i]) > len(data) for i in self.starting(data))

    def id_of(self, data: bytes) -> int | None:
        """The id with exactly these bytes; the lowest, if there are several."""
        return self._ids.get(data)

    def check_spells(self, needed: bytes, what: str) -> None:
        """Raises RequestError if a byte has no token of its own."""
        missing = bytes(b for b in needed if bytes([b]) not in self._ids)
        if missing:
            raise RequestError(f"{what} cannot be written: no token for {missing[:8].decode('latin-1')!r}",
                               where="constraint", way_out="use a model whose tokenizer knows every byte")

    @cached_property
    def plain(self) -> LLTokenizer:
        """llguidance's view of the vocabulary."""
        from llguidance import LLTokenizer, TokenizerWrapper

        return LLTokenizer(TokenizerWrapper(_Wrapped(self)), eos_token=list(self.stop_ids))

    @cached_property
    def json(self) -> LLTokenizer:
        """The same, prepared for JSON strings."""
        from llguidance import LLTokenizer

        return self.plain.with_slices(LLTokenizer.json_slices())

    @cached_property
    def bytewise(self) -> LLTokenizer:
        """A vocabulary of the 256 bytes."""
        from llguidance import LLTokenizer

        return LLTokenizer("byte")


def _plain(data: bytes) -> bool:
    """Whether bytes are whole characters, none of which a JSON string would write otherwise."""
    if not data or any(b < 0x20 or b in b'"\\\x7f' for b in data):
        return False
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


class _Wrapped:
    """What llguidance asks of a tokenizer."""

    def __init__(self, spelled: Spelled) -> None:
        self._spelled = spelled
        self.eos_token_id, self.bos_token_id = spelled.stop_ids[0], None
        self.tokens = [spelled.bytes_of(i) for i in range(spelled.tokenizer.vocab_size)]
        self.special_token_ids: list[int] = []

    def __call__(self, data: bytes) -> list[int]:
        """The ids of a text; by its longest tokens where the tokenizer would put a space before it."""
        ids, _ = self._spelled.tokenizer.encode_places(data.decode(), first=False)
        if self._spelled.tokenizer.bytes_of(ids) == data:
            return ids
        return list(self._spelled.tokens(data) or ())


@lru_cache(maxsize=8)
def spelled(tokenizer: Tokenizer) -> Spelled:
    """The vocabulary of a tokenizer; kept, since it takes a quarter of a second for 50,000 ids."""
    return Spelled(tokenizer)
