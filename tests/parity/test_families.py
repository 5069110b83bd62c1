"""Every public family: what transformers saved gives its numbers here, and what is saved here gives them there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cutaway.batch import Batch
from cutaway.generate.beam import Beam, search
from cutaway.generate.engine import Engine
from cutaway.generate.request import Request, Sampling
from cutaway.models.folder import load_model, save_model

transformers = pytest.importorskip("transformers")

VOCABULARY = 97
SMALL = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 160, "bos_token_id": 1,
         "eos_token_id": 2, "pad_token_id": 0}
ROPE = {"rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {**ROPE, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LOCAL = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "llama-biased": ("Llama", {"attention_bias": True}),
    "llama-wide-heads": ("Llama", {"head_dim": 20}),
    "llama3": ("Llama", {"rope_parameters": LLAMA3}),
    "llama-linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.5}}),
    "llama-yarn": ("Llama", {"rope_parameters": {**ROPE, "rope_type": "yarn", "beta_fast": 8.0, "beta_slow": 0.5}}),
    "llama-yarn-sharp": ("Llama", {"rope_parameters": {**ROPE, "rope_type": "yarn", "attention_factor": 1.3,
                                                       "truncate": False}}),
    "mistral": ("Mistral", {"sliding_window": 7, "head_dim": 8}),
    "mistral-whole": ("Mistral", {"sliding_window": None, "head_dim": 8}),
    "qwen2": ("Qwen2", {}),
    "qwen2-local": ("Qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3-biased": ("Qwen3", {"head_dim": 16, "attention_bias": True, "tie_word_embeddings": True}),
    "gemma3": ("Gemma3Text", {"head_dim": 16, "sliding_window": 6, "layer_types": LOCAL, "query_pre_attn_scalar": 20}),
    "gemma3-stretched": ("Gemma3Text", {"head_dim": 8, "sliding_window": 50, "rope_parameters": {
        "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}}),
    "gpt2": ("GPT2", {}),
}
GPT2: dict[str, Any] = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 160, "vocab_size": VOCABULARY,
                        "bos_token_id": 1, "eos_token_id": 2}


def rough(model: Any, *, noise: float = 0.2) -> Any:
    """Weights far from their beginnings, norms and biases too: a swapped tensor shows."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(noise * torch.randn(p.shape, generator=draw))
    model.tie_weights()
    return model.eval()


def decoder(name: str) -> Any:
    stem, own = DECODERS[name]
    config = getattr(transformers, f"{stem}Config")(**({**GPT2, **own} if stem == "GPT2" else {**SMALL, **own}))
    torch.manual_seed(1)
    kind = {"GPT2": "GPT2LMHeadModel", "Gemma3Text": "Gemma3ForCausalLM"}.get(stem, f"{stem}ForCausalLM")
    return rough(getattr(transformers, kind)._from_config(config, attn_implementation="eager"))


