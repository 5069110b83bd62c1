"""Bad input to ``cutaway run``: one clear line, the documented exit code, nothing lost."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_corpus import tiny, write_corpus

from cutaway.cli.main import main


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit code, and the one line on stderr that is not a note."""
    code = main(words)
    lines = [x for x in capsys.readouterr().err.strip().split("\n") if x.startswith("cutaway: error:")]
    assert len(lines) == 1
    return code, lines[0]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("setting", "said"), [
    ("pretrain.bugdet.steps=5", "did you mean pretrain.budget?"),
    ("pretrain.rows=many", "pretrain.rows should be a valid integer"),
    ("align.kind=ppo", "align.kind 'ppo' is unknown"),
    ("evaluate.max_tokens=4000", "leaves no room for a request"),
    ("model.hidden_size=33", "must be a multiple of 2 x num_heads"),
    ("name=a/b", "name string should match pattern"),
    ("rows", "is not a setting"),
    ("seed=-1", "seed should be greater than or equal to 0"),
    ("model.context_length=8", "context_length should be greater than or equal to 16"),
    ("data.valid_share=0", "data.valid_share = 0 leaves a run nothing to measure on"),
    ("data.test_share=0", "data.test_share = 0 leaves a run nothing to measure on"),
    ("data.path=", "data.path string should have at least 1 character"),
    ("align.learning_rate=1", "did you mean align.optimizer.learning_rate?"),
    ("pretrain.learning_rat=1", "did you mean pretrain.optimizer.learning_rate?"),
    ("pretrain.optimizer.betas=[2.0, 0.9]", "each must be at least 0 and below 1, got [2.0, 0.9]"),
])
def test_a_wrong_setting_names_itself(setting: str, said: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, line = refused(["run", "debug", setting], capsys)
    assert code == 2 and said in line
    assert not (here / "runs").exists()


def test_an_unknown_recipe_gets_its_nearest_match(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, line = refused(["run", "quikstart"], capsys)
    assert code == 2 and "did you mean 'quickstart'?" in line


def test_a_recipe_file_that_is_absent_or_broken(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(["run", "mine.toml"], capsys)[0] == 2
    (here / "mine.toml").write_text("name = [")
    code, line = refused(["run", "mine.toml"], capsys)
    assert code == 2 and "not TOML" in line


def test_an_empty_folder_and_binary_files(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "empty").mkdir()
    code, line = refused(["run", "debug", *tiny(here / "empty")], capsys)
    assert code == 3 and "no usable text" in line
    (here / "binary").mkdir()
    (here / "binary" / "a.bin").write_bytes(bytes(range(256)) * 10)
    code, line = refused(["run", "debug", *tiny(here / "binary")], capsys)
    assert code == 3 and "1 binary" in line
    assert refused(["run", "debug", *tiny(here / "absent")], capsys)[0] == 3
    assert not (here / "runs").exists()


def test_other_text_to_measure_on_is_looked_at_before_the_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_corpus(here / "corpus")
    words = tiny(here / "corpus", "evaluate.text.kind=path", "evaluate.text.path=absent")
    code, line = refused(["run", "debug", *words], capsys)
    assert code == 3 and "absent" in line
    assert not (here / "runs").exists()


def test_a_vocabulary_larger_than_the_text_supports_names_both_numbers(here: Path,
                                                                       capsys: pytest.CaptureFixture[str]) -> None:
    write_corpus(here / "corpus")
    code, line = refused(["run", "debug", *tiny(here / "corpus", "tokenizer.vocab_size=60000")], capsys)
    assert code == 4 and "60000" in line and "supports" in line


def test_no_such_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("resume", "show"):
        code, line = refused([verb, "nothing"], capsys)
        assert code == 7 and "nothing" in line
    (here / "plain").mkdir()
    assert "no recipe.toml" in refused(["resume", "plain"], capsys)[1]


def test_a_person_is_missed_at_the_start_not_after_the_training(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_corpus(here / "corpus")
    assert main(["run", "debug", *tiny(here / "corpus"), "judge.kind=person"]) == 10
    lines = capsys.readouterr().err.strip().split("\n")
    [noted] = [i for i, x in enumerate(lines) if "there is no terminal here" in x]
    assert noted < min(i for i, x in enumerate(lines) if x.startswith("pretrain"))
    assert "a person can only be asked at a terminal" in lines[-1]
