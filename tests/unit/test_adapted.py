"""The base of adapters: how they name it, and that the name is found again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cutaway.models.adapted import base_name, base_of
from cutaway.models.adapter import CONFIG
from cutaway.models.store import Source, place_of, write_source


def beside(folder: Path, base: Path) -> Path:
    """A folder of adapters that says only what its base is."""
    folder.mkdir(parents=True)
    (folder / CONFIG).write_text(json.dumps({"base_model_name_or_path": base_name(base, folder)}))
    return folder


def test_a_base_is_named_from_the_adapters_and_moves_with_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "all" / "base").mkdir(parents=True)
    folder = beside(tmp_path / "all" / "runs" / "x", tmp_path / "all" / "base")
    assert json.loads((folder / CONFIG).read_text())["base_model_name_or_path"] == "../../base"
    (tmp_path / "all").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    assert base_of(Path("moved/runs/x")) == tmp_path / "moved" / "base"


@pytest.mark.parametrize("file", ["config.json", "model.gguf"])
def test_a_base_that_was_fetched_goes_by_its_name(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUTAWAY_MODELS", str(tmp_path / "here"))
    folder = place_of("some/model")
    folder.mkdir(parents=True)
    (folder / file).write_text("")
    write_source(folder, Source("some/model", "a test", "1"))
    base = folder if file == "config.json" else folder / file
    adapters = beside(tmp_path / "adapters", base)
    assert json.loads((adapters / CONFIG).read_text())["base_model_name_or_path"] == "some/model"
    assert base_of(adapters) == base
    (tmp_path / "here").rename(tmp_path / "there")
    monkeypatch.setenv("CUTAWAY_MODELS", str(tmp_path / "there"))
    assert base_of(adapters) == place_of("some/model") / base.relative_to(folder)
