"""Documents: any text on this machine as a stream of ``Document``, de-duplicated and split by content hash.

Nothing is dropped silently: what cannot be used is counted and listed with its reason. The split is a function of a
document's own bytes (as in The Pile's hash splits), so a corpus that grows keeps every old document where it was.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from cutaway.data.rows import Skip
from cutaway.data.sources import (
    Piece,
    conversation_pieces,
    path_pieces,
    reference_file,
    reference_pieces,
    stat_of,
    stdin_pieces,
    stdlib_root,
)
from cutaway.errors import DataError
from cutaway.settings import Settings

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")

# A split is trusted to its documents' hashes from this many expected documents on; a smaller corpus is cut in pieces.
_FEW = 5
_PIECE_BYTES = (65_536, 16_384, 4_096, 1_024, 256)
# So many skipped documents are listed by name; the counts are always complete.
_LISTED = 1_000


class _Shares(Settings):
    valid_share: float = Field(0.05, ge=0.0, lt=0.5)
    test_share: float = Field(0.05, ge=0.0, lt=0.5)


class StdlibSettings(_Shares):
    """The Python standard library's source on this machine, tests left out: about 11 MB of code."""

    kind: Literal["python-stdlib"] = "python-stdlib"


class ReferenceSettings(_Shares):
    """The Python language reference in prose, as pydoc keeps it on this machine: 80 topics, half a megabyte."""

    kind: Literal["python-reference"] = "python-reference"


class PathSettings(_Shares):
    """A file, a folder or a glob. ``field`` is the column of jsonl, csv and parquet that holds the text."""

    kind: Literal["path"] = "path"
    path: str = Field(min_length=1)
    field: str = "text"


class ConversationSettings(_Shares):
    """Conversations of your own, a row each: ``field`` is the column of jsonl or parquet that holds the list of
    messages, one of the user and one of the assistant, each with ``role`` and ``content``."""

    kind: Literal["conversations"] = "conversations"
    path: str = Field(min_length=1)
    field: str = "messages"


class StdinSettings(_Shares):
    """Text from standard input, spooled to a temporary file because it is read more than once."""

    kind: Literal["stdin"] = "stdin"


AnyDataSettings = StdlibSettings | ReferenceSettings | PathSettings | ConversationSettings | StdinSettings
DataSettings = Annotated[AnyDataSettings, Field(discriminator="kind")]


@dataclass(frozen=True, slots=True)
class Document:
    """One text: ``name`` is its place, ``source`` the file it came from, ``digest`` the sha256 of its UTF-8; of a
    conversation, ``asked`` is how many of its characters ask, and the answer stands behind an empty line."""

    text: str
    name: str
    source: str
    digest: str
    asked: int | None = None


@dataclass(slots=True)
class Skipped:
    """What a pass over the corpus left out: exact counts by reason, and the first thousand by name."""

    counts: Counter[str] = field(default_factory=Counter)
    listed: list[tuple[str, str, str]] = field(default_factory=list)

    def add(self, name: str, reason: str, detail: str = "") -> None:
        """Count one document left out."""
        self.counts[reason] += 1
        if len(self.listed) < _LISTED:
            self.listed.append((name, reason, detail))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON: counts, the list, and how many more there are than listed."""
        rows = [{"name": n, "reason": r, "detail": d} for n, r, d in self.listed]
        return {"counts": dict(sorted(self.counts.items())), "listed": rows,
                "not_listed": self.counts.total() - len(self.listed)}

    @property
    def hint(self) -> str | None:
        """The first file whose rows need another ``data.field``, and which."""
        return next((f"{name}: {why}" for name, _, why in self.listed if "data.field" in why), None)

    @property
    def counted(self) -> str:
        """The counts in words."""
        return ", ".join(f"{n:,} {reason}" for reason, n in sorted(self.counts.items())) or "nothing left out"

    def __str__(self) -> str:
        return self.counted if self.hint is None else f"{self.counted} ({self.hint})"


@dataclass
class Corpus:
    """A stream that can be read again: iterating yields every usable Document once, in a fixed order.

    ``skipped`` describes the latest pass. ``piece_bytes`` is set when the corpus is so small that its documents
    are cut into pieces, so that no split is empty; ``note`` says so in words.
    """

    settings: AnyDataSettings
    piece_bytes: int | None = None
    note: str | None = None
    skipped: Skipped = field(default_factory=Skipped)

    def __iter__(self) -> Iterator[Document]:
        skipped = Skipped()
        self.skipped = skipped
        seen: set[bytes] = set()
        any_left = False
        for piece in _pieces(self.settings):
            if isinstance(piece, Skip):
                skipped.add(piece.name, piece.reason, piece.detail)
                continue
            if not piece.text.strip():
                skipped.add(piece.name, "empty")
                continue
            try:
                digest = hashlib.sha256(piece.text.encode())
            except UnicodeEncodeError:
                skipped.add(piece.name, "undecodable", "lone surrogates")
                continue
            if digest.digest()[:16] in seen:
                skipped.add(piece.name, "duplicate")
                continue
            seen.add(digest.digest()[:16])
            any_left = True
            whole = Document(piece.text, piece.name, piece.source, digest.hexdigest(), piece.asked)
            yield from [whole] if self.piece_bytes is None or piece.asked is not None else cut(whole, self.piece_bytes)
        if not any_left:
            raise DataError(f"no usable text ({skipped.counted})", where=_where(self.settings),
                            way_out=skipped.hint or "name a file or folder that holds UTF-8 text")

    def split_of(self, document: Document) -> Split:
        """train, valid or test, from the document's bytes and the shares alone."""
        return split_of(document.digest, self.settings.valid_share, self.settings.test_share)

    def split(self, name: Split) -> Iterator[Document]:
        """The documents of one split."""
        return (d for d in self if self.split_of(d) == name)

    @property
    def wanted(self) -> tuple[Split, ...]:
        """The splits whose share is not zero."""
        shares = {"train": 1.0, "valid": self.settings.valid_share, "test": self.settings.test_share}
        return tuple(s for s in ("train", "valid", "test") if shares[s] > 0)

    def fingerprint(self) -> str | None:
        """A hash of settings and of the files' names, sizes and times; None for standard input."""
        if isinstance(self.settings, StdinSettings):
            return None
        files = stat_of(_root(self.settings), stdlib=isinstance(self.settings, StdlibSettings))
        return hashlib.sha256(repr((self.settings.model_dump(), self.piece_bytes, files)).encode()).hexdigest()


