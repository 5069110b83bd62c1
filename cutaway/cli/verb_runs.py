"""``cutaway runs``: the runs of a folder, how far each has come, and its headline figure."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cutaway.cli.console import Json, result, table

DEFAULT = Path("runs")


def command(
    runs: Annotated[Path, typer.Argument(help="The folder that runs lie in.")] = DEFAULT,
    *,
    json: Json = False,
) -> None:
    """List the runs of a folder."""
    from cutaway.cli.screen import summary
    from cutaway.errors import RunError
    from cutaway.run.folder import runs as all_runs

    if runs.exists() and not runs.is_dir():
        raise RunError("a file, not a folder of runs", where=runs, way_out="name a folder")
    if not runs.exists() and runs != DEFAULT:
        raise RunError("no such folder", where=runs, way_out="name the folder that was given as --runs")
    found = [summary(run) for run in all_runs(runs)]
    rows = []
    for value in found:
        stages, figures = list(value["stages"]), value["figures"]
        bits, good = (_latest(figures, name) for name in ("bits_per_byte", "satisfies"))
        rows.append((value["run"], stages[-1] if stages else "–", "–" if bits is None else f"{bits:.3f}",
                     "–" if good is None else f"{100 * good:.1f} %",
                     "–" if value["seconds"] is None else f"{value['seconds']:.0f} s"))
    columns = ("run", "last stage done", "bits per byte", "satisfies", "time")
    text = table(columns, rows) if rows else f"no runs in {runs}; begin with: cutaway run quickstart"
    result({"folder": str(runs), "runs": found}, text, json=json)


def _latest(figures: dict[str, Any], name: str) -> float | None:
    """The figure of the latest model that has it."""
    found = (figures.get(f"{model}.{name}") for model in ("aligned", "finetuned", "base"))
    return next((m["value"] for m in found if m is not None), None)
