"""As a person types: cutaway generate and cutaway chat."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from cutaway.cli.main import main
from cutaway.models.folder import save_model
from cutaway.models.model import build
from cutaway.models.transformer import TransformerConfig
from cutaway.text.tokenizer import ByteSettings, train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    config = TransformerConfig(vocab_size=263, hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=1,
                               intermediate_size=24, context_length=48)
    save_model(path, build(config, seed=1), train(ByteSettings(), []))
    return path


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of an encoder and one of an encoder-decoder."""
    out = {}
    for shape in ("encoder", "encoder-decoder"):
        config = TransformerConfig(shape=shape, vocab_size=263, hidden_size=16, num_layers=1, num_heads=2,
                                   num_kv_heads=2, intermediate_size=24, context_length=48)
        out[shape] = tmp_path_factory.mktemp("models") / shape
        save_model(out[shape], build(config, seed=1), train(ByteSettings(), []))
    return out


def typed(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = main([str(w) for w in words])
    out, err = capsys.readouterr()
    return code, out, err


def test_text_streams_to_stdout_and_seeds_repeat_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = typed(capsys, "generate", folder, "def f", "--max-tokens", 9, "--seed", 3)
    assert first[0] == 0 and first[1].endswith("\n") and "9 tokens: max_tokens" in first[2]
    assert typed(capsys, "generate", folder, "def f", "--max-tokens", 9, "--seed", 3) == first
    assert typed(capsys, "generate", folder, "def f", "--max-tokens", 9, "--seed", 4)[1] != first[1]
    code, out, _ = typed(capsys, "generate", folder, "def f", "--max-tokens", 9, "--seed", 3, "--json")
    assert code == 0 and json.loads(out)["answers"][0]["text"] + "\n" == first[1]


def test_json_holds_every_answer_with_its_probabilities(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = typed(capsys, "generate", folder, "x", "--n", 3, "--max-tokens", 5, "--logprobs", 2, "--json",
                         "--top-k", 9, "--top-p", 0.9, "--min-p", 0.01, "--repetition-penalty", 1.1,
                         "--presence-penalty", 0.1, "--temperature", 0.8, "--chat")
    answers = json.loads(out)["answers"]
    assert code == 0 and len(answers) == 3
    assert len({tuple(a["tokens"]) for a in answers}) > 1
    assert all(len(a["logprobs"]) == len(a["alternatives"]) == len(a["tokens"]) for a in answers)


def test_probabilities_for_people_and_several_answers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = typed(capsys, "generate", folder, "x", "--n", 2, "--max-tokens", 2, "--logprobs", 1)
    assert code == 0 and "logprob" in out and "answer 2 of 2" in err


def test_the_prompt_comes_from_stdin(folder: Path, capsys: pytest.CaptureFixture[str],
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = typed(capsys, "generate", folder, "naïve", "--max-tokens", 4)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("naïve".encode())))
    assert typed(capsys, "generate", folder, "-", "--max-tokens", 4) == wanted
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff")))
    assert typed(capsys, "generate", folder, "-")[0] == 8


@pytest.mark.parametrize(("words", "code", "said"), [
    (["x" * 60], 8, ("61 tokens", "context of 48")), (["x", "--max-tokens", "0"], 8, ("max_tokens", "got 0")),
    (["x", "--max-tokens", "60"], 8, ("max_tokens 60", "48", "lower max_tokens to 46")), ([""], 8, ("empty",)),
    (["x", "--top-p", "1.5"], 2, ("top_p", "1.5")), (["x", "--temperature=-1"], 2, ("temperature",)),
    (["x", "--n", "0"], 8, ("--n",)), (["x", "--stop", ""], 8, ("stop string",))])
def test_bad_requests_are_one_line(folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int,
                                   said: tuple[str, ...]) -> None:
    found, out, err = typed(capsys, "generate", folder, *words)
    assert (found, out) == (code, "") and err.count("\n") == 1
    assert all(s in err for s in said)


def test_beside_a_source_text_is_written_sampled_or_searched(
        shapes: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pair = shapes["encoder-decoder"]
    first = typed(capsys, "generate", pair, "--source", "naïve", "--max-tokens", 9, "--seed", 3)
    assert first[0] == 0 and first[1].endswith("\n") and "max_tokens" in first[2]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("naïve".encode())))
    assert typed(capsys, "generate", pair, "--source", "-", "--max-tokens", 9, "--seed", 3) == first
    code, out, _ = typed(capsys, "generate", pair, "so", "--source", "naïve", "--max-tokens", 6, "--beam", 3, "--n", 2,
                         "--length-penalty", 0.6, "--json")
    said = json.loads(out)
    assert code == 0 and said["source_tokens"] == 7 and said["prompt_tokens"] == 3 and said["beam"]["width"] == 3
    scores = [a["score"] for a in said["answers"]]
    assert len(scores) == 2 and scores == sorted(scores, reverse=True)
    for answer in said["answers"]:
        assert answer["score"] == pytest.approx(answer["logprob"] / len(answer["tokens"]) ** 0.6)
    code, out, err = typed(capsys, "generate", pair, "--source", "naïve", "--max-tokens", 6, "--beam", 3)
    assert code == 0 and "cut off after 6 tokens" in err


