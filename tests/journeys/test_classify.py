"""As a person types: cutaway classify, with lines of standard input and with texts longer than the context."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from cutaway.cli.main import main
from cutaway.models.bag import BagConfig, fit_bag
from cutaway.models.bag_folder import save_bag
from cutaway.models.folder import save_model
from cutaway.models.heads import Classes
from cutaway.models.model import build
from cutaway.models.open import open_classifier, read_in_windows
from cutaway.models.transformer import TransformerConfig
from cutaway.text.tokenizer import ByteSettings, train


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "network"
    config = TransformerConfig(shape="encoder", vocab_size=263, hidden_size=16, num_layers=1, num_heads=2,
                               num_kv_heads=2, intermediate_size=24, context_length=48)
    save_model(path, build(config, head=Classes(("cat", "dog")), seed=1), train(ByteSettings(), []))
    return path


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "bag"
    path.mkdir()
    save_bag(path, fit_bag(["the cat", "a cat", "the dog", "a dog"], ["cat", "cat", "dog", "dog"], BagConfig(), seed=0))
    return path


def typed(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = main([str(w) for w in words])
    out, err = capsys.readouterr()
    return code, out, err


def piped(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_blank_lines_are_counted_and_every_text_keeps_its_line(
        bag: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    piped(monkeypatch, "the cat\n\n  \r\nein Hund, naïve dog\r\n".encode())
    code, out, err = typed(capsys, "classify", bag, "--json")
    assert code == 0 and "2 of 4 lines of standard input are blank and were left out" in err
    assert [(t["line"], t["text"]) for t in json.loads(out)["texts"]] == [(1, "the cat"), (4, "ein Hund, naïve dog")]
    piped(monkeypatch, b"the cat\na dog\n")
    assert typed(capsys, "classify", bag)[2] == ""
    piped(monkeypatch, b"\n\n")
    assert typed(capsys, "classify", bag)[0] == 8


def test_bytes_that_are_no_text_are_one_line(bag: Path, capsys: pytest.CaptureFixture[str],
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    piped(monkeypatch, b"abc\xff\n")
    assert typed(capsys, "classify", bag) == (8, "", "cutaway: error: standard input: not UTF-8 at byte 3\n")


def test_a_text_cut_in_the_table_says_so(bag: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = typed(capsys, "classify", bag, "a cat " * 20, "the dog" + "." * 53, "--why")
    assert code == 0 and ("a cat " * 20)[:59] + "…" in out and ("the dog" + "." * 53) in out
    assert out.count("…") == 2, "once in the table, once above what moved its label"


def test_texts_read_in_windows_are_counted(network: Path, bag: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = typed(capsys, "classify", network, "x" * 60, "short", "y" * 46, "--json")
    assert code == 0 and len(json.loads(out)["texts"]) == 3
    assert err == ("1 of 3 texts are longer than the model's context and were read in windows, whose scores are "
                   "averaged\n")
    assert typed(capsys, "classify", network, "short")[2] == ""
    assert read_in_windows(open_classifier(bag), ["x" * 60]) == 0
