"""``cutaway eval``: measure finished models, on their runs' text or on public tasks, with n and interval."""

from __future__ import annotations

import json as _json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cutaway.cli.console import Json, note, progress, result, table

if TYPE_CHECKING:
    from cutaway.device import Device
    from cutaway.models.open import Asked
    from cutaway.records import Measurement
    from cutaway.run.folder import Run


def command(
    model: Annotated[str, typer.Argument(help="A run, a model folder or file, or a fetched model's name.")],
    task: Annotated[str, typer.Argument(help="bits, answers, all; or a task: arc_easy, gsm8k …, or a .toml.")] = "all",
    settings: Annotated[list[str] | None, typer.Argument(help="path=value of a task, as in fewshot.count=5.")] = None,
    *,
    data: Annotated[Path | None, typer.Option(help="The task's rows; or other text for bits per byte.")] = None,
    limit: Annotated[int | None, typer.Option(help="So many items of a task, from the first.")] = None,
    items: Annotated[Path | None, typer.Option(help="Write every item and its outcome here, as JSON lines.")] = None,
    precision: Annotated[Literal["stored", "float32", "bfloat16", "int8", "int4"] | None, typer.Option(
        help="Of products; the run's own, or float32, if not given.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    runs: Annotated[Path, typer.Option(help="The folder that runs lie in.")] = Path("runs"),
    json: Json = False,
) -> None:
    """Measure a model: bits per byte, answers, tasks, with n and interval."""
    from cutaway.device import pick, set_threads
    from cutaway.errors import SettingsError
    from cutaway.evaluate.task import is_task
    from cutaway.run.suites import check_suite, measure, models_of

    check_suite(task)
    run, folders = models_of(model, runs)
    set_threads()
    where = pick(device)
    if is_task(task):
        given = [] if data is None else [f"path={_json.dumps(str(data), ensure_ascii=False)}"]
        given += [] if limit is None else [f"limit={limit}"]
        _task(task, [*(settings or []), *given], folders, run, where, precision, items, json=json)
        return
    for name, value in (("path=value", settings or None), ("--limit", limit), ("--items", items)):
        if value is not None:
            raise SettingsError(f"{name} is for a task, and {task!r} is none", where="cutaway eval",
                                way_out="name a task, such as arc_easy, or leave it out")
    found = {folder: measure(folder, task, run=run, data=data, device=where, precision=precision) for folder in folders}
    if task == "all" and run is None:
        note("answers were not measured: only a run has held-out requests")
    result({"models": _plain(found)}, _table(found), json=json)


def _task(name: str, assignments: Sequence[str], folders: Sequence[Path], run: Run | None, where: Device,
          precision: Asked | None, written: Path | None, *, json: bool) -> None:
    from cutaway.errors import RunError
    from cutaway.evaluate.items import read_items
    from cutaway.evaluate.task import load_task
    from cutaway.evaluate.task_scores import Scored
    from cutaway.records import atomic_write
    from cutaway.run.suites import answered

    if written is not None and written.exists():
        raise RunError("is there already", where=written, way_out="name a new file, or remove it")
    task = load_task(name, assignments)
    items = read_items(task)
    notes = list(items.notes())
    found: dict[Path, Scored] = {}
    for folder in folders:
        with progress(f"{folder.name} {task.name}", total=len(items.items), unit="items") as bar:
            for part in answered(folder, task, items, run, where, precision):
                if isinstance(part, Scored):
                    found[folder] = part
                else:
                    bar.advance(part)
        notes += [f"{folder.name}: {text}" for text in found[folder].notes()]
    for text in notes:
        note(f"note: {text}")
    if written is not None:
        rows = ({"model": str(folder), **row} for folder, scored in found.items() for row in scored.rows(items))
        atomic_write(written, "".join(_json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    figures = {folder: dict(scored.figures) for folder, scored in found.items()}
    result({"task": task.model_dump(mode="json"), "notes": notes, "models": _plain(figures)}, _table(figures),
           json=json)


def _plain(found: Mapping[Path, Mapping[str, Measurement]]) -> dict[str, Any]:
    return {str(f): {n: m.to_dict() for n, m in figures.items()} for f, figures in found.items()}


def _table(found: Mapping[Path, Mapping[str, Measurement]]) -> Any:
    names = list(dict.fromkeys(n for figures in found.values() for n in figures))
    rows = [(n, *(str(f[n]).removeprefix(f[n].name).strip() if n in f else "–" for f in found.values())) for n in names]
    return table(("figure", *(f.name for f in found)), rows)
