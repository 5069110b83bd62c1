"""``cutaway resume``: go on with a run exactly where it stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cutaway.cli.console import Json


def command(
    run: Annotated[str, typer.Argument(help="The folder of a run or a comparison, or a run's name below --runs.")],
    *,
    runs: Annotated[Path, typer.Option(help="The folder that runs are made in.")] = Path("runs"),
    json: Json = False,
) -> int:
    """Go on with a run; one that is finished writes its report anew."""
    from cutaway.cli.screen import ConsoleScreen
    from cutaway.cli.verb_run import finished
    from cutaway.run.folder import open_run
    from cutaway.run.pipeline import resume

    if (Path(run) / "comparison.toml").is_file():
        from cutaway.cli.verb_compare import compared
        from cutaway.run.compare import go

        return compared(lambda: go(Path(run), ConsoleScreen(json)), Path(run), json=json)
    found = open_run(run, runs)
    return finished(lambda: resume(found, ConsoleScreen(json)), found.folder, json=json)
