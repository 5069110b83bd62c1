"""Hostile files: a short run of the fuzzer over every reader, and what its long runs have found."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cutaway.data import documents
from cutaway.data.shards import Shards, write_shards
from cutaway.errors import CutawayError, DataError, ModelError, TokenizerError
from cutaway.models.adapter import Lora, adapt, load_adapter, save_adapter
from cutaway.models.folder import load_model, load_tokenizer, save_model
from cutaway.models.model import build
from cutaway.models.recurrent import RecurrentConfig
from cutaway.models.transformer import TransformerConfig
from cutaway.text.public import merges_of
from cutaway.text.tokenizer import ByteSettings, train

ROOT = Path(__file__).resolve().parents[2]
CONFIG = TransformerConfig(vocab_size=263, hidden_size=32, num_layers=1, num_heads=2, num_kv_heads=2,
                           intermediate_size=32, context_length=64)


def test_a_short_run_finds_nothing() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "benchmarks" / "fuzz.py"), "--cases", "400", "--seed", "7"],
                          capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["cases"] >= 400 and told["findings"] == 0
    assert sum(f.get("read", 0) for f in told["figures"].values()) > 40  # not everything is broken at once


def changed(path: Path, change: Callable[[Any], None]) -> None:
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


@pytest.mark.parametrize("change", [
    lambda t: t.update(hidden_size=2**33), lambda t: t.update(vocab_size=2**63), lambda t: t.update(vocab_size=2**70),
    lambda t: t.update(num_attention_heads=0), lambda t: t.update(rope_parameters={
        "rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 16, "beta_fast": -1}),
    lambda t: t.update(rope_parameters={"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 16,
                                        "beta_slow": 1e308})])
def test_sizes_and_angles_that_cannot_be(change: Callable[[Any], None], tmp_path: Path) -> None:
    save_model(tmp_path / "m", build(CONFIG, seed=1))
    (tmp_path / "m" / "cutaway.json").unlink()
    changed(tmp_path / "m" / "config.json", change)
    with pytest.raises(ModelError):
        load_model(tmp_path / "m")


def test_our_own_sizes_that_cannot_be(tmp_path: Path) -> None:
    save_model(tmp_path / "m", build(RecurrentConfig(vocab_size=40, hidden_size=16), seed=1))
    changed(tmp_path / "m" / "config.json", lambda t: t["config"].update(hidden_size=2**31))
    with pytest.raises(ModelError, match=r"sizes that cannot be|config\.json says"):
        load_model(tmp_path / "m")


@pytest.mark.parametrize("named", [{"a": {}}, {"a": []}, {"a": "../x"}, {"a": None}, [], None])
def test_an_index_of_parts_that_names_no_file(named: object, tmp_path: Path) -> None:
    save_model(tmp_path / "m", build(CONFIG, seed=1))
    (tmp_path / "m" / "cutaway.json").unlink()
    (tmp_path / "m" / "model.safetensors").unlink()
    (tmp_path / "m" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": named}))
    with pytest.raises(ModelError, match="names a file outside the folder"):
        load_model(tmp_path / "m")


@pytest.mark.parametrize("change", [{"lora_alpha": ""}, {"lora_alpha": None}, {"lora_alpha": []}, {"lora_alpha": -1},
                                    {"r": 2**40}, {"r": None}, {"use_rslora": "x"}])
def test_an_adapter_of_odd_numbers(change: dict[str, object], tmp_path: Path) -> None:
    save_adapter(tmp_path / "a", adapt(build(CONFIG, seed=1), Lora(rank=2)))
    changed(tmp_path / "a" / "adapter_config.json", lambda t: t.update(change))
    with pytest.raises(ModelError):
        load_adapter(tmp_path / "a", build(CONFIG, seed=1))


def test_vocabularies_that_lack_what_they_need(tmp_path: Path) -> None:
    for name, files, said in (
            ("far", {"vocab.json": json.dumps({"a": 0, "</s>": 2**31}), "merges.txt": "",
                     "tokenizer_config.json": '{"eos_token": "</s>"}'}, "holds the id"),
            ("unknown", {"vocab.txt": "[CLS]\n[SEP]\nb", "tokenizer_config.json": '{"sep_token": "[SEP]"}'},
             "cannot spell")):
        (tmp_path / name).mkdir()
        for file, text in files.items():
            (tmp_path / name / file).write_text(text)
        with pytest.raises(TokenizerError, match=said):
            load_tokenizer(tmp_path / name)
    with pytest.raises(TokenizerError, match="a piece of 1,000,000 letters"):
        merges_of({"a": 0.0, "b" * 1_000_000: -1.0})
    unigram = {"type": "Unigram", "unk_id": None, "byte_fallback": False, "vocab": [["a", -1.0], ["</s>", 0.0]]}
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": unigram}))
    (tmp_path / "some" / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    found = load_tokenizer(tmp_path / "some")
    assert found.encode("aa") == [0, 0]
    for encode in (found.encode, found.encode_places, lambda text: found.encode_flat([text])):
        with pytest.raises(TokenizerError, match="cannot spell"):
            encode("z")


@pytest.mark.parametrize("change", [
    lambda t: t["splits"].pop("train"), lambda t: t.update(splits=None), lambda t: t.update(dtype=True),
    lambda t: t.update(dtype="float64"), lambda t: t["splits"]["train"].update(files={}),
    lambda t: t["splits"]["train"]["files"]["tokens"].update(bytes=3), lambda t: t["splits"]["train"].update(tokens=0),
    lambda t: t["splits"].update(train=True)])
def test_a_manifest_that_does_not_fit_its_files(change: Callable[[Any], None], tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a text\n\n" * 20)
    corpus = documents.read(documents.PathSettings(path=str(tmp_path / "t.txt"), valid_share=0, test_share=0))
    write_shards(tmp_path / "s", corpus, train(ByteSettings(), []))
    changed(tmp_path / "s" / "manifest.json", change)
    with pytest.raises(DataError, match=r"manifest\.json"):
        Shards.open(tmp_path / "s")


def test_every_error_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text(json.dumps({"model_type": "llama\n\nx"}))
    with pytest.raises(CutawayError) as caught, torch.no_grad():
        load_model(tmp_path / "m")
    assert "\n" not in str(caught.value)
