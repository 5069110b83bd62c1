"""What a name stands for: the same to every verb."""

from __future__ import annotations

from pathlib import Path

import pytest

from cutaway.errors import ModelError, RunError
from cutaway.models.store import place_of
from cutaway.run.place import model_folder
from cutaway.run.suites import models_of


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run ``both`` of two models, a run ``begun`` of none, and a fetched model ``there``."""
    monkeypatch.setenv("CUTAWAY_MODELS", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path / "runs/both/models/base", tmp_path / "runs/both/models/finetuned", place_of("there"),
                   tmp_path / "runs" / "begun" / "models"):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    for name in ("both", "begun"):
        (tmp_path / "runs" / name / "recipe.toml").write_text("")
    return Path("runs")


def test_a_run_is_its_furthest_model_or_all(runs: Path) -> None:
    for name in ("both", "runs/both"):
        run, found = models_of(name, runs)
        assert run is not None and run.folder == runs / "both"
        assert [f.name for f in found] == ["base", "finetuned"] and model_folder(name) == found[-1]


def test_a_model_inside_a_run_is_of_that_run(runs: Path) -> None:
    for name in ("runs/both/models/base", "both/models/base"):
        run, found = models_of(name, runs)
        assert run is not None and run.name == "both"
        assert found == [model_folder(name)] == [runs / "both" / "models" / "base"]


def test_what_was_fetched_comes_before_a_run_of_that_name(runs: Path) -> None:
    (runs / "both").rename(runs / "there")
    assert models_of("there", runs) == (None, [model_folder("there")]) == (None, [place_of("there")])
    run, _ = models_of("runs/there", runs)
    assert run is not None


def test_what_is_not_there(runs: Path) -> None:
    for name, kind, said in (("begun", RunError, "has no model yet"), ("nothing-like-it", RunError, "no run"),
                             ("smollm2-135m-instruct", ModelError, "is not on this machine"),
                             ("smollm2-135-instruct", ModelError, "did you mean 'smollm2-135m-instruct'")):
        with pytest.raises(kind, match=said):
            models_of(name, runs)
        with pytest.raises(kind, match=said):
            model_folder(name)
