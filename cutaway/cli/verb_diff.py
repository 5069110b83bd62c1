"""``cutaway diff``: the settings, data and figures in which two runs differ."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cutaway.cli.console import Json, result, table


def command(
    first: Annotated[str, typer.Argument(help="A run.")],
    second: Annotated[str, typer.Argument(help="The run to compare it with.")],
    *,
    runs: Annotated[Path, typer.Option(help="The folder that runs lie in.")] = Path("runs"),
    json: Json = False,
) -> None:
    """Compare the settings, data and figures of two runs."""
    from rich.console import Group

    from cutaway.run.diff import difference, verdict
    from cutaway.run.folder import open_run

    a, b = open_run(first, runs), open_run(second, runs)
    found = difference(a, b)
    names = (a.name, b.name)
    parts: list[Any] = []
    for title, pairs in (("settings that differ", found.settings), ("data that differ", found.data)):
        rows = [(path, _text(x), _text(y)) for path, (x, y) in pairs.items()]
        parts.append(table(("path", *names), rows, title=title) if rows else f"no {title}")
    rows4 = [(n, _text(x), _text(y), verdict(x, y)) for n, (x, y) in found.figures.items()]
    parts.append(table(("figure", *names, f"{b.name} is"), rows4, title="figures"))
    value = {"first": str(a.folder), "second": str(b.folder), "settings": found.settings, "data": found.data,
             "figures": {n: {"first": x and x.to_dict(), "second": y and y.to_dict(), "second_is": verdict(x, y)}
                         for n, (x, y) in found.figures.items()}}
    result(value, Group(*parts), json=json)


def _text(value: Any) -> str:
    from cutaway.records import Measurement

    if value is None:
        return "–"
    return str(value).removeprefix(value.name).strip() if isinstance(value, Measurement) else str(value)
