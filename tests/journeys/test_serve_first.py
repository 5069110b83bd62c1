"""A machine whose kernels were never compiled: a server answers at once, changes over, and ends when it is told to."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from slow_compiler import COPY, Compiler, slow_compiler

from cutaway.models.folder import save_model
from cutaway.models.model import build
from cutaway.models.transformer import TransformerConfig
from cutaway.nn import kernels
from cutaway.nn.linear import packs
from cutaway.text.tokenizer import ByteSettings, train

ROOT = Path(__file__).resolve().parents[2]
BYTES = train(ByteSettings(), [])
LONG = 1200  # tokens: a second or more
pytestmark = pytest.mark.skipif(kernels.built().library is None, reason=kernels.status())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "tiny"
    sizes = TransformerConfig(vocab_size=BYTES.vocab_size, hidden_size=64, num_layers=3, num_heads=4, num_kv_heads=2,
                              intermediate_size=96, context_length=2048)
    save_model(folder, build(sizes, seed=1), BYTES)
    return folder


def compiler_of(folder: Path, then: str | None = None) -> Compiler:
    """One that gives what is compiled already, when it may."""
    library = kernels._wanted()
    assert isinstance(library, Path)
    return slow_compiler(folder, COPY.format(library=library) if then is None else then)


@contextmanager
def served(model: Path, compiler: Compiler, *words: str) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """A server with nothing in its cache."""
    env = {**os.environ, "CC": compiler.path, "XDG_CACHE_HOME": str(compiler.folder / "cache")}
    command = [sys.executable, "-m", "cutaway", "serve", str(model), *words, "--port", "0", "--json"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          env=env) as process:
        assert process.stdout is not None
        try:
            with httpx.Client(base_url=json.loads(process.stdout.readline())["address"], timeout=60) as client:
                yield process, client
        finally:
            process.kill()


def ask(prompt: str, length: int, **more: Any) -> dict[str, Any]:
    """Of text that does not end before it is so long."""
    never = {str(token): -100 for token in BYTES.stop_ids}
    return {"model": "tiny", "prompt": prompt, "max_tokens": length, "seed": 7, "logit_bias": never, **more}


def whole(client: httpx.Client, prompt: str = "x", length: int = 20) -> tuple[str, str]:
    """A text, and on which path it was written."""
    answer = client.post("/v1/completions", json=ask(prompt, length)).json()
    return answer["choices"][0]["text"], answer["system_fingerprint"]


def changed(client: httpx.Client) -> bool:
    """Whether the server has changed over; asked without having anything written, which would be company."""
    return 'cutaway_engine_plain{model_name="tiny"} 0.0' in client.get("/metrics").text


def test_the_first_answer_does_not_wait_and_none_is_broken(model: Path, tmp_path: Path) -> None:
    compiler = compiler_of(tmp_path)
    with served(model, compiler) as (process, client):
        expected, plain = whole(client, length=LONG)
        assert plain.endswith("-plain") and compiler.begun() and compiler.alive  # it still works at it
        text, fingerprints, after = "", set[str](), None
        with client.stream("POST", "/v1/completions", json=ask("x", LONG, stream=True)) as answer:
            compiler.go()
            for line in answer.iter_lines():
                if not line.startswith("data: {"):
                    continue
                chunk = json.loads(line.removeprefix("data: "))
                text += chunk["choices"][0]["text"]
                fingerprints.add(chunk["system_fingerprint"])
                if after is None and changed(client):
                    after = len(text), whole(client)
        assert after is not None and after[0] < len(expected), "the answer was over before the change"
        assert text == expected and fingerprints == {plain}
        assert after[1][1] == plain.removesuffix("-plain") == whole(client)[1]
        assert whole(client) == after[1]
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 0 and "Traceback" not in err
    told = [line.partition(" tiny ")[2] for line in err.splitlines() if " tiny answers " in line]
    assert told == ["answers by plain PyTorch while kernels are compiled", "answers with kernels from now on"]


def test_a_server_that_ends_does_not_wait_for_the_compiler(model: Path, tmp_path: Path) -> None:
    compiler = compiler_of(tmp_path)
    with served(model, compiler) as (process, client):
        assert whole(client)[1].endswith("-plain") and compiler.begun()
        begun = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=20)
        assert time.monotonic() - begun < 5 and process.returncode == 0
    assert not compiler.alive and "Traceback" not in err and "stays on" not in err
    assert not [*(tmp_path / "cache" / "cutaway").iterdir()]


def test_a_second_ctrl_c_does_not_wait_either(model: Path, tmp_path: Path) -> None:
    compiler = compiler_of(tmp_path)
    with served(model, compiler) as (process, client), client.stream("POST", "/v1/completions",
                                                                     json=ask("x", 2000, stream=True)) as answer:
        next(answer.iter_lines())
        assert compiler.begun()
        begun = time.monotonic()
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
        assert time.monotonic() - begun < 5
    assert not compiler.alive


def test_a_compiler_that_fails_leaves_a_server_that_answers(model: Path, tmp_path: Path) -> None:
    compiler = compiler_of(tmp_path, "echo 'x.c: error: not today' >&2; exit 1")
    with served(model, compiler) as (process, client):
        expected = whole(client)
        compiler.go()
        end = time.monotonic() + 20
        while compiler.alive and time.monotonic() < end:
            time.sleep(0.05)
        assert whole(client) == expected and not changed(client)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=20)
    assert "tiny stays on plain PyTorch" in err and "error: not today" in err and process.returncode == 0


@pytest.mark.skipif(packs(torch.zeros(1, 2), "int8") is None, reason="no products of int8 on this processor")
def test_what_has_no_plain_path_waits_for_the_compiler(model: Path, tmp_path: Path) -> None:
    compiler = compiler_of(tmp_path)
    with served(model, compiler, "--precision", "int8") as (_, client):
        with pytest.raises(httpx.ReadTimeout):
            client.post("/v1/completions", json=ask("x", 3), timeout=1.5)
        assert client.get("/health").status_code == 200 and compiler.begun()
        compiler.go()
        assert not whole(client)[1].endswith("-plain")