def split_of(digest: str, valid_share: float, test_share: float) -> Split:
    """The split of a text whose sha256 is ``digest``: a function of its own bytes and the shares alone."""
    place = int(digest[:13], 16) / 16**13
    if place < test_share:
        return "test"
    return "valid" if place < test_share + valid_share else "train"


def read(settings: AnyDataSettings) -> Corpus:
    """The corpus that ``settings`` name; a look at its first documents decides whether it must be cut in pieces.

    Raises DataError if there is nothing to read, or too little for the splits asked for.
    """
    corpus = Corpus(settings)
    shares = [s for s in (settings.valid_share, settings.test_share) if s > 0]
    least = int(_FEW / min(shares)) if shares else 1
    count, found = _look(corpus, least)
    if count >= least and found >= set(corpus.wanted):
        return corpus
    sizes = _PIECE_BYTES
    for size in sizes:
        small = dataclasses.replace(corpus, piece_bytes=size, note=(
            f"only {_many(count, 'document')} for shares of {min(shares, default=1):g}: each is cut at paragraphs into "
            f"pieces of at most {size:,} characters, and the pieces are split"))
        pieces, found = _look(small, least)
        if found >= set(corpus.wanted) and (pieces >= least or size == sizes[-1]):
            return small
    empty = "/".join(sorted(set(corpus.wanted) - found))
    raise DataError(f"{_many(count, 'document')} in {_many(pieces, 'piece')} leave {empty} empty",
                    where=_where(settings), way_out="give more text, or set data.valid_share and data.test_share")


def _look(corpus: Corpus, least: int) -> tuple[int, set[str]]:
    """Read until ``least`` documents and every wanted split were seen: how many, and which splits."""
    count, found = 0, set[str]()
    for document in corpus:
        count += 1
        found.add(corpus.split_of(document))
        if count >= least and found >= set(corpus.wanted):
            break
    return count, found


def cut(document: Document, size: int) -> Iterator[Document]:
    """Pieces of at most ``size`` characters, ending at a paragraph, else at a line, else a space, else anywhere.

    A piece depends only on the text before its end, so text appended later moves no earlier piece but the last.
    """
    text, start, offset = document.text, 0, 0
    while start < len(text):
        stop = start + size
        if stop < len(text):
            for mark in ("\n\n", "\n", " "):
                found = text.rfind(mark, start + size // 4, stop)
                if found >= 0:
                    stop = found + len(mark)
                    break
        data = text[start:stop].encode()
        if data.strip():
            name = f"{document.name}[{offset}:{offset + len(data)}]"
            yield Document(text[start:stop], name, document.source, hashlib.sha256(data).hexdigest())
        start, offset = stop, offset + len(data)


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _root(settings: AnyDataSettings) -> str:
    if isinstance(settings, ReferenceSettings):
        return str(reference_file())
    return settings.path if isinstance(settings, PathSettings | ConversationSettings) else str(stdlib_root())


def _where(settings: AnyDataSettings) -> str:
    return "standard input" if isinstance(settings, StdinSettings) else _root(settings)


def _pieces(settings: AnyDataSettings) -> Iterator[Piece | Skip]:
    if isinstance(settings, StdinSettings):
        return stdin_pieces()
    if isinstance(settings, ReferenceSettings):
        return reference_pieces()
    if isinstance(settings, ConversationSettings):
        return conversation_pieces(settings.path, settings.field)
    if isinstance(settings, PathSettings):
        return path_pieces(settings.path, settings.field)
    return path_pieces(str(stdlib_root()), "text", stdlib=True)
