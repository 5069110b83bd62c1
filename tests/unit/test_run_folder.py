"""The run's folder: made once, locked, written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from cutaway.errors import RunError
from cutaway.run.folder import create, open_run, runs
from cutaway.run.recipe import load


def test_a_taken_name_names_the_next_free_one(tmp_path: Path) -> None:
    recipe = load("debug")
    run = create(tmp_path, recipe)
    assert run.recipe == recipe and [r.name for r in runs(tmp_path)] == ["debug"]
    create(tmp_path, recipe.model_copy(update={"name": "debug-2"}))
    with pytest.raises(RunError, match="name=debug-3"):
        create(tmp_path, recipe)


def test_only_one_holds_a_run(tmp_path: Path) -> None:
    run = create(tmp_path, load("debug"))
    with run.lock(), pytest.raises(RunError, match="in use by process"), run.lock():
        raise AssertionError
    with run.lock():
        pass


def test_a_folder_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    run = create(tmp_path, load("debug"))
    with pytest.raises(KeyError), run.folder_for(run.folder / "tokenizer") as folder:
        (folder / "half").write_text("x")
        raise KeyError
    assert not (run.folder / "tokenizer").exists()
    with run.folder_for(run.folder / "tokenizer") as folder:
        (folder / "all").write_text("x")
    assert [p.name for p in (run.folder / "tokenizer").iterdir()] == ["all"]
    assert not list(run.folder.glob(".tokenizer*"))


def test_rows_behind_a_checkpoint_are_taken_off(tmp_path: Path) -> None:
    run = create(tmp_path, load("debug"))
    for step in range(5):
        run.log.append({"stage": "pretrain", "step": step})
    run.keep(run.log, lambda r: r["step"] <= 2)
    assert [r["step"] for r in run.rows(run.log)] == [0, 1, 2]


def test_damage_is_named(tmp_path: Path) -> None:
    run = create(tmp_path, load("debug"))
    (run.folder / "lineage.json").write_text("{")
    with pytest.raises(RunError, match=r"lineage\.json: damaged"):
        run.read_json("lineage.json")
    assert run.read_json("absent.json") is None
    with pytest.raises(RunError, match="there are debug"):
        open_run("other", tmp_path)


def test_a_read_only_place_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        create(tmp_path / "file", load("debug"))
