"""What a JSON schema asks for: checked against what is honoured, and how much longer one choice can make a document.

JSON Schema 2020-12 as far as llguidance has it; a keyword outside of that is refused by its name.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any

from cutaway.errors import RequestError

SCHEMA_BYTES, SCHEMA_DEPTH, SCHEMA_PARTS = 65_536, 32, 1_500
_MAPS, _LISTS = ("properties", "patternProperties", "$defs", "definitions"), ("anyOf", "oneOf", "allOf", "prefixItems")
_ONE = ("items", "additionalProperties")
_NOTES = ("$schema", "$id", "$comment", "title", "description", "default", "examples", "readOnly", "writeOnly")
_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
KEYWORDS = frozenset((*_MAPS, *_LISTS, *_ONE, *_NOTES, *_NUMBERS, "$ref", "type", "const", "enum", "required",
                      "minItems", "maxItems", "maxProperties", "minLength", "maxLength", "pattern", "format"))
_COUNT, _TEXT, _LIST = (int, "a whole number"), (str, "a text"), (list | tuple, "a list")
_KINDS: dict[str, tuple[Any, str]] = {  # of what stands behind a keyword; what else there is holds schemas, or anything
    "enum": _LIST, "required": _LIST, "type": (str | list | tuple, "a text or a list of texts"), "pattern": _TEXT,
    "format": _TEXT, **dict.fromkeys(("minItems", "maxItems", "maxProperties", "minLength", "maxLength"), _COUNT),
    **dict.fromkeys(_NUMBERS, (int | float, "a number"))}
_LARGEST = 2**31  # count that a document must reach: what is measured stays a number
_DIGITS, _FORMAT = 40, 64  # bytes of a number within bounds and of a text in a format, at most


@dataclass(frozen=True, slots=True)
class Growth:
    """How many bytes one token can put between a text and its end: ``base``, and ``choice`` for every value or key that
    it begins. ``certain``: this is an upper bound, and not an estimate."""

    base: int
    choice: int
    certain: bool


def checked_schema(schema: object) -> dict[str, Any]:
    """The schema as an object. Raises RequestError for one that is too large, or asks for what is not honoured."""
    schema = {} if schema is True else schema
    if not isinstance(schema, Mapping):
        raise _refused(f"a JSON schema is an object, not {type(schema).__name__}")
    try:
        size = len(json.dumps(schema, ensure_ascii=False).encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise _refused(f"it is not JSON ({type(error).__name__})") from None
    if size > SCHEMA_BYTES:
        raise _refused(f"{size:,} bytes are more than {SCHEMA_BYTES:,}", "make it smaller")
    if _depth(schema) > SCHEMA_DEPTH:
        raise _refused(f"it is nested deeper than {SCHEMA_DEPTH}", "use $ref, or flatten it")
    root = dict(schema)
    parts = [*_parts(root, "JSON schema")]
    if len(parts) > SCHEMA_PARTS:
        raise _refused(f"{len(parts):,} parts are more than {SCHEMA_PARTS:,}", "make it smaller")
    for path, part in parts:
        _check_part(part, path)
    known = {id(part) for _, part in parts}
    for path, part in parts:
        target = part.get("$ref") if isinstance(part, Mapping) else None
        if target is not None and id(resolved(root, target)) not in known:
            raise _refused(f"$ref {target!r} names what is no schema", where=path)
    return root


def _refused(what: str, way_out: str | None = None, where: str = "JSON schema") -> RequestError:
    return RequestError(what, where=where, way_out=way_out)


def _depth(tree: object) -> int:
    """How many brackets stand in one another."""
    level, depth = [tree], 0
    while level:
        inside: list[object] = []
        for part in level:
            inside += part.values() if isinstance(part, Mapping) else part if isinstance(part, list | tuple) else []
        nested = any(isinstance(part, Mapping | list | tuple) for part in level)
        level, depth = inside, depth + nested
        if depth > SCHEMA_DEPTH:
            break
    return depth


def _parts(schema: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every schema inside a schema, itself first."""
    yield path, schema
    if not isinstance(schema, Mapping):
        return
    for word in _MAPS:
        found = schema.get(word, {})
        if not isinstance(found, Mapping):
            raise _refused(f"{word} must be an object", where=path)
        for name, part in found.items():
            yield from _parts(part, f"{path}.{word}.{name}")
    for word in _LISTS:
        found = schema.get(word, [])
        if not isinstance(found, list | tuple):
            raise _refused(f"{word} must be a list", where=path)
        for i, part in enumerate(found):
            yield from _parts(part, f"{path}.{word}.{i}")
    for word in _ONE:
        if word in schema:
            yield from _parts(schema[word], f"{path}.{word}")


