"""Recipes: every one that is shipped decodes, overrides follow kinds, what is written back is the same recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from cutaway.errors import SettingsError
from cutaway.run.recipe import DPOStage, GRPOStage, StepsBudget, find, load, names, reload
from cutaway.settings import to_toml


@pytest.mark.parametrize("name", names())
def test_every_shipped_recipe_decodes_and_comes_back_the_same(name: str, tmp_path: Path) -> None:
    recipe = load(name)
    assert recipe.name == name and recipe.device != "auto" and recipe.threads >= 1
    (tmp_path / "recipe.toml").write_text(to_toml(recipe))
    assert reload(tmp_path / "recipe.toml") == recipe


def test_the_recipes_that_are_promised_are_there() -> None:
    assert {"quickstart", "laptop", "gpu", "debug"} <= set(names())
    assert find("laptop").name == "laptop.toml"
    assert find("some/where.toml") == Path("some/where.toml")


def test_overrides_follow_kinds(tmp_path: Path) -> None:
    recipe = load("quickstart", [f"data.path={tmp_path}", "pretrain.budget.steps=7", "align.kind=dpo"])
    assert recipe.data.kind == "path" and recipe.data.path == str(tmp_path)
    assert recipe.pretrain.budget == StepsBudget(steps=7)
    assert isinstance(recipe.align, DPOStage)
    assert isinstance(load("quickstart").align, GRPOStage)


def test_a_relative_path_is_kept_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = load("debug", ["data.path=texts"])
    assert recipe.data.kind == "path" and recipe.data.path == str(tmp_path / "texts")


def test_a_recipe_of_ones_own_extends_a_shipped_one(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text('extends = "debug"\n[pretrain.budget]\nkind = "tokens"\ntokens = 5000\n')
    recipe = load(str(mine))
    assert recipe.name == "debug" and recipe.pretrain.budget.kind == "tokens"


def test_fewer_rows_than_ranks_is_refused_before_the_run() -> None:
    recipe = load("debug")
    recipe.check_ranks(2)
    with pytest.raises(SettingsError, match=r"finetune\.rows x finetune\.replay = 2 cannot be shared by 3 ranks"):
        recipe.check_ranks(3)


@pytest.mark.parametrize(("setting", "said"), [
    ("device=gpu", "no device"),
    ("seed=-1", "seed"),
    ("pretrain.budget.kind=hours", "pretrain.budget.kind 'hours' is unknown"),
    ("preferences.samples=1", "preferences.samples"),
    ("judge.kind=persn", "did you mean 'person'?"),
])
def test_what_cannot_be_is_refused(setting: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        load("debug", [setting])


def test_conversations_of_ones_own_are_not_made_anew() -> None:
    own = ["data.kind=conversations", "data.path=talk.jsonl"]
    assert load("debug", own).data.kind == "conversations"
    with pytest.raises(SettingsError, match=r"finetune\.conversations = functions .* brings its own: leave it out"):
        load("debug", [*own, "finetune.conversations=functions"])
