"""One choice as it is written: tokens in, text out, with the log-probabilities of the tokens whose text is out.

Bytes are exact and stop strings may span tokens (``generate.writer.TextReader``); a token's entry is given with the
first of its bytes, so entries never run ahead of the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from cutaway.generate.request import Alternative, Event
from cutaway.generate.writer import TextReader, stop_bytes
from cutaway.text.tokenizer import Tokenizer

Finish = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, slots=True)
class Drawn:
    """A token of the answer's text with its log-probability."""

    token: int
    logprob: float
    alternatives: tuple[Alternative, ...]


@dataclass(frozen=True, slots=True)
class Delta:
    """What a step, or several, added to a choice."""

    text: str = ""
    drawn: tuple[Drawn, ...] = ()
    finish: Finish | None = None
    stop: str | None = None  # the stop string that ended it


@dataclass(slots=True)
class Assembler:
    """Puts one choice together. ``shaves``: a vocabulary's space before every text is not part of the answer."""

    tokenizer: Tokenizer
    stops: Sequence[str] = ()
    shaves: bool = False
    tokens: int = 0  # drawn so far, the one that ended it included
    finish: Finish | None = None
    _reader: TextReader = field(init=False)
    _pending: list[tuple[int, Drawn]] = field(default_factory=list)  # with where its bytes begin
    _read: int = 0

    def __post_init__(self) -> None:
        self._reader = TextReader(tuple(stop_bytes(s) for s in self.stops))

    def push(self, event: Event) -> Delta:
        """The next token. Once ``finish`` is set nothing more counts."""
        if self.finish is not None:
            return Delta()
        self.tokens += 1
        data = self.tokenizer.bytes_of([event.token])
        if event.logprob is not None and not (event.finish == "stop" and not data):
            self._pending.append((self._read, Drawn(event.token, event.logprob, event.alternatives)))
        self._read += len(data)
        text, stop = self._reader.push(data, last=event.finish is not None)
        if self.shaves and text:
            text, self.shaves = text.removeprefix(" "), False
        self.finish = "stop" if stop is not None else event.finish
        return Delta(text, self._entries(), self.finish, stop)

    def _entries(self) -> tuple[Drawn, ...]:
        """Those whose first byte is out, and all that have no bytes before it."""
        out = tuple(drawn for at, drawn in self._pending if at < self._reader.given or
                    (self.finish is not None and at <= self._reader.given and not self._reader.held))
        self._pending = self._pending[len(out):]
        return out


def joined(deltas: Sequence[Delta]) -> Delta:
    """Several deltas of one choice as one."""
    last = deltas[-1]
    return Delta("".join(d.text for d in deltas), tuple(x for d in deltas for x in d.drawn), last.finish, last.stop)
