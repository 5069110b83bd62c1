"""Vectors as sentence-transformers' folders say they are made, and the verbs that show them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from run_corpus import cutaway

from cutaway.batch import Batch
from cutaway.errors import ModelError
from cutaway.models.folder import load_model, save_model
from cutaway.models.heads import Pooling, Vector
from cutaway.models.model import build
from cutaway.models.open import open_embedder
from cutaway.models.transformer import TransformerConfig
from cutaway.text.tokenizer import ByteSettings, train

CONFIG = TransformerConfig(shape="encoder", vocab_size=263, hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=2,
                           intermediate_size=48, context_length=40)


def save(folder: Path, vector: Vector) -> Path:
    save_model(folder, build(CONFIG, head=vector, seed=1), train(ByteSettings(), []))
    return folder


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("pooling", ["mean", "first", "max", "last", None])
def test_a_saved_vector_comes_back(pooling: Pooling | None, unit: bool, tmp_path: Path) -> None:
    save(tmp_path / "m", Vector(pooling, unit))
    kinds = [m["type"].rpartition(".")[2] for m in json.loads((tmp_path / "m" / "modules.json").read_text())]
    assert kinds == ["Transformer", "Pooling", *(["Normalize"] if unit else [])]
    found = load_model(tmp_path / "m").eval()
    assert found.head_spec == Vector(pooling or "mean", unit)
    tokens = torch.randint(0, 256, (3, 20), generator=torch.Generator().manual_seed(0))
    documents = torch.where(torch.arange(20) < torch.tensor([[20], [9], [3]]), 0, -1)
    with torch.no_grad():
        hidden, given = found.hidden(Batch(tokens, documents=documents)), found(Batch(tokens, documents=documents))
    for row, count in enumerate((20, 9, 3)):
        seen = hidden[row, :count]
        wanted = {"first": seen[0], "last": seen[-1], "max": seen.amax(0)}.get(pooling or "mean", seen.mean(0))
        assert torch.allclose(given[row], wanted / wanted.norm() if unit else wanted, atol=1e-5)
    save_model(tmp_path / "m", found)  # a folder of vectors is replaced by another
    assert load_model(tmp_path / "m").head_spec == found.head_spec


@pytest.mark.parametrize(("file", "content", "said"), [
    ("modules.json", '[{"type": "x.Transformer", "path": ""}, {"type": "x.Pooling", "path": "1_Pooling"},'
                     ' {"type": "x.Dense", "path": "2_Dense"}]', "made by Transformer, Pooling, Dense"),
    ("modules.json", "{}", "holds no list"), ("modules.json", "[[", "damaged"),
    ("modules.json", '[{"type": "x.Transformer", "path": ""}, {"type": "x.Pooling", "path": "../x"}]', "outside"),
    ("1_Pooling/config.json", '{"pooling_mode_mean_tokens": true, "pooling_mode_max_tokens": true}', "several ways"),
    ("1_Pooling/config.json", '{"pooling_mode_weightedmean_tokens": true}', "pooling_mode_weightedmean_tokens"),
])
def test_modules_that_we_do_not_compute_are_refused(file: str, content: str, said: str, tmp_path: Path) -> None:
    save(tmp_path / "m", Vector())
    (tmp_path / "m" / file).write_text(content)
    with pytest.raises(ModelError, match=said):
        load_model(tmp_path / "m")


def test_the_verbs(tmp_path: Path) -> None:
    folder = str(save(tmp_path / "m", Vector()))
    vectors = open_embedder(folder).vectors(["one", "two"])
    shown = cutaway("embed", folder, "one", "two", cwd=tmp_path)
    assert np.allclose([[float(x) for x in line.split()] for line in shown.stdout.splitlines()], vectors, atol=1e-5)
    as_json = cutaway("embed", folder, "one", "--json", cwd=tmp_path)
    assert np.allclose(json.loads(as_json.stdout)["vector"], vectors[0], atol=1e-6)
    alike = cutaway("similar", "one", "two", "--model", folder, cwd=tmp_path)
    assert float(alike.stdout) == pytest.approx(float(vectors[0] @ vectors[1]), abs=1e-4)
    three = cutaway("similar", "one", "two", "three", "--model", folder, "--json", cwd=tmp_path)
    assert [json.loads(line)["cosine"] for line in three.stdout.splitlines()] == sorted(
        (json.loads(line)["cosine"] for line in three.stdout.splitlines()), reverse=True)


def test_what_cannot_be_embedded(tmp_path: Path) -> None:
    folder = str(save(tmp_path / "m", Vector()))
    for words, said in ((("similar", "one", "--model", folder), "two texts or more"),
                        (("embed", folder, "x" * 99), "longer than the context of 40"),
                        (("similar", "a", "b", "--model", "all-minilm-l6-v2"), "cutaway pull all-minilm-l6-v2")):
        done = cutaway(*words, cwd=tmp_path)
        assert done.returncode and said in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr
    cut = cutaway("embed", folder, "x" * 99, "--too-long", "cut", cwd=tmp_path)
    assert cut.returncode == 0 and "1 of 1 texts are longer" in cut.stderr
    save_model(tmp_path / "tokens", build(CONFIG, seed=1), train(ByteSettings(), []))
    with pytest.raises(ModelError, match="gives tokens, not vectors"):
        open_embedder(tmp_path / "tokens")
