"""Items: the rows of a task's file as prompts and answers, with solved items before them; what is left out is counted.

Few-shot text is lm-evaluation-harness's: description, then prompt, delimiter, answer and separator of each solved item,
then the prompt.
"""

from __future__ import annotations

import heapq
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from cutaway.data.documents import Skipped
from cutaway.data.prompts import Template
from cutaway.data.rows import Column, Skip, has_rows, names_in, no_column, read_rows
from cutaway.errors import DataError, SettingsError
from cutaway.evaluate.task import AnyTask, Asked, MultipleChoice, Perplexity, templates
from cutaway.records import digest

_TYPES = (str, int, float, list, dict)


@dataclass(frozen=True, slots=True)
class Item:
    """One question: the ``prompt`` with all that stands before it, the ``answers`` (choices, or the one right answer,
    or the text itself), which of them is right, and where it stands."""

    prompt: str
    answers: tuple[str, ...]
    gold: int
    name: str


@dataclass(frozen=True, slots=True)
class Items:
    """The items chosen, out of how many of the file, the file's sha256, and what was left out; the same of the file of
    solved items, where they have one of their own."""

    items: tuple[Item, ...]
    available: int
    file: str
    sha256: str
    skipped: Skipped = field(default_factory=Skipped)
    shots: str | None = None
    shots_sha256: str | None = None
    shots_skipped: Skipped = field(default_factory=Skipped)

    def notes(self) -> Iterator[str]:
        """What a reader of the figures has to know."""
        if len(self.items) < self.available:
            yield f"{len(self.items):,} of {self.available:,} items of {self.file} were asked"
        if self.skipped.counts:
            yield f"left out of {self.file}: {self.skipped}"
        if self.shots_skipped.counts:
            yield f"left out of {self.shots}, whose rows are the solved items: {self.shots_skipped}"


_Row = tuple[Mapping[str, Any], str]


def read_items(task: AnyTask) -> Items:
    """The items of a task's data. Raises SettingsError where it names no file, DataError for one that cannot be used,
    that lacks a column, or that holds no item."""
    if task.path is None:
        raise SettingsError("no data is named", where=f"task {task.name}", way_out="add --data FILE")
    skipped, shots_skipped = Skipped(), Skipped()
    rows, available = _chosen(task, _rows(task, task.path, skipped))
    if not rows:
        raise DataError(f"holds no item ({skipped.counted})", where=task.path, way_out="give a file with rows")
    pool = _pool(task, rows, shots_skipped)
    items = []
    for row, name in rows:
        try:
            items.append(_item(task, row, name, pool))
        except DataError as error:
            if task.bad_rows == "error":
                raise DataError(error.what, where=error.where, way_out=(
                    f"{error.way_out or 'mend the row'}, or set bad_rows=skip")) from None
            skipped.add(name, "without a prompt or an answer", error.what)
    if not items:
        raise DataError(f"holds no item ({skipped.counted})", where=task.path, way_out="give a file with usable rows")
    shots = task.fewshot.path if isinstance(task, Asked) and task.fewshot.count else None
    return Items(tuple(items), available, task.path, digest(Path(task.path).expanduser()), skipped, shots,
                 None if shots is None else digest(Path(shots).expanduser()), shots_skipped)


def _rows(task: AnyTask, path: str, skipped: Skipped) -> Iterator[_Row]:
    """The rows of a file under the names that the templates use."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise DataError("no such file" if not file.is_dir() else "a folder, not a file of rows", where=path,
                        way_out="check the path" if not file.is_dir() else "name one file in it")
    if not has_rows(file.name):
        raise DataError("holds no rows", where=path, way_out="give a csv, tsv, jsonl or parquet file, or a .gz of one")
    try:
        columns = _columns(task, file, path)
        for found in read_rows(file, path, list(columns.values())):
            if isinstance(found, Skip):
                if found.whole or task.bad_rows == "error":
                    raise DataError(f"cannot be used: {found.reason}{found.detail and f' ({found.detail})'}",
                                    where=found.name, way_out=(found.way_out or "mend the row") + (
                                        "" if found.whole else ", or set bad_rows=skip"))
                skipped.add(found.name, found.reason, found.detail)
            else:
                yield dict(zip(columns, found.values, strict=True)), found.name
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot be read ({error})", where=path, way_out="restore the file") from None


def _columns(task: AnyTask, file: Path, path: str) -> dict[str, Column]:
    """The column of the file behind each name in a template."""
    wanted = dict.fromkeys(c for t in templates(task) for c in t.columns)
    unused = [name for name in task.columns if name not in wanted]
    if unused:
        raise SettingsError(f"columns.{unused[0]} is named by no template", where=f"task {task.name}",
                            way_out=f"the templates name {', '.join(wanted) or 'none'}")
    if not wanted:
        raise SettingsError("no template names a column", where=f"task {task.name}",
                            way_out="write {column} where a row's text belongs")
    out = {}
    for name in wanted:
        given = task.columns.get(name, name)
        if not isinstance(given, str):
            there = names_in(file, path)
            column = next((c for c in given if c in there), None)
            if column is None:
                raise no_column(Column(" or ".join(given), f"columns.{name}", "value", _TYPES), there, path)
            given = column
        out[name] = Column(given, f"columns.{name}", "value", _TYPES)
    return out


def _chosen(task: AnyTask, rows: Iterator[_Row]) -> tuple[list[_Row], int]:
    """The rows that are asked, in the file's order, and how many there are."""
    count = 0
    kept: list[Any] = []
    for count, row in enumerate(rows, start=1):
        if task.limit is None or (task.pick == "first" and count <= task.limit):
            kept.append((0, count, row))
        elif task.pick == "hash":
            entry = (-int(_key(row[0]), 16), count, row)  # the largest digest on top: it is the first to go
            (heapq.heappush if len(kept) < task.limit else heapq.heappushpop)(kept, entry)
    return [row for _, _, row in sorted(kept, key=lambda entry: entry[1])], count