def _check_part(part: Any, path: str) -> None:
    if isinstance(part, bool):
        return
    if not isinstance(part, Mapping):
        raise _refused(f"a schema is an object or true or false, not {type(part).__name__}", where=path)
    unknown = sorted(set(part) - KEYWORDS)
    if unknown:
        raise _refused(f"the keyword {unknown[0]!r} is not honoured", "leave it out", path)
    for word, kind in _KINDS.items():
        if word in part and (not isinstance(part[word], kind[0]) or isinstance(part[word], bool)):
            raise _refused(f"{word} must be {kind[1]}", where=path)
        if word in part and word in ("minItems", "minLength") and not 0 <= part[word] <= _LARGEST:
            raise _refused(f"{word} must be from 0 to {_LARGEST:,}", where=path)
    for word in ("required", "type"):
        if isinstance(part.get(word), list | tuple) and not all(isinstance(name, str) for name in part[word]):
            raise _refused(f"{word} must be a list of texts", where=path)
        if isinstance(part.get(word), list | tuple) and len({*part[word]}) < len(part[word]):
            raise _refused(f"a name stands twice in {word}", where=path)
    if part.get("type") in ([], ()):
        raise _refused("type must name one type at least", where=path)
    target = part.get("$ref")
    if target is not None and not (isinstance(target, str) and target.startswith("#")):
        raise _refused(f"$ref {target!r} is outside of this schema", "copy what it names into $defs", path)


@dataclass(frozen=True)
class _Measure:
    """Lengths of the shortest documents of a schema's parts, in bytes without white space; an upper bound."""

    known: dict[str, float]  # by the pointer of a $ref
    found: dict[int, float] = field(default_factory=dict)  # by a part's identity, while known does not change

    @classmethod
    def of(cls, root: Mapping[str, Any]) -> _Measure:
        parts = [part for _, part in _parts(root, "") if isinstance(part, Mapping)]
        named = dict.fromkeys(part["$ref"] for part in parts if "$ref" in part)
        fixed = {id(part): cls({})._shortest(part) for part in parts if "const" in part or "enum" in part}
        order, known = [(name, resolved(root, name)) for name in named], dict.fromkeys(named, inf)
        measure = cls(known, dict(fixed))
        for _ in named:  # each round settles one at least, and a chain of references back or forth
            before = dict(known)
            order.reverse()
            measure = cls(known, dict(fixed))
            for name, part in order:
                known[name] = measure.shortest(part)
            if known == before:
                return measure
        return cls(known, fixed)

    def shortest(self, part: Any) -> float:
        if isinstance(part, bool):
            return 1 if part else inf
        if (length := self.found.get(id(part))) is None:
            length = self.found[id(part)] = self._shortest(part)
        return length

    def _shortest(self, part: Mapping[str, Any]) -> float:
        if "const" in part:
            return float(literal(part["const"]))
        if "enum" in part:
            return min(map(float, map(literal, part["enum"])), default=inf)
        found = [self.known[part["$ref"]]] if "$ref" in part else []
        for word in ("anyOf", "oneOf"):
            if word in part:
                found.append(min(map(self.shortest, part[word]), default=inf))
        found += map(self.shortest, part.get("allOf", ()))
        if not found or "type" in part or "properties" in part:
            found.append(min(self.typed(part, t) for t in types_of(part)))
        return float(sum(found))

    def typed(self, part: Mapping[str, Any], name: str) -> float:
        if name == "object":
            inside = part.get("properties", {})
            rest = part.get("additionalProperties", True)
            return 2 + sum(2 + literal(key) + self.shortest(inside.get(key, rest)) for key in part.get("required", ()))
        if name == "array":
            count, first = part.get("minItems", 0), part.get("prefixItems", ())
            items = sum(1 + self.shortest(p) for p in first[:count])
            more = count - len(first)
            return 2 + items + (more * (1 + self.shortest(part.get("items", True))) if more > 0 else 0)
        if name == "string":
            return float(2 + part.get("minLength", 0) + _FORMAT * ("format" in part) + 4 * len(part.get("pattern", "")))
        if name in ("number", "integer"):
            return _DIGITS if any(word in part for word in _NUMBERS) else 1
        return 4


