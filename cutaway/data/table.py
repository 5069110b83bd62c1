"""Tables: labelled texts and pairs of texts from named columns of csv, tsv, jsonl and parquet, split by content hash.

A split that has no file of its own is a share of the first file, by the hash of the row's text, as documents are split:
equal texts never stand in two splits of one file. A row that cannot be used is an error that names it or, when asked,
counted and listed with its reason; duplicates, contradictions and texts that stand in two files are counted.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, Self, TypeVar, cast

from pydantic import Field, model_validator

from cutaway.data.documents import SPLITS, Skipped, Split, split_of
from cutaway.data.rows import Column, Form, Row, Skip, has_rows, kind_of, read_rows
from cutaway.errors import DataError
from cutaway.settings import Settings

Label = str | tuple[str, ...]
_LABEL_TYPES = (str, int, float, list)
_NAMED = 5  # so many labels or rows are named in an error


class _TableSettings(Settings):
    """``path`` is learned from; a split without a file of its own takes its share of it. ``header`` = false names the
    columns of a csv or tsv "1", "2" …; ``quotes`` = false takes quotation marks in it as they stand."""

    path: str = Field(min_length=1)
    valid_path: str | None = None
    test_path: str | None = None
    valid_share: float = Field(0.05, ge=0.0, lt=0.5)
    test_share: float = Field(0.05, ge=0.0, lt=0.5)
    header: bool = True
    quotes: bool = True
    longest: int = Field(1_000_000, ge=1)  # characters of a text; a longer one cannot be used
    bad_rows: Literal["error", "skip"] = "error"


class LabelledSettings(_TableSettings):
    """Texts with a label; with ``multi_label`` any number of labels, as a JSON list or with a ``separator``.

    A label of the held-out splits that the train split lacks is an error, or with ``unseen`` = "wrong" a row that
    every classifier gets wrong.
    """

    kind: Literal["labelled"] = "labelled"
    text: str = "text"
    label: str = "label"
    multi_label: bool = False
    separator: str | None = Field(None, min_length=1)
    unseen: Literal["error", "wrong"] = "error"

    @model_validator(mode="after")
    def _separates(self) -> Self:
        if self.separator is not None and not self.multi_label:
            raise ValueError("separator means something only with multi_label = true")
        return self


class PairsSettings(_TableSettings):
    """Texts and what each is to become. Split by the source: one source with two targets stays in one split."""

    kind: Literal["pairs"] = "pairs"
    source: str = "source"
    target: str = "target"


TableSettings = Annotated[LabelledSettings | PairsSettings, Field(discriminator="kind")]


@dataclass(frozen=True, slots=True)
class Labelled:
    """Texts, the label of each (with several labels a text: a sorted tuple of them), and where each stands."""

    texts: tuple[str, ...]
    labels: tuple[str, ...] | tuple[tuple[str, ...], ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def classes(self) -> tuple[str, ...]:
        """Every label once, sorted."""
        return tuple(sorted({one for label in self.labels for one in each(label)}))


@dataclass(frozen=True, slots=True)
class Pairs:
    """Sources, their targets, and where each pair stands."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.sources)


T = TypeVar("T", Labelled, Pairs)


@dataclass(frozen=True)
class Table(Generic[T]):
    """The splits of a table, where it is from, what was left out, and what a reader of its scores has to know."""

    parts: Mapping[Split, T]
    where: str
    skipped: Skipped = field(default_factory=Skipped)
    notes: tuple[str, ...] = ()

    def split(self, name: Split) -> T:
        """One split. Raises DataError where the settings gave it no rows."""
        if name not in self.parts:
            raise DataError(f"there is no {name} split", where=self.where,
                            way_out=f"set data.{name}_share, or data.{name}_path")
        return self.parts[name]


def each(label: Label) -> tuple[str, ...]:
    """The labels of one row as a tuple, one or several."""
    return (label,) if isinstance(label, str) else label


def read_labelled(settings: LabelledSettings) -> Table[Labelled]:
    """The labelled texts of every split that has a file or a share.

    Raises DataError, with the row, for what cannot be used (unless ``bad_rows`` = "skip"), for a missing column, an
    empty split, labels of mixed types, a single class, or labels that only the held-out splits have.
    """
    reader = _Reader(settings, (Column(settings.text, "data.text"),
                                Column(settings.label, "data.label", "label", _LABEL_TYPES)))
    parts: dict[Split, Labelled] = {}
    for name, rows in reader.splits().items():
        texts, labels, names = zip(*((r.values[0], r.values[1], r.name) for r in rows), strict=True)
        parts[name] = Labelled(texts, labels, names)
    _check_classes(parts, settings.path)
    classes = parts["train"].classes
    notes = [*reader.notes(), *_contradictions(parts.values()), *_unseen(parts, set(classes), settings)]
    return Table(parts, settings.path, reader.skipped, tuple(notes))


