"""The models on this machine that go by a name: what ``pull`` fetched, a folder each, with a note of where it is from.

The folder is ``$CUTAWAY_MODELS``, by default ``$XDG_DATA_HOME/cutaway/models`` (``~/.local/share/cutaway/models``).
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from cutaway.errors import ModelError
from cutaway.models.whole import read_json
from cutaway.records import atomic_write
from cutaway.settings import nearest

SOURCE = "source.json"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(?:/[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
                  r"(?::[A-Za-z0-9][A-Za-z0-9._-]{0,150}\.gguf)?)?")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model is from: its name, the address or package, its revision or version, its licence if it is known, and
    the revision that was asked for."""

    name: str
    origin: str
    revision: str
    licence: str | None = None
    asked: str | None = None


def models_folder() -> Path:
    """Where models that go by a name lie."""
    given, data = os.environ.get("CUTAWAY_MODELS"), os.environ.get("XDG_DATA_HOME", "")
    if given:
        return Path(given)
    return (Path(data) if Path(data).is_absolute() else Path.home() / ".local" / "share") / "cutaway" / "models"


def place_of(name: str) -> Path:
    """The folder of a name. Raises ModelError for what cannot be a name: it must not lead out of the folder."""
    if not NAME.fullmatch(name) or ".." in name:
        raise ModelError(f"{name!r} is no name of a model",
                         way_out="write NAME, OWNER/NAME as on the hub, or OWNER/NAME:FILE.gguf")
    return models_folder() / name.replace("/", "--")


def located(name: str | Path) -> Path | None:
    """The folder, or the GGUF file, of a model that was fetched under this name; None where there is none."""
    text = str(name)
    if not NAME.fullmatch(text) or ".." in text or not (folder := place_of(text)).is_dir():
        return None
    return model_file(folder)


def name_of(place: Path) -> str | None:
    """The name under which the model that lies here was fetched; None where it was not."""
    folder = (place.parent if place.is_file() else place).resolve()
    if folder.parent != models_folder().resolve() or not (folder / SOURCE).is_file():
        return None
    name = read_json(folder / SOURCE).get("name")
    found = located(name) if isinstance(name, str) else None
    return name if found is not None and found.resolve() == place.resolve() else None


def model_file(folder: Path) -> Path:
    """The folder itself, or the one GGUF file that it holds."""
    files = sorted(folder.glob("*.gguf")) if folder.is_dir() and not (folder / "config.json").is_file() else []
    return files[0] if len(files) == 1 else folder


def fetched() -> list[tuple[Source, Path, int]]:
    """Every model that goes by a name, where it lies and how many bytes it takes."""
    out = []
    for folder in sorted(models_folder().iterdir()) if models_folder().is_dir() else []:
        if (folder / SOURCE).is_file():
            tree = read_json(folder / SOURCE)
            source = Source(**{k: tree.get(k) for k in ("name", "origin", "revision", "licence")})  # type: ignore[arg-type]
            out.append((source, folder, sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())))
    return out


def similar_name(name: str, known: list[str]) -> str | None:
    """The nearest of the names that are here or could be fetched."""
    return nearest(name, [*(source.name for source, _, _ in fetched()), *known])


def write_source(folder: Path, source: Source) -> None:
    """Note where a model is from."""
    atomic_write(folder / SOURCE, json.dumps(asdict(source), indent=1, ensure_ascii=False) + "\n")
