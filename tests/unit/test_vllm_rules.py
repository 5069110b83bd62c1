"""What vLLM asks of a folder's config.json, held against what we write for every family: on paper, for vLLM itself
needs a GPU. The rules are those of vllm/model_executor/models/registry.py, vllm/config/model.py and
vllm/transformers_utils/config.py; docs/decisions/public-models.md says them in words.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from cutaway.models.convolution import ConvolutionConfig
from cutaway.models.families.family import described
from cutaway.models.folder import family_of, save_model
from cutaway.models.heads import Classes, Vector
from cutaway.models.model import build
from cutaway.text.tokenizer import SubwordSettings, train

# of vLLM's registry, those that our families can be called: what it generates with, embeds with, classifies with
GENERATE = {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "Gemma3ForCausalLM",
            "GPT2LMHeadModel"}
EMBED = {"BertModel", "RobertaModel", "ModernBertModel", "LlamaModel", "MistralModel", "Qwen2Model", "Gemma3TextModel"}
CLASSIFY = {"BertForSequenceClassification", "RobertaForSequenceClassification", "ModernBertForSequenceClassification"}
DTYPES = {"float32", "float16", "bfloat16"}
DECODER = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 6,
           "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-6,
           "tie_word_embeddings": True, "head_dim": 16}
ENCODER = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
           "num_attention_heads": 4, "max_position_embeddings": 66, "layer_norm_eps": 1e-12, "pad_token_id": 1}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 1e4}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32, "rope_theta": 5e5}
LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
CASES: dict[str, dict[str, Any]] = {
    "llama": {**DECODER, "architectures": ["LlamaForCausalLM"]},
    "llama untied": {**DECODER, "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False},
    "llama yarn": {**DECODER, "architectures": ["LlamaForCausalLM"], "rope_parameters": YARN},
    "llama llama3": {**DECODER, "architectures": ["LlamaForCausalLM"], "rope_parameters": LLAMA3},
    "llama linear": {**DECODER, "architectures": ["LlamaForCausalLM"], "rope_parameters": LINEAR},
    "mistral": {**DECODER, "architectures": ["MistralForCausalLM"], "sliding_window": 16},
    "qwen2": {**DECODER, "architectures": ["Qwen2ForCausalLM"]},
    "qwen2 windows": {**DECODER, "architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True,
                      "sliding_window": 16, "layer_types": ["full_attention"] * 3 + ["sliding_attention"] * 3},
    "qwen3": {**DECODER, "architectures": ["Qwen3ForCausalLM"], "rope_parameters": YARN},
    "gemma3_text": {**DECODER, "architectures": ["Gemma3ForCausalLM"], "sliding_window": 16},
    "gpt2": {"architectures": ["GPT2LMHeadModel"], "vocab_size": 300, "n_embd": 64, "n_layer": 2, "n_head": 4,
             "n_positions": 64, "layer_norm_epsilon": 1e-5},
    "bert": {**ENCODER, "architectures": ["BertModel"]}, "roberta": {**ENCODER, "architectures": ["RobertaModel"]},
    "modernbert": {**ENCODER, "norm_eps": 1e-5, "architectures": ["ModernBertModel"]}}


def written(name: str, folder: Path, *, head: Any = None) -> dict[str, Any]:
    """config.json as we write it for a model of that public configuration."""
    public = {"model_type": name.split(maxsplit=1)[0], **CASES[name]}
    config, said = described(family_of(public, where=name), public, name)
    tokenizer = train(SubwordSettings(vocab_size=275), ["def add(a, b):\n    return a + b\n"] * 40)
    save_model(folder, build(config, head=head or said, seed=1), tokenizer)
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


def longest(config: dict[str, Any]) -> float:
    """How many tokens vLLM lets a request have: it takes the context of a stretched model for the one before it was
    stretched, but of YaRN's and Llama 3's."""
    places = config.get("max_position_embeddings", config.get("n_positions"))
    rope = config.get("rope_parameters") or {}
    rope = rope.get("full_attention", rope)
    if rope.get("rope_type", "default") in ("default", "llama3"):
        return float(places)
    return float(rope["original_max_position_embeddings"] if rope["rope_type"] == "yarn" else places) * rope["factor"]


@pytest.mark.parametrize("name", CASES)
def test_a_folder_is_one_that_vllm_serves(name: str, tmp_path: Path) -> None:
    config = written(name, tmp_path / "m")
    (architecture,) = config["architectures"]
    assert architecture in GENERATE | EMBED and "auto_map" not in config  # no code of the folder's own
    assert config["dtype"] in DTYPES
    heads = config.get("num_attention_heads", config.get("n_head"))
    groups = config.get("num_key_value_heads", heads)
    assert heads % groups == 0 and config.get("head_dim", 16) == 16
    assert longest(config) >= config.get("max_position_embeddings", config.get("n_positions"))
    assert isinstance(config["vocab_size"], int) and "quantization_config" not in config


@pytest.mark.parametrize("name", [n for n in CASES if n not in ("gpt2", "bert", "roberta")])
def test_rotary_positions_are_said_as_its_readers_look_for_them(name: str, tmp_path: Path) -> None:
    config = written(name, tmp_path / "m")
    rope = config["rope_parameters"]
    nested = set(rope) <= {"full_attention", "sliding_attention"}
    assert nested == (name in ("gemma3_text", "modernbert"))
    if nested:  # then every layer says of which type it is
        assert set(config["layer_types"]) <= set(rope) and len(config["layer_types"]) == config["num_hidden_layers"]
    for each in rope.values() if nested else [rope]:
        assert each["rope_theta"] > 1 and each["rope_type"] in ("default", "linear", "llama3", "yarn")
        assert "original_max_position_embeddings" in each or each["rope_type"] in ("default", "linear")
    if not nested:  # a reader of before rope_parameters finds the same
        assert config["rope_theta"] == rope["rope_theta"]
        stretched = {k: v for k, v in rope.items() if k != "rope_theta"}
        assert config.get("rope_scaling", {"rope_type": "default"}) == stretched


@pytest.mark.parametrize("name", ["mistral", "qwen2", "qwen2 windows", "qwen3", "gemma3_text", "llama"])
def test_windows_are_where_it_looks_for_them(name: str, tmp_path: Path) -> None:
    config = written(name, tmp_path / "m")
    kinds = config.get("layer_types")
    local = [] if kinds is None else [i for i, kind in enumerate(kinds) if kind == "sliding_attention"]
    if name == "mistral":  # all layers, where none is named
        assert config["sliding_window"] == 16 and kinds is None
    elif name in ("qwen2 windows", "gemma3_text"):
        assert config["sliding_window"] == 16 and local and len(kinds) == config["num_hidden_layers"]
    else:
        assert config.get("sliding_window") is None and not local
    if name.startswith("qwen"):
        assert config["use_sliding_window"] == bool(local)


@pytest.mark.parametrize("name", [n for n in CASES if n not in ("bert", "roberta", "modernbert")])
def test_what_it_refuses_is_not_said(name: str, tmp_path: Path) -> None:
    config = written(name, tmp_path / "m")
    if name == "gpt2":
        assert config["activation_function"] == "gelu_new"
        assert not any(config.get(k) for k in ("add_cross_attention", "scale_attn_by_inverse_layer_idx",
                                               "reorder_and_upcast_attn"))
    elif name == "gemma3_text":
        assert config["hidden_activation"] == "gelu_pytorch_tanh" and not config["attn_logit_softcapping"]
    else:
        assert config["hidden_act"] == "silu" and config.get("mlp_bias") in (None, False)
    with safe_open(tmp_path / "m" / "model.safetensors", "pt") as file:
        assert ("lm_head.weight" in file.keys()) == (not config["tie_word_embeddings"])  # noqa: SIM118
        assert all(str(file.get_slice(n).get_dtype()) == "F32" for n in file.keys())  # noqa: SIM118


def test_it_finds_a_tokenizer_and_where_to_stop(tmp_path: Path) -> None:
    config = written("llama", tmp_path / "m")
    told = json.loads((tmp_path / "m" / "tokenizer_config.json").read_text())
    stops = json.loads((tmp_path / "m" / "generation_config.json").read_text())["eos_token_id"]
    assert told["tokenizer_class"] == "PreTrainedTokenizerFast" and told["chat_template"]
    assert (tmp_path / "m" / "tokenizer.json").is_file() and stops == config["eos_token_id"] and len(stops) == 2


@pytest.mark.parametrize(("name", "head", "names"), [
    ("bert", Classes(("a", "b")), CLASSIFY), ("roberta", Classes(("a", "b")), CLASSIFY),
    ("modernbert", Classes(("a", "b")), CLASSIFY), ("llama", Vector(), EMBED), ("qwen2", Vector(), EMBED)])
def test_classifiers_and_embedders(name: str, head: Any, names: set[str], tmp_path: Path) -> None:
    config = written(name, tmp_path / "m", head=head)
    assert set(config["architectures"]) <= names
    assert isinstance(head, Vector) or len(config["id2label"]) == config["num_labels"] == 2
    assert not isinstance(head, Vector) or (tmp_path / "m" / "1_Pooling" / "config.json").is_file()


def test_what_it_does_not_serve_has_a_name_of_its_own(tmp_path: Path) -> None:
    save_model(tmp_path / "m", build(ConvolutionConfig(vocab_size=40, hidden_size=16, num_layers=1), seed=1))
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["model_type"].startswith("cutaway-") and not set(config["architectures"]) & (GENERATE | EMBED)
