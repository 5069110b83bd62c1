"""Prompt templates: a text with ``{column}`` fields, filled from a row (after str.format, without its ways to code).

A field is a column, or a place in it (``{choices.text}``), through named filters (``{support|lstrip}``); a brace that
is meant is written twice. Which columns a template reads is known before a row is: a missing one is an error.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cutaway.errors import DataError
from cutaway.settings import nearest

FILTERS: dict[str, Callable[[str], str]] = {
    "strip": str.strip, "lstrip": str.lstrip, "rstrip": str.rstrip, "lower": str.lower, "upper": str.upper,
    "capitalize": str.capitalize, "last_word": lambda text: text.rpartition(" ")[2],
    "but_last_word": lambda text: text.rpartition(" ")[0]}


@dataclass(frozen=True, slots=True)
class Field:
    """A column, the keys (or places in a list) that lead on into it, and what its text goes through."""

    column: str
    keys: tuple[str, ...]
    filters: tuple[str, ...]

    def value(self, row: Mapping[str, Any], where: str) -> Any:
        """What the row holds there, filters not applied. Raises DataError where it holds nothing."""
        found = row[self.column]
        for at, key in enumerate(self.keys):
            index: Any = int(key) if isinstance(found, list) and key.isdecimal() else key
            try:
                if not isinstance(found, list | dict):
                    raise KeyError(key)
                found = found[index]
            except (KeyError, IndexError, TypeError):
                path = ".".join((self.column, *self.keys[:at]))
                raise DataError(f"{path!r} holds no {key!r}", where=where, way_out="mend the template or the row"
                                ) from None
        return found

    def text(self, value: Any, where: str) -> str:
        """A value as text, through the filters: text as it stands, a number as Python writes it."""
        if not isinstance(value, str | int | float):
            kind = "nothing" if value is None else f"a {type(value).__name__}"
            raise DataError(f"{'.'.join((self.column, *self.keys))!r} holds {kind}, no text", where=where,
                            way_out="name a place in it, as in {choices.text}")
        out = str(value)
        for name in self.filters:
            out = FILTERS[name](out)
        return out


@dataclass(frozen=True)
class Template:
    """A template that was read: pieces of text and fields. Raises ValueError for what is none."""

    source: str

    def __post_init__(self) -> None:
        _ = self.parts

    @cached_property
    def parts(self) -> tuple[str | Field, ...]:
        """Texts and fields in order."""
        out: list[str | Field] = []
        try:
            for text, name, form, conversion in string.Formatter().parse(self.source):
                out += [text] if text else []
                if name is not None:
                    if form or conversion:
                        raise ValueError("a field is {column}, {column.key} or {column|filter}")
                    out.append(_field(name))
        except ValueError as error:
            raise ValueError(f"the template {self.source[:60]!r} cannot be read: {error}") from None
        return tuple(out)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns it reads, each once."""
        return tuple(dict.fromkeys(p.column for p in self.parts if isinstance(p, Field)))

    def fill(self, row: Mapping[str, Any], where: str) -> str:
        """The text for one row."""
        return "".join(p if isinstance(p, str) else p.text(p.value(row, where), where) for p in self.parts)

    def each(self, row: Mapping[str, Any], where: str) -> list[str]:
        """The texts of a list in the row, for a template that is a single field. Raises DataError for no list."""
        field = self.parts[0] if len(self.parts) == 1 else None
        found = field.value(row, where) if isinstance(field, Field) else None
        if not isinstance(field, Field) or not isinstance(found, list):
            raise DataError(f"{self.source!r} is no list", where=where,
                            way_out="name a column that holds one, or write the templates of each as a list")
        return [field.text(value, where) for value in found]


def _field(name: str) -> Field:
    path, *filters = name.split("|")
    column, *keys = path.split(".")
    if not column or not all(keys):
        raise ValueError("a field without a column")
    for one in filters:
        if one not in FILTERS:
            near = nearest(one, FILTERS)
            raise ValueError(f"no filter {one!r}; " + (f"did you mean {near!r}?" if near else
                                                       f"there are {', '.join(FILTERS)}"))
    return Field(column, tuple(keys), tuple(filters))
