"""``cutaway chat``: talk with a model in the terminal; the whole conversation is read again at every turn."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import typer

from cutaway.cli.console import Json, note, row
from cutaway.cli.writing import (
    DeviceName,
    Frequency,
    MaxTokens,
    MinP,
    ModelName,
    PrecisionName,
    Presence,
    Repetition,
    Seed,
    Temperature,
    TopK,
    TopP,
    open_writer,
    options,
)
from cutaway.errors import RequestError

if TYPE_CHECKING:
    from cutaway.generate.writer import Options, Writer
    from cutaway.models.open import Asked
    from cutaway.text.chat import Message

_HELP = "/reset begins anew, /quit or Ctrl-D ends, Ctrl-C stops an answer"


def command(
    model: ModelName,
    *,
    system: Annotated[str | None, typer.Option(help="A first message that says how to behave.")] = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = 0.7,
    top_k: TopK = None,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: Repetition = 1.0,
    presence_penalty: Presence = 0.0,
    frequency_penalty: Frequency = 0.0,
    seed: Seed = 0,
    precision: PrecisionName = "stored",
    device: DeviceName = "auto",
    json: Json = False,
) -> None:
    """Talk with a model. Lines come from the terminal or from a pipe; answers go to stdout."""
    how = options(max_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
                  repetition_penalty=repetition_penalty, presence_penalty=presence_penalty,
                  frequency_penalty=frequency_penalty, seed=seed)
    talk = _Talk(_open(model, device, precision), how, system, json)
    if sys.stdin.isatty():
        note(f"{model}, context of {talk.writer.engine.model.context_length} tokens; {_HELP}")
    for line in _lines():
        if line == "/quit":
            break
        if line == "/reset":
            talk.turns.clear()
            note("the conversation begins anew")
        elif line.startswith("/"):
            note(f"no command {line!r}; {_HELP}")
        elif line:
            talk.say(line)


def _open(model: str, device: str, precision: Asked) -> Writer:
    writer = open_writer(model, device, precision)
    if writer.engine.model.reads_source:
        raise RequestError("an encoder-decoder holds no conversation", where=model,
                           way_out=f"cutaway generate {model} --source TEXT")
    return writer


def _lines() -> Iterator[str]:
    """What the person types, until the end of input."""
    if sys.stdin.isatty():
        import readline  # noqa: F401  (editing and history of lines)
    while True:
        try:
            yield (input("> ") if sys.stdin.isatty() else input()).strip()
        except EOFError:
            return
        except UnicodeDecodeError as error:
            raise RequestError(f"not UTF-8 at byte {error.start:,}", where="standard input") from None


@dataclass(slots=True)
class _Talk:
    """The conversation so far. A turn that failed or was stopped leaves no trace in it."""

    writer: Writer
    how: Options
    system: str | None
    json: bool
    turns: list[Message] = field(default_factory=list)
    said: int = 0

    def say(self, text: str) -> None:
        """One message and its answer, streamed. Turn i draws with seed + i."""
        from cutaway.text.chat import Message

        opening = [] if self.system is None else [Message("system", self.system)]
        messages = [*opening, *self.turns, Message("user", text)]
        how = self.how.model_copy(update={"seed": (self.how.seed + self.said) % 2**64})
        self.said += 1
        try:
            ids = self.writer.chat_ids(messages)
            answer, finish = self._answer(ids, how)
        except RequestError as error:
            if not self.turns and not sys.stdin.isatty():
                raise
            note(f"{error}{'; or type /reset' if self.turns else ''}")
            return
        except KeyboardInterrupt:
            note("\nstopped; this turn is forgotten")
            return
        self.turns += [messages[-1], Message("assistant", answer)]
        if self.json:
            row({"answer": answer, "finish_reason": finish, "prompt_tokens": len(ids), "turn": len(self.turns) // 2})
        elif finish == "length":
            note(f"cut off: {len(ids)} tokens of conversation in a context of {self.writer.engine.model.context_length}"
                 if how.max_tokens == "fit" else f"cut off: max_tokens {how.max_tokens} is reached")

    def _answer(self, ids: tuple[int, ...], how: Options) -> tuple[str, str]:
        text, finish = "", ""
        for piece in self.writer.stream([ids], how):
            text += piece.text
            if not self.json:
                print(piece.text, end="", flush=True)
            finish = piece.finish or finish
        if not self.json:
            print(flush=True)
        return text, finish
