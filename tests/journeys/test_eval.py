"""As a person types: cutaway eval on public task files, one's own, and on what cannot be measured."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from cutaway.cli.main import main
from cutaway.models.folder import save_model
from cutaway.models.model import build
from cutaway.models.recurrent import RecurrentConfig
from cutaway.models.transformer import TransformerConfig
from cutaway.text.tokenizer import ByteSettings, train

DATA, MODELS = os.environ.get("CUTAWAY_DATA", ""), os.environ.get("CUTAWAY_MODELS", "")
Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    config = TransformerConfig(vocab_size=263, hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=1,
                               intermediate_size=24, context_length=96)
    save_model(path, build(config, seed=1), train(ByteSettings(), []))
    return path


@pytest.fixture(scope="module")
def recurrent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "lstm"
    config = RecurrentConfig(vocab_size=263, hidden_size=16, num_layers=1, cell="lstm", context_length=96)
    save_model(path, build(config, seed=1), train(ByteSettings(), []))
    return path


@pytest.fixture
def arc(tmp_path: Path) -> Path:
    path = tmp_path / "arc.jsonl.gz"
    with gzip.open(path, "wt") as file:
        for i in range(5):
            row = {"question": f"What is {i}?", "choices": {"text": ["one", "two", "more"], "label": ["A", "B", "C"]},
                   "answerKey": "ABC"[i % 3]}
            file.write(json.dumps(row) + "\n")
    return path


def typed(capsys: Captured, *words: object) -> tuple[int, str, str]:
    code = main([str(w) for w in words])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_packaged_task_on_ones_own_file(folder: Path, recurrent: Path, arc: Path, capsys: Captured) -> None:
    code, out, err = typed(capsys, "eval", folder, "arc_easy", "--data", arc, "--limit", 3)
    assert code == 0 and "acc_norm" in out and "(n = 3)" in out and "[" in out
    assert f"note: 3 of 5 items of {arc} were asked" in err
    code, out, err = typed(capsys, "eval", recurrent, "arc_easy", "--data", arc)
    assert code == 0 and "(n = 5)" in out and "note" not in err


def test_json_holds_the_task_the_notes_and_the_conditions(folder: Path, arc: Path, tmp_path: Path,
                                                          capsys: Captured) -> None:
    written = tmp_path / "items.jsonl"
    code, out, _ = typed(capsys, "eval", folder, "arc_easy", "fewshot.count=2", "context=64", "--data", arc, "--items",
                         written, "--json")
    found = json.loads(out)
    assert code == 0 and found["task"]["fewshot"]["count"] == 2 and found["task"]["path"] == str(arc)
    acc = found["models"][str(folder)]["acc"]
    assert acc["n"] == 5 and acc["conditions"]["cut"] == 5 and acc["conditions"]["context"] == 64
    assert any("lost their beginning" in note for note in found["notes"])
    rows = [json.loads(line) for line in written.read_text().splitlines()]
    assert len(rows) == 5 and sum(row["marks"]["acc"] for row in rows) == acc["value"] * 5
    assert all(row["prompt"].count("Question:") == 3 and row["model"] == str(folder) for row in rows)
    code, _, err = typed(capsys, "eval", folder, "arc_easy", "--data", arc, "--items", written)
    assert code == 7 and "is there already" in err


def test_ones_own_task_file(folder: Path, tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "sums.csv").write_text("a,b,sum\n1,2,3\n2,2,4\n")
    task = tmp_path / "sums.toml"
    task.write_text(f'name = "sums"\nversion = 2\nkind = "generation"\nprompt = "{{a}} + {{b}} ="\ntarget = "{{sum}}"\n'
                    f'path = "{tmp_path / "sums.csv"}"\nmax_tokens = 5\nstop = ["\\n"]\n')
    code, out, _ = typed(capsys, "eval", folder, task, "--json")
    figure = json.loads(out)["models"][str(folder)]["exact_match"]
    assert code == 0 and figure["n"] == 2 and figure["conditions"]["version"] == 2


def test_texts_give_perplexities_and_bits(folder: Path, tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": "a text of some words"}\n{"text": "and another"}\n')
    code, out, _ = typed(capsys, "eval", folder, "text", "--data", tmp_path / "t.jsonl")
    assert code == 0 and all(name in out for name in ("word_perplexity", "byte_perplexity", "bits_per_byte"))


def test_bits_say_the_precision_of_their_products(folder: Path, tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "t.txt").write_text("a text of some words\n\nand another\n")
    for words, dtype in (((), "float32"), (("--precision", "bfloat16"), "bfloat16")):
        code, out, _ = typed(capsys, "eval", folder, "bits", "--data", tmp_path / "t.txt", *words, "--json")
        (figures,) = json.loads(out)["models"].values()
        assert code == 0 and figures["bits_per_byte"]["conditions"]["dtype"] == dtype


@pytest.mark.parametrize(("words", "code", "told"), [
    (("arc_esy",), 2, "no suite or task 'arc_esy'; did you mean 'arc_easy'?"),
    (("arc_easy",), 2, "task arc_easy: no data is named; add --data FILE"),
    (("piqa", "--data", "ARC"), 3, "no value in 'goal'; it has question, choices, answerKey; set columns.goal"),
    (("arc_easy", "--data", "ARC", "fewshot.cout=1"), 2, "did you mean fewshot.count?"),
    (("arc_easy", "--data", "ARC", "context=97"), 2, "context = 97 is more than the model's 96"),
    (("arc_easy", "--data", "ARC", "too_long=error", "context=20"), 3, "too_long to cut or leave_out"),
    (("bits", "--data", "ARC", "--limit", "3"), 2, "--limit is for a task, and 'bits' is none"),
    (("nowhere.toml",), 2, "no task 'nowhere.toml'")])
def test_what_is_wrong_is_told_in_one_line(folder: Path, arc: Path, capsys: Captured, words: tuple[str, ...], code: int,
                                           told: str) -> None:
    found, out, err = typed(capsys, "eval", folder, *(arc if w == "ARC" else w for w in words))
    assert (found, out) == (code, "")
    assert told in err.splitlines()[-1]


def test_a_model_that_is_not_there(arc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                   capsys: Captured) -> None:
    monkeypatch.setenv("CUTAWAY_MODELS", str(tmp_path))
    code, _, err = typed(capsys, "eval", "smollm2-135m-instruct", "arc_easy", "--data", arc)
    assert code == 5 and "cutaway pull smollm2-135m-instruct" in err


@pytest.mark.skipif(not (Path(DATA) / "arc_easy").is_dir() or not (Path(MODELS) / "smollm2-135m-instruct").is_dir(),
                    reason="CUTAWAY_DATA and CUTAWAY_MODELS name no arc_easy and no smollm2-135m-instruct")
def test_a_real_model_on_real_items(tmp_path: Path, capsys: Captured) -> None:
    """lm-evaluation-harness 0.4.13 on its own arc_easy.yaml and these eight items, with transformers 5.24."""
    code, out, _ = typed(capsys, "eval", "smollm2-135m-instruct", "arc_easy", "--data",
                         Path(DATA) / "arc_easy" / "validation.jsonl.gz", "--limit", 8, "--items", tmp_path / "i.jsonl",
                         "--json")
    (figures,) = json.loads(out)["models"].values()
    assert code == 0
    assert (figures["acc"]["value"], figures["acc_norm"]["value"], figures["acc"]["n"]) == (0.125, 0.375, 8)
    first = json.loads((tmp_path / "i.jsonl").read_text().splitlines()[0])
    assert first["logprobs"] == pytest.approx([-17.553112, -15.129818, -14.475653, -15.545367], abs=1e-3)