def test_a_decoder_searches_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = typed(capsys, "generate", folder, "x", "--beam", 2, "--n", 2, "--max-tokens", 4)
    assert code == 0 and out and "answer 2 of 2, score" in err


@pytest.mark.parametrize(("shape", "words", "code", "said"), [
    ("decoder", ["x", "--source", "y"], 8, "reads no source; give the text as the prompt"),
    ("decoder", [], 8, "there is no prompt"),
    ("decoder", ["x", "--beam", "2", "--temperature", "0.5"], 8, "draws no tokens"),
    ("decoder", ["x", "--beam", "2", "--stop", "y"], 8, "knows no stop strings"),
    ("decoder", ["x", "--beam", "2", "--n", "3"], 2, "num_return 3 must not be above the width of 2"),
    ("decoder", ["x", "--length-penalty", "2"], 8, "give --beam"),
    ("encoder-decoder", ["x"], 8, "give the text as --source TEXT"),
    ("encoder-decoder", ["--source", ""], 8, "the source is empty"),
    ("encoder-decoder", ["--source", "y" * 60], 8, "a source of 61 tokens does not fit a context of 48"),
    ("encoder-decoder", ["--source", "x", "--source", "y"], 8, "one source is read beside an answer, and 2 were given"),
    ("encoder-decoder", ["-", "--source", "-"], 8, "cannot both come from standard input"),
    ("encoder-decoder", ["x", "--source", "y", "--chat"], 8, "holds no conversation"),
    ("encoder", ["x"], 5, "an encoder writes no text: it fills masks")])
def test_what_does_not_fit_the_model_is_one_line(folder: Path, shapes: dict[str, Path], words: list[str], code: int,
                                                 capsys: pytest.CaptureFixture[str], shape: str, said: str) -> None:
    found, out, err = typed(capsys, "generate", shapes.get(shape, folder), *words)
    assert (found, out) == (code, "") and err.count("\n") == 1
    assert said in err


def test_an_encoder_decoder_holds_no_conversation(shapes: dict[str, Path], capsys: pytest.CaptureFixture[str],
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = chatted(shapes["encoder-decoder"], capsys, monkeypatch, "a")
    assert code == 8 and "--source TEXT" in err and err.count("\n") == 1


def test_no_such_model_and_a_damaged_one(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert typed(capsys, "generate", tmp_path / "none", "x")[0] == 7
    (tmp_path / "m").mkdir()
    for file in folder.iterdir():
        (tmp_path / "m" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "m" / "model.safetensors").write_bytes(b"x" * 1000)
    code, _, err = typed(capsys, "generate", tmp_path / "m", "x")
    assert code == 5 and "model.safetensors" in err and err.count("\n") == 1


def chatted(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, lines: str,
            *words: object) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    return typed(capsys, "chat", folder, *words)


def test_a_conversation_has_a_history_until_reset(folder: Path, capsys: pytest.CaptureFixture[str],
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, err = chatted(folder, capsys, monkeypatch, "a\nb\n/what\n/reset\na\n", "--max-tokens", 2, "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and "/what" in err and "anew" in err
    assert [r["turn"] for r in rows] == [1, 2, 1]
    assert rows[1]["prompt_tokens"] > rows[0]["prompt_tokens"] == rows[2]["prompt_tokens"]


def test_an_overflowing_conversation_is_told_with_numbers(folder: Path, capsys: pytest.CaptureFixture[str],
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, err = chatted(folder, capsys, monkeypatch, f"a\n{'x' * 60}\n/quit\n", "--max-tokens", 2)
    assert code == 0 and out.count("\n") >= 1
    assert "context of 48" in err and "/reset" in err
    code, _, err = chatted(folder, capsys, monkeypatch, "x" * 60, "--max-tokens", 2)
    assert code == 8 and "context of 48" in err
