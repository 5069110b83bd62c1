"""Sources: files of every kind to pieces of text, one at a time, so that a file may be larger than memory.

Plain files are one document each unless they are large: then they come in blocks of a mebibyte that end at a
paragraph. Rows of jsonl, csv and parquet (``rows.py``) are one document each. ``.gz`` of all but parquet is read.
"""

from __future__ import annotations

import ast
import glob
import os
import sys
import sysconfig
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO, NoReturn

from cutaway.data.rows import Column, Form, Skip, has_rows, open_plain, read_rows
from cutaway.errors import DataError

BLOCK_BYTES = 1 << 20
# Parts of the standard library that are tests, an application, or installed by somebody else.
_NOT_STDLIB = frozenset({"test", "tests", "idlelib", "idle_test", "site-packages", "dist-packages", "__pycache__"})


@dataclass(frozen=True, slots=True)
class Piece:
    """Text as it was read: ``name`` says where in which file; of a conversation, ``asked`` is how much of it asks."""

    text: str
    name: str
    source: str
    asked: int | None = None


def stdlib_root() -> Path:
    """Where this Python keeps the source of its standard library."""
    return Path(sysconfig.get_path("stdlib"))


def reference_file() -> Path:
    """Where this Python keeps the language reference that ``help()`` shows."""
    return stdlib_root() / "pydoc_data" / "topics.py"


def reference_pieces() -> Iterator[Piece | Skip]:
    """The topics of the language reference, one piece each. Raises DataError where this Python came without them."""
    file = reference_file()
    try:
        body = ast.parse(file.read_text("utf-8")).body
        found = next(ast.literal_eval(node.value) for node in body if isinstance(node, ast.Assign))
        topics = {str(name): str(text) for name, text in found.items()}
    except (OSError, SyntaxError, ValueError, StopIteration, AttributeError) as error:
        raise DataError(f"cannot be read ({error})", where=file, way_out="name another text") from None
    yield from (Piece(text, f"{file.name}:{name}", file.name) for name, text in topics.items())


def conversation_pieces(path: str, column: str) -> Iterator[Piece | Skip]:
    """One question and its answer a row: a list of messages with ``role`` and ``content``, as chat services take it."""
    for file, name in _files(path, stdlib=False):
        if isinstance(name, Skip):
            yield name
        elif not has_rows(name):
            yield Skip(name, "of no rows", "conversations are read from jsonl or parquet")
        else:
            for row in read_rows(file, name, (Column(column, "data.field", "messages", (list,)),)):
                yield row if isinstance(row, Skip) else _conversation(row.values[0], row.name, name)


def _conversation(messages: list[object], shown: str, source: str) -> Piece | Skip:
    turns = [(m.get("role"), m.get("content")) for m in messages if isinstance(m, dict)]
    if len(turns) < len(messages) or not all(isinstance(content, str) for _, content in turns):
        return Skip(shown, "not a list of messages", "each has a role and a content")
    roles = [role for role, _ in turns]
    if roles != ["user", "assistant"]:
        return Skip(shown, "not one question and its answer", f"its roles are {', '.join(map(str, roles)) or 'none'}")
    request, answer = (str(content).strip() for _, content in turns)
    if not request or not answer:
        return Skip(shown, "with an empty message")
    return Piece(f"{request}\n\n{answer}", shown, source, len(request))


def path_pieces(path: str, column: str, *, stdlib: bool = False) -> Iterator[Piece | Skip]:
    """Every piece under a file, folder or glob, in the order of names.

    Raises DataError if there is no such thing, or for one file of rows without the column; among other files such a
    file is a Skip.
    """
    try:
        alone = Path(path).expanduser().is_file()
    except OSError as error:  # a folder on the way that may not be searched
        _refuse(error)
    for file, name in _files(path, stdlib=stdlib):
        if isinstance(name, Skip):
            yield name
            continue
        try:
            yield from _read(file, name, column)
        except DataError as error:
            if alone:
                raise
            yield Skip(name, "without text", f"{error.what}; {error.way_out}")


def _files(path: str, *, stdlib: bool) -> Iterator[tuple[Path, str | Skip]]:
    """Files with the names they are known by: relative to the folder that was asked for."""
    root = Path(path).expanduser()
    if root.is_dir():
        yield from _walk(root, stdlib=stdlib)
    elif root.exists():
        yield root, root.name
    else:
        found = [Path(p) for p in sorted(glob.glob(str(root), recursive=True)) if not Path(p).is_dir()]  # noqa: PTH207
        if not found:
            raise DataError("no such file or folder", where=path, way_out="check data.path")
        yield from ((p, str(p)) for p in found)


