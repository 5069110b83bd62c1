"""``cutaway generate``: text from a prompt, as it is written; several answers, log-probabilities, JSON."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cutaway.cli.console import Json, note, row, stdout, table
from cutaway.cli.writing import (
    DeviceName,
    MaxTokens,
    MinP,
    ModelName,
    Presence,
    Repetition,
    Seed,
    Stop,
    Temperature,
    TopK,
    TopP,
    open_writer,
    options,
)
from cutaway.errors import RequestError

if TYPE_CHECKING:
    from rich.table import Table

    from cutaway.generate.writer import Options, Writer, Writing


def command(
    model: ModelName,
    prompt: Annotated[str, typer.Argument(help="The text to go on with, or - for standard input.")],
    *,
    max_tokens: MaxTokens = None,
    temperature: Temperature = 1.0,
    top_k: TopK = None,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: Repetition = 1.0,
    presence_penalty: Presence = 0.0,
    seed: Seed = 0,
    stop: Stop = None,
    logprobs: Annotated[int | None, typer.Option(help="0: of the tokens drawn; n: also of the n likeliest.")] = None,
    n: Annotated[int, typer.Option("--n", help="How many answers; answer i draws with seed + i.")] = 1,
    chat: Annotated[bool, typer.Option("--chat", help="The prompt is a message, not the start of a text.")] = False,
    device: DeviceName = "auto",
    json: Json = False,
) -> None:
    """Write text from a prompt. The text goes to stdout as it comes, everything else to stderr."""
    if n < 1:
        raise RequestError(f"--n must be at least 1, got {n}")
    text = _stdin() if prompt == "-" else prompt
    how = options(max_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
                  repetition_penalty=repetition_penalty, presence_penalty=presence_penalty, seed=seed, stop=stop,
                  logprobs=logprobs)
    writer = open_writer(model, device)
    ids = _ids(writer, text, chat=chat)
    if n == 1 and logprobs is None and not json:
        _stream(writer, ids, how)
        return
    writings = writer.write([ids] * n, how)
    if json:
        row({"model": model, "prompt": text, "prompt_tokens": len(ids), "seed": seed,
             "sampling": how.sampling.model_dump(), "answers": [_plain(w, writer) for w in writings]})
        return
    for i, w in enumerate(writings):
        if n > 1:
            note(f"— answer {i + 1} of {n}, seed {seed + i}, {len(w.tokens)} tokens, {w.finish_reason} —")
        print(w.text, flush=True)
        if logprobs is not None:
            stdout().print(_probabilities(w, writer))


def _ids(writer: Writer, text: str, *, chat: bool) -> tuple[int, ...]:
    if not chat:
        return writer.text_ids(text)
    from cutaway.text.chat import Message

    if not text:
        raise RequestError("the message is empty", way_out="give at least one character")
    return writer.chat_ids([Message("user", text)])


def _stream(writer: Writer, ids: tuple[int, ...], how: Options) -> None:
    for count, piece in enumerate(writer.stream([ids], how), start=1):
        print(piece.text, end="", flush=True)
        if piece.finish is not None:
            print(flush=True)
        if piece.finish == "length":
            why = "the context is full" if how.max_tokens == "fit" else "max_tokens is reached"
            note(f"cut off after {count} tokens: {why}")


def _plain(writing: Writing, writer: Writer) -> dict[str, Any]:
    name = writer.tokenizer.name_of
    out: dict[str, Any] = {"text": writing.text, "tokens": list(writing.tokens), "finish_reason": writing.finish_reason,
                           "stop": writing.stop}
    if writing.logprobs:
        out["logprobs"] = list(writing.logprobs)
    if writing.alternatives:
        out["alternatives"] = [[{"id": a.token, "token": name(a.token), "logprob": a.logprob} for a in best]
                               for best in writing.alternatives]
    return out


def _probabilities(writing: Writing, writer: Writer) -> Table:
    def name(token: int) -> str:
        return writer.tokenizer.name_of(token).translate({ord(" "): "␣", ord("\n"): "\\n", ord("\t"): "\\t"})

    rows = []
    for i, (token, logprob) in enumerate(zip(writing.tokens, writing.logprobs, strict=True)):
        best = writing.alternatives[i] if writing.alternatives else ()
        likeliest = "  ".join(f"{name(a.token)} {a.logprob:.3f}" for a in best)
        rows.append((i, name(token), f"{logprob:.3f}", likeliest))
    return table(("position", "token", "logprob", "likeliest"), rows)


def _stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise RequestError(f"not UTF-8 at byte {error.start:,}", where="standard input") from None
