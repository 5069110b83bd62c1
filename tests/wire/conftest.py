"""One server for the tests that only ask: a language model, one that knows tools, an embedder, a classifier."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from wired import Fake, Wired, serving, tool_tokenizer, write_classifier, write_embedder, write_model

from cutaway.nn import kernels


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of tiny models by the names they are served under; one name has a slash."""
    root = tmp_path_factory.mktemp("models")
    return {"tiny": write_model(root / "tiny"), "owner/vectors": write_embedder(root / "vectors"),
            "labels": write_classifier(root / "labels"),
            "reader": write_model(root / "reader", shape="encoder-decoder")}


@pytest.fixture(scope="module")
def wired(places: dict[str, Path]) -> Iterator[Wired]:
    """A server with the engine of hashes."""
    with serving(places) as server:
        yield server


@pytest.fixture(scope="module")
def tooled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wired]:
    """A server whose model's chat template knows tools."""
    tokenizer = tool_tokenizer()
    folder = write_model(tmp_path_factory.mktemp("tooled") / "m", tokenizer, context=2048)
    with serving({"tools": folder}, fake=Fake(tokenizer)) as server:
        yield server


@pytest.fixture(scope="session", autouse=True)
def _compiled() -> None:
    """Servers in this process find kernels compiled, so that none of them changes over in the middle of a test."""
    kernels.built()


@pytest.fixture(autouse=True)
def _quiet(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a test told the engine to do ends with it."""
    yield
    for name in ("wired", "tooled"):
        if name in request.fixturenames:
            fake = request.getfixturevalue(name).fake
            fake.says, fake.pause, fake.broken = None, 0.0, False