def ragged(rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens, and documents that pad all rows but the first."""
    tokens = torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(length))
    lengths = torch.linspace(length, 3, rows).long()
    return tokens, torch.where(torch.arange(length) < lengths[:, None], 0, -1)


def agree(ours: torch.Tensor, theirs: torch.Tensor, real: torch.Tensor) -> None:
    assert theirs.std() > 0.1
    assert (ours - theirs)[real].abs().max() <= 1e-5 * max(1.0, float(theirs[real].abs().max()))


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_there_and_back(name: str, tmp_path: Path) -> None:
    theirs = decoder(name)
    theirs.save_pretrained(tmp_path / "there")
    ours = load_model(tmp_path / "there").eval()
    tokens, documents = ragged(4, 60)
    real = documents >= 0
    with torch.no_grad():
        wanted = theirs(tokens, attention_mask=real.long()).logits
        agree(ours(Batch(tokens, documents=documents)), wanted, real)
    save_model(tmp_path / "back", ours)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back", attn_implementation="eager").eval()
    assert type(again) is type(theirs)
    with torch.no_grad():
        agree(again(tokens, attention_mask=real.long()).logits, wanted, real)
        once_more = load_model(tmp_path / "back").eval()
        assert once_more.config == ours.config
        agree(once_more(Batch(tokens, documents=documents)), wanted, real)


@pytest.mark.parametrize("name", DECODERS)
def test_greedy_answers_are_theirs_alone_and_in_a_batch(name: str, tmp_path: Path) -> None:
    theirs = decoder(name)
    theirs.save_pretrained(tmp_path / "m")
    ours = load_model(tmp_path / "m").eval()
    prompts = [torch.randint(3, VOCABULARY, (n,), generator=torch.Generator().manual_seed(n)) for n in (1, 13, 40)]
    wanted = [theirs.generate(p[None], attention_mask=torch.ones_like(p[None]), max_new_tokens=64, do_sample=False,
                              eos_token_id=None, pad_token_id=0)[0, len(p) :].tolist() for p in prompts]
    asked = [Request(tuple(p.tolist()), 64, Sampling(temperature=0)) for p in prompts]
    assert [list(r.tokens) for r in Engine(ours).generate(asked)] == wanted
    assert [list(Engine(ours).generate([r])[0].tokens) for r in asked] == wanted


ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", {}), "bert-untied": ("Bert", {"tie_word_embeddings": False, "type_vocab_size": 3}),
    "roberta": ("Roberta", {"max_position_embeddings": 162, "pad_token_id": 1, "type_vocab_size": 1}),
    "modernbert": ("ModernBert", {"local_attention": 10, "layer_types": LOCAL}),
    "modernbert-global": ("ModernBert", {"decoder_bias": False, "layer_types": ["full_attention"] * 4}),
    "modernbert-apart": ("ModernBert", {"local_attention": 16, "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 900.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 90.0}}}),
}


def encoder(name: str, head: str, **more: Any) -> Any:
    stem, own = ENCODERS[name]
    sizes = {**SMALL, "cls_token_id": 1, "sep_token_id": 2} if stem == "ModernBert" else dict(SMALL)
    sizes.pop("num_key_value_heads")
    config = getattr(transformers, f"{stem}Config")(**{**sizes, **own, **more})
    torch.manual_seed(1)
    return rough(getattr(transformers, stem + head)._from_config(config, attn_implementation="eager"))


def padded(theirs: Any, tokens: torch.Tensor, documents: torch.Tensor) -> torch.Tensor:
    """RoBERTa tells padding by its id."""
    return tokens.masked_fill(documents < 0, theirs.config.pad_token_id)


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("head", ["ForMaskedLM", "ForSequenceClassification"])
def test_an_encoder_there_and_back(name: str, head: str, tmp_path: Path) -> None:
    more = {"id2label": {0: "a", 1: "b", 2: "c"}} if head != "ForMaskedLM" else {}
    theirs = encoder(name, head, **more)
    theirs.save_pretrained(tmp_path / "there")
    ours = load_model(tmp_path / "there").eval()
    tokens, documents = ragged(4, 60)
    tokens, real = padded(theirs, tokens, documents), documents >= 0
    real_rows = real if head == "ForMaskedLM" else torch.ones(4, dtype=torch.bool)
    with torch.no_grad():
        wanted = theirs(tokens, attention_mask=real.long()).logits
        agree(ours(Batch(tokens, documents=documents)), wanted, real_rows)
    save_model(tmp_path / "back", ours)
    again = type(theirs).from_pretrained(tmp_path / "back", attn_implementation="eager").eval()
    assert load_model(tmp_path / "back").config == ours.config
    with torch.no_grad():
        agree(again(tokens, attention_mask=real.long()).logits, wanted, real_rows)


@pytest.mark.parametrize("name", ENCODERS)
def test_hidden_states_are_theirs(name: str, tmp_path: Path) -> None:
    theirs = encoder(name, "Model")
    theirs.save_pretrained(tmp_path / "m")
    ours = load_model(tmp_path / "m").eval()
    tokens, documents = ragged(4, 60)
    tokens, real = padded(theirs, tokens, documents), documents >= 0
    with torch.no_grad():
        wanted = theirs(tokens, attention_mask=real.long()).last_hidden_state
        agree(ours.hidden(Batch(tokens, documents=documents)), wanted, real)


PAIRS: dict[str, dict[str, Any]] = {
    "t5": {}, "t5-wide": {"d_kv": 12}, "t5-v1.1": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "flan": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "d_kv": 6},
}


@pytest.mark.parametrize("name", PAIRS)
def test_t5_there_and_back(name: str, tmp_path: Path) -> None:
    config = transformers.T5Config(**{"vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 3,
                                      "num_heads": 4, "decoder_start_token_id": 0, **PAIRS[name]})
    torch.manual_seed(1)
    theirs = rough(transformers.T5ForConditionalGeneration(config), noise=0.1)
    theirs.save_pretrained(tmp_path / "there")
    ours = load_model(tmp_path / "there").eval()
    source, documents = ragged(4, 70)
    target = torch.randint(3, VOCABULARY, (4, 21), generator=torch.Generator().manual_seed(5))
    real = torch.ones(4, 21, dtype=torch.bool)
    with torch.no_grad():
        wanted = theirs(input_ids=source, attention_mask=(documents >= 0).long(), decoder_input_ids=target).logits
        memory = theirs.encoder(source, attention_mask=(documents >= 0).long()).last_hidden_state
        agree(ours(Batch(target, source=source, source_documents=documents)), wanted, real)
        agree(ours.backbone.encoder(Batch(source, documents=documents), dtype=torch.float32), memory, documents >= 0)
    save_model(tmp_path / "back", ours)
    again = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "back").eval()
    with torch.no_grad():
        agree(again(input_ids=source, attention_mask=(documents >= 0).long(), decoder_input_ids=target).logits, wanted,
              real)
    lines = [source[i, : int((documents[i] >= 0).sum())] for i in range(4)]
    beams = [theirs.generate(s[None], attention_mask=torch.ones_like(s[None]), max_new_tokens=20, num_beams=4,
                             do_sample=False, eos_token_id=2, length_penalty=1.0, early_stopping=False)[0, 1:].tolist()
             for s in lines]
    asked = [Request((0,), 20, stop_ids=(2,), source=tuple(s.tolist())) for s in lines]
    found = search(ours, asked, Beam(width=4, length_penalty=1.0))
    assert [list(f[0].tokens) for f in found] == [b[: b.index(2) + 1] if 2 in b else b for b in beams]
