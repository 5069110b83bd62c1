"""``cutaway trace``: the document behind every token of a step's batch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cutaway.cli.console import Json, result, row, table


def command(
    run: Annotated[str, typer.Argument(help="A run's folder, or its name below --runs.")],
    *,
    step: Annotated[int, typer.Option(help="The step, counted from 1 as in the log.")],
    stage: Annotated[str, typer.Option(help="pretrain or finetune.")] = "pretrain",
    runs: Annotated[Path, typer.Option(help="The folder that runs lie in.")] = Path("runs"),
    json: Json = False,
) -> None:
    """Name the document behind every token of a step's batch."""
    from cutaway.run.folder import open_run
    from cutaway.run.trace import trace

    found = open_run(run, runs)
    spans = trace(found, step, stage)
    documents = len({s.name for s in spans})
    tokens = sum(s.stop - s.start for s in spans)
    if json:
        for s in spans:
            row({"row": s.row, "start": s.start, "stop": s.stop, "document": s.name, "offset": s.offset})
        result({"run": str(found.folder), "stage": stage, "step": step, "tokens": tokens, "documents": documents}, "",
               json=True)
        return
    rows = [(s.row, f"{s.start}–{s.stop}", s.name, s.offset) for s in spans]
    title = f"{stage}, step {step}: {tokens:,} tokens of {documents:,} documents"
    result({}, table(("row", "tokens", "document", "from its token"), rows, title=title), json=False)