def types_of(part: Mapping[str, Any]) -> tuple[str, ...]:
    """The types a part's documents may have."""
    types = part.get("type", ("null", "boolean", "number", "string", "array", "object"))
    return (types,) if isinstance(types, str) else tuple(types)


def literal(value: object) -> int:
    """Bytes of a value as JSON without white space."""
    return len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())


def resolved(root: Mapping[str, Any], pointer: str) -> Any:
    """What a ``$ref`` inside the schema names. Raises RequestError if there is nothing."""
    found: Any = root
    for step in pointer.removeprefix("#").split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list | tuple) and name.isdigit() and int(name) < len(found):
            found = found[int(name)]
        elif isinstance(found, Mapping) and name in found:
            found = found[name]
        else:
            raise _refused(f"$ref {pointer!r} names nothing in this schema")
    return found


def growth(schema: Mapping[str, Any]) -> Growth:
    """How far one token can move the end of a document of this schema."""
    measure = _Measure.of(schema)
    base, choice, certain = 16.0, 4.0, True  # 16: an escape, the rest of a character, a sign, a point
    for _, part in _parts(schema, ""):
        if not isinstance(part, Mapping):
            continue
        certain = certain and not _blurred(part)
        choice = max(choice, *_choices(part, measure), 0)
        if "enum" in part:
            base = max(base, 16 + max(map(literal, part["enum"]), default=0))
        base = max(base, 16 + _DIGITS * any(word in part for word in _NUMBERS),
                   16 + _FORMAT * ("format" in part) + 4 * len(part.get("pattern", "")))
    return Growth(int(min(base, SCHEMA_BYTES)), int(min(choice, SCHEMA_BYTES)), certain and choice < SCHEMA_BYTES)


def _blurred(part: Mapping[str, Any]) -> bool:
    """Whether a part's documents may be longer than ``_Measure`` says: patterns, and parts that must hold together."""
    joined = any(word in part for word in ("anyOf", "oneOf", "$ref", "enum", "const"))
    others = set(part) - {*_NOTES, "$defs", "definitions", "type", "anyOf", "oneOf", "$ref", "enum", "const"}
    return bool({"allOf", "pattern", "patternProperties", "multipleOf"} & set(part)) or (joined and bool(others)) or (
        sum(word in part for word in ("anyOf", "oneOf", "$ref", "enum", "const")) > 1)


def _choices(part: Mapping[str, Any], measure: _Measure) -> Iterator[float]:
    """Bytes that each free choice of a part adds at least, once it is made; what can never be finished adds none."""
    must = part.get("required", ())
    for key, inside in part.get("properties", {}).items():
        if key not in must:
            yield _real(2 + literal(key) + measure.shortest(inside))
    for inside in part.get("patternProperties", {}).values():
        yield _real(6 + measure.shortest(inside))
    yield _real(6 + measure.shortest(part.get("additionalProperties", True)))
    yield _real(1 + measure.shortest(part.get("items", True)))
    for word in ("anyOf", "oneOf", "prefixItems"):
        for inside in part.get(word, ()):
            yield _real(1 + measure.shortest(inside))
    if len(types := types_of(part)) > 1 and not {"$ref", "enum", "const", "anyOf", "oneOf"} & set(part):
        yield from (_real(measure.typed(part, t)) for t in types)


def _real(length: float) -> float:
    return 0.0 if length == inf else length


def required_names(schema: Mapping[str, Any]) -> frozenset[bytes]:
    """The keys that some object must have, as they stand inside their quotes."""
    names = {name for _, part in _parts(schema, "") if isinstance(part, Mapping) for name in part.get("required", ())}
    return frozenset(json.dumps(name, ensure_ascii=False).encode()[1:-1] for name in names)


def patterns(schema: Mapping[str, Any]) -> tuple[str, ...]:
    """Those that strings must have, a few of them: what is tried with them is tried at every letter."""
    found = (part["pattern"] for _, part in _parts(schema, "") if isinstance(part, Mapping)
             and isinstance(part.get("pattern"), str))
    return tuple(itertools.islice(dict.fromkeys(found), 16))
