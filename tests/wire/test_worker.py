"""The engine's thread: those who leave are forgotten, those who stay are answered, a broken engine is made again."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import openai
import pytest
from wired import Fake, FakeEngine, Wired, serving

from cutaway.generate.request import Event
from cutaway.server.limits import Limits

HI: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


def test_who_leaves_a_stream_is_forgotten(places: dict[str, Path]) -> None:
    fake = Fake(pause=0.02)
    with serving(places, fake=fake) as wired:
        stream = wired.openai().chat.completions.create(**HI, n=3, stream=True)
        next(iter(stream))
        assert wired.settled(lambda: fake.alive == 3)
        stream.close()
        assert wired.settled(lambda: fake.alive == 0, 2) and fake.cancelled == 3


def test_who_leaves_before_the_answer_is_forgotten(places: dict[str, Path]) -> None:
    fake = Fake(pause=0.02)
    with serving(places, fake=fake) as wired:
        with pytest.raises(openai.APITimeoutError):
            wired.openai(timeout=0.4).chat.completions.create(**HI)
        assert wired.settled(lambda: fake.alive == 0, 2) and fake.cancelled == 1


def test_who_leaves_while_texts_are_read_gives_up_its_turn(places: dict[str, Path]) -> None:
    with serving(places) as wired:
        wired.openai().embeddings.create(model="owner/vectors", input="x")
        reader: Any = wired.service.shelf.opened["owner/vectors"]
        held = threading.Event()
        reader.thread.submit(held.wait, 20)  # somebody else's turn
        with pytest.raises(openai.APITimeoutError):
            wired.openai(timeout=0.4).embeddings.create(model="owner/vectors", input="y")
        assert wired.settled(lambda: reader.pending == 0, 2)
        held.set()
        assert wired.openai().embeddings.create(model="owner/vectors", input="x").data


def test_many_leave_and_nothing_is_left(places: dict[str, Path]) -> None:
    fake = Fake(pause=0.002)
    with serving(places, fake=fake) as wired:
        client = wired.openai()
        for i in range(40):
            stream = client.completions.create(model="tiny", prompt=str(i), max_tokens=200, stream=True)
            if i % 3:
                next(iter(stream))
            stream.close()
        assert wired.settled(lambda: fake.alive == 0)
        (opened,) = wired.service.shelf.opened.values()
        assert opened.worker.active == opened.worker.waiting == 0  # type: ignore[union-attr]
        assert client.completions.create(model="tiny", prompt="still there", max_tokens=2).choices


def test_a_broken_engine_ends_every_stream_and_comes_back(places: dict[str, Path]) -> None:
    fake = Fake(pause=0.03)
    with serving(places, fake=fake) as wired:
        ends: list[BaseException | None] = []

        def listen() -> None:
            try:
                list(wired.openai().chat.completions.create(**HI, stream=True))
                ends.append(None)
            except openai.APIError as error:
                ends.append(error)

        threads = [threading.Thread(target=listen) for _ in range(5)]
        for thread in threads:
            thread.start()
        assert wired.settled(lambda: fake.alive == 5)
        fake.broken = True
        for thread in threads:
            thread.join(10)
        assert len(ends) == 5 and all(isinstance(e, openai.APIError) and e.code == "engine_failed" for e in ends)
        fake.broken = False
        assert wired.settled(lambda: wired.http().get("/ready").status_code == 200)
        assert fake.made >= 2 and wired.http().get("/health").status_code == 200
        assert wired.openai().chat.completions.create(**HI, max_tokens=3).choices[0].finish_reason == "length"
        assert "cutaway_engine_restarts" in wired.http().get("/metrics").text


def test_readiness_is_honest_while_the_engine_is_away(places: dict[str, Path]) -> None:
    fake = Fake()
    made: list[float] = []

    def slow(model: Any) -> Any:
        from wired import FakeEngine

        if made:
            time.sleep(0.8)
        made.append(time.monotonic())
        return FakeEngine(model, fake)

    with serving(places, engine_for=slow) as wired, wired.http() as client:
        client.post("/v1/chat/completions", json=HI | {"max_tokens": 1})
        assert client.get("/ready").json() == {"status": "ready", "models": {"tiny": "ready"}}
        fake.broken = True
        assert client.post("/v1/chat/completions", json=HI).status_code == 500
        fake.broken = False
        away = client.get("/ready")
        assert away.status_code == 503 and away.json()["models"] == {"tiny": "restarting"}
        assert "retry-after" in away.headers and client.get("/health").status_code == 200
        refused = client.post("/v1/chat/completions", json=HI)
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "engine_restarting"
        assert wired.settled(lambda: client.get("/ready").status_code == 200)


def test_what_the_engine_refuses_fails_alone(places: dict[str, Path]) -> None:
    from wired import FakeEngine

    from cutaway.errors import RequestError

    class Picky(FakeEngine):
        def submit(self, request: Any, *, salt: str = "") -> int:
            if request.max_tokens == 13:
                raise RequestError("thirteen is too many")
            return super().submit(request, salt=salt)

    fake = Fake()
    with serving(places, engine_for=lambda model: Picky(model, fake)) as wired:
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError, match="thirteen"):
                wired.openai().chat.completions.create(**HI, max_tokens=13, stream=stream)
        assert wired.openai().chat.completions.create(**HI, max_tokens=12).choices and fake.made == 1


def test_a_server_that_ends_lets_streams_end(places: dict[str, Path]) -> None:
    fake = Fake(pause=0.03)
    with serving(places, fake=fake) as wired:
        chunks = []
        for chunk in wired.openai().chat.completions.create(**HI, max_tokens=30, stream=True):
            chunks.append(chunk)
            wired.server.should_exit = True
        assert chunks[-1].choices[0].finish_reason == "length"


def test_a_server_that_ends_tells_those_that_take_too_long(places: dict[str, Path]) -> None:
    fake = Fake(pause=0.05)
    with (serving(places, fake=fake, limits=Limits(drain_seconds=0.3)) as wired,
          pytest.raises(openai.APIError, match="ending")):
        for _ in wired.openai().chat.completions.create(**HI, max_tokens=200, stream=True):
            wired.server.should_exit = True


def test_a_server_that_ends_tells_those_whose_texts_are_still_read(places: dict[str, Path]) -> None:
    ends: list[int] = []
    held = threading.Event()
    with serving(places, limits=Limits(drain_seconds=0.3)) as wired:
        wired.openai().embeddings.create(model="owner/vectors", input="x")
        reader: Any = wired.service.shelf.opened["owner/vectors"]
        reader.thread.submit(held.wait, 20)

        def ask() -> None:
            with wired.http() as client:
                ends.append(client.post("/v1/embeddings", json={"model": "owner/vectors", "input": "y"}).status_code)

        thread = threading.Thread(target=ask)
        thread.start()
        assert wired.settled(lambda: reader.pending == 1)
        wired.server.should_exit = True
        thread.join(10)
        assert ends == [503]
        held.set()


def test_counters_count(wired: Wired) -> None:
    before = figures(wired)
    wired.openai().chat.completions.create(**HI, max_tokens=7)
    after = figures(wired)
    name = '{model_name="tiny"}'
    assert after[f"vllm:generation_tokens_total{name}"] == before.get(f"vllm:generation_tokens_total{name}", 0) + 7
    assert after[f"vllm:num_requests_running{name}"] == 0
    for what in ("time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds",
                 "request_queue_time_seconds", "request_prefill_time_seconds", "request_decode_time_seconds"):
        assert after[f"vllm:{what}_count{name}"] >= 1
    for what in ("num_requests_waiting", "kv_cache_usage_perc", "prefix_cache_queries_total",
                 "prefix_cache_hits_total", "num_preemptions_total"):
        assert f"vllm:{what}{name}" in after
    assert after['vllm:request_success_total{finished_reason="length",model_name="tiny"}'] >= 1


def figures(wired: Wired) -> dict[str, float]:
    text = wired.http().get("/metrics").text
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in text.splitlines()
                                                   if not line.startswith("#"))}


def test_timings_part_the_queue_from_the_prompt(places: dict[str, Path]) -> None:
    fake = Fake(pause=0.2)
    with serving(places, fake=fake) as wired:
        tree = wired.http().post("/v1/chat/completions", json=HI | {"max_tokens": 3}).json()["timings"]
        assert tree["queue_ms"] < 150 and 150 < tree["prefill_ms"] < 1000 and 350 < tree["decode_ms"] < 3000
        assert 0.5 < tree["tokens_per_second"] < 6


class _Pairs(FakeEngine):
    """Two tokens of a request come of one step, as of one whose proposals were right."""

    def step(self) -> list[Event]:
        first = super().step()
        return [*first, *(super().step() if self.live else ())]


def test_the_time_of_a_step_is_shared_by_its_tokens(places: dict[str, Path]) -> None:
    fake = Fake(pause=0.05)
    with serving(places, fake=fake, engine_for=lambda model: _Pairs(model, fake)) as wired:
        wired.openai().chat.completions.create(**HI, max_tokens=9)
        found, name = figures(wired), 'model_name="tiny"'
    quick = found[f'vllm:inter_token_latency_seconds_bucket{{le="0.005",{name}}}']
    assert found[f"vllm:inter_token_latency_seconds_count{{{name}}}"] == 8
    assert quick <= 1  # the second of the first step's two comes with it
    assert 0.3 <= found[f"vllm:inter_token_latency_seconds_sum{{{name}}}"] <= 1  # four steps of two pauses
