"""How a CUDA graph is recorded, in which order and with what, without a GPU: the calls are torch's own by signature."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cutaway.nn.captured import WARM_UP, Recorded, Replays, called, capture_for


class Stream:
    def __init__(self, told: list[str], name: str) -> None:
        self.told, self.name = told, name

    def wait_stream(self, other: Stream) -> None:
        self.told.append(f"{self.name} waits for {other.name}")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """torch.cuda by name alone, and what was asked of it."""
    told: list[str] = []
    now = Stream(told, "now")
    recorder = inspect.signature(torch.cuda.graph)

    class Graph:
        def replay(self) -> None:
            told.append("replay")

    @contextmanager
    def graph(*given: Any, **named: Any) -> Iterator[None]:
        bound = recorder.bind(*given, **named).arguments
        told.append(f"record in {bound['pool']} on {bound['stream'].name}, {bound['capture_error_mode']}")
        yield
        told.append("recorded")

    assert callable(torch.cuda.CUDAGraph.replay)
    for name, form in {"Stream": lambda device: Stream(told, "side"), "graph_pool_handle": lambda: "one pool",
                       "current_stream": lambda: now, "stream": lambda stream: nullcontext(),
                       "device": lambda device: nullcontext(), "CUDAGraph": Graph, "graph": graph}.items():
        assert hasattr(torch.cuda, name)
        monkeypatch.setattr(torch.cuda, name, form)
    return told


def test_a_graph_is_recorded_behind_warm_passes_and_then_replayed(told: list[str]) -> None:
    def run(inputs: Tensor, steps: int) -> Tensor:
        told.append(f"run {steps}")
        return inputs * steps

    replays = Replays(torch.device("cpu"), Recorded(torch.device("cuda", 0)))
    first = ["side waits for now", *["run 1"] * WARM_UP, "now waits for side",
             "record in one pool on side, thread_local", "run 1", "recorded"]
    replays(run, np.ones((2, 3), np.int64), 1)
    assert told == [*first, "replay"]
    replays(run, np.zeros((2, 3), np.int64), 1)
    assert told == [*first, "replay", "replay"]
    replays(run, np.zeros((2, 3), np.int64), 2)  # the same shape with other steps is another graph, in the same pool
    assert told[len(first) + 2 :] == [*(line.replace("run 1", "run 2") for line in first), "replay"]
    assert replays.shapes == [(1, 2, 3), (2, 2, 3)]


def test_graphs_are_for_gpus_alone(told: list[str]) -> None:
    assert capture_for(torch.device("cpu")) is called and capture_for(torch.device("meta")) is called
    assert isinstance(capture_for(torch.device("cuda", 0)), Recorded)


def test_a_call_reads_its_inputs_anew() -> None:
    def times(inputs: Tensor, steps: int) -> Tensor:
        return inputs * steps

    replays = Replays(torch.device("cpu"))
    given = np.arange(6).reshape(2, 3)
    assert replays(times, given, 2).tolist() == (2 * given).tolist()
    room = replays._ready[2, 2, 3][0]
    assert replays(times, given + 1, 2).tolist() == (2 * given + 2).tolist() and replays._ready[2, 2, 3][0] is room
    given += 5  # what was given stays the caller's own
    assert room.tolist() == np.arange(1, 7).reshape(2, 3).tolist()
