"""``probe range`` as a folder: probe.json, report.html, report.md and recall.svg, whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cutaway import device as machines
from cutaway.errors import RunError, SettingsError
from cutaway.probe.range import Range, RangeSettings, measure
from cutaway.records import Screen, atomic_write, environment
from cutaway.run.folder import whole_or_nothing
from cutaway.run.range_charts import standalone
from cutaway.run.range_page import markdown, page, recall_pictures
from cutaway.settings import decode, nearest, override


@dataclass(frozen=True)
class RangeFolder:
    """A finished probe on the disk."""

    folder: Path
    found: Range


def load(assignments: Sequence[str] = ()) -> RangeSettings:
    """The defaults with ``a.b=value`` laid over them. Raises SettingsError with the nearest name for a wrong one."""
    where = " ".join(["probe range", *assignments])
    tree = override({}, assignments, of=RangeSettings)
    data = tree.get("data")
    if isinstance(data, dict) and isinstance(data.get("path"), str) and data["path"]:
        path = os.path.abspath(Path(data["path"]).expanduser())  # noqa: PTH100  (may be a glob)
        tree["data"] = {"kind": "path", **data, "path": path}
    return decode(RangeSettings, tree, where=where)


def start(settings: RangeSettings, root: Path, screen: Screen) -> RangeFolder:
    """Measure, and keep everything in ``root/name`` (not given: the first free ``range-N``).

    Raises RunError where a folder of that name exists or cannot be made; nothing is left of a probe that was stopped.
    """
    name = settings.name or next(n for i in range(1, 10**9) if not (root / (n := f"range-{i}")).exists())
    target = root / name
    if target.exists():
        raise RunError("a probe of this name exists", where=target, way_out="give another name=…, or none")
    with whole_or_nothing(target) as folder:
        threads = machines.set_threads()
        found = measure(settings, screen)
        write(folder, name, settings, found, threads=threads)
    return RangeFolder(target, found)


def write(folder: Path, name: str, settings: RangeSettings, found: Range, *, threads: int) -> None:
    """The files. They say the same: page and picture are drawn from what probe.json holds."""
    value: dict[str, Any] = {"name": name, "settings": settings.model_dump(mode="json"), "threads": threads,
                             "environment": environment(), "cpu": machines.describe(machines.Device("cpu")).cpu,
                             **found.to_dict()}
    atomic_write(folder / "probe.json", json.dumps(value, ensure_ascii=False, indent=1) + "\n")
    atomic_write(folder / "report.html", page(value))
    atomic_write(folder / "report.md", markdown(value))
    atomic_write(folder / "recall.svg", standalone(recall_pictures(found)[0].chart))


def check(what: str, known: Sequence[str]) -> None:
    """Raises SettingsError with the nearest probe for one that does not exist."""
    if what not in known:
        near = nearest(what, known)
        raise SettingsError(f"no probe is called {what!r}", way_out=f"did you mean {near!r}?" if near else
                            f"there are {', '.join(known)}")