def _key(row: Mapping[str, Any]) -> str:
    return digest(json.dumps(row, sort_keys=True, default=str).encode())


def _pool(task: AnyTask, rows: Sequence[_Row], skipped: Skipped) -> list[_Row]:
    """The rows that solved items are taken from; ``skipped`` counts what a file of their own does not give."""
    if not isinstance(task, Asked) or not task.fewshot.count:
        return []
    if task.fewshot.path is None:
        assert task.path is not None
        # what this file does not give was counted when it was read for the items
        return list(_rows(task, task.path, Skipped())) if task.limit is not None else list(rows)
    return list(_rows(task, task.fewshot.path, skipped))


def _item(task: AnyTask, row: Mapping[str, Any], name: str, pool: Sequence[_Row]) -> Item:
    if isinstance(task, Perplexity):
        text = Template(task.text).fill(row, name)
        if not text:
            raise DataError("the text is empty", where=name)
        return Item("", (text,), 0, name)
    answers, gold = _answers(task, row, name)
    return Item(_before(task, row, name, pool) + _prompt(task, row, name), answers, gold, name)


def _before(task: Asked, row: Mapping[str, Any], name: str, pool: Sequence[_Row]) -> str:
    """Description and solved items."""
    out = task.description
    for other, where in _shots(task, row, name, pool):
        answers, gold = _answers(task, other, where)
        out += _prompt(task, other, where) + task.delimiter + answers[gold] + task.fewshot.separator
    return out


def _shots(task: Asked, row: Mapping[str, Any], name: str, pool: Sequence[_Row]) -> list[_Row]:
    shots = task.fewshot
    if not shots.count:
        return []
    order = pool if shots.pick == "first" else _drawn(Random(f"{shots.seed} {_key(row)}"), pool)
    found: list[_Row] = []
    for other in order:
        if len(found) == shots.count:
            break
        if other[0] != row:
            found.append(other)
    if len(found) < shots.count:
        raise DataError(f"{shots.count} solved items are wanted and there are {len(found)} beside it", where=name,
                        way_out="set fewshot.count lower, or fewshot.path to a larger file")
    return found


def _drawn(draw: Random, pool: Sequence[_Row]) -> Iterator[_Row]:
    """Every row once in a random order, of which only what is looked at is drawn."""
    seen: set[int] = set()
    while len(seen) < len(pool):
        i = draw.randrange(len(pool))
        if i not in seen:
            seen.add(i)
            yield pool[i]


def _prompt(task: Asked, row: Mapping[str, Any], name: str) -> str:
    return _replaced(task, Template(task.prompt).fill(row, name))


def _replaced(task: Asked, text: str) -> str:
    for rule in task.replace:
        text = re.sub(rule.pattern, rule.by, text)
    return text


def _answers(task: Any, row: Mapping[str, Any], name: str) -> tuple[tuple[str, ...], int]:
    """The answers and the number of the right one."""
    if not isinstance(task, MultipleChoice):
        answers: tuple[str, ...] = (_replaced(task, Template(task.target).fill(row, name)),)
    else:
        answers = tuple(_replaced(task, choice) for choice in _listed(task.choices, row, name))
    if len(answers) < 2 and isinstance(task, MultipleChoice):
        raise DataError(f"{len(answers)} choices", where=name, way_out="give two or more")
    if not all(answers):
        raise DataError("an answer is empty", where=name)
    return answers, _gold(task, row, name, answers) if isinstance(task, MultipleChoice) else 0


def _listed(given: str | tuple[str, ...], row: Mapping[str, Any], name: str) -> list[str]:
    return Template(given).each(row, name) if isinstance(given, str) else [Template(t).fill(row, name) for t in given]


def _gold(task: MultipleChoice, row: Mapping[str, Any], name: str, answers: Sequence[str]) -> int:
    """Which choice is right: the label's place among the labels, else the number it is, else the choice it says."""
    label = Template(task.label).fill(row, name)
    if task.labels is not None:
        labels = _listed(task.labels, row, name)
        if label in labels and labels.index(label) < len(answers):
            return labels.index(label)
        raise DataError(f"the label {label!r} is none of {', '.join(labels[:8])}", where=name)
    number = {"True": 1, "False": 0}.get(label, int(label) if label.isdecimal() else None)
    if number is None and label in answers:
        return list(answers).index(label)
    if number is None or number >= len(answers):
        raise DataError(f"the label {label!r} is no number from 0 to {len(answers) - 1}", where=name,
                        way_out="set labels to what stands for each choice")
    return number
