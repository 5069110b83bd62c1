"""Rows: named columns of jsonl, csv, tsv and parquet, one row at a time, so that a file may be larger than memory.

``.gz`` of any of these (but parquet) is read through. A row that lacks what was asked for is a ``Skip``; a column that
the file does not have at all is an error that names the nearest one.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import dataclasses
import gzip
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, cast

from cutaway.errors import DataError, SettingsError

_ROWS_WITHOUT = 100
_AS_UTF8 = "write the file as UTF-8"
_QUOTES = "close or double the quote, set data.quotes=false to take quotes as they stand"


@dataclass(frozen=True, slots=True)
class Skip:
    """Something that holds no usable text, and why. ``whole``: the rest of the file is lost with it, so that it is more
    than a bad row; ``way_out``: what helps, where mending this one row does not."""

    name: str
    reason: str
    detail: str = ""
    whole: bool = False
    way_out: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """A column by ``name``, the setting that names it, what it holds (``text``, ``label`` …) and as which types."""

    name: str
    setting: str
    noun: str = "text"
    types: tuple[type, ...] = (str,)


@dataclass(frozen=True, slots=True)
class Row:
    """The values of the columns that were asked for, in that order; ``name`` says where in which file."""

    values: tuple[Any, ...]
    name: str


@dataclass(frozen=True, slots=True)
class Form:
    """How a csv or tsv is written: with a ``header`` or with columns named "1", "2" …; with ``quotes`` or none;
    ``exact``: a row of more fields than columns is unusable (an unquoted delimiter stands in it), not cut short."""

    header: bool = True
    quotes: bool = True
    exact: bool = True


@dataclass
class _Gate:
    """Lets rows pass that hold every column. While none has, the others are held back: if none of the first hundred
    does, the column is missing, and otherwise they were the exceptions."""

    columns: Sequence[Column]
    where: str
    good: bool = False
    held: list[tuple[Skip, list[str]]] = field(default_factory=list)

    def passes(self, row: Mapping[str, Any], shown: str) -> Iterator[Row | Skip]:
        lacking = next((c for c in self.columns if not isinstance(row.get(c.name), c.types)), None)
        if lacking is None:
            yield from (skip for skip, _ in self.held)
            self.good, self.held = True, []
            yield Row(tuple(row[c.name] for c in self.columns), shown)
            return
        skip = Skip(shown, f"without {lacking.noun}", f"no {lacking.noun} in {lacking.name!r}")
        if self.good:
            yield skip
        else:
            self.held.append((skip, list(row)))
            if len(self.held) == _ROWS_WITHOUT:
                self.close()

    def close(self) -> None:
        """At the end: DataError where no row passed."""
        if self.held:
            names = self.held[0][1]
            missing = next((c for c in self.columns if c.name not in names), self.columns[0])
            raise no_column(missing, names, self.where)


def open_plain(file: Path) -> BinaryIO:
    """The file's bytes, uncompressed if it is a .gz."""
    return cast(BinaryIO, gzip.open(file)) if file.name.endswith(".gz") else file.open("rb")


def kind_of(name: str) -> str:
    """The suffix that says how a file is written: ``.csv`` for ``a.CSV.gz``."""
    return Path(name.removesuffix(".gz")).suffix.lower()


@cache
def _readers() -> dict[str, Callable[[BinaryIO, str, Sequence[Column], Form], Iterator[Row | Skip]]]:
    return {".jsonl": _jsonl, ".ndjson": _jsonl, ".csv": _csv, ".tsv": _csv}


def has_rows(name: str) -> bool:
    """Whether a file of that name is read as rows."""
    return kind_of(name) in _readers() or kind_of(name) == ".parquet"


def read_rows(file: Path, name: str, columns: Sequence[Column], *, form: Form | None = None) -> Iterator[Row | Skip]:
    """Every row of one file. Raises DataError for a column that it does not have, OSError or EOFError or zlib.error
    where it cannot be read."""
    if kind_of(name) == ".parquet":
        yield from _parquet(file, name, columns)
        return
    with open_plain(file) as stream:
        head = cast(Any, stream).peek(4)[:4]
        # Cut at its line ends, UTF-16 would be as many bad rows as it has lines.
        if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in head:
            yield Skip(name, "undecodable", "UTF-16 or no text at all", whole=True, way_out=_AS_UTF8)
            return
        yield from _readers()[kind_of(name)](stream, name, columns, form or Form())


def names_in(file: Path, name: str) -> list[str]:
    """The names of a file's columns: a header's, a schema's, or the keys of the first object. Raises as ``read_rows``
    does; what has no names gives none."""
    if kind_of(name) == ".parquet":
        import pyarrow
        from pyarrow import parquet

        try:
            return list(parquet.read_schema(file).names)
        except pyarrow.ArrowException:
            return []
    with open_plain(file) as stream:
        if kind_of(name) in (".csv", ".tsv"):
            first = next((cells for _, cells in _records(stream, name, Form())), [])
            return [] if isinstance(first, Skip) else first
        for line in stream:
            with contextlib.suppress(ValueError, RecursionError):
                row = json.loads(line) if line.strip() else None
                if isinstance(row, dict):
                    return list(row)
    return []


