"""Llama's public format (Touvron et al. 2023; transformers' LlamaForCausalLM): names and configuration, both ways.

Only names and the splitting of joined matrices differ from ours: rows of q, k and v stand in ``qkv``, gate and up in
``gate_up``, and the rotary layout is the same half-split one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cutaway.errors import ModelError, SettingsError
from cutaway.models.model import HeadKind
from cutaway.models.transformer import TransformerConfig
from cutaway.settings import decode

ARCHITECTURES: dict[HeadKind, str] = {"tokens": "LlamaForCausalLM", "scalar": "LlamaForSequenceClassification"}
_LAYER = {
    "attention_norm.weight": ("input_layernorm.weight",),
    "attention.qkv.weight": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "attention.out.weight": ("self_attn.o_proj.weight",),
    "feedforward_norm.weight": ("post_attention_layernorm.weight",),
    "feedforward.gate_up.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "feedforward.down.weight": ("mlp.down_proj.weight",),
}
# what our decoder computes: a public model that says otherwise is another function
_FIXED: dict[str, tuple[object, ...]] = {
    "model_type": ("llama",), "hidden_act": ("silu",), "attention_bias": (False, None), "mlp_bias": (False, None),
    "rope_scaling": (None,),
}


def names(config: TransformerConfig, head: HeadKind) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each parameter of ours and the public tensors that its rows are, in order; a tied head has none of its own."""
    yield "backbone.embedding.weight", ("model.embed_tokens.weight",)
    for i in range(config.num_layers):
        for ours, public in _LAYER.items():
            yield f"backbone.blocks.{i}.{ours}", tuple(f"model.layers.{i}.{p}" for p in public)
    yield "backbone.norm.weight", ("model.norm.weight",)
    if head == "scalar":
        yield "head.weight", ("score.weight",)
    elif not config.tie_embeddings:
        yield "head.weight", ("lm_head.weight",)


def rows(ours: str, config: TransformerConfig) -> tuple[int, ...] | None:
    """How many rows of a joined matrix belong to each public tensor; None where there is only one."""
    if ours.endswith("qkv.weight"):
        return tuple(h * config.head_size for h in (config.num_heads, config.num_kv_heads, config.num_kv_heads))
    if ours.endswith("gate_up.weight"):
        return (config.intermediate_size, config.intermediate_size)
    return None


def public_config(config: TransformerConfig, *, head: HeadKind, dtype: str,
                  control: Mapping[str, int | list[int]]) -> dict[str, Any]:
    """config.json; ``control`` holds ``bos_token_id`` and its like, where a tokenizer says them."""
    out: dict[str, Any] = {
        "architectures": [ARCHITECTURES[head]], "model_type": "llama", "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size, "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers, "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads, "head_dim": config.head_size, "hidden_act": "silu",
        "max_position_embeddings": config.context_length, "rms_norm_eps": config.norm_eps,
        # older readers know the first of these, newer ones the second
        "rope_theta": config.rope_theta, "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "attention_bias": False, "mlp_bias": False, "attention_dropout": 0.0,
        "tie_word_embeddings": config.tie_embeddings and head == "tokens", "use_cache": True, "dtype": dtype,
        "bos_token_id": None, "eos_token_id": None, "pad_token_id": None, **control,
    }
    if head == "scalar":
        out |= {"num_labels": 1, "id2label": {"0": "reward"}, "label2id": {"reward": 0}}
    return out


def our_config(public: Mapping[str, Any], *, where: object) -> tuple[TransformerConfig, HeadKind]:
    """The configuration and head of a public config.json. Raises ModelError for what our decoder does not compute."""
    rope = public.get("rope_parameters") or {}
    seen = {k: public.get(k, allowed[0]) for k, allowed in _FIXED.items()} | {
        "rope_type": rope.get("rope_type", "default")}
    for name, value in seen.items():
        if value not in (allowed := _FIXED.get(name, ("default",))):
            raise ModelError(f"{name} is {value!r}", where=where, way_out=f"only {allowed[0]!r} is supported")
    head = next((h for h, a in ARCHITECTURES.items() if a in (public.get("architectures") or [])), None)
    if head is None:
        raise ModelError(f"architectures {public.get('architectures')} are unknown", where=where,
                         way_out=f"supported are {', '.join(ARCHITECTURES.values())}")
    try:
        heads = public["num_attention_heads"]
        tree = {
            "vocab_size": public["vocab_size"], "hidden_size": public["hidden_size"],
            "num_layers": public["num_hidden_layers"], "num_heads": heads,
            "num_kv_heads": public.get("num_key_value_heads") or heads,
            "intermediate_size": public["intermediate_size"], "context_length": public["max_position_embeddings"],
            "rope_theta": rope.get("rope_theta", public.get("rope_theta", 10_000.0)),
            "norm_eps": public["rms_norm_eps"], "tie_embeddings": public.get("tie_word_embeddings", False)}
        config = decode(TransformerConfig, tree, where="")
    except KeyError as error:
        raise ModelError(f"{error.args[0]} is missing", where=where, way_out="get the folder again") from None
    except SettingsError as error:
        raise ModelError(f"does not describe a decoder: {error.what}", where=where,
                         way_out="get the folder again") from None
    if public.get("head_dim") not in (None, config.head_size):
        raise ModelError(f"head_dim is {public['head_dim']}, and hidden_size / num_attention_heads {config.head_size}",
                         where=where, way_out="only equal ones are supported")
    return config, head
