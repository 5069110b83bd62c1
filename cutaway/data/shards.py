"""Shards: a corpus as memory-mapped token files with a manifest that says what they hold and whether they still do.

A split is ``<split>.tokens`` (uint16, or uint32 for a large vocabulary: each document is bos, its text, eos),
``<split>.index`` (int64 pairs: where each document's tokens and its name begin) and ``<split>.names`` (one line a
document: digest, name). ``manifest.json`` is written last, so a folder with a manifest is complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cutaway.data.documents import SPLITS, Corpus, Document, Split
from cutaway.errors import DataError, RunError
from cutaway.records import atomic_write, digest
from cutaway.text.tokenizer import Tokenizer

VERSION = 1
# Text that is encoded at once: enough to keep the encoder busy, little beside any machine's memory.
_BLOCK_CHARS = 8_000_000
_DTYPES, _KINDS = ("uint16", "uint32"), ("tokens", "index", "names")


@dataclass(frozen=True)
class SplitCounts:
    """What a split holds; ``digest`` covers its three files, ``content`` its documents' digests in order."""

    documents: int
    tokens: int
    bytes: int
    content: str
    files: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Manifest:
    """What a folder of shards was made from and what it holds."""

    tokenizer: str
    encoder: str
    dtype: str
    bos_id: int
    eos_id: int
    splits: dict[str, SplitCounts]
    sources: dict[str, int]
    skipped: dict[str, Any]
    note: str | None
    settings: dict[str, Any]
    fingerprint: str | None
    version: int = VERSION

    def to_json(self) -> str:
        """The file's text."""
        return json.dumps(asdict(self), indent=1) + "\n"


class _Writer:
    """One split on its way to the disk: files that grow, digests that follow them."""

    def __init__(self, folder: Path, split: str, *, dtype: np.dtype[Any], bos: int, eos: int) -> None:
        self.paths = {kind: folder / f"{split}.{kind}" for kind in _KINDS}
        self._files = {kind: path.open("wb") for kind, path in self.paths.items()}
        self._hashes = {kind: hashlib.sha256() for kind in self.paths}
        self._dtype, self._ends = dtype, (bos, eos)
        self.documents = self.tokens = self.bytes = self._name_at = 0
        self._content = hashlib.sha256()
        self._put("index", np.zeros(2, "<i8").tobytes())

    def _put(self, kind: str, data: bytes | memoryview) -> None:
        self._files[kind].write(data)
        self._hashes[kind].update(data)

    def add(self, documents: list[Document], ids: NDArray[np.uint32], lengths: NDArray[np.int64]) -> None:
        """Append documents whose ids follow one another in ``ids``."""
        framed, starts = frame(ids, lengths, *self._ends)
        self._put("tokens", framed.astype(self._dtype).data.cast("B"))
        lines = [f"{d.digest} {json.dumps(d.name)}\n".encode() for d in documents]
        name_ends = self._name_at + np.cumsum([len(line) for line in lines])
        self._put("names", b"".join(lines))
        self._put("index", np.column_stack((self.tokens + starts[1:], name_ends)).astype("<i8").tobytes())
        self.documents += len(documents)
        self.tokens += len(framed)
        self._name_at = int(name_ends[-1])
        for document in documents:
            self.bytes += len(document.text.encode())
            self._content.update(bytes.fromhex(document.digest))

    def close(self) -> None:
        """Flush and close; again is harmless."""
        for file in self._files.values():
            file.close()

    def counts(self) -> SplitCounts:
        """What was written; the files are closed."""
        self.close()
        files = {kind: {"bytes": path.stat().st_size, "sha256": self._hashes[kind].hexdigest()}
                 for kind, path in self.paths.items()}
        return SplitCounts(self.documents, self.tokens, self.bytes, self._content.hexdigest(), files)


