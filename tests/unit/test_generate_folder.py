"""A model folder: whole or not there, and every damage named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cutaway.errors import CutawayError, ModelError, RunError, TokenizerError
from cutaway.models import folder as folders
from cutaway.models.folder import load_model, load_tokenizer, save_model
from cutaway.models.model import build
from cutaway.models.transformer import TransformerConfig
from cutaway.text.tokenizer import ByteSettings, CharSettings, Tokenizer, train

CONFIG = TransformerConfig(vocab_size=263, hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=1,
                           intermediate_size=24, context_length=32)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train(ByteSettings(), [])


@pytest.fixture
def saved(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    save_model(tmp_path / "m", build(CONFIG, seed=1), tokenizer)
    return tmp_path / "m"


def test_replacing_leaves_one_folder(saved: Path, tokenizer: Tokenizer) -> None:
    save_model(saved, build(CONFIG, seed=2), tokenizer, dtype=torch.bfloat16)
    assert [p.name for p in saved.parent.iterdir()] == ["m"]
    assert json.loads((saved / "config.json").read_text())["dtype"] == "bfloat16"
    ours, theirs = load_model(saved).state_dict(), build(CONFIG, seed=2).state_dict()
    assert all(torch.equal(ours[k], theirs[k].bfloat16().float()) for k in theirs)


def test_a_failed_save_leaves_the_old_folder(saved: Path, tokenizer: Tokenizer,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    before = {p.name: p.read_bytes() for p in saved.iterdir()}

    def full(path: Path, tensors: object, dtype: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folders, "write_tensors", full)
    with pytest.raises(RunError, match="No space left"):
        save_model(saved, build(CONFIG, seed=2), tokenizer)
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before
    assert [p.name for p in saved.parent.iterdir()] == ["m"]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "cutaway.json"])
@pytest.mark.parametrize("how", ["truncated", "empty", "gone"])
def test_damage_is_named(saved: Path, name: str, how: str) -> None:
    path = saved / name
    data = path.read_bytes()
    path.unlink() if how == "gone" else path.write_bytes(data[: len(data) // 2] if how == "truncated" else b"")
    if (name, how) == ("cutaway.json", "gone"):
        load_model(saved)  # a public folder has none
        return
    with pytest.raises(ModelError) as caught:
        load_model(saved)
    assert name in str(caught.value) and ";" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("place", [3, 200, -5])
def test_one_flipped_bit_of_the_weights_is_seen(saved: Path, place: int) -> None:
    data = bytearray((saved / "model.safetensors").read_bytes())
    data[place] ^= 1
    (saved / "model.safetensors").write_bytes(data)
    with pytest.raises(ModelError, match="sha256"):
        load_model(saved)


def test_weights_of_another_shape_and_left_over_ones_are_refused(saved: Path) -> None:
    (saved / "cutaway.json").unlink()
    config = json.loads((saved / "config.json").read_text())
    for change, word in (({"intermediate_size": 32}, "gate_proj"), ({"num_hidden_layers": 2}, "lacks"),
                         ({"tie_word_embeddings": False}, "lm_head"), ({"hidden_size": "x"}, "hidden_size"),
                         ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel")):
        (saved / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(ModelError, match=word):
            load_model(saved)
    save_model(saved.parent / "two", build(CONFIG.model_copy(update={"num_layers": 2})))
    (saved / "config.json").write_text(json.dumps(config))
    (saved / "model.safetensors").write_bytes((saved.parent / "two" / "model.safetensors").read_bytes())
    with pytest.raises(ModelError, match=r"layers\.1"):
        load_model(saved)


def test_a_tokenizer_from_elsewhere_is_refused(saved: Path, tokenizer: Tokenizer) -> None:
    other = train(CharSettings(), ["abc"])
    with pytest.raises(ModelError, match="another tokenizer"):
        load_model(saved, tokenizer=other)
    load_model(saved, tokenizer=tokenizer)
    other.save(saved)
    with pytest.raises(TokenizerError, match="not the tokenizer"):
        load_tokenizer(saved)
    with pytest.raises(ModelError, match=r"263 .* 20"):
        save_model(saved.parent / "n", build(CONFIG.model_copy(update={"vocab_size": 20})), tokenizer)


def test_what_is_not_a_model_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "thesis.txt").write_text("x")
    (tmp_path / "f").write_text("x")
    for name in ("m", "f"):
        with pytest.raises(CutawayError, match="name another folder"):
            save_model(tmp_path / name, build(CONFIG))
    assert (tmp_path / "m" / "thesis.txt").read_text() == "x"
