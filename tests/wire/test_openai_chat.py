"""Chat by the official client: every trap of its accumulators, sync and async, plain, streamed and helped."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from wired import Wired

HI: list[Any] = [{"role": "user", "content": "hi"}]


def test_a_turn_has_everything(wired: Wired) -> None:
    made = wired.openai().chat.completions.create(model="tiny", messages=HI, max_tokens=7, seed=5)
    (choice,) = made.choices
    assert made.object == "chat.completion" and made.id.startswith("chatcmpl-") and made.created > 0
    assert choice.finish_reason == "length" and len(choice.message.content or "") == 7
    assert made.usage is not None and made.usage.completion_tokens == 7
    assert made.usage.total_tokens == made.usage.prompt_tokens + 7
    assert made.usage.prompt_tokens_details is not None and made.usage.prompt_tokens_details.cached_tokens is not None
    extra = made.model_extra or {}
    assert extra["seed"] == 5 and extra["timings"]["queue_ms"] >= 0 and extra["timings"]["tokens_per_second"] > 0
    assert made._request_id is not None and made._request_id.startswith("req_")


def test_a_stream_says_what_the_whole_says(wired: Wired) -> None:
    client = wired.openai()
    how: dict[str, Any] = {"model": "tiny", "messages": HI, "max_tokens": 40, "seed": 9, "n": 3}
    whole = client.chat.completions.create(**how)
    texts, roles, order, ends = ["", "", ""], [0, 0, 0], [], ["", "", ""]
    ids, created = set(), set()
    chunks = list(client.chat.completions.create(**how, stream=True))
    for chunk in chunks:
        ids.add(chunk.id)
        created.add(chunk.created)
        assert chunk.object == "chat.completion.chunk"
        for choice in chunk.choices:
            if choice.index not in order:
                order.append(choice.index)
                assert choice.delta.role == "assistant"
            roles[choice.index] += choice.delta.role is not None
            texts[choice.index] += choice.delta.content or ""
            ends[choice.index] += choice.finish_reason or ""
    assert texts == [c.message.content for c in whole.choices]
    assert order == [0, 1, 2] and roles == [1, 1, 1] and ends == ["length"] * 3
    assert len(ids) == len(created) == 1
    assert "timings" in (chunks[-1].model_extra or {}) and chunks[-1].usage is None
    assert sum("timings" in (chunk.model_extra or {}) for chunk in chunks) == 1


def test_usage_comes_last_and_alone(wired: Wired) -> None:
    chunks = list(wired.openai().chat.completions.create(
        model="tiny", messages=HI, max_tokens=5, stream=True, stream_options={"include_usage": True}))
    *before, last = chunks
    assert all(chunk.usage is None and "usage" in chunk.model_fields_set for chunk in before)
    assert last.choices == [] and last.usage is not None and last.usage.completion_tokens == 5


def test_the_streaming_helper_puts_it_together(wired: Wired) -> None:
    wired.fake.says = lambda prompt: "a né 漢 text".encode()
    client = wired.openai()
    how: dict[str, Any] = {"model": "tiny", "messages": HI, "max_tokens": 30, "n": 2}
    whole = client.chat.completions.create(**how)
    with client.chat.completions.stream(**how, stream_options={"include_usage": True}) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert [c.message.content for c in final.choices] == [c.message.content for c in whole.choices]
    assert all(c.message.role == "assistant" for c in final.choices)
    assert final.usage is not None and whole.usage is not None
    assert final.usage == whole.usage.model_copy(update={"prompt_tokens_details": final.usage.prompt_tokens_details})
    assert final.system_fingerprint == whole.system_fingerprint is not None
    assert {"chunk", "content.delta", "content.done"} <= kinds


def test_logprobs_are_of_the_text(wired: Wired) -> None:
    wired.fake.says = lambda prompt: "né漢🙂".encode()
    client = wired.openai()
    how: dict[str, Any] = {"model": "tiny", "messages": HI, "logprobs": True, "top_logprobs": 3}
    whole = client.chat.completions.create(**how).choices[0]
    assert whole.logprobs is not None and whole.logprobs.content is not None
    assert bytes(b for t in whole.logprobs.content for b in t.bytes or []).decode() == whole.message.content == "né漢🙂"
    assert all(len(t.top_logprobs) == 3 and t.bytes is not None for t in whole.logprobs.content)
    with client.chat.completions.stream(**how) as stream:
        seen = b""
        for event in stream:
            if event.type == "chunk" and event.chunk.choices and event.chunk.choices[0].logprobs:
                seen += bytes(b for t in event.chunk.choices[0].logprobs.content or [] for b in t.bytes or [])
        final = stream.get_final_completion().choices[0]
    assert seen.decode() == final.message.content == "né漢🙂"
    assert final.logprobs is not None and len(final.logprobs.content or []) == len(whole.logprobs.content)


@pytest.mark.parametrize("stop", ["STOP", ["xx", "STOP"]])
def test_stop_text_never_leaks(wired: Wired, stop: Any) -> None:
    wired.fake.says = lambda prompt: b"before STOP behind" * 3
    client = wired.openai()
    made = client.chat.completions.create(model="tiny", messages=HI, stop=stop)
    assert made.choices[0].message.content == "before " and made.choices[0].finish_reason == "stop"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(
        model="tiny", messages=HI, stop=stop, stream=True))
    assert text == "before "
    assert wired.settled(lambda: wired.fake.alive == 0)


def test_the_async_client_and_many_at_once(wired: Wired) -> None:
    async def main() -> list[str]:
        async with AsyncOpenAI(base_url=f"{wired.address}/v1", api_key="x", max_retries=0) as client:
            async def one(i: int) -> str:
                stream = await client.chat.completions.create(
                    model="tiny", messages=[{"role": "user", "content": str(i % 4)}], max_tokens=20, temperature=0,
                    stream=True)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return list(await asyncio.gather(*(one(i) for i in range(16))))

    found = asyncio.run(main())
    assert all(found[i] == found[i % 4] for i in range(16)) and len({*found}) == 4


def test_a_question_again_is_read_from_the_cache(wired: Wired) -> None:
    client = wired.openai()
    messages: list[Any] = [{"role": "user", "content": "only once"}]
    client.chat.completions.create(model="tiny", messages=messages, max_tokens=1)
    usage = client.chat.completions.create(model="tiny", messages=messages, max_tokens=1).usage
    assert usage is not None and usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == usage.prompt_tokens - 1


def test_parts_of_text_and_the_developers_role(wired: Wired) -> None:
    client = wired.openai()
    parts: list[Any] = [{"role": "developer", "content": "be brief"},
                        {"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}]
    plain: list[Any] = [{"role": "system", "content": "be brief"}, *HI]
    found = [client.chat.completions.create(model="tiny", messages=m, max_tokens=9, temperature=0)
             for m in (parts, plain)]
    assert found[0].choices[0].message.content == found[1].choices[0].message.content


def test_an_answer_can_be_sent_back_as_it_came(wired: Wired) -> None:
    client = wired.openai()
    message = client.chat.completions.create(model="tiny", messages=HI, max_tokens=3).choices[0].message
    talk: list[Any] = [*HI, message, {"role": "user", "content": "more"}]
    assert client.chat.completions.create(model="tiny", messages=talk, max_tokens=3).choices
    talk[1] = message.model_dump()
    assert client.chat.completions.create(model="tiny", messages=talk, max_tokens=3).choices


def test_harmless_fields_are_taken(wired: Wired) -> None:
    assert wired.openai().chat.completions.create(
        model="tiny", messages=HI, max_tokens=2, user="me", metadata={"a": "b"}, store=False, service_tier="auto",
        safety_identifier="x", prompt_cache_key="k", frequency_penalty=0, presence_penalty=0.5, logit_bias={},
        response_format={"type": "text"}, tool_choice="none", parallel_tool_calls=True, modalities=["text"],
        extra_body={"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1}).choices


def test_a_failure_inside_a_stream_is_an_error(wired: Wired) -> None:
    wired.fake.pause = 0.05
    stream = wired.openai().chat.completions.create(model="tiny", messages=HI, max_tokens=100, stream=True)
    heard = []
    with pytest.raises(openai.APIError, match="engine failed") as error:
        for chunk in stream:
            heard.append(chunk)
            wired.fake.broken = len(heard) > 2
    assert error.value.code == "engine_failed"
    wired.fake.broken, wired.fake.pause = False, 0.0
    assert wired.settled(lambda: wired.http().get("/ready").status_code == 200)


def test_streams_end_in_done_with_a_reason_for_every_choice(wired: Wired) -> None:
    with wired.http() as client:
        text = client.post("/v1/chat/completions", json={"model": "tiny", "messages": HI, "n": 2, "max_tokens": 4,
                                                         "stream": True}).text
    lines = [line for line in text.split("\n") if line]
    assert all(line.startswith("data: ") for line in lines) and lines[-1] == "data: [DONE]"
    reasons = [c["finish_reason"] for line in lines[:-1] for c in json.loads(line[6:])["choices"] if c["finish_reason"]]
    assert reasons == ["length", "length"]
