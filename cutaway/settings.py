"""Strict configuration: frozen pydantic models read from TOML, dotted overrides, the nearest match for every typo.

One tree of small frozen values serves recipes, the command line and every schema. Unions are told apart by
``kind``, so a setting exists only where it means something. Nothing unknown is ever accepted.
"""

from __future__ import annotations

import copy
import difflib
import json
import math
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import EllipsisType, NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import pydantic
import tomli_w
from pydantic import ConfigDict

from cutaway.errors import SettingsError

Tree = dict[str, Any]
S = TypeVar("S", bound="Settings")


class Settings(pydantic.BaseModel):
    """A frozen, strict value: unknown names refused, types exact (an int may stand for a float, a list for a tuple),
    every number finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True, protected_namespaces=(),
                              allow_inf_nan=False)


def read_toml(path: str | Path, *, search: Sequence[Path] = ()) -> Tree:
    """The file's tree laid over the one it ``extends`` (a path, or a name found beside the file or in ``search``).

    Tables merge key by key, except where the ``kind`` differs: then the extending table stands alone.
    Raises SettingsError if a file is missing, is not TOML, or extends itself.
    """
    return _read(Path(path), tuple(search), ())


def _read(path: Path, search: Sequence[Path], above: tuple[Path, ...]) -> Tree:
    try:
        tree = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise SettingsError("no such file", where=path, way_out="check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"cannot be read ({error})", where=path) from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"not TOML: {error}", where=path) from None
    parent = tree.pop("extends", None)
    if parent is None:
        return tree
    if not isinstance(parent, str):
        raise SettingsError(f"extends takes one name or path, got {parent!r}", where=path)
    found = _find(parent, (path.parent, *search))
    if found is None:
        raise SettingsError(f"extends {parent!r}, which does not exist", where=path,
                            way_out="give a path relative to this file, or the name of a recipe")
    if found.resolve() in {p.resolve() for p in (*above, path)}:
        raise SettingsError(f"extends itself through {parent!r}", where=path)
    return merge(_read(found, search, (*above, path)), tree)


def _find(name: str, folders: Sequence[Path]) -> Path | None:
    tries = (folder / file for folder in folders for file in (name, f"{name}.toml"))
    return next((t for t in tries if t.is_file()), None)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> Tree:
    """``over`` laid on ``base``; a table of another ``kind`` replaces the whole table below it."""
    out = copy.deepcopy(dict(base))
    for key, value in over.items():
        below: Any = out.get(key)
        tables = isinstance(value, Mapping) and isinstance(below, Mapping)
        same = tables and value.get("kind", below.get("kind")) == below.get("kind")
        out[key] = merge(below, value) if same else copy.deepcopy(value)
    return out


def override(tree: Mapping[str, Any], assignments: Iterable[str], *, of: type[Settings] | None = None) -> Tree:
    """The tree with ``a.b=value`` applied in order; values are TOML, a bare word is a string.

    With ``of`` (the class to be decoded) kinds follow: a setting that the table's kind lacks chooses the only kind that
    has it, or of several the one of its own name (``data.path=DIR`` makes ``data.kind = "path"``), and what the table's
    former kind alone had is left behind.

    >>> override({"train": {"steps": 10}}, ["train.steps=20"])
    {'train': {'steps': 20}}
    """
    out = copy.deepcopy(dict(tree))
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        names = path.strip().split(".")
        if not equals or not all(names):
            raise SettingsError(f"{assignment!r} is not a setting", way_out="write path=value, as in train.steps=100")
        table, models = out, [of] if of else []
        for depth, name in enumerate(names[:-1]):
            table = table.setdefault(name, {})
            models = _below(models, name)
            if not isinstance(table, dict):
                raise SettingsError(f"{'.'.join(names[: depth + 1])} is a value, not a table", where=assignment)
        _assign(table, names[-1], _value(text, assignment), models)
    return out


def _assign(table: Tree, name: str, value: object, models: list[type[Settings]]) -> None:
    kinds = {kind: m for m in models for kind in _kinds(m)}
    chosen = value if name == "kind" else None
    if name != "kind" and kinds and table.get("kind") in {*kinds, None}:
        owners = [k for k, m in kinds.items() if name in m.model_fields]
        if table.get("kind") not in owners:
            chosen = owners[0] if len(owners) == 1 else name if name in owners else None
    if isinstance(chosen, str) and chosen in kinds and chosen != table.get("kind"):
        kept = {k: v for k, v in table.items() if k in kinds[chosen].model_fields}
        table.clear()
        table.update({"kind": chosen, **{k: v for k, v in kept.items() if k != "kind"}})
    table[name] = value


def _value(text: str, where: str) -> object:
    text = text.strip()
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError as error:
        if text[:1] in ("[", "{", '"', "'"):
            raise SettingsError(f"not a TOML value: {error}", where=where) from None
        return text
    value = parsed["value"] if len(parsed) == 1 else text
    return value if isinstance(value, bool | int | float | str | list | dict) else text


def decode(cls: type[S], tree: Mapping[str, Any], *, where: object) -> S:
    """The tree as a ``cls``; the first thing wrong is raised as a one-line SettingsError with its nearest match."""
    try:
        return cls.model_validate_json(json.dumps(tree), strict=True)
    except TypeError as error:
        raise SettingsError(f"a value cannot be used: {error}", where=where) from None
    except pydantic.ValidationError as error:
        errors = error.errors(include_url=False)
        # An unknown name explains more than the missing one that it was meant for.
        first = min(errors, key=lambda e: e["type"] != "extra_forbidden")
        what, way_out = _explain(cls, first)
        more = len({e["loc"][:1] for e in errors} - {first["loc"][:1]})
        rest = f" (and {more} more wrong)" if more else ""
        raise SettingsError(what + rest, where=where, way_out=way_out) from None


def _explain(cls: type[Settings], error: Any) -> tuple[str, str | None]:
    loc, kind, context = error["loc"], error["type"], error.get("ctx", {})
    written, there = _walk(cls, loc)
    name = ".".join(written)
    if kind == "extra_forbidden":
        return f"unknown setting {name}", _known_instead(cls, loc, name)
    if kind == "missing":
        return f"{name} is missing", f"write {name} = …"
    if kind.startswith("union_tag"):
        expected = [t.strip(" '") for t in str(context.get("expected_tags", "")).split(",") if t.strip(" '")]
        expected = expected or [k for m in _models(there) for k in _kinds(m)]
        tag = context.get("tag")
        near = nearest(str(tag), expected)
        what = f"{name}.kind is missing" if tag is None else f"{name}.kind {tag!r} is unknown"
        return what, f"did you mean {near!r}?" if near else f"one of {', '.join(expected)}"
    message = str(error["msg"]).removeprefix("Value error, ").removeprefix("Input ")
    message = message[:1].lower() + message[1:]
    if kind == "value_error":
        return f"{name}: {message}" if name else message, None
    expected = str(context.get("expected", "")).replace(" or ", ", ").replace("'", "").split(", ")
    near = nearest(str(error["input"]), expected)
    return f"{name} {message}, got {_shown(error['input'])}", f"did you mean {near!r}?" if near else None


def _known_instead(cls: type[Settings], loc: Sequence[str | int], name: str) -> str:
    """The way out of an unknown setting: the kind it belongs to, its nearest match, or what there is."""
    last, prefix = str(loc[-1]), name.rpartition(".")[0]
    union = _bare(_walk(cls, loc[:-2])[1])
    owners = [k for m in _models(union) for k in _kinds(m) if last in m.model_fields] if _is_union(union) else []
    if owners:
        choose = f"add {prefix}.kind={owners[0]}" if len(owners) == 1 else f"choose one with {prefix}.kind=…"
        either = f"{', '.join(owners[:-1])} or {owners[-1]}".removeprefix(" or ")
        return f"{name} belongs to {prefix}.kind = {either}: {choose}"
    here = list(dict.fromkeys(f for m in _models(_walk(cls, loc[:-1])[1]) for f in m.model_fields))
    near = nearest(last, here)
    guess = _elsewhere(cls, last, prefix) or (f"{prefix}.{near}".lstrip(".") if near else None)
    guess = guess or _elsewhere(cls, nearest(last, (p.split(".")[-1] for p in paths(cls))), prefix)
    listed = f"the settings here are {', '.join(sorted(here))}"
    if guess and here and not near and prefix and not guess.startswith(f"{prefix}."):
        return f"{listed}; or did you mean {guess}?"  # a name of another place alone
    return f"did you mean {guess}?" if guess else listed


def _elsewhere(cls: type[Settings], name: str | None, prefix: str) -> str | None:
    """Where a setting of that name stands: below ``prefix`` if it does, else the first place of all."""
    found = [p for p in paths(cls) if p.split(".")[-1] == name]
    return min(found, key=lambda p: not p.startswith(f"{prefix}."), default=None)


def _shown(value: object) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # as TOML writes it: JSON has no word for it
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _walk(cls: type[Settings], loc: Sequence[str | int]) -> tuple[list[str], object]:
    """The path as a person wrote it, and the type of what stands there.

    pydantic's loc also names the union member that it tried; only the types tell such a tag from a key of its name.
    """
    here: object = cls
    written: list[str] = []
    for piece in loc:
        here = _bare(here)
        if _is_union(here):
            here = next((m for m in _models(here) if piece in _kinds(m)), None)
        elif isinstance(here, type) and issubclass(here, Settings):
            field = here.model_fields.get(str(piece))
            here = field.annotation if field else None
            written.append(str(piece))
        else:
            if isinstance(piece, int) or get_origin(here) not in (None, Literal):
                written.append(str(piece))
            inside = [a for a in get_args(here) if not isinstance(a, EllipsisType)]
            here = inside[-1] if inside else None
    return written, here


def _bare(annotation: object) -> object:
    """The type without what is annotated and without the None that it may be."""
    if get_origin(annotation) is Annotated:
        return _bare(get_args(annotation)[0])
    rest = [a for a in get_args(annotation) if a is not NoneType] if _is_union(annotation) else []
    return _bare(rest[0]) if len(rest) == 1 else annotation


def _is_union(annotation: object) -> bool:
    return get_origin(annotation) in (Union, UnionType)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name closest to a misspelt one, or None if nothing is close."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)), None)


def _models(annotation: object) -> Iterator[type[Settings]]:
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def _kinds(model: type[Settings]) -> tuple[str, ...]:
    field = model.model_fields.get("kind")
    return tuple(a for a in get_args(field.annotation) if isinstance(a, str)) if field else ()


def _below(models: Iterable[type[Settings]], name: str) -> list[type[Settings]]:
    return [m for c in models if name in c.model_fields for m in _models(c.model_fields[name].annotation)]


def paths(cls: type[Settings]) -> list[str]:
    """Every dotted path that a tree of ``cls`` may hold, all kinds of every union included."""
    out: list[str] = []
    for name, field in cls.model_fields.items():
        out.append(name)
        out += [f"{name}.{p}" for m in _models(field.annotation) for p in paths(m)]
    return list(dict.fromkeys(out))


def to_toml(settings: Settings) -> str:
    """TOML with every default written. What is None has no TOML value: it is named in the first line as unset."""
    unset: list[str] = []
    tree = _without_none(settings.model_dump(mode="json"), "", unset)
    head = f"# unset: {', '.join(unset)}\n\n" if unset else ""
    return head + tomli_w.dumps(tree)


def _without_none(tree: Mapping[str, Any], prefix: str, unset: list[str]) -> Tree:
    out: Tree = {}
    for key, value in tree.items():
        if value is None:
            unset.append(prefix + key)
        else:
            out[key] = _plain(value, f"{prefix}{key}.", unset)
    return out


def _plain(value: Any, prefix: str, unset: list[str]) -> Any:
    if isinstance(value, Mapping):
        return _without_none(value, prefix, unset)
    if isinstance(value, list):
        return [_plain(v, f"{prefix}{i}.", unset) for i, v in enumerate(value)]
    return value


def schema(cls: type[Settings]) -> Tree:
    """JSON Schema of the settings, for forms and editors."""
    return cls.model_json_schema()
