"""Llama's public format (Touvron et al. 2023; transformers' LlamaForCausalLM): names and configuration, both ways.

Only names and the splitting of joined matrices differ from ours: rows of q, k and v stand in ``qkv``, gate and up in
``gate_up``, and the rotary layout is the same half-split one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cutaway.errors import ModelError
from cutaway.models.families.family import check_fixed, decoded, head_of, labels
from cutaway.models.heads import Head, HeadKind, kind_of
from cutaway.models.transformer import TransformerConfig

ARCHITECTURES: dict[HeadKind, str] = {
    "tokens": "LlamaForCausalLM", "scalar": "LlamaForSequenceClassification",
    "classes": "LlamaForSequenceClassification", "vector": "LlamaModel"}
REPEATS = ("lm_head.weight",)
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
    "hidden_act": ("silu",), "attention_bias": (False, None), "mlp_bias": (False, None), "rope_scaling": (None,)}
_SIZES = {"vocab_size": "vocab_size", "hidden_size": "hidden_size", "num_layers": "num_hidden_layers",
          "num_heads": "num_attention_heads", "intermediate_size": "intermediate_size",
          "context_length": "max_position_embeddings", "norm_eps": "rms_norm_eps"}


def names(config: TransformerConfig, head: Head) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each parameter of ours and the public tensors that its rows are, in order; a tied head has none of its own."""
    base = "" if kind_of(head) == "vector" else "model."
    yield "backbone.embedding.weight", (f"{base}embed_tokens.weight",)
    for i in range(config.num_layers):
        for ours, public in _LAYER.items():
            yield f"backbone.blocks.{i}.{ours}", tuple(f"{base}layers.{i}.{p}" for p in public)
    yield "backbone.norm.weight", (f"{base}norm.weight",)
    if kind_of(head) in ("scalar", "classes"):
        yield "head.weight", ("score.weight",)
    elif head == "tokens" and not config.tie_embeddings:
        yield "head.weight", ("lm_head.weight",)


def rows(ours: str, config: TransformerConfig) -> tuple[int, ...] | None:
    """How many rows of a joined matrix belong to each public tensor; None where there is only one."""
    if ours.endswith("qkv.weight"):
        return tuple(h * config.head_size for h in (config.num_heads, config.num_kv_heads, config.num_kv_heads))
    if ours.endswith("gate_up.weight"):
        return (config.intermediate_size, config.intermediate_size)
    return None


def scales(ours: str, config: TransformerConfig) -> None:
    """The numbers are ours."""


def public_config(config: TransformerConfig, head: Head, *, dtype: str, control: Mapping[str, int]) -> dict[str, Any]:
    """config.json; ``control`` holds the tokenizer's ids."""
    return {
        "architectures": [ARCHITECTURES[kind_of(head)]], "model_type": "llama", "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size, "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers, "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads, "head_dim": config.head_size, "hidden_act": "silu",
        "max_position_embeddings": config.context_length, "rms_norm_eps": config.norm_eps,
        # older readers know the first of these, newer ones the second
        "rope_theta": config.rope_theta, "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "attention_bias": False, "mlp_bias": False, "attention_dropout": 0.0,
        "tie_word_embeddings": config.tie_embeddings and head == "tokens", "use_cache": True, "dtype": dtype,
        "bos_token_id": control.get("bos"), "pad_token_id": control.get("pad"),
        "eos_token_id": [control["eos"], control["end"]] if control else None, **labels(head),
    }


def our_config(public: Mapping[str, Any], *, where: object) -> tuple[TransformerConfig, Head]:
    """The configuration and head of a public config.json. Raises ModelError for what our decoder does not compute."""
    rope = public.get("rope_parameters") or {}
    check_fixed({**public, "rope_type": rope.get("rope_type", "default")}, {**_FIXED, "rope_type": ("default",)}, where)
    head = head_of(public, ARCHITECTURES, where)
    tree = {ours: public.get(theirs) for ours, theirs in _SIZES.items()} | {
        "num_kv_heads": public.get("num_key_value_heads") or public.get("num_attention_heads"),
        "rope_theta": rope.get("rope_theta", public.get("rope_theta", 10_000.0)),
        "tie_embeddings": public.get("tie_word_embeddings", False)}
    config = decoded(tree, [theirs for ours, theirs in _SIZES.items() if theirs not in public], where)
    if public.get("head_dim") not in (None, config.head_size):
        raise ModelError(f"head_dim is {public['head_dim']}, and hidden_size / num_attention_heads {config.head_size}",
                         where=where, way_out="only equal ones are supported")
    return config, head
