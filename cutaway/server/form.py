"""The form an answer must have: a JSON schema, any JSON object, or a call of a tool, as rules for its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cutaway.errors import CutawayError
from cutaway.generate.constrain import Rules, json_schema
from cutaway.generate.request import Constraint
from cutaway.server.asks import Tool
from cutaway.server.problem import Problem
from cutaway.server.tools import Way
from cutaway.text.tokenizer import Tokenizer


def rules(schema: dict[str, Any] | None, tokenizer: Tokenizer, *, param: str) -> Rules | None:
    """The rules of a schema; none where there is none. Raises Problem for one that is too large, or asks for what
    cannot be held to."""
    if schema is None:
        return None
    try:
        return json_schema(schema, tokenizer)
    except CutawayError as error:
        code = "model_unsuited" if tokenizer.spelling.name == "words" else "invalid_json_schema"
        raise Problem(400, str(error), param=param, code=code) from None


def constraints(made: Rules | None, most: int, *, count: int, param: str) -> tuple[Constraint, ...]:
    """One for each of ``count`` choices of at most ``most`` tokens. Raises Problem where no whole answer is that
    short."""
    if made is None:
        return ()
    try:
        return tuple(made.begin(most) for _ in range(count))
    except CutawayError as error:
        raise Problem(400, str(error), param=param, code="answer_too_short") from None


def call_schema(tools: Sequence[Tool], way: Way) -> dict[str, Any]:
    """One call of one of the tools, as the model of this ``way`` writes it. Definitions of a tool's own move to where
    its references, which begin at the root, find them."""
    key = "arguments" if way == "tagged" else "parameters"
    options: list[dict[str, Any]] = []
    shared: dict[str, dict[str, Any]] = {}
    for tool in tools:
        parameters = dict(tool.function.parameters or {"type": "object", "properties": {}})
        for name in ("$defs", "definitions"):
            found = parameters.get(name)
            if not isinstance(found, dict):  # what it is instead is refused where the schema is read
                continue
            del parameters[name]
            for inside, value in found.items():
                if shared.setdefault(name, {}).setdefault(inside, value) != value:
                    raise Problem(400, f"two tools define {inside!r} differently; name them apart", param="tools",
                                  code="invalid_tool")
        options.append({"type": "object", "properties": {"name": {"const": tool.function.name}, key: parameters},
                        "required": ["name", key], "additionalProperties": False})
    return {**(options[0] if len(options) == 1 else {"anyOf": options}), **shared}
