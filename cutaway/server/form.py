"""The form an answer must have: a JSON schema, or any JSON object, as a constraint on its tokens."""

from __future__ import annotations

from typing import Any

from cutaway.generate.request import Constraint
from cutaway.server.problem import Problem
from cutaway.text.tokenizer import Tokenizer


def constraints(schema: dict[str, Any] | None, tokenizer: Tokenizer, *, count: int,
                param: str) -> tuple[Constraint, ...]:
    """A constraint for each of ``count`` choices; none where there is no schema. Raises Problem for a schema that is
    too large, or asks for what cannot be held to."""
    if schema is None:
        return ()
    raise Problem(400, "answers of a given form are not supported; ask for text and say in words what it must be",
                  code="unsupported_parameter", param=param)
