"""Encoder and encoder-decoder are saved in ModernBERT's and T5's public format: transformers gives our numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cutaway.batch import Batch
from cutaway.errors import ModelError
from cutaway.models.folder import load_model, save_model
from cutaway.models.heads import Classes, Head, Vector
from cutaway.models.model import Model, build
from cutaway.models.transformer import TransformerConfig
from cutaway.text.tokenizer import ByteSettings, Tokenizer, train

transformers = pytest.importorskip("transformers")

SIZES = {"vocab_size": 263, "hidden_size": 24, "num_layers": 3, "num_heads": 2, "num_kv_heads": 2,
         "intermediate_size": 40, "context_length": 200}
ENCODERS = [TransformerConfig(**{**SIZES, "shape": "encoder", **other}) for other in (
    {}, {"tie_embeddings": False, "rope_theta": 300.0}, {"num_heads": 3, "num_kv_heads": 3, "norm_eps": 1e-3})]
PAIRS = [TransformerConfig(**{**SIZES, "shape": "encoder-decoder", **other}) for other in (
    {}, {"tie_embeddings": False}, {"num_heads": 6, "num_kv_heads": 6, "num_layers": 1})]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train(ByteSettings(), [])


def rough(config: TransformerConfig, head: Head = "tokens") -> Model:
    """Weights far from their beginnings: a swapped tensor shows."""
    model = build(config, head=head, seed=3)
    # unscaled scores of larger weights would amplify the last bits
    noise = 0.1 if config.shape == "encoder-decoder" else 0.2
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(noise * torch.randn(p.shape, generator=draw))
    return model.eval()


def ragged(rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens, and documents that pad all rows but the first."""
    tokens = torch.randint(0, 256, (rows, length), generator=torch.Generator().manual_seed(length))
    lengths = torch.linspace(length, 3, rows).long()
    return tokens, torch.where(torch.arange(length) < lengths[:, None], 0, -1)


@pytest.mark.parametrize("config", ENCODERS, ids=range(len(ENCODERS)))
def test_transformers_gives_our_masked_logits(config: TransformerConfig, tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = rough(config)
    save_model(tmp_path / "m", model, tokenizer)
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "m").eval()
    tokens, documents = ragged(4, 90)
    with torch.no_grad():
        ours = model(Batch(tokens, documents=documents))
        other = theirs(tokens, attention_mask=(documents >= 0).long()).logits
        again = load_model(tmp_path / "m").eval()(Batch(tokens, documents=documents))
    real = documents >= 0
    assert other.std() > 0.1
    assert (ours - other)[real].abs().max() <= 1e-4
    assert torch.equal(again, ours)
    assert load_model(tmp_path / "m").config == config


@pytest.mark.parametrize("multi", [False, True])
def test_an_encoder_with_classes_is_a_sequence_classifier(multi: bool, tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = rough(ENCODERS[0], Classes(("good", "bad", "ugly"), multi))
    save_model(tmp_path / "m", model, tokenizer)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "m").eval()
    tokens, documents = ragged(4, 30)
    with torch.no_grad():
        ours = model(Batch(tokens, documents=documents))
        other = theirs(tokens, attention_mask=(documents >= 0).long()).logits
    again = load_model(tmp_path / "m")
    assert (ours - other).abs().max() <= 1e-4
    assert theirs.config.id2label == {0: "good", 1: "bad", 2: "ugly"}
    assert again.head_spec == Classes(("good", "bad", "ugly"), multi)


def test_a_decoder_with_classes_is_one_too(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = rough(TransformerConfig(**SIZES), Classes(("yes", "no")))
    save_model(tmp_path / "m", model, tokenizer)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "m").eval()
    tokens, documents = ragged(4, 30)
    padded = tokens.masked_fill(documents < 0, tokenizer.pad_id)
    with torch.no_grad():
        ours = model(Batch(padded, documents=documents))
        other = theirs(padded, attention_mask=(documents >= 0).long()).logits
    assert (ours - other).abs().max() <= 1e-4
    assert load_model(tmp_path / "m").head_spec == Classes(("yes", "no"))


def test_an_encoder_with_a_vector_is_the_bare_model(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = rough(ENCODERS[0], Vector())
    save_model(tmp_path / "m", model, tokenizer)
    theirs = transformers.AutoModel.from_pretrained(tmp_path / "m").eval()
    tokens, documents = ragged(3, 30)
    real = (documents >= 0)[..., None]
    with torch.no_grad():
        ours = model(Batch(tokens, documents=documents))
        hidden = theirs(tokens, attention_mask=real[..., 0].long()).last_hidden_state
    mean = torch.nn.functional.normalize((hidden * real).sum(1) / real.sum(1), dim=-1)
    assert (ours - mean).abs().max() <= 1e-5
    assert load_model(tmp_path / "m").head_spec == Vector("mean")


@pytest.mark.parametrize("config", PAIRS, ids=range(len(PAIRS)))
def test_transformers_gives_our_target_logits(config: TransformerConfig, tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = rough(config)
    save_model(tmp_path / "m", model, tokenizer)
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "m").eval()
    source, documents = ragged(4, 180)
    target = torch.randint(0, 256, (4, 21), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        ours = model(Batch(target, source=source, source_documents=documents))
        other = theirs(input_ids=source, attention_mask=(documents >= 0).long(), decoder_input_ids=target).logits
        again = load_model(tmp_path / "m").eval()(Batch(target, source=source, source_documents=documents))
    assert other.std() > 0.1
    assert (ours - other).abs().max() <= 1e-4
    assert torch.equal(again, ours)
    assert load_model(tmp_path / "m").config == config


def test_what_has_no_place_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(ModelError, match="no public format"):
        save_model(tmp_path / "m", rough(PAIRS[0], Classes(("a", "b"))), tokenizer)
    with pytest.raises(ModelError, match="no place for a head of kind 'scalar'"):
        save_model(tmp_path / "m", rough(ENCODERS[0], "scalar"), tokenizer)
    assert not (tmp_path / "m").exists()
    config = transformers.ModernBertConfig(
        vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, pad_token_id=0,
        eos_token_id=1, bos_token_id=2, cls_token_id=2, sep_token_id=1, norm_bias=True)
    transformers.ModernBertForMaskedLM(config).save_pretrained(tmp_path / "biased")
    with pytest.raises(ModelError, match="norm_bias is True"):
        load_model(tmp_path / "biased")
