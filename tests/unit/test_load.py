"""Load on a server: what is sent, what is measured, and how each failure is counted, against a server of ours."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
from fake_server import Fake, serving

from cutaway.cli.main import main
from cutaway.errors import DataError, SettingsError
from cutaway.probe.load import Load, Outcome, made_up, read_prompts, send
from cutaway.probe.load_client import Answer, Server
from cutaway.probe.load_figures import DEFINITIONS, errors, figures, lengths
from cutaway.records import bootstrap_quantile
from cutaway.settings import decode


def sent(fake: Fake, load: Load, prompts: list[str] | None = None, key: str | None = None) -> Outcome:
    server = Server.of(f"http://127.0.0.1:{fake.port}", key)
    return asyncio.run(send(server, load, prompts or made_up(load)))


@pytest.mark.parametrize("chunked", [True, False])
def test_times_and_counts_are_those_of_the_server(chunked: bool) -> None:
    with serving(Fake(gaps=(0.05, 0.02, 0.02), chunked=chunked)) as fake:
        load = Load(requests=6, concurrency=2, words=9, warmup=1)
        done = sent(fake, load, key="secret")
    assert done.model == "first" and len(fake.bodies) == 7 and fake.at_once == 2
    assert all(b"Authorization: Bearer secret" in head for head in fake.heads)
    assert all(a.error is None and a.finish == "stop" and a.output_tokens == 3 for a in done.answers)
    for a in done.answers:
        assert a.due <= a.sent <= a.texts[0] <= a.ended and a.texts[0] - a.due >= 0.049
        assert len(a.texts) == 3 and a.ended - a.due >= 0.089  # a lower bound holds on a busy machine too
    found = {m.name: m for m in figures(load, done)}
    assert found["errors"].value == 0
    assert found["time_to_first_token_p50"].value >= 49
    assert found["latency_p99"].value >= found["latency_p50"].value >= 89
    assert found["output_tokens_per_second"].value == pytest.approx(18 / done.seconds)
    assert found["inter_token_latency_p50"].n == 12 and found["time_per_output_token_p50"].n == 6
    for name, m in found.items():
        if m.unit == "ms":
            assert m.low is not None and m.high is not None and m.low <= m.value <= m.high, name
            assert name.rpartition("_")[0] in DEFINITIONS
    assert lengths(done) == {"prompt_tokens": 7.0, "output_tokens": 3.0}


def test_every_failure_has_its_kind_and_no_latency() -> None:
    fails = {0: "busy", 1: "cut", 2: "error", 3: "hang", 4: "nothing"}
    with serving(Fake(gaps=(0.01, 0.01), fails=fails)) as fake:
        load = Load(requests=6, concurrency=1, warmup=0, timeout=3)
        done = asyncio.run(send(Server.of(f"http://127.0.0.1:{fake.port}"), load, ["a"], model="m"))
    assert [a.error for a in done.answers] == ["http 429", "stream cut off", "error event", "timeout",
                                               "no HTTP answer", None]
    assert errors(done) == {"error event": 1, "http 429": 1, "no HTTP answer": 1, "stream cut off": 1, "timeout": 1}
    found = {m.name: m for m in figures(load, done)}
    assert found["errors"].value == pytest.approx(5 / 6) and found["latency_p50"].n == 1
    gone = asyncio.run(send(Server.of(f"http://127.0.0.1:{fake.port}"), load, ["a"], model="m"))
    assert errors(gone) == {"connection: ConnectionRefusedError": 6}
    assert [m.name for m in figures(load, gone)] == ["errors"]


def test_an_open_loop_does_not_wait_and_counts_from_when_a_request_was_due() -> None:
    with serving(Fake(gaps=(0.3,))) as fake:
        done = sent(fake, Load(requests=10, rate=200, warmup=0))
    assert fake.at_once >= 2
    dues = [a.due for a in done.answers]
    assert dues == sorted(dues) and dues[0] == 0 and 0 < np.diff(dues).mean() < 0.05
    again = Load(requests=10, rate=200, warmup=0)
    with serving(Fake(gaps=(0.0,))) as fake:
        np.testing.assert_allclose(np.diff([a.due for a in sent(fake, again).answers]), np.diff(dues), atol=1e-6)


def test_without_usage_tokens_are_pieces_of_text_and_that_is_said() -> None:
    with serving(Fake(usage=False)) as fake:
        load = Load(requests=2, concurrency=1, warmup=0)
        done = sent(fake, load)
    found = {m.name: m for m in figures(load, done)}
    assert found["output_tokens_per_second"].conditions["tokens"] == "pieces of text"
    assert lengths(done) == {"prompt_tokens": None, "output_tokens": None}


def test_prompts_share_their_head_alone_and_bodies_say_what_was_asked(tmp_path: Path) -> None:
    load = Load(requests=4, concurrency=1, words=10, shared=6, max_tokens=5)
    prompts = made_up(load)
    assert len(prompts) == 5 and len(set(prompts)) == 5 and {len(p.split()) for p in prompts} == {10}
    assert len({" ".join(p.split()[:6]) for p in prompts}) == 1
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "one"}\n{"messages": [{"role": "user", "content": "two"}]}\n')
    with serving(Fake()) as fake:
        asyncio.run(send(Server.of(f"http://127.0.0.1:{fake.port}/v1/"), load, read_prompts(file), model="m",
                         extra={"temperature": 0}))
    assert [b["messages"][0]["content"] for b in fake.bodies] == ["one", "two", "one", "two", "one"]
    assert fake.bodies[0] == {"model": "m", "messages": [{"role": "user", "content": "one"}], "max_tokens": 5,
                              "stream": True, "stream_options": {"include_usage": True}, "temperature": 0}
    with pytest.raises(DataError, match="chat API alone"):
        asyncio.run(send(Server.of("http://127.0.0.1:1"), load.model_copy(update={"api": "completions"}),
                         read_prompts(file), model="m"))


def test_what_cannot_be_asked_is_refused(tmp_path: Path) -> None:
    for options in ({}, {"rate": 1.0, "concurrency": 1}):
        with pytest.raises(SettingsError, match="either a rate"):
            decode(Load, options, where="options")
    for url in ("127.0.0.1:80", "ftp://host", "http://", "http://host:x"):
        with pytest.raises(SettingsError, match="address"):
            Server.of(url)
    (tmp_path / "a.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match=r"a\.jsonl:1: has neither"):
        read_prompts(tmp_path / "a.jsonl")
    (tmp_path / "b.txt").write_text("\n")
    with pytest.raises(DataError, match="no prompt"):
        read_prompts(tmp_path / "b.txt")


def test_an_interval_of_a_quantile_draws_whole_groups() -> None:
    alike = [[float(i)] * 50 for i in range(10)]  # 500 values, 10 observations
    low, high = bootstrap_quantile(alike, 0.5)
    assert high - low >= 3
    assert bootstrap_quantile([[1.0, 2.0]], 0.5) == (1.5, 1.5)
    with pytest.raises(DataError, match="cannot be resampled"):
        bootstrap_quantile([[]], 0.5)


def test_a_chunk_of_a_made_answer_gives_the_figures_by_hand() -> None:
    answers = (Answer(0.0, 0.1, (1.0, 2.0, 4.0), 5.0, 3, 5), Answer(1.0, 1.0, (2.0,), 2.0, 3, 1))
    found = {m.name: m.value for m in figures(Load(concurrency=1), Outcome("m", answers, 5.0))}
    assert found["time_to_first_token_p50"] == 1000 and found["latency_p50"] == 3000
    assert found["inter_token_latency_p50"] == 1500 and found["time_per_output_token_p50"] == 1000
    assert found["output_tokens_per_second"] == 1.2 and found["requests_per_second"] == 0.4


def test_the_verb_prints_a_table_with_definitions_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Fake()) as fake:
        url = f"http://127.0.0.1:{fake.port}"
        assert main(["bench", "serve", url, "--requests", "3", "--rate", "100"]) == 0
        out, err = capsys.readouterr()
        assert "time_to_first_token_p50" in out and "open loop, 100" in out
        assert "time_to_first_token: from when a request was due" in err and "output tokens 3.0" in err
        assert main(["bench", "serve", url, "--requests", "2", "--json"]) == 0
        value = json.loads(capsys.readouterr().out)
        assert value["load"]["concurrency"] == 1 and value["errors"] == {} and value["model"] == "first"
        assert main(["bench", "serve", url, "--extra", "[]"]) == 2
        assert "no JSON object" in capsys.readouterr().err
    assert main(["bench", "serve", url]) == 2 and "lists no models" in capsys.readouterr().err
    assert main(["bench", "other", url]) == 2
