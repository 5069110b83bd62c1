"""A model of the Hugging Face hub: configuration, tokenizers, safetensors and GGUF, each held against the checksum that
the hub gives. What a broken download left is gone on from; HF_ENDPOINT and HF_TOKEN are honoured by the library."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from cutaway.errors import ModelError
from cutaway.models.arrival import AWAY, MIB, Progress, watched
from cutaway.models.sentence import MODULES, POOLING
from cutaway.models.store import Source
from cutaway.models.whole import read_list
from cutaway.records import digest

PARTS = ".cache"  # in a folder that is being fetched: what is not whole yet
GGUF = ".gguf"
_WANTED = ("*.json", "*.safetensors", "*.model", "*.tiktoken", "vocab.txt", "merges.txt", "chat_template.jinja",
           f"*{GGUF}")
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_WAY_OUT = ("check the name and the connection; HF_ENDPOINT names a mirror, HF_TOKEN opens what is gated; what came so "
            "far is kept")


def from_hub(name: str, revision: str | None, draft: Path, *, say: Callable[[str], None],
             progress: Progress | None) -> Source:
    """Fetch a model into ``draft``. Raises ModelError where it is not there, holds no safetensors, cannot be reached or
    is not what the hub says; what came of it stays."""
    say(f"fetching {name}{f' at {revision}' if revision else ''} from the Hugging Face hub")
    try:
        with _quiet():
            told = _fetched(name, revision, draft, progress)
    except ModelError:
        raise
    except Exception as error:  # those of the library's transport are not in its own list
        raise ModelError(f"{name} could not be fetched ({_why(error)})", where="Hugging Face hub",
                         way_out=_WAY_OUT) from None
    card: Any = getattr(told, "card_data", None)
    licence = card.get("license") if card is not None else None
    return Source(name, "huggingface.co", str(told.sha), str(licence) if licence else None, revision)


def _fetched(name: str, revision: str | None, draft: Path, progress: Progress | None) -> Any:
    from huggingface_hub import HfApi

    name, _, chosen = name.partition(":")
    told = HfApi().model_info(name, revision=revision, files_metadata=True)
    for file in told.siblings or []:
        _refuse_out(name, file.rfilename)
    here = [f for f in told.siblings or [] if wanted(f.rfilename)]
    files = _one(name, chosen, here)
    if not any(f.rfilename.endswith((".safetensors", GGUF)) for f in files):
        held = [f.rfilename for f in told.siblings or []]
        pickled = [f for f in held if f.endswith(_PICKLED)]
        only = f", only {pickled[0]}, which is code" if pickled else ""
        raise ModelError(f"{name} holds no safetensors{only}",
                         way_out="ask its owner for safetensors, or convert it where code may run")
    if (listed := next((f for f in files if f.rfilename == MODULES), None)) is not None:
        _file(name, str(told.sha), listed, draft)
        places = _places(draft / MODULES)
        files += [f for f in told.siblings or [] if f.rfilename.partition("/")[0] in places
                  and wanted(f.rfilename, within=f.rfilename.partition("/")[0])]
    _clean(draft, {f.rfilename for f in files})
    with watched(draft, name, sum(f.size or 0 for f in files), progress):
        for file in files:
            _file(name, str(told.sha), file, draft)
    return told


def _clean(draft: Path, names: set[str]) -> None:
    """Take away what an older try of another revision left."""
    for path in sorted(draft.rglob("*")):
        place = path.relative_to(draft).as_posix()
        if path.is_file() and place not in names and not place.startswith(f"{PARTS}/"):
            path.unlink()


def _refuse_out(name: str, file: str) -> None:
    """Nobody who means well has such a file, wanted or not."""
    place = PurePosixPath(file)
    if place.is_absolute() or ".." in place.parts or "\\" in file:
        raise ModelError(f"{name} holds {file!r}, which leads out of its folder",
                         way_out="do not use this model; nothing of it was read")


def _file(name: str, revision: str, told: Any, draft: Path) -> None:
    """Fetch one file, from where a broken try ended, and hold it against the hub's checksum."""
    from huggingface_hub import hf_hub_url, utils
    from huggingface_hub.file_download import http_get

    library: Any = utils
    place = PurePosixPath(told.rfilename)
    target = draft / place
    if target.is_file() and _whole(target, told):
        return
    part = draft / PARTS / digest(f"{revision} {place}".encode())[:24]
    part.parent.mkdir(parents=True, exist_ok=True)
    if part.exists() and told.size is not None and part.stat().st_size > told.size:
        part.unlink()
    with part.open("ab") as file:
        http_get(hf_hub_url(name, told.rfilename, revision=revision), file, resume_size=file.tell(),
                 headers=library.build_hf_headers(), expected_size=told.size, displayed_filename=told.rfilename)
    if not _whole(part, told):
        part.unlink()
        raise ModelError(f"{place} of {name} is not what the hub says it is (its checksum differs)",
                         where="Hugging Face hub", way_out="try again: that file is fetched anew")
    target.parent.mkdir(parents=True, exist_ok=True)
    part.replace(target)


