"""The schema is true: schemathesis asks what it allows and what it forbids, and every status is one that it names."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance
from wired import Wired, serving

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


ALLOWED, FORBIDDEN = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
LABELS = {f"{e.method} {e.path.replace('{name:path}', '{name}')}": e for e in ENDPOINTS}
# where there is nothing to ask there is nothing to ask wrongly
OPERATIONS = [(label, mode) for label, e in LABELS.items()
              for mode in (ALLOWED, FORBIDDEN) if e.asks or mode == ALLOWED]
# What a schema cannot say (a prompt too long for the context, two fields that contradict) is a 400 that names it.
UNSAYABLE = [positive_data_acceptance]


@pytest.mark.parametrize(("label", "mode"), OPERATIONS, ids=str)
def test_no_answer_is_a_surprise(served: Wired, tree: dict[str, Any], label: str, mode: GenerationMode) -> None:
    """Zero 5xx, zero statuses and content types that the schema does not name, every JSON as it says."""
    schema = schemathesis.openapi.from_dict(tree)
    schema.config.update(base_url=served.address)
    (operation,) = [o.ok() for o in schema.get_all_operations() if o.ok().label == label]
    seen: set[int] = set()

    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, phases=[Phase.generate], database=None,
              suppress_health_check=[*HealthCheck])
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        answer = case.call(base_url=served.address, timeout=30)
        seen.add(answer.status_code)
        assert answer.status_code < 500, (case.as_curl_command(), answer.text)
        case.validate_response(answer, excluded_checks=UNSAYABLE)

    ask()
    assert seen and (mode == ALLOWED or not {200, 404} >= seen), seen  # what is forbidden is refused for what it is


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
    assert tree["components"]["schemas"]["ChatAsk"]["properties"]["model"]["enum"] == [*places]
    assert json.dumps(tree)
