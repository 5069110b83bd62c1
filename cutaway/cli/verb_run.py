"""``cutaway run``: a recipe from text to an aligned model and its report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cutaway.cli.console import Json, note

RecipeName = Annotated[str, typer.Argument(help="A recipe's name (quickstart, laptop, gpu, debug) or a .toml file.")]
Settings = Annotated[list[str] | None, typer.Argument(help="path=value, as in pretrain.budget.steps=100.")]


def command(
    recipe: RecipeName,
    settings: Settings = None,
    *,
    runs: Annotated[Path, typer.Option(help="The folder that runs are made in.")] = Path("runs"),
    json: Json = False,
) -> int:
    """Run a recipe: text in, a trained and aligned model and its report out."""
    from cutaway.cli.screen import ConsoleScreen
    from cutaway.run.pipeline import start
    from cutaway.run.recipe import load

    loaded = load(recipe, settings or [])
    return finished(lambda: start(loaded, runs, ConsoleScreen(json)), runs / loaded.name, json=json)


def finished(work: object, folder: Path, *, json: bool) -> int:
    """Run to the end and show it, or say how to go on."""
    import os

    from cutaway.cli.main import INTERRUPTED
    from cutaway.cli.screen import show_end
    from cutaway.run.work import Interrupted

    first = int(os.environ.get("RANK", "0")) == 0
    try:
        assert callable(work)
        run = work()
    except KeyboardInterrupt as stopped:
        if first and (isinstance(stopped, Interrupted) or (folder / "recipe.toml").exists()):
            note(f"stopped; everything up to the last save is kept. Go on with:\n  cutaway resume {folder}")
        return INTERRUPTED
    if first:
        show_end(run, json=json)
    return 0
