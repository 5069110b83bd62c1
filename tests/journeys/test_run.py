"""``cutaway run debug`` as a person types it, on a small corpus: each stage, file and verb that reads a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from run_corpus import cutaway, last_json, tiny, write_corpus

from cutaway.cli.main import main
from cutaway.records import read_journal


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus and one finished run."""
    here = tmp_path_factory.mktemp("run")
    write_corpus(here / "corpus")
    done = cutaway("run", "debug", *tiny(here / "corpus"), "--json", cwd=here)
    assert done.returncode == 0, done.stderr
    (here / "run.json").write_text(done.stdout)
    return here


def test_json_ends_with_the_folder_and_every_headline_figure(place: Path) -> None:
    value = last_json((place / "run.json").read_text())
    assert Path(str(value["folder"])) == Path("runs/debug")
    figures = value["figures"]
    assert isinstance(figures, dict)
    for name in ("random", "base", "finetuned", "aligned"):
        assert figures[f"{name}.satisfies"]["n"] == 8
        assert figures[f"{name}.satisfies"]["low"] <= figures[f"{name}.satisfies"]["value"]
        assert figures[f"{name}.bits_per_byte"]["high"] >= figures[f"{name}.bits_per_byte"]["value"]
    assert figures["base.bits_per_byte"]["value"] < figures["random.bits_per_byte"]["value"]
    assert {"finetuned.forgetting", "aligned.forgetting", "aligned.kl", "aligned.proxy_reward", "reward.accuracy",
            "xz -9.bits_per_byte", "gzip -9.bits_per_byte"} <= figures.keys()


def test_the_folder_holds_what_it_should(place: Path) -> None:
    run = place / "runs" / "debug"
    for name in ("recipe.toml", "lineage.json", "log.jsonl", "stages.jsonl", "samples.jsonl", "preferences.jsonl",
                 "report.html", "report.md", "models/base/config.json", "models/aligned/model.safetensors",
                 "models/reward/config.json", "evals/aligned.json", "tokenizer/tokenizer.json"):
        assert (run / name).is_file(), name
    assert not [p for p in run.rglob(".*") if p.name != ".lock"]


def test_the_log_has_every_step_once(place: Path) -> None:
    rows = read_journal(place / "runs" / "debug" / "log.jsonl")
    stages = ("pretrain", "finetune", "reward", "align")
    steps = {stage: [r["step"] for r in rows if r["stage"] == stage] for stage in stages}
    assert steps == {"pretrain": [*range(1, 9)], "finetune": [*range(1, 9)], "reward": [*range(1, 7)],
                     "align": [*range(1, 5)]}
    last = rows[-1]
    assert {"reward", "judge", "kl", "tokens", "loss", "grad_norm", "seconds"} <= last.keys()


def test_preferences_are_versioned_and_held_out_by_request(place: Path) -> None:
    rows = read_journal(place / "runs" / "debug" / "preferences.jsonl")
    assert len(rows) == 48
    assert all(r["version"] == 1 and r["stand_in"] and len(r["answers"]) == 2 for r in rows)
    sides: dict[str, set[bool]] = {}
    for r in rows:
        sides.setdefault(r["request"], set()).add(r["held_out"])
        for chosen, rejected in r["pairs"]:
            assert r["scores"][chosen] > r["scores"][rejected]
    assert all(len(side) == 1 for side in sides.values())


def test_running_the_written_recipe_again_gives_the_same_weights(place: Path) -> None:
    first = place / "runs" / "debug"
    again = cutaway("run", str(first / "recipe.toml"), "name=again", cwd=place)
    assert again.returncode == 0, again.stderr
    for name in ("base", "finetuned", "reward", "aligned"):
        files = [place / "runs" / run / "models" / name / "model.safetensors" for run in ("debug", "again")]
        assert files[0].read_bytes() == files[1].read_bytes(), name
    assert "next:" in again.stdout and "cutaway chat runs/again/models/aligned" in again.stdout
    diff = cutaway("diff", "debug", "again", "--json", cwd=place)
    value = last_json(diff.stdout)
    assert value["settings"] == {"name": ["debug", "again"]}
    assert value["data"] == {}


def test_a_taken_name_is_refused_with_the_next_free_one(place: Path) -> None:
    done = cutaway("run", "debug", *tiny(place / "corpus"), cwd=place)
    assert done.returncode == 7
    assert "name=debug-2" in done.stderr and "cutaway resume runs/debug" in done.stderr
    assert len(done.stderr.strip().split("\n")) == 1


def test_show_runs_and_resume_of_a_finished_run(place: Path, capsys: pytest.CaptureFixture[str],
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    assert main(["show", "debug", "--json"]) == 0
    shown = last_json(capsys.readouterr().out)
    assert shown["waiting"] == []
    costs = shown["costs"]
    assert isinstance(costs, dict)
    assert costs["pretrain"]["done"]["flops"] == costs["pretrain"]["plan"]["flops"]
    assert main(["runs", "--json"]) == 0
    assert "debug" in [r["run"] for r in last_json(capsys.readouterr().out)["runs"]]  # type: ignore[attr-defined]
    before = (place / "runs" / "debug" / "models" / "aligned" / "model.safetensors").read_bytes()
    assert main(["resume", "debug", "--json"]) == 0
    assert (place / "runs" / "debug" / "models" / "aligned" / "model.safetensors").read_bytes() == before
    assert main(["show", "runs/debug"]) == 0 and main(["runs"]) == 0 and main(["diff", "debug", "debug"]) == 0
    capsys.readouterr()


def test_trace_names_the_document_of_every_token(place: Path, capsys: pytest.CaptureFixture[str],
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    assert main(["trace", "debug", "--step", "2", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.strip().split("\n")]
    covered = sum(s["stop"] - s["start"] for s in lines[:-1])
    assert covered == lines[-1]["tokens"] == 4 * 128
    assert all(".py" in s["document"] for s in lines[:-1])
    assert main(["trace", "debug", "--step", "2", "--stage", "finetune"]) == 0
    assert main(["trace", "debug", "--step", "9"]) == 2
    assert "1 to 8" in capsys.readouterr().err


@pytest.mark.filterwarnings("default")
def test_eval_measures_again_what_the_run_measured(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    assert main(["eval", "debug", "--json"]) == 0
    models = last_json(capsys.readouterr().out)["models"]
    assert isinstance(models, dict)
    for name in ("base", "finetuned", "aligned"):
        kept = json.loads((place / "runs" / "debug" / "evals" / f"{name}.json").read_text())
        found = models[f"runs/debug/models/{name}"]
        assert found["bits_per_byte"]["value"] == pytest.approx(kept["bits_per_byte"]["value"], rel=1e-6)
        assert found["satisfies"]["value"] == kept["answers"]["satisfies"]["value"]
    assert main(["eval", "runs/debug/models/base", "bits", "--data", "corpus", "--json"]) == 0
    capsys.readouterr()
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.txt").write_text("a line of words\n" * 80)
    (other / "b.bin").write_bytes(bytes(999))
    shutil.copytree(place / "runs" / "debug" / "models" / "base", tmp_path / "alone")
    assert main(["eval", str(tmp_path / "alone"), "--data", str(other)]) == 0
    said = capsys.readouterr().err
    assert "answers were not measured" in said and "1 binary" in said
    assert main(["eval", "debug", "bit"]) == 2
