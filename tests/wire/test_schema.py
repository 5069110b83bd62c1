"""The schema is true: schemathesis asks what it allows and what it forbids, and every status is one that it names."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from wired import Wired, serving, tool_tokenizer, write_model

from cutaway.generate.engine import engine_for
from cutaway.server.endpoints import ENDPOINTS
from cutaway.server.limits import Limits

EXAMPLES = int(os.environ.get("CUTAWAY_SCHEMA_EXAMPLES", "20"))  # of each route and mode


@pytest.fixture(scope="module")
def served(places: dict[str, Path]) -> Iterator[Wired]:
    with serving(places, limits=Limits(answer_seconds=20)) as server:
        yield server


@pytest.fixture(scope="module")
def tree(served: Wired) -> dict[str, Any]:
    found: dict[str, Any] = served.http().get("/openapi.json").json()
    return found


def test_no_answer_is_a_surprise(places: dict[str, Path], tmp_path: Path) -> None:
    """What schemathesis finds of its own accord, every check in every phase, as its command runs them: the engine is
    the real one."""
    (tmp_path / "schemathesis.toml").write_text(
        f"hooks = {json.dumps(str(Path(__file__).with_name('schema_check.py')))}\n"
        "[checks.positive_data_acceptance]\n"
        'expected-statuses = ["2xx", "400", "404", "429"]  # 400 only for what refused_for_what_no_schema_says takes\n')
    tools = write_model(tmp_path / "tools", tool_tokenizer(), context=2048)  # one that may call
    with serving({"tools": tools, **places}, limits=Limits(answer_seconds=20), engine_for=engine_for) as server:
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.address}/openapi.json", "--mode", "all",
                   "--checks", "all", "--continue-on-failure", "--max-examples", str(EXAMPLES), "--no-color",
                   "--generation-deterministic", "--output-sanitize", "false"]
        run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False,
                             env={**os.environ, "CUTAWAY_SCHEMA_SEEN": str(tmp_path / "seen")})
        assert run.returncode == 0, run.stdout[-20_000:] + run.stderr
        assert server.http().get("/ready").status_code == 200
    assert re.search(rf"Tested: {len(ENDPOINTS)}$", run.stdout, re.MULTILINE), run.stdout
    assert "Coverage (in" in run.stdout and "Fuzzing (in" in run.stdout
    lines = [line.split("\t") for line in (tmp_path / "seen").read_text("utf-8").splitlines()]
    for endpoint in ENDPOINTS:
        label = f"{endpoint.method} {endpoint.path.replace('{name:path}', '{name}')}"
        seen = {mode: {int(status) for name, given, status in lines if (name, given) == (label, mode)}
                for mode in ("True", "False")}
        assert 200 in seen["True"], (label, seen)
        # what is forbidden is refused for what it is; where there is nothing to ask there is nothing to ask wrongly
        assert not endpoint.asks or not {200, 404} >= seen["False"], (label, seen)


def test_every_route_is_in_the_schema(tree: dict[str, Any]) -> None:
    assert set(tree["paths"]) == {
        "/", "/health", "/ready", "/metrics", "/v1/models", "/v1/models/{name}", "/v1/chat/completions",
        "/v1/completions", "/v1/embeddings", "/v1/rerank", "/v1/classify", "/v1/responses", "/tokenize", "/detokenize",
        "/render"}
    for path, methods in tree["paths"].items():
        for operation in methods.values():
            assert "422" not in operation["responses"] and {"400", "403", "500"} <= set(operation["responses"]), path


def test_answers_are_as_the_schema_says(served: Wired, tree: dict[str, Any]) -> None:
    hi = {"messages": [{"role": "user", "content": "hi"}]}
    bodies: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {"model": "tiny", **hi, "logprobs": True, "top_logprobs": 2, "n": 2},
        "/v1/completions": {"model": "tiny", "prompt": "x", "logprobs": 2, "echo": True},
        "/v1/responses": {"model": "tiny", "input": "x", "max_output_tokens": 3},
        "/v1/embeddings": {"model": "owner/vectors", "input": ["x"]},
        "/v1/rerank": {"model": "owner/vectors", "query": "x", "documents": ["y"]},
        "/v1/classify": {"model": "labels", "input": "x"}, "/tokenize": {"model": "tiny", "prompt": "x"},
        "/detokenize": {"model": "tiny", "tokens": [70]}, "/render": {"model": "tiny", **hi}}
    with served.http() as client:
        for path, operations in tree["paths"].items():
            for method, operation in operations.items():
                answer = client.request(method, path.replace("{name}", "tiny"), json=bodies.get(path))
                assert answer.status_code == 200, (path, answer.text)
                content = operation["responses"]["200"]["content"]
                kind = answer.headers["content-type"].partition(";")[0]
                assert kind in content
                if kind == "application/json":
                    _check(answer.json(), content[kind]["schema"], tree)


def _check(value: Any, schema: dict[str, Any], tree: dict[str, Any]) -> None:
    jsonschema.validate(value, {**schema, "components": tree["components"]})


def test_errors_are_as_the_schema_says(served: Wired, tree: dict[str, Any]) -> None:
    with served.http() as client:
        for path, operations in tree["paths"].items():
            if "post" in operations:
                answer: httpx.Response = client.post(path, json={"model": "nobody"})
                assert answer.status_code in (400, 404)
                schema = operations["post"]["responses"][str(answer.status_code)]["content"]["application/json"]
                _check(answer.json(), schema["schema"], tree)


def test_models_in_the_schema_are_those_served(tree: dict[str, Any], places: dict[str, Path]) -> None:
    assert tree["components"]["schemas"]["ServedModel"]["enum"] == [*places]
    assert tree["components"]["schemas"]["ChatAsk"]["properties"]["model"]["$ref"].endswith("/ServedModel")
    assert json.dumps(tree)
