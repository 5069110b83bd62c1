"""``cutaway generate``: text from a prompt or beside a source, as it is written; several answers, beam search, JSON."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cutaway.cli.console import Json, note, row, stdout, table
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

    from cutaway.generate.beam import Beam
    from cutaway.generate.writer import Options, Writer, Writing

Ids = tuple[int, ...]


def command(
    model: ModelName,
    prompt: Annotated[str | None, typer.Argument(
        help="The text to go on with, or - for standard input; beside a source, how the answer begins.")] = None,
    *,
    source: Annotated[list[str] | None, typer.Option(
        metavar="<str>", help="The text that an encoder-decoder reads (to translate, to summarise), or -.")] = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = 1.0,
    top_k: TopK = None,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: Repetition = 1.0,
    presence_penalty: Presence = 0.0,
    frequency_penalty: Frequency = 0.0,
    seed: Seed = 0,
    stop: Stop = None,
    logprobs: Annotated[int | None, typer.Option(help="0: of the tokens drawn; n: also of the n likeliest.")] = None,
    n: Annotated[int, typer.Option("--n", help="How many answers; answer i draws with seed + i.")] = 1,
    chat: Annotated[bool, typer.Option("--chat", help="The prompt is a message, not the start of a text.")] = False,
    beam: Annotated[int | None, typer.Option(help="Search the likeliest answers with this many hypotheses.")] = None,
    length_penalty: Annotated[float | None, typer.Option(help="For --beam: higher is longer; 1 if not given.")] = None,
    precision: PrecisionName = "stored",
    device: DeviceName = "auto",
    json: Json = False,
) -> None:
    """Write text from a prompt, or beside a source. It goes to stdout as it comes, everything else to stderr."""
    if n < 1:
        raise RequestError(f"--n must be at least 1, got {n}")
    if source and len(source) > 1:  # a list only so that a second one is seen: it would replace the first unsaid
        raise RequestError(f"one source is read beside an answer, and {len(source)} were given",
                           way_out="give --source once, or call again for each")
    beside_text = source[0] if source else None
    if prompt == beside_text == "-":
        raise RequestError("prompt and source cannot both come from standard input")
    search = _beam(beam, n, length_penalty)
    text, read = (stdin_text() if t == "-" else t for t in (prompt, beside_text))
    how = options(max_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
                  repetition_penalty=repetition_penalty, presence_penalty=presence_penalty,
                  frequency_penalty=frequency_penalty, seed=seed, stop=stop, logprobs=logprobs)
    writer = open_writer(model, device, precision)
    ids, beside = _ids(writer, text, read, chat=chat)
    if n == 1 and logprobs is None and search is None and not json:
        _stream(writer, ids, how, beside)
        return
    if search is None:
        writings = writer.write([ids] * n, how, sources=None if beside is None else [beside] * n)
    else:
        writings = list(writer.search([ids], how, search, sources=None if beside is None else [beside])[0])
    if not json:
        _say(writings, writer, how)
        return
    asked: dict[str, Any] = {"model": model, "prompt": text, "prompt_tokens": len(ids)}
    if beside is not None:
        asked |= {"source": read, "source_tokens": len(beside)}
    asked |= ({"seed": seed, "sampling": how.sampling.model_dump()} if search is None
              else {"beam": search.model_dump()})
    row({**asked, "answers": [_plain(w, writer) for w in writings]})


def _say(writings: list[Writing], writer: Writer, how: Options) -> None:
    for i, w in enumerate(writings):
        if len(writings) > 1:
            what = f"seed {how.seed + i}" if w.score is None else f"score {w.score:.4f}, logprob {w.logprob:.3f}"
            note(f"— answer {i + 1} of {len(writings)}, {what}, {len(w.tokens)} tokens, {w.finish_reason} —")
        print(w.text, flush=True)
        if len(writings) == 1 and w.finish_reason == "length":
            _cut_off(len(w.tokens), how)
        if how.logprobs is not None:
            stdout().print(_probabilities(w, writer))


def _cut_off(count: int, how: Options) -> None:
    note(f"cut off after {count} tokens: "
         f"{'the context is full' if how.max_tokens == 'fit' else 'max_tokens is reached'}")


def _beam(width: int | None, n: int, length_penalty: float | None) -> Beam | None:
    if width is None:
        if length_penalty is not None:
            raise RequestError("--length-penalty is a beam's, and there is none", way_out="give --beam")
        return None
    from cutaway.generate.beam import Beam
    from cutaway.settings import decode

    penalty = 1.0 if length_penalty is None else length_penalty
    return decode(Beam, {"width": width, "num_return": n, "length_penalty": penalty}, where="options")


def _ids(writer: Writer, text: str | None, source: str | None, *, chat: bool) -> tuple[Ids, Ids | None]:
    """What the answer follows, and what the model reads beside it."""
    if writer.engine.model.reads_source:
        if source is None:
            raise RequestError("an encoder-decoder writes beside a source, and none was given",
                               way_out="give the text as --source TEXT")
        if chat:
            raise RequestError("an encoder-decoder holds no conversation", way_out="leave --chat out")
        begin = (writer.tokenizer.bos_id,) if text is None else writer.text_ids(text)
        return begin, writer.source_ids(source)
    if source is not None:
        raise RequestError("this model reads no source", way_out="give the text as the prompt")
    if text is None:
        raise RequestError("there is no prompt", way_out="give the text to go on with, or - for standard input")
    return _prompt_ids(writer, text, chat=chat), None


def _prompt_ids(writer: Writer, text: str, *, chat: bool) -> Ids:
    if not chat:
        return writer.text_ids(text)
    from cutaway.text.chat import Message

    if not text:
        raise RequestError("the message is empty", way_out="give at least one character")
    return writer.chat_ids([Message("user", text)])


def _stream(writer: Writer, ids: Ids, how: Options, source: Ids | None) -> None:
    for count, piece in enumerate(writer.stream([ids], how, sources=None if source is None else [source]), start=1):
        print(piece.text, end="", flush=True)
        if piece.finish is not None:
            print(flush=True)
        if piece.finish == "length":
            _cut_off(count, how)


def _plain(writing: Writing, writer: Writer) -> dict[str, Any]:
    name = writer.tokenizer.name_of
    out: dict[str, Any] = {"text": writing.text, "tokens": list(writing.tokens), "finish_reason": writing.finish_reason,
                           "stop": writing.stop}
    if writing.score is not None:
        out |= {"logprob": writing.logprob, "score": writing.score}
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


def stdin_text() -> str:
    """All of standard input. Raises RequestError with the place where it is not UTF-8."""
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise RequestError(f"not UTF-8 at byte {error.start:,}", where="standard input") from None
