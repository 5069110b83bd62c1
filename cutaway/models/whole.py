"""What every kind of model folder needs: written whole or not at all, and read with every damage named."""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cutaway.errors import DataError, ModelError, RunError
from cutaway.records import atomic_write, digest

CONFIG, WEIGHTS, SIDE = "config.json", "model.safetensors", "cutaway.json"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
AGAIN = "save it again or restore it from a copy"
NAME_FOLDER = "name a folder that holds a model"
_SETTLED = 10**8  # nanoseconds after which a change of a file shows in its times


@contextlib.contextmanager
def whole_folder(folder: Path, files: Collection[str]) -> Iterator[Path]:
    """An empty folder to fill, which takes the place of ``folder`` when the block has ended well. A folder that holds
    nothing but ``files`` is replaced.

    Raises ModelError where something else is there, RunError where it cannot be written; what was there stays.
    """
    _refuse_other(folder, files)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    except OSError as error:
        raise _unwritable(folder, error) from None
    try:
        yield temporary
        temporary.chmod(0o755)
        _put(temporary, folder)
    except OSError as error:
        raise _unwritable(folder, error) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _refuse_other(folder: Path, files: Collection[str]) -> None:
    if folder.exists() and not folder.is_dir():
        raise ModelError("a file is in the way", where=folder, way_out="name another folder")
    other = sorted(p.name for p in folder.iterdir() if p.name not in files) if folder.is_dir() else []
    if other:
        raise ModelError(f"holds {other[0]}, which is no part of a model", where=folder, way_out="name another folder")


def _unwritable(folder: Path, error: OSError) -> RunError:
    return RunError(f"cannot be written ({error.strerror or error})", where=folder,
                    way_out="free space or make the folder writable, then try again")


def _put(temporary: Path, folder: Path) -> None:
    """Take the place of an older folder; it stays whole until the new one does."""
    if not folder.exists():
        temporary.rename(folder)
        return
    old = temporary.with_suffix(".old")
    folder.rename(old)
    try:
        temporary.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old)


def write_json(path: Path, value: Mapping[str, Any] | Sequence[Any]) -> None:
    """One object or list, indented, atomically."""
    atomic_write(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """One object. Raises ModelError where the file is missing, damaged or holds something else."""
    value = _json(path)
    if not isinstance(value, dict):
        raise ModelError("holds no object", where=path, way_out=AGAIN)
    return value


def read_list(path: Path) -> list[Any]:
    """One list. Raises ModelError where the file is missing, damaged or holds something else."""
    value = _json(path)
    if not isinstance(value, list):
        raise ModelError("holds no list", where=path, way_out=AGAIN)
    return value


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ModelError("no such file", where=path, way_out=NAME_FOLDER) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"damaged or unreadable ({error})", where=path, way_out=AGAIN) from None


def read_bytes(path: Path, expected: str | None) -> bytes:
    """The whole file. Raises ModelError where it is missing, or where its sha256 is not ``expected``, if given."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ModelError("no such file", where=path, way_out=NAME_FOLDER) from None
    except OSError as error:
        raise ModelError(f"cannot be read ({error.strerror or error})", where=path) from None
    if expected is not None and digest(data) != expected:
        raise ModelError("damaged: its sha256 is not the one it was saved with", where=path, way_out=AGAIN)
    return data


def check_digest(path: Path, expected: object) -> None:
    """Raises ModelError where a file too large to be read at once is missing, or its sha256 is not ``expected``. A file
    that has not changed since this process last read it is not read again."""
    try:
        now = path.stat()
        settled = time.time_ns() - now.st_ctime_ns > _SETTLED
        found = _digest(path, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns) if settled else digest(path)
    except OSError as error:
        raise ModelError(f"cannot be read ({error.strerror or error})", where=path, way_out=NAME_FOLDER) from None
    except DataError as error:
        raise ModelError(error.what, where=path, way_out=NAME_FOLDER) from None
    if found != expected:
        raise ModelError("damaged: its sha256 is not the one it was saved with", where=path, way_out=AGAIN)


@functools.lru_cache(maxsize=256)
def _digest(path: Path, *_times: int) -> str:
    """Of a file that is known by its times: most of the time of loading it again would be this."""
    return digest(path)


def damaged(path: Path, error: Exception) -> ModelError:
    """A file of weights that the library cannot read."""
    return ModelError(f"damaged: not a safetensors file ({error})", where=path, way_out=AGAIN)