def _check_classes(parts: Mapping[Split, Labelled], where: str) -> None:
    """DataError where the train part has fewer than two labels; it says whether the other parts have more."""
    classes = parts["train"].classes
    if len(classes) > 1:
        return
    more = [name for name, part in parts.items() if set(part.classes) - set(classes)]
    rows = f"row of train (of {len(parts['train']):,})" if more else "row"
    raise DataError(f"every {rows} has the label {classes[0]!r}" if classes else f"no {rows} has a label", where=where,
                    way_out=(f"others stand only in {' and '.join(more)}: give train rows of them, or smaller shares"
                             if more else "give examples of two labels or more"))


def read_pairs(settings: PairsSettings) -> Table[Pairs]:
    """The pairs of every split that has a file or a share. Raises DataError as ``read_labelled`` does."""
    reader = _Reader(settings, (Column(settings.source, "data.source", "source"),
                                Column(settings.target, "data.target", "target")))
    parts: dict[Split, Pairs] = {}
    for name, rows in reader.splits().items():
        sources, targets, names = zip(*((r.values[0], r.values[1], r.name) for r in rows), strict=True)
        parts[name] = Pairs(sources, targets, names)
    return Table(parts, settings.path, reader.skipped, tuple(reader.notes()))


class _Reader:
    """One pass over the files of a table: its rows by split, and what was seen on the way."""

    def __init__(self, settings: LabelledSettings | PairsSettings, columns: tuple[Column, Column]) -> None:
        self.settings, self.columns = settings, columns
        self.skipped = Skipped()
        self.types: dict[str, str] = {}  # kind of a label's value -> the first row that has it
        self.spaced = 0  # labels that were written with white space around them

    def splits(self) -> dict[Split, list[Row]]:
        s = self.settings
        given: dict[Split, str | None] = {"valid": s.valid_path, "test": s.test_path}
        own = {name: path for name, path in given.items() if path is not None}
        valid_share = 0.0 if "valid" in own else s.valid_share
        test_share = 0.0 if "test" in own else s.test_share
        shares: dict[Split, float] = {"train": 1.0, "valid": valid_share, "test": test_share}
        found: dict[Split, list[Row]] = {n: [] for n in SPLITS if n in own or shares[n]}
        for row in self._usable(s.path):
            key = hashlib.sha256(row.values[0].encode()).hexdigest()
            found[split_of(key, valid_share, test_share)].append(row)
        for name, path in own.items():
            found[name].extend(self._usable(path))
        for name, rows in found.items():
            if not rows:
                raise self._empty(name, found, own.get(name, s.path))
        self.found = found
        return found

    def _empty(self, name: Split, found: Mapping[Split, list[Row]], where: str) -> DataError:
        """The error for a split without rows; equal texts stand in one split, so it says where there are few."""
        noun = self.columns[0].noun
        total, several = sum(map(len, found.values())), len({r.values[0] for rows in found.values() for r in rows})
        of = f" of only {several:,} different {noun}{'s' * (several > 1)}" if several < total else ""
        more = f"different {noun}s" if of else "rows"
        return DataError(f"{total:,} usable rows{of} leave {name} empty (left out: {self.skipped.counted})",
                         where=where, way_out=f"give more {more}, or set data.valid_share and data.test_share")

    def _usable(self, path: str) -> Iterator[Row]:
        for row in self._rows(Path(path).expanduser(), path):
            bad = row if isinstance(row, Skip) else None
            good = row if isinstance(row, Skip) else self._checked(row)
            if isinstance(good, Row):
                yield good
                continue
            bad = good
            if bad.whole or self.settings.bad_rows == "error":  # a file that breaks off is more than a bad row
                raise DataError(f"cannot be used: {bad.reason}{f' ({bad.detail})' if bad.detail else ''}",
                                where=bad.name, way_out=(bad.way_out or "mend the row") + (
                                    "" if bad.whole else ', or set data.bad_rows="skip"'))
            self.skipped.add(bad.name, bad.reason, bad.detail)

    def _rows(self, file: Path, path: str) -> Iterator[Row | Skip]:
        form = Form(header=self.settings.header, quotes=self.settings.quotes)
        try:
            if file.is_dir():
                raise DataError("a folder, not a file of rows", where=path, way_out="name one file in it")
            if not file.is_file():
                raise DataError("no such file", where=path, way_out="check the path")
            if not has_rows(file.name):
                raise DataError("holds no rows", where=path,
                                way_out="give a csv, tsv, jsonl or parquet file, or a .gz of one")
            yield from read_rows(file, file.name, self.columns, form=form)
        except PermissionError as error:
            raise DataError(f"cannot be read ({error})", where=path, way_out="check its permissions") from None
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"cannot be read ({error})", where=path, way_out="restore the file") from None

    def _checked(self, row: Row) -> Row | Skip:
        first, second = row.values
        if not isinstance(self.settings, LabelledSettings):
            return self._text(first, "source", row) or self._text(second, "target", row) or row
        bad = self._text(first, "text", row)
        if bad is not None:
            return bad
        label = self._label(second, row)
        return label if isinstance(label, Skip) else Row((first, label), row.name)

    def _text(self, text: str, noun: str, row: Row) -> Skip | None:
        if not text.strip():
            return Skip(row.name, f"empty {noun}")
        if len(text) > self.settings.longest:
            return Skip(row.name, f"{noun} too long", f"{len(text):,} characters, data.longest is "
                                                      f"{self.settings.longest:,}")
        try:
            text.encode()
        except UnicodeEncodeError:
            return Skip(row.name, "undecodable", f"lone surrogates in the {noun}")
        return None

    def _label(self, value: Any, row: Row) -> Label | Skip:
        settings = cast(LabelledSettings, self.settings)
        if not settings.multi_label:
            return self._one(value, row)
        if isinstance(value, str):
            values = _separated(value, settings.separator)
        else:
            values = value if isinstance(value, list) and settings.separator is None else None
        if values is None:
            wanted = "a JSON list" if settings.separator is None else f"text separated by {settings.separator!r}"
            return Skip(row.name, "label of another form", f"data.multi_label wants {wanted}")
        found = [self._one(v, row) for v in values]
        bad = next((f for f in found if isinstance(f, Skip)), None)
        return bad or tuple(sorted({cast(str, f) for f in found}))

    def _one(self, value: Any, row: Row) -> str | Skip:
        """One label as text. Raises DataError where the column's labels are of two types: 1 and "1" are no two."""
        kinds = {bool: "boolean", int: "integer", str: "text"}
        kind = kinds.get(type(value))
        if kind is None:
            hint = "; set data.multi_label=true" if isinstance(value, list) else ""
            detail = f"a {type(value).__name__}, no text, integer or boolean{hint}"
            return Skip(row.name, "label of another form", detail)
        if kind == "text":
            bad = self._text(value, "label", row)
            if bad is not None:
                return bad
            self.spaced += value != value.strip()
        self.types.setdefault(kind, row.name)
        if len(self.types) > 1:
            (one, here), (other, there) = self.types.items()
            raise DataError(f"labels of mixed types: {one} at {here}, {other} at {there}", where=self.settings.path,
                            way_out="write all labels as text")
        return value.strip() if kind == "text" else json.dumps(value)

    def notes(self) -> Iterator[str]:
        kind = next(iter(self.types), "text")
        if kind != "text":
            yield f"labels are {kind}s and were made text"
        if self.spaced:
            yield f"{self.spaced:,} labels have white space around them, which does not count"
        yield from self._of_several_lines()
        rows = {n: [r.values for r in rows] for n, rows in self.found.items()}
        again = sum(len(r) - len(set(r)) for r in rows.values())
        if again:
            yield f"{again:,} rows are exact duplicates of another in their split, and are kept"
        learned = {values[0] for values in rows["train"]}
        for name in SPLITS[1:]:
            both = sum(values[0] in learned for values in rows.get(name, ()))
            if both:
                yield f"{both:,} of {len(rows[name]):,} texts of {name} also stand in train"
        if self.skipped.counts:
            yield f"left out: {self.skipped.counted}"

    def _of_several_lines(self) -> Iterator[str]:
        """Stray quotes that begin one text and end another make one of all between: to a reader that is no error."""
        if not self.settings.quotes:
            return
        rows = (r for rows in self.found.values() for r in rows
                if kind_of(r.name.rpartition(":")[0]) in (".csv", ".tsv"))
        found = [(lines, r.name) for r in rows if (lines := 1 + r.values[0].strip().count("\n")) > 1]
        if found:
            most, name = max(found, key=lambda one: one[0])
            yield (f"{len(found):,} texts of several lines, the longest of {most:,} at {name}; where stray quotes made "
                   f"one of many, set data.quotes=false")


