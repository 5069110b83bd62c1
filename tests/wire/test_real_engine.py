"""The wire over the real engine: what comes out is what the Writer says, alone or among others, and pages come back."""

from __future__ import annotations

import json
import logging
import threading
import weakref
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from openai import BadRequestError
from wired import BYTES, Wired, serving, write_model

from cutaway.generate.engine import Engine
from cutaway.generate.request import Sampling
from cutaway.generate.writer import Options, Writer
from cutaway.models.folder import save_model
from cutaway.models.model import LanguageModel, build
from cutaway.models.open import open_language_model
from cutaway.models.transformer import TransformerConfig
from cutaway.nn import kernels
from cutaway.server.worker import Worker
from cutaway.text.chat import Message

GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def real(places: dict[str, Path]) -> Iterator[Wired]:
    with serving(places, engine_for=Engine) as server:
        yield server


@pytest.fixture(scope="module")
def writer(places: dict[str, Path]) -> Writer:
    return Writer(Engine(open_language_model(places["tiny"])), BYTES)


def worker_of(real: Wired, name: str = "tiny") -> Worker:
    worker = real.service.shelf.opened[name].worker  # type: ignore[union-attr]
    assert isinstance(worker, Worker)
    return worker


def test_chat_and_completion_are_the_writers(real: Wired, writer: Writer) -> None:
    client = real.openai()
    for words in ("hi", "né漢", "x" * 60):
        expected = writer.chat([Message("user", words)], Options(max_tokens=20, sampling=GREEDY))
        made = client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": words}],
                                              temperature=0, max_tokens=20)
        assert made.choices[0].message.content == expected.text
        (written,) = writer.complete([words], Options(max_tokens=20, sampling=Sampling(top_k=20), seed=11))
        text = client.completions.create(model="tiny", prompt=words, max_tokens=20, seed=11, extra_body={"top_k": 20})
        assert text.choices[0].text == written.text


def test_logprobs_are_the_models_own(real: Wired, writer: Writer) -> None:
    (written,) = writer.complete(["abc"], Options(max_tokens=8, sampling=GREEDY, logprobs=2))
    made = real.openai().completions.create(model="tiny", prompt="abc", max_tokens=8, temperature=0, logprobs=2,
                                            echo=True)
    logs = made.choices[0].logprobs
    assert logs is not None and logs.token_logprobs is not None and logs.token_logprobs[0] is None
    values = [x for x in logs.token_logprobs[4:] if x is not None]
    assert values == pytest.approx([x for x, t in zip(written.logprobs, written.tokens, strict=True)
                                    if BYTES.bytes_of([t])], abs=1e-4)
    assert all(x is not None and x < 0 for x in logs.token_logprobs[1:4])


def test_every_form_of_an_answer_says_whether_it_would_be_the_same_in_company(places: dict[str, Path],
                                                                              tmp_path: Path) -> None:
    """A decoder's kernels promise it; an encoder-decoder's library does not."""
    whole = write_model(tmp_path / "whole", hidden_size=32, num_kv_heads=1, intermediate_size=32)
    with serving({"whole": whole, "reader": places["reader"]}, engine_for=Engine) as server:
        client, hi = server.http(), [{"role": "user", "content": "hi"}]
        for model, promised in (("whole", kernels.built().library is not None), ("reader", False)):
            text: dict[str, Any] = {"model": model, "prompt": "hi", "max_tokens": 3}
            asked = [("completions", text)]
            if model == "whole":
                asked += [("chat/completions", {"model": model, "messages": hi, "max_tokens": 3}),
                          ("responses", {"model": model, "input": "hi", "max_output_tokens": 16})]
            for route, body in asked:
                assert client.post(f"/v1/{route}", json=body).json()["reproducible"] is promised
            lines = client.post("/v1/completions", json={**text, "stream": True}).text.split("\n\n")
            last = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")][-1]
            assert last["reproducible"] is promised


def test_an_encoder_decoder_writes_beside_its_prompt(real: Wired, places: dict[str, Path]) -> None:
    writer = Writer(Engine(open_language_model(places["reader"])), BYTES)
    (expected,) = writer.rewrite(["some text"], Options(max_tokens=12, sampling=GREEDY))
    made = real.openai().completions.create(model="reader", prompt="some text", temperature=0, max_tokens=12)
    assert made.choices[0].text == expected.text


def test_an_answer_does_not_depend_on_its_neighbours(real: Wired) -> None:
    client = real.openai()

    def ask(number: int) -> str:
        how: dict[str, Any] = {"model": "tiny", "prompt": "p" * (number % 7 + 1), "max_tokens": 24, "seed": number % 7}
        return client.completions.create(**how).choices[0].text

    alone = [ask(i) for i in range(7)]
    found: dict[int, str] = {}
    threads = [threading.Thread(target=lambda i=i: found.__setitem__(i, ask(i))) for i in range(28)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found[i] == alone[i % 7] for i in range(28))


def test_pages_come_back_from_those_who_leave(real: Wired) -> None:
    client = real.openai()
    client.completions.create(model="tiny", prompt="warm", max_tokens=2)
    for i in range(12):
        stream = client.completions.create(model="tiny", prompt=f"{i} " * 20, max_tokens=150, n=2, stream=True)
        next(iter(stream))
        stream.close()
    worker = worker_of(real)
    assert real.settled(lambda: worker.active == 0)
    client.completions.create(model="tiny", prompt="after", max_tokens=2)
    figures = worker.figures
    assert figures is not None and figures.running == figures.waiting == figures.pages_used == 0
    assert figures.pages_free + figures.pages_cached > 0


