"""``cutaway tokens``: what a tokenizer makes of a text, token by token, with bytes per token."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from cutaway.cli.console import Json, note, result, table
from cutaway.errors import TokenizerError


def command(
    model: Annotated[str, typer.Argument(help="A model folder, a tokenizer's folder, or a run.")],
    text: Annotated[str, typer.Argument(help="The text, or - for standard input.")] = "-",
    *,
    json: Json = False,
) -> None:
    """Show the ids, tokens and bytes of a text; control tokens inside it stay text."""
    from cutaway.models.adapted import open_tokenizer
    from cutaway.run.place import model_folder

    folder = model_folder(model)
    tokenizer = open_tokenizer(folder)
    text = _stdin() if text == "-" else text
    ids = tokenizer.encode(text)
    pieces = [tokenizer.bytes_of([i]) for i in ids]
    rows = [{"id": i, "token": tokenizer.name_of(i), "bytes": p.hex(" ")} for i, p in zip(ids, pieces, strict=True)]
    size = len(text.encode())
    value: dict[str, Any] = {"tokens": rows, "count": len(ids), "bytes": size, "vocab_size": tokenizer.vocab_size,
                             "kind": tokenizer.kind, "folder": str(folder)}
    cells = ((n, r["id"], _visible(str(r["token"])), r["bytes"]) for n, r in enumerate(rows))
    result(value, table(("position", "id", "token", "bytes"), cells), json=json)
    if not json:
        share = f" ({size / len(ids):.2f} bytes a token)" if ids else ""
        note(f"{len(ids):,} tokens, {size:,} bytes{share}, {tokenizer.kind} vocabulary of {tokenizer.vocab_size:,}")


def _visible(token: str) -> str:
    """Spaces and line ends as signs that can be seen."""
    return token.translate({ord(" "): "␣", ord("\n"): "\\n", ord("\r"): "\\r", ord("\t"): "\\t"})


def _stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise TokenizerError(f"not UTF-8 at byte {error.start:,}", where="standard input") from None