def _separated(value: str, separator: str | None) -> list[Any] | None:
    if separator is not None:
        return [part.strip() for part in value.split(separator) if part.strip()]
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, list) else None


def _contradictions(parts: Iterable[Labelled]) -> Iterator[str]:
    given: dict[str, set[Label]] = {}
    for part in parts:
        labels: Sequence[Label] = part.labels
        for text, label in zip(part.texts, labels, strict=True):
            given.setdefault(text, set()).add(label)
    several = sum(len(labels) > 1 for labels in given.values())
    if several:
        yield f"{several:,} texts stand with more than one label"


def _unseen(parts: Mapping[Split, Labelled], known: set[str], settings: LabelledSettings) -> Sequence[str]:
    """A note on held-out rows whose label was never learned, or the error."""
    lost = {name: Counter(one for label in part.labels for one in each(label) if one not in known)
            for name, part in parts.items()}
    if not any(lost.values()):
        return ()
    rows = {name: sum(any(one not in known for one in each(label)) for label in parts[name].labels)
            for name, labels in lost.items() if labels}
    labels = sorted({label for found in lost.values() for label in found})
    more = f" and {len(labels) - _NAMED} more" if len(labels) > _NAMED else ""
    named = ", ".join(map(repr, labels[:_NAMED])) + more
    told = " and ".join(f"{count:,} of {len(parts[name]):,} rows of {name}" for name, count in rows.items())
    if settings.unseen == "error":
        raise DataError(f"{told} have labels that no train row has: {named}", where=settings.path,
                        way_out='give train rows with them, or set data.unseen="wrong" to count them as wrong')
    return (f"{told} have labels that no train row has ({named}) and count as wrong",)