def frame(ids: NDArray[np.uint32], lengths: NDArray[np.int64], bos: int, eos: int,
          ) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Put bos before and eos after every document; also where each begins, and the end of the last."""
    starts = np.concatenate(([0], np.cumsum(lengths + 2)))
    out = np.empty(int(starts[-1]), np.uint32)
    text = np.ones(len(out), bool)
    text[starts[:-1]] = text[starts[1:] - 1] = False
    out[text] = ids
    out[starts[:-1]], out[starts[1:] - 1] = bos, eos
    return out, starts


def write_shards(folder: str | Path, corpus: Corpus, tokenizer: Tokenizer) -> Manifest:
    """Encode a corpus into ``folder``; shards there that match corpus and tokenizer are kept as they are.

    Atomic: everything is written beside the folder and renamed. Raises DataError for a corpus without text, RunError
    if the disk is full or may not be written.
    """
    folder = Path(folder)
    fingerprint = corpus.fingerprint()
    kept = _reusable(folder, tokenizer, fingerprint)
    if kept is not None:
        return kept
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            manifest = _write(temporary, corpus, tokenizer, fingerprint)
            atomic_write(temporary / "manifest.json", manifest.to_json())
            if folder.exists():
                shutil.rmtree(folder)
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise RunError(f"cannot be written ({error.strerror or error})", where=folder,
                       way_out="free space or make the folder writable, then resume") from None
    return manifest


def _write(folder: Path, corpus: Corpus, tokenizer: Tokenizer, fingerprint: str | None) -> Manifest:
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    writers = {s: _Writer(folder, s, dtype=dtype, bos=tokenizer.bos_id, eos=tokenizer.eos_id) for s in SPLITS}
    sources: dict[str, int] = {}
    fast: bool | None = None
    with contextlib.ExitStack() as closing:
        for writer in writers.values():
            closing.callback(writer.close)
        for block in _blocks(corpus):
            fast = tokenizer.agrees(d.text for d in block) if fast is None else fast
            for split, writer in writers.items():
                mine = [d for d in block if corpus.split_of(d) == split]
                if mine:
                    writer.add(mine, *tokenizer.encode_flat([d.text for d in mine], fast=fast))
            for document in block:
                sources[document.source] = sources.get(document.source, 0) + 1
    splits: dict[str, SplitCounts] = {split: writer.counts() for split, writer in writers.items()}
    encoder = "gigatoken" if fast else "tokenizers"
    return Manifest(tokenizer.digest, encoder, dtype.name, tokenizer.bos_id, tokenizer.eos_id, splits, sources,
                    corpus.skipped.to_dict(), corpus.note, corpus.settings.model_dump(mode="json"), fingerprint)


def _blocks(corpus: Corpus) -> Iterator[list[Document]]:
    block: list[Document] = []
    size = 0
    for document in corpus:
        block.append(document)
        size += len(document.text)
        if size >= _BLOCK_CHARS:
            yield block
            block, size = [], 0
    if block:
        yield block


def _reusable(folder: Path, tokenizer: Tokenizer, fingerprint: str | None) -> Manifest | None:
    if fingerprint is None or not (folder / "manifest.json").exists():
        return None
    try:
        manifest = read_manifest(folder)
    except DataError:
        return None
    same = manifest.tokenizer == tokenizer.digest and manifest.fingerprint == fingerprint
    sizes_hold = all((folder / f"{split}.{kind}").exists() for split in SPLITS for kind in _KINDS)
    return manifest if same and sizes_hold else None


def read_manifest(folder: str | Path) -> Manifest:
    """The manifest of a folder of shards. Raises DataError naming the file that is missing or damaged."""
    path = Path(folder) / "manifest.json"
    try:
        row = json.loads(path.read_text("utf-8"))
        if row["version"] != VERSION:
            raise DataError(f"shards of version {row['version']}, this is version {VERSION}", where=path,
                            way_out="delete the folder and write the shards again")
        manifest = Manifest(**{**row, "splits": {k: SplitCounts(**v) for k, v in row["splits"].items()}})
        _fits(manifest)
        return manifest
    except FileNotFoundError:
        raise DataError("no such file", where=path, way_out="write the shards first") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"damaged ({error})", where=path, way_out=_AGAIN) from None


def _fits(manifest: Manifest) -> None:
    """Raises ValueError where a split is missing, or what is said of its files cannot be."""
    if manifest.dtype not in _DTYPES or set(manifest.splits) != set(SPLITS):
        raise ValueError(f"it says {manifest.dtype!r} and {sorted(manifest.splits)}"[:80])
    for split, counts in manifest.splits.items():
        sizes = {kind: file["bytes"] for kind, file in counts.files.items()}
        wanted = {"tokens": np.dtype(manifest.dtype).itemsize * counts.tokens, "index": 16 * (counts.documents + 1)}
        if set(sizes) != set(_KINDS) or any(sizes[kind] != size for kind, size in wanted.items()):
            raise ValueError(f"the files of {split} do not hold what it says")


_AGAIN = "delete the folder and write the shards again from their source"


@dataclass(frozen=True, eq=False)
class Shards:
    """One split, memory-mapped: ``tokens (N,)``, ``starts (documents + 1,)`` where each document's tokens begin."""

    folder: Path
    split: str
    manifest: Manifest
    tokens: NDArray[Any]
    starts: NDArray[np.int64]
    _names: NDArray[np.int64]

    @classmethod
    def open(cls, folder: str | Path, split: Split = "train", *, verify: bool = True) -> Shards:
        """Map one split; every file's sha256 is checked first (about a second a gigabyte) unless ``verify`` is off.

        Raises DataError naming the file that is missing, cut short or changed.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        counts = manifest.splits[split]
        for kind, expected in counts.files.items():
            _check(folder / f"{split}.{kind}", expected, verify=verify)
        if not counts.tokens:
            raise DataError(f"the {split} split is empty", where=folder, way_out=f"raise data.{split}_share")
        index = np.memmap(folder / f"{split}.index", "<i8", "r").reshape(-1, 2)
        tokens = np.memmap(folder / f"{split}.tokens", np.dtype(manifest.dtype).newbyteorder("<"), "r")
        return cls(folder, split, manifest, tokens, np.ascontiguousarray(index[:, 0]), index[:, 1])

    def __len__(self) -> int:
        """Documents."""
        return len(self.starts) - 1

    def document(self, number: int) -> NDArray[Any]:
        """The tokens of one document, bos and eos included."""
        return self.tokens[self.starts[number] : self.starts[number + 1]]

    def name(self, number: int) -> str:
        """The name of one document, as its corpus gave it."""
        line = self._line(number)
        return str(json.loads(line.partition(b" ")[2]))

    def digest(self, number: int) -> str:
        """The sha256 of one document's text."""
        return self._line(number).partition(b" ")[0].decode()

    def _line(self, number: int) -> bytes:
        if not 0 <= number < len(self):
            raise DataError(f"document {number} of {len(self)}", where=self.folder)
        with (self.folder / f"{self.split}.names").open("rb") as file:
            file.seek(int(self._names[number]))
            return file.read(int(self._names[number + 1] - self._names[number]))

    def document_of(self, position: int) -> int:
        """Which document holds the token at ``position``."""
        if not 0 <= position < len(self.tokens):
            raise DataError(f"token {position} of {len(self.tokens)}", where=self.folder)
        return int(np.searchsorted(self.starts, position, side="right")) - 1

    def locate(self, position: int) -> tuple[str, int]:
        """The document's name and the token's offset in it (0 is its bos)."""
        number = self.document_of(position)
        return self.name(number), position - int(self.starts[number])

    @property
    def bytes(self) -> int:
        """Bytes of text in the split: the denominator of bits per byte."""
        return self.manifest.splits[self.split].bytes


def _check(path: Path, expected: dict[str, Any], *, verify: bool) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", where=path, way_out=_AGAIN) from None
    written, known = expected.get("bytes"), expected.get("sha256")
    if not isinstance(written, int) or not isinstance(known, str):
        raise DataError("the manifest says neither its bytes nor its sha256", where=path, way_out=_AGAIN)
    if size != written:
        raise DataError(f"damaged: {size:,} bytes, {written:,} were written", where=path, way_out=_AGAIN)
    if verify and digest(path) != known:
        raise DataError("damaged: its sha256 is not the one it was written with", where=path, way_out=_AGAIN)
