"""Where processes that will be killed come from, and where they write."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def context() -> ForkServerContext:
    """Processes forked from a clean server that has imported everything once: a real process in milliseconds."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(["drive", "cutaway.cli.verb_run", "cutaway.run.pipeline", "torch._dynamo"])
    return made


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder in memory where the system has one: a test of processes, not of the disk's flushing."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else None) as name:
        yield Path(name)
