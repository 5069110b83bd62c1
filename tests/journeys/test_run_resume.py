"""A run stopped again and again, by Ctrl-C, by SIGTERM and by a crash, ends bitwise where an uninterrupted one does."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from run_corpus import Crash, Trap, tiny, write_corpus

from cutaway.cli.main import main
from cutaway.records import read_journal
from cutaway.run.folder import Run, open_run
from cutaway.run.pipeline import resume, start
from cutaway.run.recipe import load
from cutaway.run.work import Interrupted, Work

CLOCKS = {"seconds", "tokens_per_second"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("resume")
    write_corpus(here / "corpus")
    start(load("debug", tiny(here / "corpus", "name=whole")), here / "runs", Trap())
    return here


def rows(run: Path) -> list[dict[str, object]]:
    """The log without its clocks."""
    return [{k: v for k, v in row.items() if k not in CLOCKS} for row in read_journal(run / "log.jsonl")]


@pytest.mark.parametrize("align", ["grpo", "dpo"])
def test_stopped_everywhere_equals_never_stopped(align: str, place: Path) -> None:
    name = f"stopped-{align}"
    recipe = load("debug", tiny(place / "corpus", f"name={name}"))
    if align == "dpo":
        recipe = load("debug", [w for w in tiny(place / "corpus", f"name={name}", "align.kind=dpo", "align.rows=4")
                                if "rollouts" not in w])
    traps = [Trap("pretrain", 5, "SIGINT"), Trap("pretrain", 2, "crash"), Trap("finetune", 4, "SIGTERM"),
             Trap("reward", 5, "crash"), Trap("align", 2, "SIGINT")]
    with pytest.raises(Interrupted):
        start(recipe, place / "runs", traps[0])
    run = Run(place / "runs" / name)
    assert rows(run.folder)[-1]["step"] == 5  # nothing behind the saved step, nothing of it lost
    for trap in traps[1:]:
        with pytest.raises(Crash if trap.how == "crash" else Interrupted):
            resume(run, trap)
    resume(run, Trap())
    whole = place / "runs" / "whole"
    if align == "dpo":
        start(recipe.model_copy(update={"name": "whole-dpo"}), place / "runs", Trap())
        whole = place / "runs" / "whole-dpo"
    for model in ("base", "finetuned", "reward", "aligned"):
        files = [folder / "models" / model / "model.safetensors" for folder in (whole, run.folder)]
        assert files[0].read_bytes() == files[1].read_bytes(), model
    assert rows(run.folder) == rows(whole)
    for file in ("preferences.jsonl", "samples.jsonl", "evals/aligned.json", "evals/reward.json"):
        assert (run.folder / file).read_bytes() == (whole / file).read_bytes(), file


def test_preferences_go_on_behind_the_last_chunk(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load("debug", tiny(place / "corpus", "name=chunks"))
    with monkeypatch.context() as patch:
        def stop(work: Work) -> None:
            raise Interrupted(work.run.folder)
        patch.setattr(Work, "check", stop)
        with pytest.raises(Interrupted):
            start(recipe, place / "runs", Trap())
    run = open_run("chunks", place / "runs")
    kept = read_journal(run.folder / "answers.jsonl")
    assert len(kept) == 32
    resume(run, Trap())
    assert read_journal(run.folder / "answers.jsonl")[:32] == kept
    whole = (place / "runs" / "whole" / "preferences.jsonl").read_bytes()
    assert (run.folder / "preferences.jsonl").read_bytes() == whole


def test_a_checkpoint_of_another_tokenizer_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = place / "runs"
    for name, size in (("one", 300), ("two", 290)):
        with pytest.raises(Interrupted):
            start(load("debug", tiny(place / "corpus", f"name={name}", f"tokenizer.vocab_size={size}")), runs,
                  Trap("pretrain", 4, "SIGINT"))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (runs / "one" / "tokenizer" / file).write_bytes((runs / "two" / "tokenizer" / file).read_bytes())
    assert main(["resume", str(runs / "one"), "--json"]) == 6
    error = json.loads(capsys.readouterr().out.strip().split("\n")[-1])
    assert "tokenizer" in error["error"] and "step-4" in error["error"]


def test_a_second_process_on_the_same_run_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = open_run("whole", place / "runs")
    with run.lock():
        assert main(["resume", str(run.folder)]) == 7
    assert f"in use by process {os.getpid()}" in capsys.readouterr().err


def test_ctrl_c_prints_the_resume_command(place: Path, capsys: pytest.CaptureFixture[str],
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cutaway.cli.screen.ConsoleScreen", lambda quiet: Trap("finetune", 3, "SIGINT"))
    assert main(["run", "debug", "--runs", str(place / "runs"), *tiny(place / "corpus", "name=stopped")]) == 130
    assert f"cutaway resume {place / 'runs' / 'stopped'}" in capsys.readouterr().err