def _walk(root: Path, *, stdlib: bool) -> Iterator[tuple[Path, str | Skip]]:
    for folder, folders, files in os.walk(root, onerror=_refuse):
        folders[:] = sorted(f for f in folders if not (stdlib and f in _NOT_STDLIB))
        here = Path(folder)
        hidden = [f for f in folders if f.startswith(".") or f == "__pycache__"]
        linked = [f for f in folders if f not in hidden and (here / f).is_symlink()]
        folders[:] = [f for f in folders if f not in hidden]
        for name in sorted([*hidden, *linked, *files]):
            shown = (here / name).relative_to(root).as_posix()
            if name in hidden or name.startswith("."):
                yield here / name, Skip(shown, "hidden")
            elif name in linked:
                yield here / name, Skip(shown, "linked folder", "links to folders are not followed")
            elif not stdlib or name.endswith(".py"):
                yield here / name, shown


def _refuse(error: OSError) -> NoReturn:
    raise DataError(f"cannot be read ({error.strerror})", where=error.filename, way_out="check its permissions")


def _read(file: Path, name: str, column: str) -> Iterator[Piece | Skip]:
    """One file's pieces. What fails midway is one Skip; what was read before it stays."""
    try:
        if not file.is_file():
            yield Skip(name, "unreadable", "not a regular file")
        elif has_rows(name):
            for row in read_rows(file, name, (Column(column, "data.field"),), form=Form(exact=False)):
                yield row if isinstance(row, Skip) else Piece(row.values[0], row.name, name)
        else:
            with open_plain(file) as stream:
                yield from text_pieces(stream, name)
    except DataError:
        raise
    except (OSError, EOFError, zlib.error) as error:
        yield Skip(name, "unreadable", str(error))


def text_pieces(stream: BinaryIO, name: str) -> Iterator[Piece | Skip]:
    """A plain file: one piece if it fits a block, else blocks that end at a paragraph, a line, or a character."""
    rest, offset, first = b"", 0, True
    while True:
        data = stream.read(BLOCK_BYTES + 1 - len(rest))
        block = rest + data
        more = len(block) > BLOCK_BYTES
        if first and b"\0" in block[:8192]:
            yield Skip(name, "binary")
            return
        stop = _end(block) if more else len(block)
        shown = name if first and not more else f"{name}[{offset}:{offset + stop}]"
        if block or first:
            yield _decoded(block[:stop].removeprefix(b"\xef\xbb\xbf") if first else block[:stop], shown, name)
        if not more:
            return
        rest, offset, first = block[stop:], offset + stop, False


def _end(block: bytes) -> int:
    """Where a full block is cut: the last paragraph's end in its second half, else line's, else a character's."""
    for mark in (b"\n\n", b"\n", b" "):
        found = block.rfind(mark, len(block) // 2, len(block) - 1)
        if found >= 0:
            return found + len(mark)
    stop = len(block) - 1
    while stop > len(block) - 5 and block[stop] & 0xC0 == 0x80:
        stop -= 1
    return stop


def _decoded(data: bytes, shown: str, source: str) -> Piece | Skip:
    try:
        return Piece(data.decode(), shown, source)
    except UnicodeDecodeError as error:
        return Skip(shown, "undecodable", f"byte {error.start} is not UTF-8")


@cache
def _spool() -> Path:
    """Standard input, kept for this process in a temporary file, because a stream cannot be read twice."""
    spool = tempfile.NamedTemporaryFile(prefix="cutaway-stdin-", delete=False)  # noqa: SIM115
    with spool:
        while block := sys.stdin.buffer.read(BLOCK_BYTES):
            spool.write(block)
    path = Path(spool.name)
    import atexit

    atexit.register(path.unlink, missing_ok=True)
    return path


def stdin_pieces() -> Iterator[Piece | Skip]:
    """Standard input as one plain file named ``stdin``."""
    with _spool().open("rb") as stream:
        yield from text_pieces(stream, "stdin")


def stat_of(path: str, *, stdlib: bool = False) -> list[tuple[str, int, int]]:
    """(name, size, time in ns) of every file that ``path_pieces`` would read; a link to nothing has neither."""
    found = [(name, file) for file, name in _files(path, stdlib=stdlib) if not isinstance(name, Skip)]
    states = [(name, file.stat() if file.exists() else None) for name, file in found]
    return [(name, state.st_size if state else -1, state.st_mtime_ns if state else -1) for name, state in states]
