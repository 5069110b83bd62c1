"""The same faults through the command line: a whole run, killed, damaged, without room; one line, nothing lost."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path

import drive
import pytest
from harm import flip, small_disk
from run_corpus import tiny, write_corpus

MODELS = ("base", "finetuned", "reward", "aligned")
KILLS = 20


def cutaway(context: ForkServerContext, log: Path, *words: object) -> tuple[int, list[str]]:
    """Type a command line; its exit code and the lines that it added to the log."""
    before = log.read_text().count("\n") if log.exists() else 0
    process = drive.command(context, log, "cutaway", *words)
    process.join(120)
    assert process.exitcode is not None
    return process.exitcode, log.read_text().splitlines()[before:]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("faults") / "corpus")


@pytest.fixture(scope="module")
def stopped(context: ForkServerContext, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped inside pre-training, its checkpoint written."""
    here = tmp_path_factory.mktemp("stopped")
    words = tiny(corpus, "name=one", "pretrain.budget.steps=100000", "checkpoint.steps=2")
    process = drive.command(context, here / "log", "cutaway", "run", "debug", "--runs", here, *words)
    _until(lambda: len(list((here / "one/checkpoints/pretrain").glob("step-*"))) > 1)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 130
    assert f"cutaway resume {here / 'one'}" in (here / "log").read_text()
    return here / "one"


def _until(condition: Callable[[], bool]) -> None:
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("nothing came within 60 s")


def test_a_whole_run_killed_again_and_again_ends_bitwise_equal(place: Path, corpus: Path,
                                                               context: ForkServerContext) -> None:
    cutaway(context, place / "log", "--version")  # the server of processes imports what all of them need
    began = time.perf_counter()
    code, said = cutaway(context, place / "log", "run", "debug", "--runs", place, *tiny(corpus, "name=alone"))
    assert code == 0, said
    took, draw, kills = time.perf_counter() - began, random.Random(3), 0
    run, first = place / "killed", ["run", "debug", "--runs", place, *tiny(corpus, "name=killed")]
    for attempt in range(5 * KILLS):
        words = ["resume", run] if (run / "recipe.toml").exists() else first
        process = drive.command(context, place / f"log-{attempt}", "cutaway", *words)
        if kills < KILLS:
            # soon after the start and well into the work in turn; ten of them cannot add up to the whole run
            process.join(draw.uniform(0, took / (9 if attempt % 2 else 30)))
            process.kill()
        process.join(120)
        kills += process.exitcode == -signal.SIGKILL
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL, (place / f"log-{attempt}").read_text()[-2000:]
    assert process.exitcode == 0 and kills >= KILLS / 2, kills
    for name in MODELS:
        files = [folder / "models" / name / "model.safetensors" for folder in (place / "alone", run)]
        assert files[0].read_bytes() == files[1].read_bytes(), name


@pytest.mark.parametrize(("file", "code", "way_out"), [
    ("checkpoints/pretrain/step-*/model.safetensors", 6, "is good: delete step-"),
    ("checkpoints/pretrain/step-*/optimizer.safetensors", 6, "is good: delete step-"),
    ("checkpoints/pretrain/step-*/resume.json", 6, "is good: delete step-"),
    ("data/shards/train.tokens", 3, "; "),
    ("tokenizer/tokenizer.json", 4, "; "),
])
def test_a_flipped_bit_anywhere_is_one_line_and_an_exit_code(stopped: Path, tmp_path: Path, context: ForkServerContext,
                                                             file: str, code: int, way_out: str) -> None:
    run = Path(shutil.copytree(stopped, tmp_path / "one"))
    path = max(run.glob(file), key=lambda p: int(p.parent.name.partition("-")[2] or 0))
    flip(path, 4321)
    found, said = cutaway(context, tmp_path / "log", "resume", run)
    errors = [line for line in said if line.startswith("cutaway: error:")]
    assert (found, len(errors)) == (code, 1), said
    assert str(path) in errors[0] and way_out in errors[0]
    assert "Traceback" not in "".join(said)


def test_a_disk_that_fills_up_stops_the_run_in_one_line(place: Path, corpus: Path, context: ForkServerContext) -> None:
    words = tiny(corpus, "name=big", "checkpoint.steps=1", "checkpoint.keep=100", "pretrain.budget.steps=1000")
    with small_disk(place / "disk", "1m"):
        code, said = cutaway(context, place / "log", "run", "debug", "--runs", place / "disk", *words)
        errors = [line for line in said if line.startswith("cutaway: error:")]
        assert code in (7, 9) and len(errors) == 1, said
        assert "No space left on device" in errors[0] and "free space" in errors[0] and str(place / "disk") in errors[0]
        assert "Traceback" not in "".join(said)


def test_a_runs_folder_that_cannot_be_made(tmp_path: Path, corpus: Path, context: ForkServerContext) -> None:
    (tmp_path / "runs").write_text("a file in the way")
    code, said = cutaway(context, tmp_path / "log", "run", "debug", "--runs", tmp_path / "runs", *tiny(corpus))
    assert code == 7 and len(said) == 1 and str(tmp_path / "runs") in said[0] and "cannot be written" in said[0]