def test_a_prompt_again_is_cached_and_equal(real: Wired, writer: Writer) -> None:
    client = real.openai()
    how: dict[str, Any] = {"model": "tiny", "prompt": "a long beginning " * 8, "temperature": 0, "max_tokens": 16}
    first, second = client.completions.create(**how), client.completions.create(**how)
    assert first.choices[0].text == second.choices[0].text
    assert first.usage is not None and second.usage is not None and second.usage.prompt_tokens_details is not None
    cached = second.usage.prompt_tokens_details.cached_tokens
    assert cached is not None and cached < second.usage.prompt_tokens
    assert (cached > 0) == writer.engine.runner.shares_pages
    assert "vllm:prefix_cache_hits_total" in real.http().get("/metrics").text


def test_forms_hold_with_the_real_engine(real: Wired) -> None:
    from pydantic import BaseModel

    class Point(BaseModel):
        x: int
        name: str

    made = real.openai().chat.completions.parse(model="tiny", messages=[{"role": "user", "content": "hi"}],
                                                response_format=Point, max_tokens=120)
    assert isinstance(made.choices[0].message.parsed, Point) and made.choices[0].finish_reason == "stop"


def test_biases_and_the_price_of_saying_it_again(real: Wired) -> None:
    z, y = (BYTES.encode(letter)[0] for letter in "zy")
    create = real.openai().completions.create
    one = create(model="tiny", prompt="abc", max_tokens=6, temperature=0, logit_bias={str(z): 100})
    assert one.choices[0].text == "zzzzzz"
    two = create(model="tiny", prompt="abc", max_tokens=12, temperature=0, frequency_penalty=2,
                 logit_bias={str(z): 100, str(y): 95})
    assert set(two.choices[0].text) == {"z", "y"} and two.choices[0].text.startswith("zz")
    with pytest.raises(BadRequestError, match="outside the vocabulary"):
        create(model="tiny", prompt="abc", max_tokens=1, logit_bias={"999999": 1})


def kept(engines: list[Engine], model: LanguageModel) -> Engine:
    """An engine that a test can reach."""
    engines.append(Engine(model))
    return engines[-1]


def broken(*_: Any, **__: Any) -> Any:
    raise RuntimeError("secret insides")


def test_a_step_that_fails_is_no_fault_of_the_client(places: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    """What the model's code raises ends what runs as the engine's failure and is logged; the engine is made again where
    it happens again and again."""
    engines: list[Engine] = []
    ask = {"model": "tiny", "prompt": "x", "max_tokens": 2}
    with serving(places, engine_for=lambda model: kept(engines, model)) as server, server.http() as client:
        assert client.post("/v1/completions", json=ask).status_code == 200
        engines[-1].runner.run = broken  # type: ignore[method-assign]
        for times in range(3):
            assert len(engines) == 1 and client.get("/ready").status_code == 200, times
            answer = client.post("/v1/completions", json=ask)
            assert answer.status_code == 500 and answer.json()["error"]["code"] == "engine_failed"
            assert "secret" not in answer.text and "secret insides" in caplog.text
        assert server.settled(lambda: len(engines) == 2 and client.get("/ready").status_code == 200)
        assert client.post("/v1/completions", json=ask).status_code == 200


def test_an_engine_that_failed_leaves_its_pages(places: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Before another is made, which may need the room."""
    monkeypatch.setattr(logging.getLogger("cutaway.server"), "disabled", True)  # what is captured would hold it
    engines: list[Engine] = []
    there: list[bool] = []

    def made(model: LanguageModel) -> Engine:
        there.extend(gone() is not None for gone in (held,) if held is not None)
        return kept(engines, model)

    held: weakref.ref[Engine] | None = None
    ask = {"model": "tiny", "prompt": "x", "max_tokens": 2}
    with serving(places, engine_for=made) as server, server.http() as client:
        assert client.post("/v1/completions", json=ask).status_code == 200
        engines[-1].runner.run = broken  # type: ignore[method-assign]
        held = weakref.ref(engines.pop())
        for _ in range(3):
            assert client.post("/v1/completions", json=ask).status_code == 500
        assert server.settled(lambda: there == [False])


def test_a_model_without_numbers_is_no_fault_of_the_client(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2}
    model = build(TransformerConfig(vocab_size=BYTES.vocab_size, intermediate_size=24, context_length=64, **sizes))
    torch.nn.init.constant_(model.backbone.embedding.weight, torch.nan)  # type: ignore[union-attr, arg-type]
    save_model(tmp_path / "m", model, BYTES)
    with serving({"m": tmp_path / "m"}, engine_for=Engine) as server, server.http() as client:
        answer = client.post("/v1/completions", json={"model": "m", "prompt": "x", "max_tokens": 2})
        assert answer.status_code == 500 and answer.json()["error"]["code"] == "model_failed", answer.text
        assert "not finite" in answer.text and client.get("/ready").status_code == 200


def test_an_engine_that_cannot_be_made_is_said_to_the_client_and_the_server_ends(tmp_path: Path) -> None:
    """Too little memory for keys and values: every request hears why, and nothing is left to wait for."""
    sizes = TransformerConfig(vocab_size=BYTES.vocab_size, hidden_size=32, num_layers=1, num_heads=2, num_kv_heads=1,
                              intermediate_size=32, context_length=64)
    save_model(tmp_path / "m", build(sizes, seed=1), BYTES)
    if not Engine(open_language_model(tmp_path / "m")).runner.shares_pages:
        pytest.skip("no pages without kernels")
    short = partial(Engine, cache_bytes=1000)
    with serving({"m": tmp_path / "m"}, engine_for=short) as server, server.http() as client:
        for _ in range(2):
            answer = client.post("/v1/completions", json={"model": "m", "prompt": "x", "max_tokens": 2})
            assert answer.status_code == 503 and "cache_bytes=1000 holds" in answer.json()["error"]["message"]
        assert client.get("/health").status_code == 200
