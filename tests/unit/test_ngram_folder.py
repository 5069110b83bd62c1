"""An n-gram model's folder: whole or not there, equal after loading, and no damage or malice gets past the loader."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from harm import flip
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from cutaway.errors import CutawayError, ModelError, RunError
from cutaway.models.folder import load_tokenizer
from cutaway.models.kneser_ney import fit
from cutaway.models.ngram import NGram, NGramConfig
from cutaway.models.ngram_folder import load_ngram, save_ngram
from cutaway.records import digest
from cutaway.text.tokenizer import ByteSettings, CharSettings, Tokenizer, train

TEXTS = ["a cat sat on a mat", "a dog sat on a cat", "the cat and the dog sat on the mat", "a mat"]
pytestmark = pytest.mark.filterwarnings("ignore:the discounts of")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train(ByteSettings(), [])


def flat(tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    rows = [[tokenizer.bos_id, *tokenizer.encode(t), tokenizer.eos_id] for t in TEXTS]
    return np.concatenate(rows), np.cumsum([0, *map(len, rows)])


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> NGram:
    config = NGramConfig(vocab_size=tokenizer.vocab_size, order=3, bos_id=tokenizer.bos_id, prune=(0, 0, 1))
    return fit(*flat(tokenizer), config)


@pytest.fixture
def saved(tmp_path: Path, model: NGram, tokenizer: Tokenizer) -> Path:
    save_ngram(tmp_path / "m", model, tokenizer)
    return tmp_path / "m"


def test_a_loaded_model_is_the_saved_one(saved: Path, model: NGram, tokenizer: Tokenizer) -> None:
    again = load_ngram(saved, tokenizer=tokenizer)
    assert again.config == model.config and load_tokenizer(saved) == tokenizer
    assert np.array_equal(again.score(*flat(tokenizer)), model.score(*flat(tokenizer)))
    save_ngram(saved, again, tokenizer)
    assert [p.name for p in saved.parent.iterdir()] == ["m"]


def test_without_a_tokenizer_and_with_a_foreign_one(tmp_path: Path, model: NGram, saved: Path) -> None:
    save_ngram(tmp_path / "bare", model)
    assert load_ngram(tmp_path / "bare").config == model.config
    other = train(CharSettings(), ["äöü漢字" * 9])
    with pytest.raises(ModelError, match="another tokenizer"):
        load_ngram(saved, tokenizer=other)
    with pytest.raises(ModelError, match="does not fit a model of 263"):
        save_ngram(tmp_path / "n", model, other)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("x")
    with pytest.raises(ModelError, match="name another folder"):
        save_ngram(tmp_path / "thesis", model)
    assert (tmp_path / "thesis" / "thesis.txt").read_text() == "x"


def test_a_failed_save_leaves_the_old_folder(saved: Path, model: NGram, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {p.name: p.read_bytes() for p in saved.iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cutaway.models.ngram_folder.write_json", full)
    with pytest.raises(RunError, match="No space left"):
        save_ngram(saved, model)
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before
    assert [p.name for p in saved.parent.iterdir()] == ["m"]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "cutaway.json"])
@pytest.mark.parametrize("how", ["truncated", "empty", "gone", "a list"])
def test_damage_is_named(saved: Path, name: str, how: str) -> None:
    path = saved / name
    data = path.read_bytes()
    new = {"truncated": data[: len(data) // 2], "empty": b"", "a list": b"[]"}
    path.unlink() if how == "gone" else path.write_bytes(new[how])
    with pytest.raises(ModelError) as caught:
        load_ngram(saved)
    assert name in str(caught.value) and ";" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("change", "said"), [
    ({"model_type": "llama"}, "no n-gram model"), ({"order": 4}, "without '4.words'"),
    ({"order": 2}, "no place for '3."), ({"order": "3"}, "order"), ({"vocab_size": 264}, "single tokens"),
    ({"vocab_size": 9}, "bos_id"), ({"more": 1}, "more"), ({"order": 10**9}, "order")])
def test_a_configuration_that_does_not_fit_is_refused(saved: Path, change: dict[str, object], said: str) -> None:
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ModelError, match=said):
        load_ngram(saved)


def swap(array: np.ndarray, at: int, value: object) -> np.ndarray:  # type: ignore[type-arg]
    out = array.copy()
    out[at] = value
    return out


def rewrite(folder: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:  # type: ignore[type-arg]
    """A file with the right digest and a tensor of somebody else's making."""
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = change(tensors[name])
    save_file(tensors, folder / "model.safetensors")
    side = json.loads((folder / "cutaway.json").read_text())
    side["weights_sha256"] = digest(folder / "model.safetensors")
    (folder / "cutaway.json").write_text(json.dumps(side))


@pytest.mark.parametrize(("name", "change", "said"), [
    ("2.words", lambda a: swap(a, 3, 263), "not in a vocabulary"), ("2.words", lambda a: swap(a, 3, -1), "vocabulary"),
    ("1.words", lambda a: a[::-1].copy(), "1-grams .* not in order"), ("1.words", lambda a: swap(a, 1, a[0]), "order"),
    ("2.words", lambda a: a.astype(np.int64), "type or length"), ("3.logs", lambda a: a[:-1], "type or length"),
    ("1.starts", lambda a: swap(a, 2, 10**9), "1-grams .* starts"), ("2.starts", lambda a: swap(a, 0, 1), "starts"),
    ("2.starts", lambda a: swap(a, 5, -7), "starts"), ("1.starts", lambda a: a[:-1], "type or length"),
    ("2.starts", lambda a: swap(a, len(a) - 1, 10**6), "starts"), ("1.starts", lambda a: a * 1.0, "type or length"),
    ("2.logs", lambda a: swap(a, 0, np.nan), "logarithm"), ("2.logs", lambda a: swap(a, 0, 0.5), "logarithm"),
    ("2.backoffs", lambda a: swap(a, 0, np.nan), "logarithm"), ("2.backoffs", lambda a: swap(a, 0, np.inf), "log"),
    ("2.logs", lambda a: a[:, None].copy(), "type or length"), ("base", lambda a: swap(a, 0, np.nan), "single tokens"),
    ("base", lambda a: a[:-1].copy(), "single tokens"), ("3.backoffs", lambda a: np.zeros(1, "f4"), "type or length")])
def test_tensors_that_would_lead_astray_are_refused(
        saved: Path, name: str, change: Callable[[np.ndarray], np.ndarray], said: str) -> None:  # type: ignore[type-arg]
    rewrite(saved, name, change)
    with pytest.raises(ModelError, match=said) as caught:
        load_ngram(saved)
    assert "model.safetensors" in str(caught.value)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bit=st.integers(0, 10**7))
def test_one_flipped_bit_is_seen_or_harmless(saved: Path, tokenizer: Tokenizer, bit: int) -> None:
    """In any file, and in the weights also behind a digest that was made to fit."""
    for path in sorted(saved.iterdir()):
        before = path.read_bytes()
        flip(path, bit)
        side = (saved / "cutaway.json").read_bytes()
        for forged in (False, True):
            if forged and path.name == "model.safetensors":
                row = json.loads(side)
                (saved / "cutaway.json").write_text(json.dumps({**row, "weights_sha256": digest(path)}))
            try:
                load_ngram(saved).score(*flat(tokenizer))
                assert forged or path.name != "model.safetensors"
            except CutawayError as error:
                assert "\n" not in str(error)
        (saved / "cutaway.json").write_bytes(side)
        path.write_bytes(before)
