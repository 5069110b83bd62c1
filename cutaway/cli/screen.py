"""The screen of a run: the pipeline's notes and progress, on stderr."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cutaway.cli.console import note, progress, result, table

if TYPE_CHECKING:
    from cutaway.records import Bar, Measurement
    from cutaway.run.folder import Run

MODELS = ("random", "base", "finetuned", "aligned")


@dataclass(frozen=True)
class ConsoleScreen:
    """``quiet`` shows nothing but errors, as with --json."""

    quiet: bool = False

    def note(self, text: str) -> None:
        """One line on stderr."""
        if not self.quiet:
            note(text)

    def progress(self, name: str, *, total: float, unit: str) -> AbstractContextManager[Bar]:
        """A bar with rate and time left on a terminal, lines elsewhere."""
        return progress(name, total=total, unit=unit, quiet=self.quiet)


def summary(run: Run) -> dict[str, Any]:
    """What ``--json`` of run, resume and show ends with: the folder and every headline figure with n and interval."""
    from cutaway.run.stage_evaluate import figures

    rows = run.rows(run.stages)
    return {"run": run.name, "folder": str(run.folder), "report": str(run.folder / "report.html"),
            "stages": {r["stage"]: r.get("seconds") for r in rows if r.get("event") == "done"},
            "seconds": max((r["elapsed"] for r in rows), default=None),
            "peak_rss_bytes": max((r["peak_rss_bytes"] for r in rows), default=None),
            "figures": {name: _short(m) for name, m in figures(run).items()}}


def _short(m: Measurement) -> dict[str, Any]:
    return {"value": m.value, "unit": m.unit, "n": m.n, "low": m.low, "high": m.high}


def show_end(run: Run, *, json: bool) -> None:
    """The last lines of a run: headline numbers, then the next commands."""
    from cutaway.run.stage_evaluate import figures

    value = summary(run)
    if json:
        result(value, "", json=True)
        return
    result(value, figure_table(figures(run)), json=False)
    minutes = "" if value["seconds"] is None else f"{value['seconds']:.0f} s, "
    memory = "" if value["peak_rss_bytes"] is None else f"{value['peak_rss_bytes'] / 2**30:.2f} GiB at most"
    note(f"{run.folder}: {minutes}{memory}")
    result({}, "\n".join(next_commands(run)), json=False)


UNITS = {"share": "", "bits per byte": "", "nats": "nats an answer"}
CHANGES = ("change", "forgetting")  # differences from another model: their sign is the news


def figure_table(found: dict[str, Measurement]) -> Any:
    """Figures by model: one row a figure, one column a model, n at the end; below it what belongs to no model."""
    from rich.console import Group

    models = [m for m in MODELS if any(k.split(".", 1)[0] == m for k in found)]
    names = dict.fromkeys(k.split(".", 1)[1] for k in found if k.split(".", 1)[0] in models)
    rows = []
    for name in names:
        measured = [found.get(f"{m}.{name}") for m in models]
        n = next((m.n for m in reversed(measured) if m is not None), None)
        rows.append([_named(name, measured), *(_cell(m, signed=name in CHANGES) for m in measured),
                     "" if n is None else f"{n:,}"])
    apart = [f"{key.rsplit('.', 1)[0]} {_named(key.rsplit('.', 1)[1], [m])} {_cell(m)}"
             + (f" (n = {m.n:,})" if m.n else "") for key, m in found.items() if key.rsplit(".", 1)[0] not in models]
    judges = dict.fromkeys(str(m.conditions["judge"]) for m in found.values() if "judge" in m.conditions)
    apart += [f"satisfies, parses: verdicts of {judge}" for judge in judges]
    return Group(table(["figure, 95 % interval", *models, "n"], rows), *(f"  {line}" for line in apart))


def _named(name: str, measured: list[Measurement | None]) -> str:
    unit = next((m.unit for m in measured if m is not None), "")
    words = name.replace("_", " ")
    extra = "" if unit in words else UNITS.get(unit, unit)
    return words if extra == "" or extra in words else f"{words}, {extra}"


def _cell(m: Measurement | None, *, signed: bool = False) -> str:
    if m is None:
        return "–"
    scale, mark, digits = (100, " %", 0) if m.unit == "share" else (1, "", 2)
    sign = "+" if signed else ""
    text = f"{m.value * scale:{sign}.{digits}f}{mark}"
    if m.low is None or m.high is None:
        return text
    return f"{text} [{m.low * scale:{sign}.{digits}f}, {m.high * scale:{sign}.{digits}f}]"


def next_commands(run: Run) -> list[str]:
    """What a person may want to type now."""
    model = run.model(next((m for m in reversed(MODELS) if run.model(m).is_dir()), "aligned"))
    code = (run.read_json("data/text.json") or {}).get("kind") == "functions"
    opening = "def " if code else "The "
    begun = run.recipe.tokenizer is None
    own = f"  cutaway export {model} --to safetensors" if begun else "  cutaway run quickstart data.path=DIR name=mine"
    return ["", "next:", f"  open {run.folder / 'report.html'}", f"  cutaway chat {model}",
            f'  cutaway generate {model} "{opening}"', f"  cutaway show {run.folder}", own]
