"""What a client is told when it does not get what it asked for: a status and the one error body of the wire format.

``{"error": {"message", "type", "param", "code"}}`` with a code of text, as the official client reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cutaway.errors import CutawayError, MachineError

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_CODES = {400: "invalid_value", 404: "not_found", 405: "method_not_allowed", 408: "request_timeout",
          413: "body_too_large", 429: "rate_limit_exceeded", 431: "headers_too_large", 500: "internal_error",
          503: "unavailable", 504: "deadline_exceeded"}

# Why a body that is as the schema says is refused all the same: no schema can say these. All other 400s of it break it.
UNSAYABLE = {
    "invalid_json": "no JSON, nested deeper than 64 levels, or with a number or a letter that is out of range",
    "context_length_exceeded": "prompt and answer do not fit the model's context, or a request has too many",
    "model_unsuited": "the model gives something else, or has no tools, roles, letters or dimensions like these",
    "token_out_of_range": "a token is outside the model's vocabulary",
    "empty_prompt": "nothing is left to read",
    "invalid_json_schema": "a schema to which no answer can be held",
    "answer_too_short": "no whole answer of the form asked for fits max_tokens",
    "invalid_tool": "tool_choice names none of the tools, two of them disagree, or arguments of a call are not JSON",
    "rate_limit_exceeded": "more tokens than a key has in a minute"}


class Problem(Exception):
    """An answer that is an error: ``param`` names the field at fault, ``code`` what programs tell it by."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None,
                 headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param = status, " ".join(message.split()), param
        self.code = code or _CODES.get(status, "error")
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The error body; inside a stream it is an event of its own."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def later(message: str, *, seconds: float = 1.0, status: int = 429, code: str | None = None) -> Problem:
    """Come again in so many seconds (the client does so by itself)."""
    return Problem(status, message, code=code, headers={"Retry-After": str(max(1, round(seconds)))})


def problem_of(error: Exception) -> Problem:
    """An error of ours as an answer: what a client asked wrongly is 400, what this machine lacks 503, and a fault of
    ours 500 without its insides."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, MachineError):
        return Problem(503, str(error), headers={"Retry-After": "30"})
    if isinstance(error, CutawayError):
        return Problem(400, str(error), code="model_unsuited")
    return Problem(500, "a fault of the server; its log has the details under this request's id")
