"""``cutaway probe``: measure what an architecture can and cannot do; ``range`` is speed, memory and reach of each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cutaway.cli.console import Json, note, result, table

PROBES = ("range",)


def command(
    what: Annotated[str, typer.Argument(help="What to measure: range.")],
    settings: Annotated[list[str] | None, typer.Argument(help="path=value, as in sizes.parameters=50000.")] = None,
    *,
    probes: Annotated[Path, typer.Option(help="The folder that probes are kept in.")] = Path("probes"),
    json: Json = False,
) -> None:
    """Measure speed, memory and reach of RNN, CNN and transformer at equal size, and write a report."""
    from cutaway.cli.screen import ConsoleScreen
    from cutaway.run.probe_range import check, load, start
    from cutaway.run.range_table import HEAD, table_of

    check(what, PROBES)
    done = start(load(settings or []), probes, ConsoleScreen(json))
    found = done.found
    value = {"probe": what, "folder": str(done.folder), "report": str(done.folder / "report.html"),
             "seconds": found.seconds, "table": [dict(zip(HEAD, row, strict=True)) for row in table_of(found)],
             "notes": list(found.notes), "measured": [m.to_dict() for m in found.measured]}
    result(value, table(HEAD, table_of(found)), json=json)
    if not json:
        note(f"{found.seconds:.0f} s; open {done.folder / 'report.html'}")
