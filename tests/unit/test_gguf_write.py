"""GGUF out: what is written is read back with its numbers, its ids and its template, by us and by the library."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from run_corpus import cutaway

from cutaway.batch import Batch
from cutaway.errors import ModelError
from cutaway.models.folder import load_model, load_tokenizer, save_model
from cutaway.models.gguf_write import write_gguf
from cutaway.models.model import Model, build
from cutaway.models.transformer import PLAIN, TransformerConfig, Variant
from cutaway.nn.position import LinearStretch, Llama3Stretch, YarnStretch
from cutaway.text.chat import Message, render
from cutaway.text.tokenizer import ByteSettings, SubwordSettings, Tokenizer, train

gguf = pytest.importorskip("gguf")
TEXTS = ["def add(a, b):\n    return a + b\n"] * 40
SIZES = {"vocab_size": 300, "hidden_size": 64, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2,
         "intermediate_size": 96, "context_length": 64, "rope_theta": 500.0}


def of(**changes: object) -> Variant:
    return PLAIN["decoder"].model_copy(update=changes)


CONFIGS = {
    "llama": TransformerConfig(**SIZES), "untied": TransformerConfig(**SIZES, tie_embeddings=False),
    "stretched": TransformerConfig(**SIZES, variant=of(stretch=LinearStretch(factor=2.0))),
    "wide": TransformerConfig(**SIZES, variant=of(head_dim=32)),
    "qwen2": TransformerConfig(**SIZES, variant=of(family="qwen2", attention_biases="qkv")),
    "qwen3": TransformerConfig(**SIZES, variant=of(family="qwen3", head_norm=True, head_dim=32)),
    "gemma3": TransformerConfig(**{**SIZES, "num_layers": 6}, variant=of(
        family="gemma3_text", order="around", activation="gelu_tanh", head_norm=True, head_dim=32, window=8,
        embedding_scale=8.0, local_layers=(0, 1, 2, 3, 4), local_theta=1e4, score_scale=32**-0.5)),
    "yarn": TransformerConfig(**SIZES, variant=of(stretch=YarnStretch(
        factor=4.0, original=16, attention=math.log(4) / 10 + 1))),
    "sharp yarn": TransformerConfig(**SIZES, variant=of(
        family="qwen2", attention_biases="qkv", stretch=YarnStretch(factor=2.0, original=32, attention=1.5))),
    "llama3": TransformerConfig(**SIZES, variant=of(head_dim=64, stretch=Llama3Stretch(
        factor=8.0, low=1.0, high=4.0, original=32))),
    "gpt2": TransformerConfig(**{**SIZES, "num_kv_heads": 4, "rope_theta": 1e4}, variant=of(
        family="gpt2", norm="layer", norm_bias=True, gated=False, activation="gelu_tanh", inner_bias=True,
        attention_biases="all", positions="learned"))}
GEMMA = CONFIGS["gemma3"].made
CONFIGS |= {
    "gemma3 stretched": CONFIGS["gemma3"].model_copy(update={"variant": GEMMA.model_copy(
        update={"stretch": LinearStretch(factor=8.0)})}),
    "gemma3 of a pattern": CONFIGS["gemma3"].model_copy(update={"variant": GEMMA.model_copy(
        update={"local_layers": (1, 5)})}),
    "gemma3 without windows": CONFIGS["gemma3"].model_copy(update={"variant": GEMMA.model_copy(
        update={"local_layers": (), "window": None, "local_theta": None})})}


def rough(config: TransformerConfig) -> Model:
    model = build(config, seed=3)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    return model.eval()


@pytest.fixture(scope="module", params=["gpt2", "gpt4", "qwen2"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return train(SubwordSettings(vocab_size=275, pattern=request.param), TEXTS)


@pytest.mark.parametrize("name", CONFIGS)
def test_written_and_read_it_is_the_same_model(name: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = rough(CONFIGS[name])
    write_gguf(tmp_path / "m.gguf", model, tokenizer, kind="f32")
    found = load_model(tmp_path / "m.gguf").eval()
    tokens = torch.randint(0, 300, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert (model(Batch(tokens)) - found(Batch(tokens))).abs().max() <= 1e-5
    assert found.config == model.config
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


def test_its_tokenizer_and_template_come_back(tokenizer: Tokenizer, tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", rough(CONFIGS["llama"]), tokenizer, kind="f16", name="own")
    found = load_tokenizer(tmp_path / "m.gguf")
    for text in ("def add(x):\n  return 12345", "naïve 漢字 🙂", "<|bos|><|end|>"):
        assert found.encode(text) == tokenizer.encode(text)
    talk = [Message("user", "Hi"), Message("assistant", "Hello")]
    assert render(talk, found, add_generation_prompt=True).ids == render(talk, tokenizer,
                                                                         add_generation_prompt=True).ids
    assert (found.bos_id, found.eos_id, found.pad_id) == (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
    assert tokenizer.end_id in found.stop_ids


@pytest.mark.parametrize(("kind", "bits"), [("f16", 16), ("bf16", 16), ("q8_0", 8.5), ("q4_0", 4.5)])
def test_kinds_have_their_size_and_the_library_reads_them(kind: str, bits: float, tmp_path: Path) -> None:
    model = rough(CONFIGS["llama"])
    write_gguf(tmp_path / "m.gguf", model, train(SubwordSettings(vocab_size=275, pattern="gpt2"), TEXTS), kind=kind)
    read = gguf.GGUFReader(tmp_path / "m.gguf")
    matrices = [t for t in read.tensors if len(t.shape) == 2]
    assert {t.tensor_type.name for t in matrices} == {kind.upper()}
    assert sum(t.n_bytes for t in matrices) * 8 == bits * sum(t.n_elements for t in matrices)
    assert {t.tensor_type.name for t in read.tensors if len(t.shape) == 1} == {"F32"}
    with torch.no_grad():
        tokens = torch.arange(40)[None]
        apart = (load_model(tmp_path / "m.gguf").eval()(Batch(tokens)) - model(Batch(tokens))).abs().mean()
    assert 0 < apart < {"f16": 0.01, "bf16": 0.1, "q8_0": 0.1, "q4_0": 1.5}[kind]


def test_what_has_no_place_is_refused(tmp_path: Path) -> None:
    bpe, own = train(SubwordSettings(vocab_size=275), TEXTS), train(ByteSettings(), [])
    yarn = of(stretch=YarnStretch(factor=2.0, original=32, whole=False))
    ramp = of(stretch=YarnStretch(factor=2.0, original=32, fast=16.0))
    three = of(family="qwen3", head_norm=True, stretch=Llama3Stretch(factor=8.0, low=1.0, high=4.0, original=32))
    narrow = of(family="mistral", window=8, local_layers=(0, 1))
    other = GEMMA.model_copy(update={"score_scale": 0.5})
    for config, tokenizer, kind, said in (
            (CONFIGS["llama"], own, "f16", "no place in GGUF"), (CONFIGS["llama"], bpe, "q3_k", "choose one of"),
            (TransformerConfig(**SIZES, variant=yarn), bpe, "f16", "this YaRN"),
            (TransformerConfig(**SIZES, variant=ramp), bpe, "f16", "this YaRN"),
            (TransformerConfig(**SIZES, variant=three), bpe, "f16", "as in Llama 3 have no place in GGUF of qwen3"),
            (TransformerConfig(**SIZES, variant=narrow), bpe, "f16", "a window of 8 have no place"),
            (CONFIGS["gemma3"].model_copy(update={"variant": other}), bpe, "f16", "scaled otherwise"),
            (TransformerConfig(**{**SIZES, "num_kv_heads": 4}, shape="encoder"), bpe, "f16", "family modernbert")):
        with pytest.raises(ModelError, match=said):
            write_gguf(tmp_path / "m.gguf", rough(config), tokenizer, kind=kind)
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = rough(TransformerConfig(**{**SIZES, "vocab_size": tokenizer.vocab_size - 1}))
    with pytest.raises(ModelError, match=rf"m\.gguf: a tokenizer of {tokenizer.vocab_size} ids does not fit"):
        write_gguf(tmp_path / "m.gguf", model, tokenizer)
    assert not list(tmp_path.iterdir())


def test_the_verb(tmp_path: Path) -> None:
    save_model(tmp_path / "own", rough(CONFIGS["llama"]), train(SubwordSettings(vocab_size=275), TEXTS))
    done = cutaway("export", "own", "--to", "gguf", "--quantize", "q8_0", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["written"] == "own-q8_0.gguf"
    written = cutaway("generate", "own-q8_0.gguf", "def", "--max-tokens", "3", cwd=tmp_path)
    assert written.returncode == 0, written.stderr
    again = cutaway("export", "own", "--to", "gguf", "--quantize", "q8_0", cwd=tmp_path)
    assert again.returncode == 2 and "is already there" in again.stderr
    folder = cutaway("export", "own-q8_0.gguf", "--to", "safetensors", "--quantize", "bf16", "--out", "back",
                     cwd=tmp_path)
    assert folder.returncode == 0 and load_model(tmp_path / "back").config == CONFIGS["llama"]
    wrong = cutaway("export", "own", "--to", "safetensors", "--quantize", "q4_0", cwd=tmp_path)
    assert wrong.returncode == 2 and "safetensors know no q4_0" in wrong.stderr
