"""``cutaway compare``: every suitable architecture on the same split, tokenizer and budget, one process a system.

comparison.toml, lineage.json, tokenizer/, data/, systems/<name>/{outcome.json,seed-N/}, comparison.json, report.html,
report.md. What is done stays: a comparison that was stopped goes on with the next system.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cutaway import device as machines
from cutaway.errors import RunError, TrainingError
from cutaway.records import Screen, Stopwatch, atomic_write, environment
from cutaway.run import compare_language, compare_tables
from cutaway.run.compare_notes import DataNotes, read_notes
from cutaway.run.compare_parts import Outcome, Yardstick
from cutaway.run.compare_recipe import Comparison, reload
from cutaway.run.compare_verdict import Verdict, verdict
from cutaway.run.compare_worker import OPEN
from cutaway.run.folder import Run, make_folder
from cutaway.run.work import Interrupted
from cutaway.settings import to_toml
from cutaway.train.signals import Stop

PREPARE: dict[str, Callable[[Comparison, Path, Screen], None]] = {
    "language": compare_language.prepare, "classification": compare_tables.prepare,
    "transformation": compare_tables.prepare, "retrieval": compare_tables.prepare}


@dataclass(frozen=True)
class Compared:
    """A finished comparison. ``failed``: systems that came to no result, and why; ``data``: notes on its rows."""

    folder: Path
    comparison: Comparison
    yardstick: Yardstick
    outcomes: tuple[Outcome, ...]
    verdict: Verdict
    failed: dict[str, str] = field(default_factory=dict)
    data: DataNotes = field(default_factory=DataNotes)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, the item scores left to each system's own file."""
        rows = []
        for o in self.outcomes:
            row = o.to_dict()
            rows.append({k: v for k, v in row.items() if k not in ("scores", "weights", "examples", "latencies")})
        return {"folder": str(self.folder), "task": self.comparison.task.kind, "yardstick": asdict(self.yardstick),
                "verdict": asdict(self.verdict), "systems": rows, "failed": self.failed,
                "data": self.data.to_dict(), "environment": environment()}


def start(comparison: Comparison, root: Path, screen: Screen) -> Compared:
    """Make the folder, prepare the task, run every system. A folder that would hold nothing does not stay."""
    folder = root / comparison.name
    make_folder(folder, {"comparison.toml": to_toml(comparison)}, parts=("systems", "data", "tokenizer"),
                resume=f"cutaway resume {folder}")
    with Run(folder).lock():
        try:
            PREPARE[comparison.task.kind](comparison, folder, screen)
            atomic_write(folder / "prepared", "")
        except BaseException:  # whatever it was, what is half made is of no use to anybody
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return _go(folder, screen)


def go(folder: Path, screen: Screen) -> Compared:
    """Run the systems that have no outcome yet, then judge and report.

    Raises Interrupted when asked to stop, and RunError if another process is at it.
    """
    with Run(folder).lock():
        return _go(folder, screen)


def _go(folder: Path, screen: Screen) -> Compared:
    from cutaway.run.compare_report import write_report

    comparison = reload(folder / "comparison.toml")
    if not (folder / "prepared").exists():
        raise RunError("was stopped before its data was ready", where=folder, way_out="remove it and begin again")
    failed: dict[str, str] = {}
    with Stop() as stop, screen.progress("compare", total=len(comparison.systems), unit="systems") as bar:
        for name in comparison.systems:
            if not _done(folder / "systems" / name / "outcome.json", screen):
                reason = _run(folder, name, lambda: stop.requested)
                if stop.requested:
                    raise Interrupted(folder)
                if reason:
                    failed[name] = reason
                    screen.note(f"{name}: {reason}")
            bar.advance(1, name)
    compared = read(folder, failed)
    atomic_write(folder / "comparison.json", json.dumps(compared.to_dict(), indent=1, ensure_ascii=False))
    write_report(compared)
    return compared


def _done(path: Path, screen: Screen) -> bool:
    """Whether a system came to a whole outcome; a damaged one is thrown away, for its system can be trained again."""
    if not path.exists():
        return False
    try:
        _outcome(path)
    except RunError as damage:
        screen.note(f"{path}: {damage.what}; the system is trained again")
        path.unlink()
        return False
    return True


def _outcome(path: Path) -> Outcome:
    try:
        return Outcome.from_dict(json.loads(path.read_text("utf-8")))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise RunError(f"damaged ({error})", where=path, way_out="delete it and resume the comparison") from None


def read(folder: Path, failed: dict[str, str] | None = None) -> Compared:
    """The outcomes a folder holds, judged. Raises TrainingError where fewer than two systems came to one."""
    comparison = reload(folder / "comparison.toml")
    found = [folder / "systems" / name / "outcome.json" for name in comparison.systems]
    outcomes = tuple(_outcome(p) for p in found if p.exists())
    failed = failed or {}
    if len(outcomes) < 2:
        why = "; ".join(f"{name}: {reason}" for name, reason in failed.items()) or "none has been run"
        raise TrainingError(f"{len(outcomes)} of {len(comparison.systems)} systems came to a result: {why}",
                            where=folder)
    yardstick = OPEN[comparison.task.kind](comparison, folder).yardstick
    return Compared(folder, comparison, yardstick, outcomes, verdict(outcomes, yardstick), failed, read_notes(folder))


def _run(folder: Path, name: str, asked: Callable[[], bool]) -> str | None:
    """One system in its own process; None when it is done, else why it is not."""
    command = [sys.executable, "-m", "cutaway.run.compare_worker", str(folder), name]
    log, error = folder / "systems" / f"{name}.log", folder / "systems" / name / "error.json"
    error.unlink(missing_ok=True)
    with log.open("wb") as out, Stopwatch() as watch:
        process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True,
                                   env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)})
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.2)
            if asked() and process.poll() is None:
                process.terminate()
    if process.returncode == 0:
        log.unlink(missing_ok=True)
        return None
    if asked():
        return "stopped"
    if error.exists():
        return str(json.loads(error.read_text("utf-8"))["error"])
    return f"ended with exit code {process.returncode} after {watch.seconds:.0f} s; see {log}"


def machine_of(comparison: Comparison) -> machines.Machine:
    """The machine it ran on."""
    return machines.known(machines.pick(comparison.device))
