"""SIGKILL at random moments, signals and a second process: nothing is lost beyond the last checkpoint."""

from __future__ import annotations

import os
import random
import signal
import time
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import drive
import pytest

from cutaway.errors import RunError
from cutaway.run.folder import Run
from cutaway.train import checkpoint
from cutaway.train.signals import Stop

KILLS, TOTAL = 20, 200


def start(context: ForkServerContext, folder: Path, total: int, pause: float = 0.0) -> ForkServerProcess:
    return drive.command(context, folder.parent / "log", "drive", folder, total, pause)


def finals(folder: Path) -> bytes:
    return (folder / "final" / "model.safetensors").read_bytes()


def steps_in(folder: Path) -> list[int]:
    return sorted(int(p.name.partition("-")[2]) for p in folder.glob("step-*"))


def wait_for(folder: Path, least: int, process: ForkServerProcess) -> None:
    for _ in range(15000):
        if max(steps_in(folder), default=0) >= least:
            return
        assert process.is_alive(), process.exitcode
        time.sleep(0.002)
    raise AssertionError(f"no step {least} within 30 s")


def test_killed_at_twenty_random_moments(place: Path, context: ForkServerContext) -> None:
    began = time.perf_counter()
    alone = start(context, place / "alone", TOTAL)
    alone.join(120)
    assert alone.exitcode == 0
    each = (time.perf_counter() - began) / TOTAL
    draw, folder, reached, killed_inside = random.Random(7), place / "killed", 0, 0
    for _ in range(KILLS):
        process = start(context, folder, TOTAL)
        wait_for(folder, min(reached + 1, TOTAL), process)  # it has gone on by at least a step, then at any moment
        time.sleep(draw.uniform(0, each))
        process.kill()
        process.join(30)
        killed_inside += process.exitcode == -signal.SIGKILL and any(folder.glob(".*step-*"))
        for path in folder.glob("step-*"):
            checkpoint.verify(path)  # whatever has a checkpoint's name is whole
        assert max(steps_in(folder)) >= reached, "a checkpoint was lost"
        reached = max(steps_in(folder))
    assert reached < TOTAL, "it ended before all kills were done"
    assert killed_inside > 0, "no kill fell into the writing of a checkpoint: the test proves little"
    last = start(context, folder, TOTAL)
    last.join(120)
    assert last.exitcode == 0 and not list(folder.glob(".*step-*"))
    assert finals(folder) == finals(place / "alone")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends_with_130(place: Path, context: ForkServerContext, number: signal.Signals) -> None:
    first = start(context, place / "stopped", 8, pause=0.2)
    wait_for(place / "stopped", 1, first)
    assert first.pid is not None
    os.kill(first.pid, number)
    first.join(60)
    assert first.exitcode == 130 and max(steps_in(place / "stopped")) < 8
    for folder in (place / "stopped", place / "alone"):
        again = start(context, folder, 8)
        again.join(60)
        assert again.exitcode == 0
    assert finals(place / "stopped") == finals(place / "alone")


def test_a_second_process_is_refused_by_name(place: Path, context: ForkServerContext) -> None:
    first = start(context, place / "run", 10_000, pause=0.05)
    wait_for(place / "run", 1, first)
    second = start(context, place / "run", 5)
    second.join(60)
    assert second.exitcode == RunError.exit_code
    [line] = [x for x in (place / "log").read_text().splitlines() if not x.startswith("step")]
    assert str(place / "run") in line and f"in use by process {first.pid}" in line
    first.kill()
    first.join(30)
    with Run(place / "run").lock():  # the lock dies with its process
        assert checkpoint.latest(place / "run") is not None


def test_the_first_signal_waits_and_the_second_interrupts() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Stop() as stop:
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested and stop.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
