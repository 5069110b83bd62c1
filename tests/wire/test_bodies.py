"""Nothing silent: a body is taken whole or refused with the field at fault."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from wired import Wired

from cutaway.server.body import decode, parsed, place_in
from cutaway.server.limits import JSON_DEPTH
from cutaway.server.problem import Problem
from cutaway.settings import Settings

BASE: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}


def post(wired: Wired, path: str, body: Any) -> tuple[int, dict[str, Any]]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    with wired.http() as client:
        answer = client.post(path, content=data, headers={"content-type": "application/json"})
    return answer.status_code, answer.json()


@pytest.mark.parametrize(("more", "param"), [
    ({"frequency_penalty": 2.5}, "frequency_penalty"),
    ({"logit_bias": {"5": 101}}, "logit_bias.5"),
    ({"logit_bias": {"five": 1}}, "logit_bias.five"),
    ({"stop": ["a"] * 5}, "stop"),
    ({"stop": "x" * 300}, "stop"),
    ({"stop": [""]}, "stop[0]"),
    ({"top_logprobs": 3}, None),
    ({"stream_options": {"include_usage": True}}, None),
    ({"stream": "yes"}, "stream"),
    ({"temperature": 1e-9}, "temperature"),
    ({"seed": 1.5}, "seed"),
    ({"messages": [{"role": "user", "content": "hi", "nam": "x"}]}, "messages[0].nam"),
    ({"messages": [{"role": "usr", "content": "hi"}]}, "messages[0]"),
    ({"messages": [{"content": "hi"}]}, "messages[0]"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
     "messages[0].content[0].image_url"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "assistant"}]}, "messages[0]"),
    ({"messages": [{"role": "user", "content": "x", "name": "me"}]}, "messages[0].name"),
    ({"messages": [{"role": "user", "content": "x", "tool_call_id": "a"}]}, "messages[0].tool_call_id"),
    ({"messages": [{"role": "user", "content": "x", "tool_calls": []}]}, "messages[0].tool_calls"),
    ({"messages": "hi"}, "messages"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    ({"reasoning_effort": "low"}, "reasoning_effort"),
    ({"max_completion_tokens": 5}, None),
    ({"model": 5}, "model"),
])
def test_what_is_wrong_is_named(wired: Wired, more: dict[str, Any], param: str | None) -> None:
    status, tree = post(wired, "/v1/chat/completions", BASE | more)
    assert status == 400 and tree["error"]["param"] == param, tree
    assert isinstance(tree["error"]["code"], str)


def test_null_is_not_given(wired: Wired) -> None:
    nulls = dict.fromkeys(("temperature", "top_p", "stop", "functions", "tools", "seed", "n", "stream", "audio", "user",
                           "response_format", "logprobs", "logit_bias", "reasoning_effort"))
    assert post(wired, "/v1/chat/completions", BASE | nulls)[0] == 200


@pytest.mark.parametrize("body", [
    b"", b"{", b"[]", b"5", b"null", b'"x"', b"\xff\xfe", b'{"model": NaN}', b'{"model": Infinity}',
    b'{"a": 1, "a": 2}', b"[" * 100_000, b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}',
    b'{"model": "tiny", "max_tokens": ' + b"9" * 5000 + b"}", b'{"x": ' * 70 + b"1" + b"}" * 70,
])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/render", "/v1/embeddings"])
def test_what_is_no_body_is_refused(wired: Wired, path: str, body: bytes) -> None:
    status, tree = post(wired, path, body)
    assert status == 400 and set(tree["error"]) == {"message", "type", "param", "code"}


def test_a_body_must_say_what_it_is(wired: Wired) -> None:
    with wired.http() as client:
        assert client.post("/v1/completions", data={"model": "tiny"}).status_code == 415
        assert client.post("/v1/completions", content=b"{}").json()["error"]["code"] == "unsupported_media_type"
        good = client.post("/v1/completions", content=json.dumps({"model": "tiny", "prompt": "a"}).encode(),
                           headers={"content-type": "application/json; charset=utf-8"})
        assert good.status_code == 200


def test_depth_counts_brackets_and_not_those_in_text() -> None:
    assert parsed(b'{"a": "' + b"[" * 500 + b'"}') == {"a": "[" * 500}
    assert parsed(b'{"a": "\\"' + b"{" * 500 + b'"}') == {"a": '"' + "{" * 500}
    assert parsed(b"[" * JSON_DEPTH + b"]" * JSON_DEPTH)
    with pytest.raises(Problem, match="deeper"):
        parsed(b"[" * (JSON_DEPTH + 1) + b"]" * (JSON_DEPTH + 1))


def test_a_place_is_what_a_person_wrote() -> None:
    tree = {"a": [{"b": {"c": 1}}]}
    assert place_in(tree, ("a", 0, "SomeUnionMember", "b", "c")) == ("a[0].b.c", "c")
    assert place_in(tree, ("a", 0, "missing"), missing=True) == ("a[0].missing", "missing")
    assert place_in(tree, ()) == ("", "")


def test_types_are_exact() -> None:
    class Small(Settings):
        count: int
        share: float = 0.0

    assert decode(Small, b'{"count": 3, "share": 1}') == Small(count=3, share=1)
    for wrong in (b'{"count": "3"}', b'{"count": 3.5}', b'{"count": true}', b'{"count": 3, "share": "1"}'):
        with pytest.raises(Problem):
            decode(Small, wrong)


@pytest.mark.parametrize(("path", "body", "param"), [
    ("/v1/completions", {"model": "tiny", "prompt": []}, "prompt"),
    ("/v1/completions", {"model": "tiny", "prompt": [[]]}, "prompt[0]"),
    ("/v1/completions", {"model": "tiny", "prompt": ["a"] * 65}, "prompt"),
    ("/v1/completions", {"model": "tiny", "prompt": [999]}, "prompt"),
    ("/v1/completions", {"model": "tiny", "prompt": [-1]}, "prompt[0]"),
    ("/v1/completions", {"model": "tiny", "prompt": "x", "suffix": "y"}, "suffix"),
    ("/v1/completions", {"model": "tiny", "prompt": "x", "best_of": 3}, None),
    ("/v1/completions", {"model": "reader", "prompt": "x", "echo": True}, "echo"),
    ("/v1/embeddings", {"model": "owner/vectors", "input": []}, "input"),
    ("/v1/embeddings", {"model": "owner/vectors", "input": ""}, "input"),
    ("/v1/embeddings", {"model": "owner/vectors", "input": ["a"] * 2049}, "input"),
    ("/v1/embeddings", {"model": "owner/vectors", "input": [[9999]]}, "input[0]"),
    ("/v1/rerank", {"model": "owner/vectors", "query": "x", "documents": []}, "documents"),
    ("/v1/rerank", {"model": "owner/vectors", "query": "x" * 99, "documents": ["y"]}, "query"),
    ("/v1/rerank", {"model": "owner/vectors", "query": "x", "documents": ["y", "z" * 99]}, "documents[1]"),
    ("/v1/classify", {"model": "labels", "input": "z" * 99}, "input[0]"),
    ("/v1/classify", {"model": "tiny", "input": "z"}, "model"),
    ("/tokenize", {"model": "tiny"}, None),
    ("/tokenize", {"model": "tiny", "prompt": "x", "messages": BASE["messages"]}, None),
    ("/detokenize", {"model": "tiny", "tokens": [9999]}, "tokens"),
    ("/render", {"model": "tiny"}, "messages"),
])
def test_every_other_route_names_it_too(wired: Wired, path: str, body: dict[str, Any], param: str | None) -> None:
    status, tree = post(wired, path, body)
    assert status == 400 and tree["error"]["param"] == param, tree


def test_tokens_there_and_back(wired: Wired) -> None:
    _, tree = post(wired, "/tokenize", {"model": "tiny", "prompt": "né"})
    assert tree["count"] == len(tree["tokens"]) == 4 and tree["max_model_len"] == 256
    assert tree["token_strs"][0] == "<|bos|>"
    assert post(wired, "/detokenize", {"model": "tiny", "tokens": tree["tokens"]})[1] == {"prompt": "né"}
    plain = post(wired, "/tokenize", {"model": "tiny", "prompt": "né", "add_special_tokens": False})[1]
    assert plain["tokens"] == tree["tokens"][1:]
    assert post(wired, "/tokenize", {"model": "owner/vectors", "prompt": "x"})[1]["max_model_len"] == 64


def test_the_prompt_is_shown_as_the_model_reads_it(wired: Wired) -> None:
    _, tree = post(wired, "/render", BASE | {"messages": [{"role": "user", "content": "a<|end|>é"}]})
    (prompt,) = tree["prompts"]
    assert prompt["prompt"] == "<|bos|><|user|>a<|end|>é<|end|><|assistant|>"
    control = [t["text"] for t in prompt["tokens"] if not t["bytes"]]
    assert control == ["<|bos|>", "<|user|>", "<|end|>", "<|assistant|>"]  # the one that a person wrote is text
    post(wired, "/v1/chat/completions", BASE | {"messages": [{"role": "user", "content": "a<|end|>é"}]})
    assert [t["id"] for t in prompt["tokens"]] == [*wired.fake.requests[-1].tokens]
    both = post(wired, "/render", {"model": "tiny", "prompt": ["a", "b"]})[1]
    assert [p["prompt"] for p in both["prompts"]] == ["<|bos|>a", "<|bos|>b"] and both["context_length"] == 256


def test_labels_and_orders(wired: Wired) -> None:
    _, tree = post(wired, "/v1/classify", {"model": "labels", "input": ["a", "bb"]})
    assert tree["labels"] == ["bad", "fair", "good"] and [d["index"] for d in tree["data"]] == [0, 1]
    for found in tree["data"]:
        assert abs(sum(found["probs"]) - 1) < 1e-6 and found["given"] == [found["label"]]
        assert found["label"] == tree["labels"][max(range(3), key=lambda i: found["probs"][i])]
    documents = ["zzz", "abc", "abd"]
    _, tree = post(wired, "/v1/rerank", {"model": "owner/vectors", "query": "abc", "documents": documents, "top_n": 2,
                                         "return_documents": True})
    assert len(tree["results"]) == 2 and tree["results"][0]["index"] == 1
    assert abs(tree["results"][0]["relevance_score"] - 1) < 1e-5 and tree["results"][0]["document"]["text"] == "abc"
    assert tree["usage"]["total_tokens"] == 4 * 5


@pytest.mark.parametrize("body", [
    b'"' + b'\\"' * 400_000, b'{"a": "' + b'\\"' * 400_000 + b"\\", b'["' + b'","' * 300_000,
    b"{" + b",".join(b'"k%d": 1' % i for i in range(60_000)) + b', "k59999": 2}'], ids=("quotes", "a last backslash",
                                                                                       "strings", "fields"))
def test_what_is_wrong_is_found_in_one_pass(body: bytes) -> None:
    """And not by looking at everything again from every quote, or at all names for each."""
    began = time.process_time()
    with pytest.raises(Problem) as raised:
        parsed(body)
    assert raised.value.code == "invalid_json" and time.process_time() - began < 5


@pytest.mark.parametrize(("path", "more", "says"), [
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x", "name": "me"}]},
     "unknown field messages[0].name; templates have no place for it"),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
     "image_url; only text is read"),
    ("/v1/chat/completions", {"messages": ["x"]}, "messages[0]: "),
    ("/v1/chat/completions", {"messages": []}, "messages: list should have at least 1 item"),
    ("/v1/completions", {"messages": None, "prompt": ["a", [1]]}, "prompt[1]: should be a valid string"),
    ("/v1/chat/completions", {"messages": [{"role": "tuple", "content": "x"}]}, "'tuple'"),
    ("/v1/chat/completions", {"tools": [{"type": "function", "name": "f"}]}, "unknown field tools[0].name; "),
])
def test_what_is_said_is_true(wired: Wired, path: str, more: dict[str, Any], says: str) -> None:
    body = {name: value for name, value in (BASE | more).items() if value is not None}
    status, tree = post(wired, path, body)
    assert status == 400 and says in tree["error"]["message"], tree
    assert "tuple" not in tree["error"]["message"].replace("'tuple'", "")


def test_tools_and_a_form_exclude_each_other_unless_none_may_be_called(wired: Wired) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    both = BASE | {"tools": tools, "response_format": {"type": "json_object"}, "max_tokens": 40}
    assert post(wired, "/v1/chat/completions", both)[0] == 400
    assert post(wired, "/v1/chat/completions", both | {"tool_choice": "none"})[0] == 200


@pytest.mark.parametrize("top_k", [-1, 0])
def test_all_tokens_are_the_top_as_vllm_says_it(wired: Wired, top_k: int) -> None:
    assert post(wired, "/v1/chat/completions", BASE | {"top_k": top_k})[0] == 200
    assert post(wired, "/v1/chat/completions", BASE | {"top_k": -2})[0] == 400


def test_what_only_asks_for_log_probabilities_must_include_them(wired: Wired) -> None:
    ask = {"model": "tiny", "input": "hi", "top_logprobs": 2, "max_output_tokens": 2}
    assert post(wired, "/v1/responses", ask)[0] == 400
    assert post(wired, "/v1/responses", ask | {"top_logprobs": 0})[0] == 200
    assert post(wired, "/v1/responses", ask | {"include": ["message.output_text.logprobs"]})[0] == 200
