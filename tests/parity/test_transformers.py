"""The model folder is the public format: transformers reads ours with equal logits, and we read theirs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cutaway.batch import Batch
from cutaway.errors import ModelError
from cutaway.generate.engine import Engine
from cutaway.generate.request import Request, Sampling
from cutaway.models.folder import load_model, load_tokenizer, save_model
from cutaway.models.model import Model, build
from cutaway.models.transformer import TransformerConfig
from cutaway.text.tokenizer import ByteSettings, Tokenizer, train

transformers = pytest.importorskip("transformers")

SIZES = {"vocab_size": 263, "hidden_size": 24, "num_layers": 2, "num_heads": 2, "num_kv_heads": 2,
         "intermediate_size": 40, "context_length": 32}
CONFIGS = [TransformerConfig(**{**SIZES, **other}) for other in (
    {}, {"tie_embeddings": False}, {"num_heads": 6, "num_kv_heads": 2}, {"num_heads": 4, "num_kv_heads": 1},
    {"hidden_size": 30, "num_heads": 3, "num_kv_heads": 3, "intermediate_size": 37, "num_layers": 3},
    {"rope_theta": 500.0, "norm_eps": 1e-3, "tie_embeddings": False, "num_heads": 3, "num_kv_heads": 1})]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train(ByteSettings(), [])


def rough(config: TransformerConfig, head: str = "tokens") -> Model:
    """Weights far from their beginnings, norms too: a swapped tensor shows."""
    model = build(config, head=head, seed=3)  # type: ignore[arg-type]
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=draw))
    return model


@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
def test_transformers_gives_our_logits(config: TransformerConfig, tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = rough(config)
    save_model(tmp_path / "m", model, tokenizer)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    tokens = torch.randint(0, 256, (3, 32), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, other = model(Batch(tokens)), theirs(tokens).logits
        again = load_model(tmp_path / "m")(Batch(tokens))
    assert other.std() > 0.1
    assert (ours - other).abs().max() <= 1e-4
    assert torch.equal(again, ours)


def test_a_scalar_head_is_a_sequence_classifier(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = rough(CONFIGS[2], head="scalar")
    save_model(tmp_path / "m", model, tokenizer)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "m")
    tokens = torch.randint(0, 256, (3, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, other = model(Batch(tokens))[:, -1], theirs(tokens).logits[:, 0]
        again = load_model(tmp_path / "m")
    assert (ours - other).abs().max() <= 1e-4
    assert again.head_kind == "scalar"
    assert again.config == model.config


def test_auto_tokenizer_gives_equal_ids(tmp_path: Path, tokenizer: Tokenizer) -> None:
    save_model(tmp_path / "m", rough(CONFIGS[0]), tokenizer)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    text = "def f(x):\n    return 'naïve 漢'\n"
    assert theirs(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text)
    assert load_tokenizer(tmp_path / "m") == tokenizer


def test_greedy_text_is_theirs(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = rough(CONFIGS[3])
    save_model(tmp_path / "m", model, tokenizer)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    prompt = tokenizer.encode("def f(")
    for penalty in (1.0, 1.3):
        out = theirs.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=12,
                              do_sample=False, eos_token_id=None, pad_token_id=0, repetition_penalty=penalty)
        ours = Engine(model).generate([Request(tuple(prompt), 12, Sampling(temperature=0, repetition_penalty=penalty))])
        assert ours[0].tokens == tuple(out[0, len(prompt):].tolist())


@pytest.mark.parametrize("tied", [True, False])
def test_a_public_folder_is_read(tmp_path: Path, tied: bool) -> None:
    config = transformers.LlamaConfig(
        vocab_size=77, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-6, tie_word_embeddings=tied)
    theirs = transformers.LlamaForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path / "m", max_shard_size="20KB")
    assert (tmp_path / "m" / "model.safetensors.index.json").exists()
    tokens = torch.randint(0, 77, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert (load_model(tmp_path / "m")(Batch(tokens)) - theirs(tokens).logits).abs().max() <= 1e-4


@pytest.mark.parametrize(("change", "word"), [
    ({"hidden_act": "gelu"}, "hidden_act"), ({"mlp_bias": True}, "mlp_bias"),
    ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "'dynamic' are unknown")])
def test_what_we_do_not_compute_is_refused(tmp_path: Path, change: dict[str, object], word: str) -> None:
    config = transformers.LlamaConfig(**{
        "vocab_size": 77, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
        "num_key_value_heads": 2, **change})
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "m")
    with pytest.raises(ModelError, match=word):
        load_model(tmp_path / "m")
