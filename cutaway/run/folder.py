"""Run: one folder that holds everything about one run, and is all that resuming, comparing and reporting read.

recipe.toml, lineage.json, log.jsonl, stages.jsonl, samples.jsonl, preferences.jsonl, tokenizer/, data/,
evals/<name>.json, checkpoints/<stage>/step-N/, models/<name>/, report.html, report.md.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cutaway.errors import RunError
from cutaway.records import Journal, atomic_write, read_journal, take_lock
from cutaway.run.recipe import Recipe, reload
from cutaway.settings import to_toml

PARTS = ("evals", "checkpoints", "models")
_WAY_OUT = "free space or make the folder writable, then try again"


@dataclass(frozen=True)
class Run:
    """A run's folder. Every method that writes is atomic; only the process that holds ``lock`` may call one."""

    folder: Path

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.name

    @property
    def recipe(self) -> Recipe:
        """The recipe as it is written down now."""
        return reload(self.folder / "recipe.toml")

    def write_recipe(self, recipe: Recipe) -> None:
        """Write the resolved recipe, every default in it."""
        atomic_write(self.folder / "recipe.toml", to_toml(recipe))

    @cached_property
    def log(self) -> Journal:
        """One row a step."""
        return Journal(self.folder / "log.jsonl")

    @cached_property
    def stages(self) -> Journal:
        """One row when a stage is planned, when it is stopped and when it is done, with its costs."""
        return Journal(self.folder / "stages.jsonl")

    def model(self, name: str) -> Path:
        """The model folder of that name: base, finetuned, reward, aligned."""
        return self.folder / "models" / name

    def checkpoints(self, stage: str) -> Path:
        """Where a stage's checkpoints lie."""
        return self.folder / "checkpoints" / stage

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """A JSON file inside the run."""
        atomic_write(self.folder / name, json.dumps(value, indent=1, ensure_ascii=False, default=_plain) + "\n")

    def read_json(self, name: str) -> dict[str, Any] | None:
        """A JSON file inside the run, None if it is not there yet. Raises RunError if it is damaged."""
        path = self.folder / name
        try:
            value = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise RunError(f"damaged or unreadable ({error})", where=path,
                           way_out="delete it and resume the run") from None
        if not isinstance(value, dict):
            raise RunError("holds no object", where=path, way_out="delete it and resume the run")
        return value

    def rows(self, journal: Journal) -> list[dict[str, Any]]:
        """The rows of one of the run's journals, none if it has not been begun."""
        return read_journal(journal.path) if journal.path.exists() else []

    def done(self, stage: str) -> bool:
        """Whether a stage has been finished."""
        return any(r.get("stage") == stage and r.get("event") == "done" for r in self.rows(self.stages))

    def keep(self, journal: Journal, wanted: Callable[[Mapping[str, Any]], bool]) -> None:
        """Leave out rows: what was logged behind the checkpoint that a stage goes on from will be logged again."""
        before = self.rows(journal)
        after = [r for r in before if wanted(r)]
        if len(after) < len(before):
            atomic_write(journal.path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in after))

    @contextmanager
    def folder_for(self, target: Path) -> Iterator[Path]:
        """A new folder to fill; it takes the place of ``target`` only when the block ends well."""
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        except OSError as error:
            raise RunError(f"cannot be written ({error.strerror or error})", where=target, way_out=_WAY_OUT) from None
        try:
            yield temporary
            temporary.chmod(0o755)
            if target.exists():
                shutil.rmtree(target)
            temporary.rename(target)
        except OSError as error:
            raise RunError(f"cannot be written ({error.strerror or error})", where=target, way_out=_WAY_OUT) from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for this process. Raises RunError if another process has it."""
        path = self.folder / ".lock"
        try:
            handle = take_lock(path)
        except BlockingIOError as error:
            raise RunError(f"in use by {error}", where=self.folder,
                           way_out="wait until it ends, or stop it with Ctrl-C") from None
        except OSError as error:
            raise RunError(f"cannot be written ({error.strerror or error})", where=path, way_out=_WAY_OUT) from None
        try:
            yield
        finally:
            os.close(handle)


def create(root: Path, recipe: Recipe) -> Run:
    """A new run ``root/name``. Raises RunError with the next free name if that one is taken."""
    target = root / recipe.name
    make_folder(target, {"recipe.toml": to_toml(recipe)}, parts=PARTS, resume=f"cutaway resume {target}")
    return Run(target)


@contextmanager
def whole_or_nothing(target: Path) -> Iterator[Path]:
    """A temporary folder beside ``target`` that becomes it when the block ends, and is gone if it does not end well.

    Raises RunError where it cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise RunError(f"cannot be written ({error.strerror or error})", where=target.parent,
                       way_out=_WAY_OUT) from None
    try:
        yield temporary
        temporary.chmod(0o755)
        temporary.rename(target)
    except OSError as error:
        raise RunError(f"cannot be written ({error.strerror or error})", where=target, way_out=_WAY_OUT) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def make_folder(target: Path, texts: Mapping[str, str], *, parts: Sequence[str], resume: str) -> None:
    """A new folder with these files and subfolders, whole or not at all.

    Raises RunError, with the next free name and the command that goes on, if it exists; or if it cannot be written.
    """
    if target.exists():
        name = target.name
        free = next(n for i in range(2, 10**9) if not (target.parent / (n := f"{name}-{i}")).exists())
        raise RunError("a run of this name exists", where=target,
                       way_out=f"add name={free}, or go on with it: {resume}")
    with whole_or_nothing(target) as temporary:
        for part in parts:
            (temporary / part).mkdir()
        for name, text in texts.items():
            atomic_write(temporary / name, text)


def open_run(name: str | Path, root: Path = Path("runs")) -> Run:
    """The run at a path, or of that name below ``root``. Raises RunError with the names there are."""
    for folder in (Path(name), root / name):
        if (folder / "recipe.toml").is_file():
            return Run(folder)
    if Path(name).is_dir():
        raise RunError("not a run: it holds no recipe.toml", where=name, way_out="name a folder that cutaway run made")
    there = [r.name for r in runs(root)]
    known = f"there are {', '.join(there)}" if there else f"{root} has none; begin with: cutaway run quickstart"
    raise RunError(f"no run {str(name)!r}", way_out=known)


def runs(root: Path = Path("runs")) -> list[Run]:
    """Every run below ``root``, by name."""
    return [Run(p.parent) for p in sorted(root.glob("*/recipe.toml"))] if root.is_dir() else []


def _plain(value: object) -> object:
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if hasattr(value, "item"):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")
