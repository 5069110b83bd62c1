"""Every limit: what is beyond it is refused with the number, and the server lives on."""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from wired import Fake, Wired, serving

from cutaway.server.keys import Allowance, Key, hashed
from cutaway.server.limits import Limits
from cutaway.server.problem import Problem

HI: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


def raw(wired: Wired) -> socket.socket:
    host, port = wired.address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def head(wired: Wired, length: int, path: str = "/v1/chat/completions") -> bytes:
    return (f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {length}\r\n\r\n").encode()


def test_a_body_that_is_too_large(places: dict[str, Path]) -> None:
    with serving(places, limits=Limits(body_bytes=500)) as wired, wired.http() as client:
        answer = client.post("/v1/chat/completions", json=HI | {"user": "x" * 500})
        assert answer.status_code == 413 and "500 bytes" in answer.json()["error"]["message"]

        def parts() -> Any:
            for _ in range(60):
                yield b"x" * 10

        sent = client.post("/v1/completions", content=parts(), headers={"content-type": "application/json"})
        assert sent.status_code == 413  # which said no length beforehand
        assert client.post("/v1/chat/completions", json=HI | {"max_tokens": 1}).status_code == 200


def test_a_body_that_does_not_come(places: dict[str, Path]) -> None:
    with serving(places, limits=Limits(body_seconds=0.2)) as wired, raw(wired) as connection:
        connection.sendall(head(wired, 100) + b'{"mod')
        assert connection.recv(4096).startswith(b"HTTP/1.1 408")


def test_a_head_that_does_not_come(places: dict[str, Path]) -> None:
    with serving(places, limits=Limits(head_seconds=0.3)) as wired:
        silent, half = raw(wired), raw(wired)
        half.sendall(b"GET /health HTTP/1.1\r\nHo")
        for connection in (silent, half):
            with connection, suppress(ConnectionResetError):
                assert connection.recv(10) == b""
        assert wired.http().get("/health").status_code == 200


def test_too_many_connections(places: dict[str, Path]) -> None:
    with serving(places, limits=Limits(connections=4)) as wired:
        idle = [raw(wired) for _ in range(30)]
        assert wired.settled(lambda: len(wired.server.server_state.connections) <= 4)
        for connection in idle:
            connection.close()
        assert wired.settled(lambda: wired.http().get("/health").status_code == 200)


def test_a_queue_that_is_full(places: dict[str, Path]) -> None:
    fake = Fake(pause=0.3)
    with serving(places, limits=Limits(waiting=2), fake=fake) as wired:
        wired.openai().chat.completions.create(**HI, max_tokens=1)
        found: list[httpx.Response] = []

        def ask() -> None:
            found.append(wired.http().post("/v1/chat/completions", json=HI | {"max_tokens": 1}))

        threads = [threading.Thread(target=ask) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        refused = [r for r in found if r.status_code == 429]
        assert refused and all(r.status_code in (200, 429) for r in found) and len(refused) < 12
        assert all(int(r.headers["retry-after"]) >= 1 for r in refused)
        assert refused[0].json()["error"]["code"] == "rate_limit_exceeded"


def test_a_queue_has_a_limit_of_tokens(places: dict[str, Path]) -> None:
    ask: dict[str, Any] = {"model": "tiny", "prompt": "x" * 30, "max_tokens": 1}
    fake = Fake(pause=1.0)
    with serving(places, limits=Limits(waiting_tokens=50), fake=fake) as wired:
        before = threading.Thread(target=lambda: wired.openai().completions.create(**ask))
        before.start()
        assert wired.settled(lambda: fake.alive == 1)
        with pytest.raises(openai.RateLimitError, match="1 requests of 31 tokens are waiting"):
            wired.openai().completions.create(**ask)
        before.join()


def test_an_answer_that_takes_too_long(places: dict[str, Path]) -> None:
    fake = Fake(pause=0.1)
    with serving(places, limits=Limits(answer_seconds=0.35), fake=fake) as wired:
        answer = wired.http().post("/v1/chat/completions", json=HI)
        assert answer.status_code == 504 and answer.headers["x-should-retry"] == "false"
        assert answer.json()["error"]["code"] == "deadline_exceeded"
        with pytest.raises(openai.APIError, match="more than"):
            list(wired.openai().chat.completions.create(**HI, stream=True))
        assert wired.settled(lambda: fake.alive == 0)


def test_a_reader_that_does_not_read(places: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    fake = Fake(says=lambda prompt: b"x" * 200)
    with serving(places, limits=Limits(send_seconds=0.3), fake=fake, send_buffer=8192) as wired:
        body = json.dumps({"model": "tiny", "prompt": ["a"] * 8, "n": 8, "max_tokens": 200, "logprobs": 1,
                           "stream": True}).encode()
        connection = raw(wired)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.sendall(head(wired, len(body), "/v1/completions") + body)
        assert wired.settled(lambda: fake.alive > 0)
        assert wired.settled(lambda: fake.alive == 0, 20)
        assert wired.settled(lambda: not wired.server.server_state.connections, 20)
        connection.close()
    assert "left its stream unread" in caplog.text


def test_one_key_has_its_share(places: dict[str, Path]) -> None:
    keys = [Key("a", hashed("a" * 16)), Key("b", hashed("b" * 16))]
    fake = Fake(pause=0.05)
    with serving(places, limits=Limits(per_key=1), fake=fake, keys=keys) as wired:
        stream = wired.openai("a" * 16).chat.completions.create(**HI, stream=True)
        with pytest.raises(openai.RateLimitError, match="may have 1"):
            wired.openai("a" * 16).models.list()
        assert wired.openai("b" * 16).models.list().data
        stream.close()
        assert wired.settled(lambda: fake.alive == 0)
        assert wired.openai("a" * 16).models.list().data


def test_tokens_a_minute(places: dict[str, Path]) -> None:
    with serving(places, limits=Limits(tokens_per_minute=60)) as wired:
        client = wired.openai()
        client.chat.completions.create(**HI, max_tokens=30)
        with pytest.raises(openai.RateLimitError, match="left this minute") as error:
            client.chat.completions.create(**HI, max_tokens=40)
        assert int(error.value.response.headers["retry-after"]) >= 10
        with pytest.raises(openai.BadRequestError, match="has 60 a minute"):
            client.chat.completions.create(**HI, max_tokens=100)


def test_tokens_a_minute_are_also_those_that_are_only_read(places: dict[str, Path]) -> None:
    with serving(places, limits=Limits(tokens_per_minute=60)) as wired:
        client = wired.openai()
        client.embeddings.create(model="owner/vectors", input="x" * 40)
        with pytest.raises(openai.RateLimitError, match="left this minute"):
            client.embeddings.create(model="owner/vectors", input="x" * 40)
        with wired.http() as plain:
            asked = {"/v1/rerank": {"query": "x" * 20, "documents": ["x" * 20]}, "/v1/classify": {"input": "x" * 40}}
            for path, more in asked.items():
                model = "labels" if path == "/v1/classify" else "owner/vectors"
                assert plain.post(path, json={"model": model, **more}).status_code == 429, path


def test_a_request_that_no_queue_could_take_is_not_told_to_come_again(places: dict[str, Path]) -> None:
    with serving(places, limits=Limits(waiting_tokens=50)) as wired:
        with pytest.raises(openai.BadRequestError, match="fewer choices") as error:
            wired.openai().completions.create(model="tiny", prompt="x" * 30, n=2, max_tokens=1)
        assert error.value.code == "context_length_exceeded"
        assert wired.openai().completions.create(model="tiny", prompt="x" * 30, max_tokens=1).choices


def test_a_server_that_is_full_says_that_it_lives(places: dict[str, Path]) -> None:
    fake = Fake(pause=0.1)
    with serving(places, limits=Limits(connections=1), fake=fake) as wired:
        stream = wired.openai().chat.completions.create(**HI, stream=True, max_tokens=20)
        with wired.http(headers={"connection": "close"}) as client:
            assert client.get("/health").status_code == client.get("/ready").status_code == 200
            assert client.get("/v1/models").status_code == 429
        stream.close()


def test_what_was_not_used_is_given_back() -> None:
    allowance = Allowance(Limits(tokens_per_minute=100))
    allowance.spend(80)
    with pytest.raises(Problem) as error:
        allowance.spend(80)
    assert error.value.status == 429 and int(error.value.headers["Retry-After"]) > 30
    allowance.give_back(70)
    allowance.spend(80)


def test_models_that_nobody_uses_are_closed_and_come_back(places: dict[str, Path]) -> None:
    with serving(places, limits=Limits(idle_seconds=0.3)) as wired:
        client = wired.openai()
        client.chat.completions.create(**HI, max_tokens=1)
        client.embeddings.create(model="owner/vectors", input="x")
        assert {*wired.service.shelf.opened} <= {"tiny", "owner/vectors"}
        assert wired.settled(lambda: not wired.service.shelf.opened)
        assert client.chat.completions.create(**HI, max_tokens=1).choices and wired.fake.made == 2


def test_a_model_in_use_stays(places: dict[str, Path]) -> None:
    with serving(places, limits=Limits(idle_seconds=0.2), fake=Fake(pause=0.05)) as wired:
        text = list(wired.openai().chat.completions.create(**HI, max_tokens=20, stream=True))
        assert text[-1].choices[0].finish_reason == "length" and wired.fake.made == 1


def test_quiet_streams_give_a_sign_of_life(places: dict[str, Path]) -> None:
    with serving(places, limits=Limits(ping_seconds=0.1), fake=Fake(pause=1.5)) as wired:
        begun = time.monotonic()
        with wired.http().stream("POST", "/v1/chat/completions", json=HI | {"max_tokens": 1, "stream": True}) as answer:
            lines = [line for line in answer.iter_lines() if line]
        assert ": ping" in lines and lines[-1] == "data: [DONE]" and time.monotonic() - begun > 1
        assert len(list(wired.openai().chat.completions.create(**HI, max_tokens=1, stream=True))) == 3
