"""``cutaway eval``: measure finished models again, each figure with n and interval."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cutaway.cli.console import Json, note, result, table


def command(
    model: Annotated[str, typer.Argument(help="A run or a model folder.")],
    suite: Annotated[str, typer.Argument(help="bits, answers or all.")] = "all",
    *,
    data: Annotated[Path | None, typer.Option(help="Other text to measure bits per byte on.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    runs: Annotated[Path, typer.Option(help="The folder that runs lie in.")] = Path("runs"),
    json: Json = False,
) -> None:
    """Measure a model: bits per byte, answers, with n and interval."""
    from cutaway.device import pick, set_threads
    from cutaway.run.suites import measure, models_of

    run, folders = models_of(model, runs)
    set_threads()
    where = pick(device)
    found = {folder: measure(folder, suite, run=run, data=data, device=where) for folder in folders}
    if suite == "all" and run is None:
        note("answers were not measured: only a run has held-out requests")
    names = list(dict.fromkeys(n for figures in found.values() for n in figures))
    rows = [(n, *(str(f[n]).removeprefix(f[n].name).strip() if n in f else "–" for f in found.values())) for n in names]
    result({"models": {str(f): {n: m.to_dict() for n, m in figures.items()} for f, figures in found.items()}},
           table(("figure", *(f.name for f in folders)), rows), json=json)