def wanted(name: str, *, within: str = POOLING) -> bool:
    """Whether a model may have this file, in its folder or in that of a module beside it; other copies of the weights
    and other people's folders stay where they are."""
    folder, _, last = name.rpartition("/")
    return folder in ("", within) and any(fnmatch(last, pattern) for pattern in _WANTED)


def _places(modules: Path) -> set[str]:
    """The folders that sentence-transformers' list names beside the pooling's, which is fetched anyway."""
    named = {str(m.get("path", "")) for m in read_list(modules) if isinstance(m, dict)}
    return {place for place in named if place and "/" not in place} - {POOLING, PARTS}


def _one(name: str, chosen: str, files: list[Any]) -> list[Any]:
    """The GGUF file that was chosen, or the only one there is where nothing else holds weights; else all but those."""
    ggufs = [f for f in files if f.rfilename.endswith(GGUF)]
    if chosen:
        ggufs = [f for f in ggufs if f.rfilename == chosen]
    elif any(f.rfilename.endswith(".safetensors") for f in files) or not ggufs:
        return [f for f in files if f not in ggufs]
    if len(ggufs) != 1:
        listed = ", ".join(f"{f.rfilename} ({(f.size or 0) / MIB:,.0f} MiB)" for f in files
                           if f.rfilename.endswith(GGUF)) or "none"
        raise ModelError(f"{name} holds no {chosen}, but {listed}" if chosen else
                         f"{name} holds {len(ggufs)} GGUF files: {listed}", way_out=f"cutaway pull {name}:FILE")
    return ggufs


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's own bars and warnings: progress is shown here, and a failure is told once."""
    from huggingface_hub import utils

    library: Any = utils
    shown, level = not library.are_progress_bars_disabled(), library.logging.get_verbosity()
    library.disable_progress_bars()
    library.logging.set_verbosity_error()
    try:
        yield
    finally:
        library.logging.set_verbosity(level)
        if shown:
            library.enable_progress_bars()


def _why(error: BaseException) -> str:
    """One line: that nobody answers, or the library's own words."""
    chain, seen = error, list[BaseException]()
    while chain is not None and chain not in seen:
        seen.append(chain)
        if type(chain).__name__ in AWAY:
            return f"{os.environ.get('HF_ENDPOINT', 'huggingface.co')} does not answer: offline?"
        chain = chain.__cause__ or chain.__context__  # type: ignore[assignment]
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _whole(path: Path, told: Any) -> bool:
    """By sha256 for what the hub keeps as a large file, by git's sha1 for another; by size where it says neither."""
    large = getattr(told, "lfs", None)
    if large is not None:
        return digest(path) == str(large.sha256)
    if told.blob_id:
        data = path.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest() == str(told.blob_id)
    return told.size is None or path.stat().st_size == int(told.size)
