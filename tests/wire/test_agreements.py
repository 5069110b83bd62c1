"""A schema and the server agree on every body: what one allows the other reads, and what one forbids it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutaway.server.asks import CHAT_UNSUPPORTED, COMPLETION_UNSUPPORTED, ChatAsk, CompletionAsk
from cutaway.server.asks_other import RESPONSE_UNSUPPORTED, ResponseAsk, TokenizeAsk
from cutaway.server.body import decode
from cutaway.server.endpoints import ask_schemas
from cutaway.server.problem import UNSAYABLE, Problem
from cutaway.settings import Settings

# null for one of these is not given, though the schema does not have it
UNSUPPORTED = {ChatAsk: CHAT_UNSUPPORTED, CompletionAsk: COMPLETION_UNSUPPORTED, ResponseAsk: RESPONSE_UNSUPPORTED}
SCHEMAS = ask_schemas(["m"])
TOOL = {"type": "function", "function": {"name": "f"}}  # and the choice of it
SHAPE = {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}
TURNS = [[{"role": "user", "content": "x"}], [{"role": "assistant"}], [{"role": "assistant", "content": None}],
         [{"role": "assistant", "content": []}], [{"role": "assistant", "tool_calls": []}],
         [{"role": "assistant", "tool_calls": [{"id": "a", **TOOL, "function": {"name": "f", "arguments": "{}"}}]}]]
DRAWN: dict[str, list[Any]] = {
    "stream": [None, False, True], "stream_options": [None, {}, {"include_obfuscation": False},
                                                      {"include_obfuscation": 0}],
    "temperature": [None, 0, 0.0, 1e-9, 1, 2.5], "max_tokens": [None, 1, 2.0, 0], "n": [None, 1, 2, 8, 9],
    "stop": [None, [], "x", ["x"], ""], "seed": [None, 3.0, -1, 1.5],
    "logit_bias": [None, {"1": 2}, {"x": 2}, {"1": 101}]}
FIELDS: dict[type[Settings], dict[str, list[Any]]] = {
    ChatAsk: {**DRAWN, "messages": TURNS, "max_completion_tokens": [None, 1, 2], "logprobs": [None, False, True],
              "top_logprobs": [None, 0, 3, 21], "tools": [None, [], [TOOL]],
              "tool_choice": [None, "none", "auto", "required", TOOL],
              "functions": [[]], "reasoning_effort": ["low"],
              "response_format": [None, {"type": "text"}, {"type": "json_object"}, SHAPE, {}]},
    CompletionAsk: {**DRAWN, "prompt": ["x", ["x", "y"], [1, 2.0], [[1], [2]], [], [[]], 1], "best_of": [None, 1, 2, 8],
                    "logprobs": [None, 0, 2], "suffix": ["x"]},
    TokenizeAsk: {"prompt": [None, "", "x"], "messages": [None, *TURNS], "tools": [None, [], [TOOL]],
                  "add_special_tokens": [None, False, True]},
    ResponseAsk: {"input": ["x", "", [{"role": "user", "content": "x"}]], "background": [None, False, True, 0],
                  "temperature": DRAWN["temperature"], "max_output_tokens": DRAWN["max_tokens"],
                  "text": [None, {}, {"format": {"type": "text"}}, {"format": {}}]}}


@pytest.mark.parametrize("ask", FIELDS, ids=lambda cls: cls.__name__)
def test_schema_and_server_agree(ask: type[Settings]) -> None:
    check = jsonschema.Draft202012Validator({**SCHEMAS[ask.__name__], "components": {"schemas": SCHEMAS}})
    fields = FIELDS[ask]
    least = {"model": "m"} | {name: fields[name][0] for name in SCHEMAS[ask.__name__]["required"] if name in fields}
    some = st.lists(st.sampled_from([*fields]), max_size=4, unique=True)  # of all at once nearly none is allowed
    body = some.flatmap(lambda names: st.fixed_dictionaries({name: st.sampled_from(fields[name]) for name in names}))
    seen = {True: 0, False: 0}

    @settings(max_examples=600, deadline=None, derandomize=True)
    @given(more=body)
    def agree(more: dict[str, Any]) -> None:
        body = least | more
        allowed = check.is_valid(body)
        seen[allowed] += 1
        try:
            decode(ask, json.dumps(body).encode(), UNSUPPORTED.get(ask))
        except Problem as problem:
            assert not allowed, (body, problem.message)
        else:
            assert allowed, (body, [error.message for error in check.iter_errors(body)])

    agree()
    assert min(seen.values()) > 100, seen


def test_codes_of_what_no_schema_says_are_in_the_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "serve.md").read_text("utf-8")
    assert all(f"| `{code}` | {why} |" in page for code, why in UNSAYABLE.items())
