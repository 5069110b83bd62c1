"""Writer: text in, text out, over an Engine; streaming, stop strings, conversations, and texts written beside a source.

Stop strings are found in bytes, so one that spans tokens or splits a character is found too, and what could still
become one is held back.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field

from cutaway.errors import RequestError
from cutaway.generate.beam import Beam, search
from cutaway.generate.engine import Engine
from cutaway.generate.request import SEEDS, Alternative, Event, FinishReason, Request, Sampling
from cutaway.settings import Settings
from cutaway.text.chat import Message, render
from cutaway.text.tokenizer import Tokenizer


class Options(Settings):
    """How a text is to be written. Prompt i of a call draws with ``seed + i``."""

    max_tokens: int | Literal["fit"] = "fit"
    sampling: Sampling = Sampling()
    seed: int = Field(default=0, ge=0, lt=SEEDS)
    stop: tuple[str, ...] = ()
    logprobs: int | None = Field(default=None, ge=0)
    adapter: str | None = None  # by name, of a model that has been given some


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that one token completed (perhaps none), and the token; ``finish`` stands on the last piece of a prompt."""

    prompt: int
    text: str
    token: int
    finish: FinishReason | None = None
    stop: str | None = None
    logprob: float | None = None
    alternatives: tuple[Alternative, ...] = ()


@dataclass(frozen=True, slots=True)
class Writing:
    """A whole answer. ``text`` ends before the stop string; ``tokens`` are all that were drawn. ``logprob`` is the sum
    over them, where it is known; ``score`` what a beam search orders answers by."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    stop: str | None = None
    logprobs: tuple[float, ...] = ()
    alternatives: tuple[tuple[Alternative, ...], ...] = ()
    logprob: float | None = None
    score: float | None = None


class Writer:
    """Text in, text out. A text ends by itself at the tokenizer's end-of-text or end-of-turn token. Where ``sources``
    are taken, there is one for each prompt, for a model that reads them."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer) -> None:
        if tokenizer.vocab_size > engine.model.vocab_size:
            raise RequestError(f"a tokenizer of {tokenizer.vocab_size} ids does not fit a model of "
                               f"{engine.model.vocab_size}", way_out="use the tokenizer in the model's own folder")
        self.engine, self.tokenizer = engine, tokenizer

    def text_ids(self, prompt: str) -> tuple[int, ...]:
        """A text to be continued: what begins a text, then its ids. Raises RequestError for an empty one."""
        if not prompt:
            raise RequestError("the prompt is empty", way_out="give at least one character")
        return (*self.tokenizer.begin_ids, *self.tokenizer.encode(prompt))

    def chat_ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """A conversation whose next turn is the assistant's."""
        return tuple(render(messages, self.tokenizer, add_generation_prompt=True).ids)

    def source_ids(self, text: str) -> tuple[int, ...]:
        """A text to be read: its ids, then eos. Raises RequestError for an empty one."""
        if not text:
            raise RequestError("the source is empty", way_out="give at least one character")
        return (*self.tokenizer.encode(text), self.tokenizer.eos_id)

    def complete(self, prompts: Sequence[str], options: Options) -> list[Writing]:
        """A continuation of each prompt."""
        return self.write([self.text_ids(p) for p in prompts], options)

    def rewrite(self, texts: Sequence[str], options: Options, *, beam: Beam | None = None) -> list[Writing]:
        """What an encoder-decoder makes of each text (a translation, a summary), sampled or, with ``beam``, the best
        that the search finds; each has its ``logprob``."""
        prompts, sources = [(self.tokenizer.bos_id,)] * len(texts), [self.source_ids(t) for t in texts]
        if beam is not None:
            return [found[0] for found in self.search(prompts, options, beam, sources=sources)]
        if options.logprobs is None:
            options = options.model_copy(update={"logprobs": 0})
        return self.write(prompts, options, sources=sources)

    def chat(self, messages: Sequence[Message], options: Options) -> Writing:
        """The assistant's next turn."""
        return self.write([self.chat_ids(messages)], options)[0]

    def write(self, prompts: Sequence[tuple[int, ...]], options: Options, *,
              sources: Sequence[tuple[int, ...]] | None = None) -> list[Writing]:
        """A continuation of each prompt given as ids."""
        if options.stop:
            return self._gathered(prompts, options, sources)
        done = self.engine.generate(self._requests(prompts, options, sources))
        return [Writing(self.tokenizer.decode(c.tokens), c.tokens, c.finish_reason, None, c.logprobs, c.alternatives,
                        sum(c.logprobs) if c.logprobs else None) for c in done]

    def search(self, prompts: Sequence[tuple[int, ...]], options: Options, beam: Beam, *,
               sources: Sequence[tuple[int, ...]] | None = None) -> list[tuple[Writing, ...]]:
        """The best continuations of each prompt that a beam search finds, best first; it honours no stop string."""
        if options.stop:
            raise RequestError("a beam search knows no stop strings", way_out="leave them out, or sample")
        found = search(self.engine.model, self._requests(prompts, options, sources), beam,
                       max_rows=self.engine.max_rows)
        return [tuple(Writing(self.tokenizer.decode(h.tokens), h.tokens, h.finish_reason, logprob=h.logprob,
                              score=h.score) for h in answers) for answers in found]

    def stream(self, prompts: Sequence[tuple[int, ...]], options: Options, *,
               sources: Sequence[tuple[int, ...]] | None = None) -> Iterator[Piece]:
        """The same as it comes: the texts of a prompt's pieces, joined, are its ``Writing.text``."""
        session = self.engine.start(self._requests(prompts, options, sources))
        stops = tuple(stop_bytes(s) for s in options.stop)
        readers = [TextReader(stops) for _ in prompts]
        for event in session.events():
            piece = self._piece(event, readers[event.request])
            if piece.stop is not None:
                session.stop(event.request)
            yield piece

    def _requests(self, prompts: Sequence[tuple[int, ...]], options: Options,
                  sources: Sequence[tuple[int, ...]] | None) -> list[Request]:
        if sources is not None and len(sources) != len(prompts):
            raise RequestError(f"{len(sources)} sources do not fit {len(prompts)} prompts",
                               way_out="give each prompt its own")
        ends = self.tokenizer.stop_ids
        return [Request(p, options.max_tokens, options.sampling, (options.seed + i) % SEEDS, ends, options.logprobs,
                        None if sources is None else sources[i], adapter=options.adapter)
                for i, p in enumerate(prompts)]

    def _piece(self, event: Event, reader: TextReader) -> Piece:
        text, stop = reader.push(self.tokenizer.bytes_of([event.token]), last=event.finish is not None)
        finish: FinishReason | None = "stop" if stop is not None else event.finish
        return Piece(event.request, text, event.token, finish, stop, event.logprob, event.alternatives)

    def _gathered(self, prompts: Sequence[tuple[int, ...]], options: Options,
                  sources: Sequence[tuple[int, ...]] | None) -> list[Writing]:
        pieces: list[list[Piece]] = [[] for _ in prompts]
        for piece in self.stream(prompts, options, sources=sources):
            pieces[piece.prompt].append(piece)
        return [_joined(p, options.logprobs) for p in pieces]