def _jsonl(stream: BinaryIO, name: str, columns: Sequence[Column], form: Form) -> Iterator[Row | Skip]:
    gate = _Gate(columns, name)
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield Skip(f"{name}:{number}", "undecodable", f"not JSON ({error})")
            continue
        yield from gate.passes(row if isinstance(row, dict) else {}, f"{name}:{number}")
    gate.close()


class _Lines:
    """The lines of a csv as text, decoded one by one. ``damage`` says what is not UTF-8 in those that were read since
    it was last cleared; such bytes pass as surrogates, so that the csv reader keeps its place among the quotes."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.damage = stream, ""

    def __iter__(self) -> Iterator[str]:
        first = True
        for block in self.stream:
            for line in (block.removeprefix(codecs.BOM_UTF8) if first else block).splitlines(keepends=True):
                try:
                    text = line.decode()
                except UnicodeDecodeError as error:
                    self.damage = f"byte {error.start} of a line is not UTF-8"
                    text = line.decode(errors="surrogateescape")
                yield text
            first = False


def _csv(stream: BinaryIO, name: str, columns: Sequence[Column], form: Form) -> Iterator[Row | Skip]:
    header: list[str] | None = None
    places: list[int] = []
    empty = True
    for number, cells in _records(stream, name, form):
        empty = False
        shown = f"{name}:{number}"
        if isinstance(cells, Skip):
            if header is None and form.header:
                yield dataclasses.replace(cells, detail=f"the header: {cells.detail}", whole=True,
                                          way_out=cells.way_out or _AS_UTF8)
                return
            yield cells
            continue
        if header is None:
            header = cells if form.header else [str(i + 1) for i in range(len(cells))]
            places = _places(columns, header, name)
            if form.header:
                continue
        if max(places) >= len(cells):
            yield Skip(shown, f"without {columns[places.index(max(places))].noun}", "short row")
        elif form.exact and len(cells) > len(header):
            yield Skip(shown, "with too many fields", f"{len(cells)} fields for {len(header)} columns")
        else:
            yield Row(tuple(cells[i] for i in places), shown)
    if empty:
        raise DataError("is empty", where=name, way_out="give a file with a header and rows")


def _records(stream: BinaryIO, name: str, form: Form) -> Iterator[tuple[int, list[str] | Skip]]:
    """Every record that is not blank and the line where it begins, or the Skip of what is none.

    Quotes are read strictly: a stray one would take the lines up to the next, or to the file's end, into one text.
    """
    csv.field_size_limit(sys.maxsize)
    lines = _Lines(stream)
    rows = csv.reader(lines, delimiter="\t" if kind_of(name) == ".tsv" else ",", strict=form.quotes,
                      quoting=csv.QUOTE_MINIMAL if form.quotes else csv.QUOTE_NONE)
    while True:
        first, lines.damage = rows.line_num + 1, ""
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            for number in range(first, rows.line_num + 1):
                why = f"a stray quote in the record of lines {first} to {rows.line_num}: {error}"
                yield first, Skip(f"{name}:{number}", "in a broken quote", why, way_out=_QUOTES)
            continue
        if lines.damage:
            yield first, Skip(f"{name}:{first}", "undecodable", lines.damage)
        elif cells:
            yield first, cells


def _places(columns: Sequence[Column], header: list[str], name: str) -> list[int]:
    for column in columns:
        if column.name not in header:
            raise no_column(column, header, name)
        if header.count(column.name) > 1:
            raise DataError(f"has the column {column.name!r} twice", where=name, way_out="rename one of them")
    return [header.index(c.name) for c in columns]


def _parquet(file: Path, name: str, columns: Sequence[Column]) -> Iterator[Row | Skip]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(file) as table:
            for column in columns:
                if column.name not in table.schema_arrow.names:
                    raise no_column(column, table.schema_arrow.names, name)
            number = 0
            for batch in table.iter_batches(batch_size=1024, columns=[c.name for c in columns]):
                for row in batch.to_pylist():
                    number += 1
                    lacking = next((c for c in columns if not isinstance(row[c.name], c.types)), None)
                    yield (Row(tuple(row[c.name] for c in columns), f"{name}:{number}") if lacking is None
                           else Skip(f"{name}:{number}", f"without {lacking.noun}"))
    except pyarrow.ArrowException as error:
        yield Skip(name, "unreadable", str(error).split("\n")[0], whole=True, way_out="restore the file")


def no_column(column: Column, names: Sequence[str], where: str) -> DataError:
    """The error for a file without a column: what it has instead, and which of these was probably meant."""
    from cutaway.settings import nearest

    near = nearest(column.name, names) or (names[0] if len(names) == 1 else None)
    way_out = f"set {_assignment(column.setting, near)}" if near else (
        f"set {column.setting} to the one that holds the {column.noun}")
    return DataError(f"no {column.noun} in {column.name!r}; it has {', '.join(names) or 'nothing by name'}",
                     where=where, way_out=way_out if names else "write one JSON object a line")


def _assignment(setting: str, value: str) -> str:
    """``setting=value`` as it can be pasted behind a command: a value that would be read as another is quoted."""
    from cutaway.settings import override

    plain = f"{setting}={value}"
    try:
        same = override({}, [f"value={value}"]) == {"value": value}
    except SettingsError:
        same = False
    return shlex.quote(plain if same else f"{setting}={json.dumps(value, ensure_ascii=False)}")
