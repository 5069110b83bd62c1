"""``cutaway serve`` as a person starts and ends it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from cutaway.cli.main import main

Started = tuple[subprocess.Popen[str], dict[str, Any]]
ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def started(*words: object, env: dict[str, str] | None = None) -> Iterator[Started]:
    process = subprocess.Popen([sys.executable, "-m", "cutaway", "serve", *map(str, words), "--port", "0", "--json"],
                               cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env={**os.environ, **(env or {})})
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.stderr.read() if process.stderr else ""
        yield process, json.loads(line)
    finally:
        process.kill()
        process.communicate()


def test_it_serves_and_ends_when_it_is_told_to(places: dict[str, Path]) -> None:
    with started(f"mine={places['tiny']}", places["owner/vectors"]) as (process, said):
        assert said["models"] == ["mine", "vectors"]
        client = OpenAI(base_url=said["address"] + "/v1", api_key="x", max_retries=0)
        assert client.completions.create(model="mine", prompt="a", max_tokens=3).usage
        assert len(client.embeddings.create(model="vectors", input="a").data[0].embedding) == 16
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=20)
        assert process.returncode == 0, err
        assert "POST /v1/completions 200" in err and "Traceback" not in err


def test_what_runs_may_end_after_the_signal(places: dict[str, Path]) -> None:
    with started(places["tiny"]) as (process, said):
        client = OpenAI(base_url=said["address"] + "/v1", api_key="x", max_retries=0)
        stream = client.completions.create(model="tiny", prompt="a", max_tokens=250, stream=True)
        text, told = [], False
        for chunk in stream:
            text.append(chunk.choices[0].finish_reason)
            if not told:
                told = True
                process.send_signal(signal.SIGTERM)
        assert text[-1] in ("length", "stop")
        assert process.wait(20) == 0


def test_ctrl_c_ends_it_too(places: dict[str, Path]) -> None:
    with started(places["tiny"]) as (process, _):
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


def test_a_key_is_made_and_asked_for(places: dict[str, Path], tmp_path: Path,
                                     capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "keys"
    assert main(["serve", "--new-key", "me", "--keys", str(file)]) == 0
    secret = capsys.readouterr().out.strip()
    with started(places["tiny"], "--keys", file, "--host", "0.0.0.0") as (_, said):
        address = said["address"].replace("0.0.0.0", "127.0.0.1")
        assert httpx.get(f"{address}/v1/models").status_code == 401
        assert httpx.get(f"{address}/v1/models", headers={"authorization": f"Bearer {secret}"}).status_code == 200
    with started(places["tiny"], env={"CUTAWAY_API_KEY": "from-the-environment"}) as (_, said):
        assert httpx.get(said["address"] + "/v1/models").status_code == 401


@pytest.mark.parametrize(("words", "says"), [
    (["--host", "0.0.0.0"], "there is no key"),
    (["--new-key", "me"], "--keys FILE"),
    (["--limit", "body_byts=5"], "body_bytes"),
    (["--limit", "body_bytes=0"], "body_bytes"),
    (["--keys", "/no/such/file"], "cannot be read"),
])
def test_what_is_wrong_is_one_line(places: dict[str, Path], words: list[str], says: str,
                                   capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUTAWAY_API_KEY", raising=False)
    assert main(["serve", str(places["tiny"]), *words]) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1


def test_names_are_told_apart(places: dict[str, Path], capsys: pytest.CaptureFixture[str],
                              monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tiny = str(places["tiny"])
    assert main(["serve", tiny, tiny]) == 2 and "two models would be served as 'tiny'" in capsys.readouterr().err
    assert main(["serve", "nosuchmodel"]) != 0
    monkeypatch.setenv("CUTAWAY_MODELS", str(tmp_path))
    capsys.readouterr()
    assert main(["serve"]) == 2 and "none was fetched" in capsys.readouterr().err
    monkeypatch.setenv("CUTAWAY_API_KEY", "short")
    assert main(["serve", tiny]) == 2 and "can be guessed" in capsys.readouterr().err


def test_threads_do_not_outlive_it(places: dict[str, Path]) -> None:
    from wired import serving

    before = threading.active_count()
    with serving(places) as wired:
        wired.openai().completions.create(model="tiny", prompt="x", max_tokens=2)
        wired.openai().embeddings.create(model="owner/vectors", input="x")
    end = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.05)
    assert threading.active_count() <= before
