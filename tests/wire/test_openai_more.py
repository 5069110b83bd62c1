"""Completions, embeddings, models, responses and errors by the official client."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import openai
import pytest
from wired import BYTES, Wired

from cutaway.models.open import open_embedder


def test_completions_are_ordered_prompt_by_prompt(wired: Wired) -> None:
    client = wired.openai()
    made = client.completions.create(model="tiny", prompt=["a", "b"], n=2, seed=3, max_tokens=6)
    assert [c.index for c in made.choices] == [0, 1, 2, 3] and made.object == "text_completion"
    texts = dict.fromkeys(range(4), "")
    for chunk in client.completions.create(model="tiny", prompt=["a", "b"], n=2, seed=3, max_tokens=6, stream=True):
        assert chunk.object == "text_completion"
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert [texts[i] for i in range(4)] == [c.text for c in made.choices]
    assert made.usage is not None and made.usage.completion_tokens == 24


def test_the_shortest_completion_is_sixteen_tokens(wired: Wired) -> None:
    made = wired.openai().completions.create(model="tiny", prompt="a")
    assert len(made.choices[0].text) == 16 and made.choices[0].finish_reason == "length"


def test_ids_are_prompts_too(wired: Wired) -> None:
    client = wired.openai()
    ids = [*BYTES.begin_ids, *BYTES.encode("abc")]
    texts = [client.completions.create(model="tiny", prompt=p, temperature=0).choices[0].text
             for p in ("abc", ids, [ids])]
    assert len({*texts}) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_an_echo_has_the_prompts_logprobs(wired: Wired, stream: bool) -> None:
    how: dict[str, Any] = {"model": "tiny", "prompt": "ab", "max_tokens": 3, "echo": True, "logprobs": 2}
    if stream:
        chunks = list(wired.openai().completions.create(**how, stream=True))
        choices = [c for chunk in chunks for c in chunk.choices]
    else:
        choices = wired.openai().completions.create(**how).choices
    text = "".join(c.text for c in choices)
    logs = [c.logprobs for c in choices if c.logprobs is not None]
    tokens = [t for one in logs for t in one.tokens or []]
    assert text.startswith("ab") and tokens[:3] == ["<|bos|>", "a", "b"] and len(tokens) == 6
    values = [x for one in logs for x in one.token_logprobs or []]
    assert values[0] is None and all(x is not None for x in values[1:])
    assert [o for one in logs for o in one.text_offset or []] == [0, 0, 1, 2, 3, 4]


def test_a_letter_of_several_tokens_counts_once(wired: Wired) -> None:
    how: dict[str, Any] = {"model": "tiny", "max_tokens": 1, "echo": True, "logprobs": 0}
    made = wired.openai().completions.create(**how, prompt="a\N{GRINNING FACE}b")
    logs = made.choices[0].logprobs
    assert logs is not None and logs.tokens is not None and logs.text_offset is not None
    assert made.choices[0].text[logs.text_offset[logs.tokens.index("b")]] == "b"


def test_an_encoder_decoder_reads_its_prompt(wired: Wired) -> None:
    made = wired.openai().completions.create(model="reader", prompt="translate me", max_tokens=5)
    assert len(made.choices[0].text) == 5
    request = wired.fake.requests[-1]
    assert request.source == (*BYTES.encode("translate me"), BYTES.eos_id) and request.tokens == (BYTES.bos_id,)


def test_embeddings_are_the_models_in_order(wired: Wired, places: dict[str, Any]) -> None:
    client, texts = wired.openai(), ["one", "two", "three"]
    expected = open_embedder(places["owner/vectors"]).vectors(texts).astype(np.float32)
    made = client.embeddings.create(model="owner/vectors", input=texts)  # asks for base64 by itself
    plain = client.embeddings.create(model="owner/vectors", input=texts, encoding_format="float")
    ids = client.embeddings.create(model="owner/vectors", input=[BYTES.encode(t) for t in texts])
    for found in (made, plain, ids):
        assert [d.index for d in found.data] == [0, 1, 2]
        np.testing.assert_allclose(np.array([d.embedding for d in found.data]), expected, atol=1e-6)
    assert made.usage.prompt_tokens == made.usage.total_tokens == sum(len(t) + 2 for t in texts)


def test_base64_is_little_endian_float32(wired: Wired) -> None:
    with wired.http() as client:
        tree = client.post("/v1/embeddings", json={"model": "owner/vectors", "input": "x",
                                                   "encoding_format": "base64"}).json()
    assert len(np.frombuffer(base64.b64decode(tree["data"][0]["embedding"]), "<f4")) == 16


def test_dimensions_are_the_models_own_or_refused(wired: Wired) -> None:
    client = wired.openai()
    assert len(client.embeddings.create(model="owner/vectors", input="x", dimensions=16).data[0].embedding) == 16
    with pytest.raises(openai.BadRequestError, match="16 dimensions") as error:
        client.embeddings.create(model="owner/vectors", input="x", dimensions=8)
    assert error.value.param == "dimensions"


def test_models_are_listed_and_found_by_a_name_with_a_slash(wired: Wired) -> None:
    client = wired.openai()
    assert [m.id for m in client.models.list()] == ["tiny", "owner/vectors", "labels", "reader"]
    assert client.models.retrieve("owner/vectors").id == "owner/vectors"
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("owner/nobody")
    assert error.value.code == "model_not_found"


def test_a_response_whole_and_streamed(wired: Wired) -> None:
    wired.fake.says = lambda prompt: "né漢".encode()
    client = wired.openai()
    made = client.responses.create(model="tiny", input="hi", instructions="be brief")
    assert made.status == "completed" and made.output_text == "né漢" and made.usage is not None
    assert made.usage.total_tokens == made.usage.input_tokens + made.usage.output_tokens
    events = list(client.responses.create(model="tiny", input="hi", stream=True))
    assert [e.sequence_number for e in events] == [*range(len(events))]
    kinds = [e.type for e in events]
    assert kinds[:4] == ["response.created", "response.in_progress", "response.output_item.added",
                         "response.content_part.added"]
    assert kinds[-4:] == ["response.output_text.done", "response.content_part.done", "response.output_item.done",
                          "response.completed"]
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == "né漢"
    with client.responses.stream(model="tiny", input=[{"role": "user", "content": "hi"}]) as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_text == "né漢"


def test_a_response_that_is_cut_is_incomplete(wired: Wired) -> None:
    client = wired.openai()
    made = client.responses.create(model="tiny", input="hi", max_output_tokens=3)
    assert made.status == "incomplete" and made.incomplete_details is not None
    assert made.incomplete_details.reason == "max_output_tokens"
    *_, last = client.responses.create(model="tiny", input="hi", max_output_tokens=3, stream=True)
    assert last.type == "response.incomplete"


def test_a_response_that_fails_says_so(wired: Wired) -> None:
    wired.fake.pause = 0.05
    kinds = []
    for event in wired.openai().responses.create(model="tiny", input="hi", stream=True):
        kinds.append(event.type)
        wired.fake.broken = len(kinds) > 5
    assert kinds[-1] == "response.failed"
    wired.fake.broken, wired.fake.pause = False, 0.0
    assert wired.settled(lambda: wired.http().get("/ready").status_code == 200)


def test_a_response_keeps_nothing(wired: Wired) -> None:
    with pytest.raises(openai.BadRequestError, match="nothing is kept") as error:
        wired.openai().responses.create(model="tiny", input="hi", previous_response_id="resp_1")
    assert error.value.code == "unsupported_parameter" and error.value.param == "previous_response_id"


@pytest.mark.parametrize(("how", "kind", "code", "param"), [
    ({"model": "tony"}, openai.NotFoundError, "model_not_found", "model"),
    ({"model": "owner/vectors"}, openai.BadRequestError, "model_unsuited", "model"),
    ({"temperature": 3}, openai.BadRequestError, "invalid_value", "temperature"),
    ({"max_tokens": 0}, openai.BadRequestError, "invalid_value", "max_tokens"),
    ({"n": 9}, openai.BadRequestError, "invalid_value", "n"),
    ({"max_tokens": 1000}, openai.BadRequestError, "context_length_exceeded", "messages"),
    ({"messages": []}, openai.BadRequestError, "invalid_value", "messages"),
    ({"functions": [{"name": "f"}]}, openai.BadRequestError, "unsupported_parameter", "functions"),
    ({"extra_body": {"temprature": 1}}, openai.BadRequestError, "unknown_parameter", "temprature"),
])
def test_errors_are_the_exceptions_that_the_client_has(wired: Wired, how: dict[str, Any], kind: type[Exception],
                                                       code: str, param: str) -> None:
    given: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]} | how
    with pytest.raises(kind) as error:
        wired.openai().chat.completions.create(**given)
    found = error.value
    assert isinstance(found, openai.APIStatusError)
    assert (found.code, found.param) == (code, param) and isinstance(found.type, str)
    assert found.request_id is not None and found.request_id.startswith("req_")
    assert set(found.response.json()) == {"error"}
    assert set(found.response.json()["error"]) == {"message", "type", "param", "code"}


def test_the_way_out_names_the_nearest(wired: Wired) -> None:
    with pytest.raises(openai.BadRequestError, match="did you mean 'temperature'"):
        wired.openai().chat.completions.create(model="tiny", messages=[{"role": "user", "content": "hi"}],
                                               extra_body={"temprature": 1})
    with pytest.raises(openai.NotFoundError, match="did you mean 'tiny'"):
        wired.openai().chat.completions.create(model="tinny", messages=[{"role": "user", "content": "hi"}])


def test_no_context_is_ever_cut(wired: Wired) -> None:
    long: list[Any] = [{"role": "user", "content": "x" * 400}]
    with pytest.raises(openai.BadRequestError, match=r"context is 256 tokens, and the request has 404") as error:
        wired.openai().chat.completions.create(model="tiny", messages=long)
    assert error.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match=r"context is 64 tokens, and input\[1\] has 102"):
        wired.openai().embeddings.create(model="owner/vectors", input=["a", "x" * 100])
    with pytest.raises(openai.BadRequestError, match=r"256 tokens, and the request has 4 and 253 for the answer"):
        wired.openai().completions.create(model="tiny", prompt="abc", max_tokens=253)
    assert wired.openai().completions.create(model="tiny", prompt="abc", max_tokens=252).usage


@pytest.mark.parametrize(("more", "code"), [
    ('"logit_bias": {"9999999": 1}', "token_out_of_range"), ('"max_tokens": 1e400', "invalid_json"),
    ('"max_tokens": ' + "9" * 5000, "invalid_json"), ('"user": "\\ud800"', "invalid_json"),
    ('"max_tokens": 100000', "context_length_exceeded"), ('"max_tokens": 2.5', "invalid_value")])
def test_what_no_schema_says_has_a_code_of_its_own(wired: Wired, more: str, code: str) -> None:
    for path, asked in (("/v1/chat/completions", '"messages": [{"role": "user", "content": "x"}]'),
                        ("/v1/completions", '"prompt": "x"')):
        answer = wired.http().post(path, content=f'{{"model": "tiny", {asked}, {more}}}',
                                   headers={"Content-Type": "application/json"})
        assert answer.status_code == 400 and answer.json()["error"]["code"] == code, answer.text
