"""Choices put together token by token: whatever the tokens and the stop strings, nothing is lost, doubled or leaked."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from wired import BYTES, ID_OF

from cutaway.generate.request import Event
from cutaway.server.assemble import Assembler, Delta, joined
from cutaway.server.tools import CallReader

texts = st.text("ab é漢🙂<", max_size=30)


def run(said: bytes, stops: tuple[str, ...], *, natural: bool) -> list[Delta]:
    assembler = Assembler(BYTES, stops)
    tokens = [ID_OF[bytes([b])] for b in said] + ([BYTES.end_id] if natural else [])
    out = []
    for at, token in enumerate(tokens):
        last = at == len(tokens) - 1
        finish = None if not last else "stop" if natural else "length"
        out.append(assembler.push(Event(1, token, finish, -0.5)))
        if out[-1].finish is not None:
            break
    return out


@given(texts, st.booleans())
def test_without_stops_the_text_is_what_was_said(said: str, natural: bool) -> None:
    data = said.encode()
    if not data and not natural:
        return
    whole = joined(run(data, (), natural=natural))
    assert whole.text == said and whole.finish == ("stop" if natural else "length")
    assert b"".join(BYTES.bytes_of([d.token]) for d in whole.drawn) == data


@given(st.binary(max_size=20))
def test_bytes_that_are_no_text_show_as_such(data: bytes) -> None:
    whole = joined(run(data, (), natural=True))
    assert whole.text == data.decode(errors="replace")
    assert b"".join(BYTES.bytes_of([d.token]) for d in whole.drawn) == data


@given(texts, st.lists(st.text("ab é漢", min_size=1, max_size=3), min_size=1, max_size=3))
def test_a_stop_string_ends_the_text_and_its_entries(said: str, stops: list[str]) -> None:
    if not said:
        return
    deltas = run(said.encode(), tuple(stops), natural=True)
    whole = joined(deltas)
    assert said.startswith(whole.text) and not any(s in whole.text for s in stops)
    if whole.stop is not None:
        assert said.startswith(whole.text + whole.stop)
    entries = b"".join(BYTES.bytes_of([d.token]) for d in whole.drawn)
    assert entries.decode() == whole.text
    before = b""
    for delta in deltas:  # entries never run ahead of the text by more than a character
        before += b"".join(BYTES.bytes_of([d.token]) for d in delta.drawn)
        assert len(before) <= len(whole.text.encode())


def test_a_space_that_nobody_wrote_is_taken_off_once() -> None:
    assembler = Assembler(BYTES, shaves=True)
    out = [assembler.push(Event(1, ID_OF[bytes([b])])) for b in b"  a b"]
    assert "".join(d.text for d in out) == " a b"


def test_nothing_counts_behind_the_end() -> None:
    assembler = Assembler(BYTES, ("b",))
    for b in b"abab":
        assembler.push(Event(1, ID_OF[bytes([b])]))
    assert assembler.finish == "stop" and assembler.tokens == 2


CALL = '<tool_call>\n{"name": "f", "arguments": {"x": "é"}}\n</tool_call>'
pieces = st.sampled_from(["text ", "<", "<tool", "<tool_call>", "</tool_call>", "{}", "\n", '{"name": "g"}', CALL])


@given(st.lists(pieces, max_size=6), st.data())
def test_calls_are_found_however_the_text_is_cut(parts: list[str], data: st.DataObject) -> None:
    text = "".join(parts)
    whole, found = _read([text])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    edges = [0, *cuts, len(text)]
    again, calls = _read([text[a:b] for a, b in pairwise(edges)])
    assert [(c.name, c.arguments) for c in calls] == [(c.name, c.arguments) for c in found]
    assert again.split() == whole.split()


def test_what_only_looks_like_a_call_is_text() -> None:
    for text in ("a <tool_call> b", "<tool_call>{}</tool_call>", CALL.replace('"f"', '"g"'),
                 "<tool_call>{\"name\": \"f\", \"arguments\": 5}</tool_call>", "x<", "<tool_cal"):
        content, calls = _read([*text])
        assert not calls and content == text


def test_calls_in_a_list_and_without_an_end() -> None:
    both = '<tool_call>[{"name": "f", "arguments": {}}, {"name": "f", "arguments": {"y": 1}}]</tool_call>'
    content, calls = _read([both])
    assert content == "" and [c.arguments for c in calls] == ["{}", '{"y": 1}']
    assert len({c.id for c in calls}) == 2
    content, calls = _read(["so: ", '<tool_call>{"name": "f", "arguments": {}}'])
    assert content == "so:" and len(calls) == 1


def test_a_bare_object_is_a_call() -> None:
    reader = CallReader("bare", frozenset({"f"}))
    assert reader.push('{"name": "f", ', last=False) == ("", [])
    content, (call,) = reader.push('"parameters": {"x": 1}}', last=True)
    assert content == "" and call.arguments == '{"x": 1}'
    assert CallReader("bare", frozenset({"f"})).push("hello", last=False) == ("hello", [])
    assert CallReader("bare", frozenset({"f"})).push('{"a": 1}', last=True) == ('{"a": 1}', [])


def _read(parts: list[str]) -> tuple[str, list]:
    reader = CallReader("tagged", frozenset({"f"}))
    content, calls = "", []
    for at, part in enumerate(parts or [""]):
        text, found = reader.push(part, last=at == len(parts or [""]) - 1)
        content += text
        calls += found
    return content, calls