def stop_bytes(stop: str) -> bytes:
    """A stop string as it is looked for. Raises RequestError for an empty one and for what is no UTF-8."""
    if not stop:
        raise RequestError("a stop string is empty", way_out="give at least one character")
    try:
        return stop.encode()
    except UnicodeEncodeError:
        raise RequestError(f"the stop string {stop!r} is not text that UTF-8 can hold") from None


def _joined(pieces: Sequence[Piece], logprobs: int | None) -> Writing:
    finish = pieces[-1].finish
    assert finish is not None
    logs = tuple(p.logprob for p in pieces if p.logprob is not None)
    return Writing("".join(p.text for p in pieces), tuple(p.token for p in pieces), finish, pieces[-1].stop, logs,
                   tuple(p.alternatives for p in pieces) if logprobs else (), sum(logs) if logs else None)


@dataclass(slots=True)
class TextReader:
    """Bytes to text, up to a stop string: nothing is given out that could still turn out to belong to one. ``given``
    counts the bytes whose text is out (or stands at the end of a character that is not complete)."""

    stops: tuple[bytes, ...]
    held: bytes = b""
    given: int = 0
    utf8: codecs.IncrementalDecoder = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"))

    def push(self, data: bytes, *, last: bool) -> tuple[str, str | None]:
        """The text that is certain now, and the stop string that was found."""
        self.held += data
        found = min(((at, s) for s in self.stops if (at := self.held.find(s)) >= 0), default=None,
                    key=lambda f: (f[0], -len(f[1])))
        if found is not None:
            self.given += found[0]
            return self.utf8.decode(self.held[: found[0]], final=True), found[1].decode()
        keep = 0 if last else self._open()
        sure, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        self.given += len(sure)
        return self.utf8.decode(sure, final=last), None

    def _open(self) -> int:
        """Length of the longest end of the held bytes that begins a stop string."""
        longest = max((len(s) - 1 for s in self.stops), default=0)
        return next((n for n in range(min(longest, len(self.held)), 0, -1)
                     if any(s.startswith(self.held[-n:]) for s in self.stops)), 0)
