"""``cutaway compare``: every suitable architecture on one task, one split and one budget, and when simple is enough."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cutaway.cli.console import Json, note

if TYPE_CHECKING:
    from cutaway.run.compare import Compared

Name = Annotated[str, typer.Argument(help="language, classification, transformation, retrieval, or a .toml file.")]
Settings = Annotated[list[str] | None, typer.Argument(help="path=value, as in budget.seconds=60.")]


def command(
    recipe: Name,
    settings: Settings = None,
    *,
    runs: Annotated[Path, typer.Option(help="The folder that comparisons are made in.")] = Path("comparisons"),
    json: Json = False,
) -> int:
    """Train every suitable architecture on the same text and budget, and compare."""
    from cutaway.cli.screen import ConsoleScreen
    from cutaway.run.compare import start
    from cutaway.run.compare_recipe import load

    loaded = load(recipe, settings or [])
    return compared(lambda: start(loaded, runs, ConsoleScreen(json)), runs / loaded.name, json=json)


def compared(work: object, folder: Path, *, json: bool) -> int:
    """Compare to the end and show it, or say how to go on."""
    from cutaway.cli.console import result, table
    from cutaway.cli.main import INTERRUPTED
    from cutaway.run import compare_words as words

    try:
        assert callable(work)
        with _terminated():
            found = work()
    except KeyboardInterrupt:
        if (folder / "prepared").exists():
            note(f"stopped; finished systems are kept. Go on with:\n  cutaway resume {folder}")
        else:
            note("stopped before the data was ready; nothing was kept")
        return INTERRUPTED
    if json:
        result(found.to_dict(), "", json=True)
        return 0
    for t in (words.quality_table(found), words.making_table(found), words.using_table(found)):
        shown = min(len(t.head), 6) - (t.head[-1] == "what it is")
        result({}, table(t.head[:shown], [r[:shown] for r in t.rows], title=t.caption), json=False)
    result({}, words.finding(found), json=False)
    note("\n".join(["", "next:", f"  open {found.folder / 'report.html'}", *_next(found)]))
    return 0


@contextmanager
def _terminated() -> Iterator[None]:
    """SIGTERM is Ctrl-C, where nothing else watches for it: what is half made is cleared away."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _next(found: Compared) -> list[str]:
    """What can be done with the systems on the command line."""
    verb = {"language": "generate", "classification": "classify", "transformation": "generate"}
    task = found.comparison.task.kind
    outcome = next(o for o in found.outcomes if o.name == found.verdict.best)
    best = found.folder / "systems" / outcome.name / f"seed-{outcome.seeds[0]}"
    if task not in verb or outcome.kind in ("constant", "nearest"):  # these two are no models that a verb opens
        return []
    option = " --source" if task == "transformation" else ""
    return [f"  cutaway {verb[task]} {shlex.quote(str(best))}{option} \"…\""]
