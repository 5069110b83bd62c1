"""From a request's bytes to a frozen value: read within limits, parsed strictly, nothing unknown let through.

An unknown field is refused with its nearest match, one of the public interface that we do not honour as unsupported.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import pydantic
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from cutaway.server.limits import JSON_DEPTH, Limits
from cutaway.server.problem import Problem
from cutaway.settings import Settings, nearest

S = TypeVar("S", bound=Settings)
_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*+"?', re.DOTALL)  # none is looked at twice: one without end is the rest
_ELSEWHERE = {  # ways out of fields that some have and these have not
    ("messages", "name"): "templates have no place for it; leave it out",
    ("input", "call_id"): "calls of tools are for /v1/chat/completions",
    **{(where, name): "only text is read" for where in ("messages", "input")
       for name in ("image_url", "input_audio", "file", "file_id", "file_data")}}
_SHAPES = ("tuple_type", "dict_type", "too_short", "too_long")  # what is said of these has no word of the client's
_BRACKETS = re.compile(rb"[\[\]{}]")


async def read(request: Request, limits: Limits) -> bytes:
    """The body. Raises Problem 413 for one that is too large and 408 for one that does not come."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limits.body_bytes:
        raise _too_large(limits)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Problem(415, f"a body of {kind or 'no type'} cannot be read; send Content-Type: application/json",
                      code="unsupported_media_type")
    parts, size = [], 0
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for part in request.stream():
                size += len(part)
                if size > limits.body_bytes:
                    raise _too_large(limits)
                parts.append(part)
    except TimeoutError:
        raise Problem(408, f"the body did not arrive within {limits.body_seconds:g} seconds",
                      headers={"Connection": "close"}) from None
    except ClientDisconnect:
        raise Gone from None
    return b"".join(parts)


class Gone(Exception):
    """The client went away: nobody is there to be told."""


async def until_gone(receive: Receive) -> None:
    """Return when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _too_large(limits: Limits) -> Problem:
    return Problem(413, f"the body is larger than {limits.body_bytes:,} bytes", headers={"Connection": "close"})


def parsed(data: bytes) -> Any:
    """The JSON value. Raises Problem for what is no JSON, nested too deeply, or names a field twice."""
    depth = 0
    for bracket in _BRACKETS.findall(_STRINGS.sub(b"", data)):
        depth += 1 if bracket in b"[{" else -1
        if depth > JSON_DEPTH:
            raise Problem(400, f"the body is nested deeper than {JSON_DEPTH} levels", code="invalid_json")
    try:
        return json.loads(data.decode(), object_pairs_hook=_once, parse_constant=_no_constant, parse_float=_finite)
    except UnicodeDecodeError as error:
        raise Problem(400, f"the body is not UTF-8 at byte {error.start}", code="invalid_json") from None
    except (ValueError, RecursionError) as error:
        raise Problem(400, f"the body is not JSON: {error}", code="invalid_json") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name, count in counts.items() if count > 1)
        raise Problem(400, f"the field {twice!r} stands twice in one object", code="invalid_json", param=twice[:100])
    return out


def _no_constant(word: str) -> Any:
    raise ValueError(f"{word} is no JSON")


def _finite(digits: str) -> float:
    if math.isinf(value := float(digits)):
        raise ValueError(f"{digits[:20]} is beyond the largest number")
    return value


def decode(cls: type[S], data: bytes, unsupported: Mapping[str, str] | None = None) -> S:
    """The bytes as a ``cls``. ``unsupported`` names fields of the public interface that change an answer and are not
    honoured, each with the way out; null is not given. Raises Problem for the first thing wrong."""
    tree = parsed(data)
    if not isinstance(tree, dict):
        raise Problem(400, "the body must be a JSON object", code="invalid_json")
    for name, way_out in (unsupported or {}).items():
        if tree.get(name) is not None:
            raise Problem(400, f"{name} is not supported; {way_out}", code="unsupported_parameter", param=name)
    tree = {name: value for name, value in tree.items() if value is not None or name not in (unsupported or {})}
    try:
        return cls.model_validate_json(json.dumps(tree), strict=True)
    except pydantic.ValidationError as error:
        raise _explained(cls, tree, error) from None


def _explained(cls: type[Settings], tree: dict[str, Any], error: pydantic.ValidationError) -> Problem:
    found = error.errors(include_url=False)
    # An unknown name explains more than what else is wrong; of a union's members the one of the right type does, then
    # the one that came furthest. What is "too short" is so because an item was of the wrong type, if there are items.
    first = min(found, key=lambda e: (e["type"] != "extra_forbidden", e["type"] == "too_short" and bool(e["input"]),
                                      e["type"].endswith("_type"), -len(e["loc"])))
    kind, loc = first["type"], first["loc"]
    if kind == "json_invalid":
        return Problem(400, f"the body is not JSON: {first['ctx'].get('error', '')}", code="invalid_json")
    name, last = place_in(tree, loc, missing=kind == "missing")
    if kind == "extra_forbidden":
        near = nearest(str(last), [known for known in _known(cls, name) if known != last])  # it is one of another part
        way_out = _ELSEWHERE.get((name.partition("[")[0], str(last)),
                                 f"did you mean {near!r}?" if near else "leave it out")
        return Problem(400, f"unknown field {name}; {way_out}",
                       code="unknown_parameter", param=name)
    if kind == "missing":
        return Problem(400, f"{name} is missing", code="missing_required_parameter", param=name)
    message = str(first["msg"]).removeprefix("Value error, ").removeprefix("Input ")
    message = message[:1].lower() + message[1:]
    if kind in _SHAPES:
        message = message.replace("tuple", "list").replace("dictionary", "object")
    return Problem(400, f"{name + ': ' if name else ''}{message}", param=name or None)


def place_in(tree: Any, loc: tuple[str | int, ...], *, missing: bool = False) -> tuple[str, str | int]:
    """The path as a person wrote it, ``messages[0].content``: pydantic's also names the members of a union that it
    tried, which nobody wrote."""
    here, written, last = tree, "", ""
    for at, piece in enumerate(loc):
        if isinstance(here, dict) and (piece in here or (missing and at == len(loc) - 1)):
            written += f".{str(piece)[:100]}" if written else str(piece)[:100]
            here, last = here.get(piece), str(piece)
        elif isinstance(here, list) and isinstance(piece, int) and piece < len(here):
            written += f"[{piece}]"
            here = here[piece]
    return written, last


def _known(cls: type[Settings], name: str) -> list[str]:
    """The names that a misspelt one could have meant: those of the body, or below it those of its parts."""
    if "." not in name:
        return [field.alias or key for key, field in cls.model_fields.items()]
    tree = json.dumps(cls.model_json_schema().get("$defs", {}))
    return sorted(set(re.findall(r'"properties": \{"(\w+)"', tree)) | set(re.findall(r'"(\w+)": \{', tree)))


@asynccontextmanager
async def beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """``work`` goes on for as long as the block."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
