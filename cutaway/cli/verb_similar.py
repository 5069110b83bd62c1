"""``cutaway similar``: how alike texts are."""

from __future__ import annotations

from typing import Annotated

import typer

from cutaway.cli.console import Json, result, row, stdout, table
from cutaway.cli.verb_embed import TooLong
from cutaway.cli.writing import PrecisionName
from cutaway.errors import RequestError

DEFAULT = "all-minilm-l6-v2"


def command(
    texts: Annotated[list[str], typer.Argument(help="Two texts or more.")],
    *,
    model: Annotated[str, typer.Option(help="A model that gives vectors: a name or a folder.")] = DEFAULT,
    too_long: TooLong = "refuse",
    precision: PrecisionName = "stored",
    json: Json = False,
) -> None:
    """The cosine of the vectors of two texts, or of each pair of several, the most alike first."""
    from cutaway.device import set_threads
    from cutaway.models.open import open_embedder
    from cutaway.run.place import model_folder

    if len(texts) < 2:
        raise RequestError("one text is like nothing", way_out="give two texts or more, each in quotation marks")
    set_threads()
    found = open_embedder(model_folder(model), too_long=too_long, precision=precision).cosines(texts)
    pairs = sorted(((float(found[i, j]), i, j) for j in range(len(texts)) for i in range(j)), reverse=True)
    if len(texts) == 2:
        result({"cosine": pairs[0][0], "texts": texts}, f"{pairs[0][0]:.4f}", json=json)
        return
    if json:
        for cosine, i, j in pairs:
            row({"cosine": cosine, "texts": [texts[i], texts[j]]})
        return
    stdout().print(table(("", "cosine", ""), [(texts[i], f"{cosine:.4f}", texts[j]) for cosine, i, j in pairs]))
