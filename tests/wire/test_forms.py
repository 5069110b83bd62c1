"""Answers of a given form: ``.parse()`` and ``.stream()`` with a Pydantic model, JSON objects, calls that must be."""

from __future__ import annotations

import json
from typing import Any, Literal

import openai
import pytest
from openai import pydantic_function_tool
from pydantic import BaseModel
from wired import Wired

HI: Any = [{"role": "user", "content": "hi"}]


class Person(BaseModel):
    """What is asked for."""

    name: str
    age: int
    mood: Literal["glad", "sad"]


class Weather(BaseModel):
    """What a tool takes."""

    place: str
    days: int


def test_parse_gives_the_pydantic_model(wired: Wired) -> None:
    client = wired.openai()
    for seed in range(3):
        made = client.chat.completions.parse(model="tiny", messages=HI, response_format=Person, seed=seed)
        (choice,) = made.choices
        assert isinstance(choice.message.parsed, Person) and choice.finish_reason == "stop"


def test_the_stream_of_a_form_parses_at_its_end(wired: Wired) -> None:
    with wired.openai().chat.completions.stream(model="tiny", messages=HI, response_format=Person, n=2) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert all(isinstance(choice.message.parsed, Person) for choice in final.choices)


def test_a_response_parses_too(wired: Wired) -> None:
    made = wired.openai().responses.parse(model="tiny", input="hi", text_format=Person)
    assert isinstance(made.output_parsed, Person) and made.status == "completed"


def test_any_object(wired: Wired) -> None:
    made = wired.openai().chat.completions.create(model="tiny", messages=HI, response_format={"type": "json_object"},
                                                  max_tokens=120)
    (choice,) = made.choices
    assert choice.finish_reason == "stop" and isinstance(json.loads(choice.message.content or ""), dict)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "Weather"}}])
def test_a_call_that_must_be(tooled: Wired, choice: Any) -> None:
    client = tooled.openai()
    tools: Any = [pydantic_function_tool(Weather), pydantic_function_tool(Person)]
    how: dict[str, Any] = {"model": "tools", "messages": HI, "tools": tools, "tool_choice": choice, "max_tokens": 300}
    (made,) = client.chat.completions.parse(**how).choices
    (call,) = made.message.tool_calls or []
    assert made.finish_reason == "tool_calls" and made.message.content is None
    assert isinstance(call.function.parsed_arguments, Weather | Person)
    assert choice == "required" or call.function.name == "Weather"
    with client.chat.completions.stream(**how) as stream:
        for _ in stream:
            pass
        (again,) = stream.get_final_completion().choices
    assert len(again.message.tool_calls or []) == 1 and again.finish_reason == "tool_calls"


@pytest.mark.parametrize(("form", "param"), [
    ({"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "string", "patern": "a"}}},
     "response_format"),
    ({"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}, "response_format"),
    ({"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "http://other.example/x"}}},
     "response_format"),
    ({"type": "json_schema", "json_schema": {"name": "bad name", "schema": {}}},
     "response_format.json_schema.name"),
    ({"type": "json_schema", "json_schema": {"name": "x"}}, "response_format.json_schema.schema"),
    ({"type": "xml"}, "response_format"),
    ({"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["a" * 70_000]}}}, "response_format"),
])
def test_what_cannot_be_held_to_is_refused(wired: Wired, form: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        wired.openai().chat.completions.create(model="tiny", messages=HI, response_format=form)
    assert error.value.param == param, error.value


def test_a_form_that_does_not_fit_is_refused(wired: Wired) -> None:
    with pytest.raises(openai.BadRequestError, match="tokens"):
        wired.openai().chat.completions.create(model="tiny", messages=HI, max_tokens=3, response_format={
            "type": "json_schema", "json_schema": {"name": "p", "schema": Person.model_json_schema()}})
    with pytest.raises(openai.BadRequestError, match="could cut"):
        wired.openai().chat.completions.create(model="tiny", messages=HI, stop="}",
                                               response_format={"type": "json_object"})
