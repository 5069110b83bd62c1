"""What the fields of a body must agree on, as a JSON schema says it: the validators of the bodies, in public.

A client that checks a body against the schema learns it before it asks. What no schema can say (whether a prompt fits
the model) is refused with one of the codes of ``problem.UNSAYABLE``.
"""

from __future__ import annotations

from typing import Any

from cutaway.server.limits import CHOICES

Schema = dict[str, Any]


def without(*names: str) -> Schema:
    """None of these is given; null is not given."""
    return {"properties": {name: {"type": "null"} for name in names}}


def having(name: str, schema: Schema) -> Schema:
    """This one is given, and like that."""
    return {"required": [name], "properties": {name: schema}}


def _both(*schemas: Schema) -> Schema:
    return {"required": [name for s in schemas for name in s.get("required", ())],
            "properties": {name: value for s in schemas for name, value in s["properties"].items()}}


def _any(*schemas: Schema) -> Schema:
    return {"anyOf": [*schemas]}


_SOME: Schema = {"type": "array", "minItems": 1}
_YES: Schema = {"type": "boolean", "const": True}
_COUNT = range(1, CHOICES + 1)
TURN = _any(having("content", {"type": ["string", "array"]}), having("tool_calls", _SOME))
_STREAMS = _any(without("stream_options"), having("stream", _YES))
_PLAIN = {"properties": {"response_format": {"anyOf": [
    {"type": "null"}, {"type": "object", "required": ["type"], "properties": {"type": {"const": "text"}}}]}}}
_EMPTY = {"anyOf": [{"type": "null"}, {"type": "array", "maxItems": 0}]}
_UNCALLED = _any({"properties": {"tools": _EMPTY}}, having("tool_choice", {"const": "none"}))
_FREE = {"properties": {"stop": _EMPTY}, **_UNCALLED}
CHAT: Schema = {"allOf": [
    _STREAMS, _any(without("top_logprobs"), having("logprobs", _YES)),
    _any(without("max_tokens"), without("max_completion_tokens")),
    _any({"properties": {"tool_choice": {"enum": [None, "none"]}}}, having("tools", _SOME)),
    _any(_PLAIN, _FREE)]}
COMPLETION: Schema = {"allOf": [_STREAMS, _any(
    without("best_of"), _both(without("n"), having("best_of", {"const": 1})),
    *(_both(having("n", {"const": k}), having("best_of", {"const": k})) for k in _COUNT))]}
RESPONSE: Schema = _any({"properties": {"top_logprobs": {"enum": [None, 0]}}}, having("include", _SOME))
TOKENIZE: Schema = _any(_both(having("prompt", {"type": "string"}), without("messages", "tools")),
                        _both(having("messages", {"type": "array"}), without("prompt", "add_special_tokens")))
