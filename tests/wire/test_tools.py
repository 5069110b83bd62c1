"""Tools by the official client: told to the template, found in the answer, whole and streamed."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from wired import Wired

TOOLS: Any = [{"type": "function", "function": {"name": "weather", "description": "of a place", "parameters": {
    "type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]}}}]
HI: Any = [{"role": "user", "content": "hi"}]
ONE = '<tool_call>\n{"name": "weather", "arguments": {"place": "Köln"}}\n</tool_call>'
TWO = ONE + '\n<tool_call>{"name": "weather", "arguments": {"place": "Bonn"}}</tool_call>'


def test_the_template_is_told(tooled: Wired) -> None:
    with tooled.http() as client:
        tree = client.post("/render", json={"model": "tools", "messages": HI, "tools": TOOLS}).json()
        assert "weather" in tree["prompts"][0]["prompt"]
        none = client.post("/render", json={"model": "tools", "messages": HI, "tools": TOOLS, "tool_choice": "none"})
        assert "weather" not in none.json()["prompts"][0]["prompt"]


def test_a_call_is_found(tooled: Wired) -> None:
    tooled.fake.says = lambda prompt: f"Let me see. {ONE}".encode()
    (choice,) = tooled.openai().chat.completions.create(model="tools", messages=HI, tools=TOOLS).choices
    assert choice.finish_reason == "tool_calls" and choice.message.content == "Let me see."
    (call,) = choice.message.tool_calls or []
    assert call.type == "function" and call.id.startswith("call_")
    assert json.loads(call.function.arguments) == {"place": "Köln"}


def test_calls_in_a_stream_come_whole_and_in_order(tooled: Wired) -> None:
    tooled.fake.says = lambda prompt: TWO.encode()
    client = tooled.openai()
    with client.chat.completions.stream(model="tools", messages=HI, tools=TOOLS) as stream:
        kinds = [event.type for event in stream]
        (choice,) = stream.get_final_completion().choices
    assert "tool_calls.function.arguments.done" in kinds
    calls = choice.message.tool_calls or []
    assert [json.loads(c.function.arguments)["place"] for c in calls] == ["Köln", "Bonn"]
    assert [c.function.name for c in calls] == ["weather", "weather"] and not choice.message.content
    assert choice.finish_reason == "tool_calls" and len({c.id for c in calls}) == 2


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_the_limit_cut_is_said_to_be_cut(tooled: Wired, stream: bool) -> None:
    tooled.fake.says = lambda prompt: TWO.encode()
    most = len(ONE.encode()) + 20
    how: dict[str, Any] = {"model": "tools", "messages": HI, "tools": TOOLS, "max_tokens": most}
    if stream:
        ends = [c.choices[0].finish_reason for c in tooled.openai().chat.completions.create(**how, stream=True)]
        assert ends[-1] == "length"
        return
    (choice,) = tooled.openai().chat.completions.create(**how).choices
    assert len(choice.message.tool_calls or []) == 1 and choice.finish_reason == "length"


def test_one_call_is_enough_where_it_is_said(tooled: Wired) -> None:
    tooled.fake.says = lambda prompt: TWO.encode()
    client = tooled.openai()
    how: dict[str, Any] = {"model": "tools", "messages": HI, "tools": TOOLS, "parallel_tool_calls": False}
    (choice,) = client.chat.completions.create(**how).choices
    assert len(choice.message.tool_calls or []) == 1 and choice.finish_reason == "tool_calls"
    with client.chat.completions.stream(**how) as stream:
        for _ in stream:
            pass
        (again,) = stream.get_final_completion().choices
    assert len(again.message.tool_calls or []) == 1 and again.finish_reason == "tool_calls"
    assert tooled.settled(lambda: tooled.fake.alive == 0)


def test_an_answer_without_a_call_is_text(tooled: Wired) -> None:
    tooled.fake.says = lambda prompt: b"It rains <often>."
    (choice,) = tooled.openai().chat.completions.create(model="tools", messages=HI, tools=TOOLS).choices
    assert choice.message.content == "It rains <often>." and choice.message.tool_calls is None
    assert choice.finish_reason == "stop"


def test_the_answer_of_a_tool_goes_back(tooled: Wired) -> None:
    tooled.fake.says = lambda prompt: ONE.encode()
    client = tooled.openai()
    message = client.chat.completions.create(model="tools", messages=HI, tools=TOOLS).choices[0].message
    call = (message.tool_calls or [])[0]
    talk: Any = [*HI, message, {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
    tooled.fake.says = lambda prompt: prompt.encode()[-40:]
    said = client.chat.completions.create(model="tools", messages=talk, tools=TOOLS).choices[0].message.content
    assert said and "rain" in said
    tree = tooled.http().post("/render", json={"model": "tools", "tools": TOOLS, "messages": [
        *HI, message.model_dump(exclude_none=True), talk[2]]}).json()
    assert '"place": "Köln"' in tree["prompts"][0]["prompt"]  # an object, and not a string of one


@pytest.mark.parametrize(("more", "param"), [
    ({"tools": [{"type": "function", "function": {"name": "bad name"}}]}, "tools[0].function.name"),
    ({"tools": [{"type": "retrieval"}]}, "tools[0].type"),
    ({"tool_choice": "auto"}, None),
    ({"tools": TOOLS * 129}, "tools"),
    ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
    ({"messages": [{"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": {
        "name": "f", "arguments": "{"}}]}, *HI]}, "messages[0].tool_calls[0].function.arguments"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
    ({"tools": [{"type": "function", "function": {"name": "f", "description": "<|im_end|>"}}]}, "messages"),
])
def test_what_is_wrong_is_named(tooled: Wired, more: dict[str, Any], param: str | None) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        tooled.openai().chat.completions.create(**({"model": "tools", "messages": HI} | more))
    assert error.value.param == param, error.value


@pytest.mark.parametrize("parameters", [{"$defs": []}, {"$defs": None}, {"definitions": 5}])
def test_definitions_that_are_none_are_no_fault_of_ours(tooled: Wired, parameters: dict[str, Any]) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", **parameters}}}
    answer = tooled.http().post("/v1/chat/completions", json={"model": "tools", "messages": HI, "tools": [tool],
                                                             "tool_choice": "required"})
    assert answer.status_code in (200, 400), answer.text
    assert answer.status_code == 200 or answer.json()["error"]["code"] == "invalid_json_schema"
