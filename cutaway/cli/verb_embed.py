"""``cutaway embed``: texts to vectors."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from cutaway.cli.console import Json, note, row
from cutaway.cli.verb_classify import texts_or_lines
from cutaway.cli.writing import PrecisionName

TooLong = Annotated[Literal["refuse", "cut", "windows"], typer.Option(
    help="Of a text longer than the context: refuse it, read its head, or average its windows.")]


def command(
    model: Annotated[str, typer.Argument(help="A model that gives vectors: a name or a folder.")],
    texts: Annotated[list[str] | None, typer.Argument(help="Texts; without any, lines of standard input.")] = None,
    *,
    too_long: TooLong = "refuse",
    precision: PrecisionName = "stored",
    json: Json = False,
) -> None:
    """Give each text its vector: a line of numbers a text, or a line of JSON."""
    from cutaway.device import set_threads
    from cutaway.models.open import open_embedder
    from cutaway.run.place import model_folder

    set_threads()
    embedder = open_embedder(model_folder(model), too_long=too_long, precision=precision)
    given = texts_or_lines(texts, "embed")
    if too_long != "refuse" and (long := len(embedder.too_long_of(given))):
        note(f"{long:,} of {len(given):,} texts are longer than the context of {embedder.model.context_length} tokens: "
             + ("only their heads were read" if too_long == "cut" else "their windows were averaged"))
    for text, vector in zip(given, embedder.vectors(given), strict=True):
        if json:
            row({"text": text, "vector": [float(f"{x:.8g}") for x in vector]})
        else:
            print(" ".join(f"{x:.6g}" for x in vector))
