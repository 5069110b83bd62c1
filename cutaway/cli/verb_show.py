"""``cutaway show``: one run: its stages and their cost, its figures, where everything lies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cutaway.cli.console import Json, result, table

if TYPE_CHECKING:
    from cutaway.run.folder import Run


def command(
    run: Annotated[str, typer.Argument(help="A run's folder, or its name below --runs.")],
    *,
    runs: Annotated[Path, typer.Option(help="The folder that runs lie in.")] = Path("runs"),
    json: Json = False,
) -> None:
    """Show one run."""
    from rich.console import Group

    from cutaway.cli.screen import figure_table, summary
    from cutaway.run.folder import open_run
    from cutaway.run.pipeline import plan
    from cutaway.run.stage_evaluate import figures

    found = open_run(run, runs)
    value = summary(found)
    waiting = [name for name, _ in plan(found.recipe) if name not in value["stages"]]
    last = f"report: {value['report']}"
    if waiting:
        last = f"waiting: {', '.join(waiting)}; go on with: cutaway resume {found.folder}"
    result({**value, "waiting": waiting, "costs": _costs(found)},
           Group(_stage_table(found), figure_table(figures(found)), last), json=json)


def _costs(run: Run) -> dict[str, Any]:
    """The last plan and the end of every stage."""
    out: dict[str, Any] = {}
    for row in run.rows(run.stages):
        if row["event"] in ("plan", "done"):
            out.setdefault(row["stage"], {})[row["event"]] = row
    return out


def _stage_table(run: Run) -> Any:
    rows = []
    for stage, events in _costs(run).items():
        plan, done = events.get("plan", {}), events.get("done", {})
        rows.append((stage, _n(done.get("steps", plan.get("steps"))), _n(done.get("tokens")),
                     _n(done.get("tokens_per_second")), _n(plan.get("seconds"), " s"), _n(done.get("seconds"), " s"),
                     "–" if "share_of_peak" not in done else f"{100 * done['share_of_peak']:.1f} %"))
    columns = ("stage", "steps", "tokens", "tokens/s", "predicted", "measured", "of peak")
    return table(columns, rows, title=str(run.folder))


def _n(value: float | None, unit: str = "") -> str:
    return "–" if value is None else f"{value:,.1f}{unit}" if unit else f"{value:,.0f}"
