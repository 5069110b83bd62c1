"""Gemma 3's format, its text (Gemma Team 2025, arXiv 2503.19786; transformers' Gemma3ForCausalLM): norms on both sides
of each part, normalised queries and keys, a larger embedding, local layers between global ones.

A public norm multiplies with one more than its weight; ours is that sum.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cutaway.models.families import llama
from cutaway.models.families.family import Form, check_fixed, head_of, variant
from cutaway.models.families.rope import rope_of, rope_parameters
from cutaway.models.heads import Head, HeadKind
from cutaway.models.transformer import TransformerConfig

ARCHITECTURES: dict[HeadKind, str] = {"tokens": "Gemma3ForCausalLM", "scalar": "Gemma3TextForSequenceClassification",
                                      "classes": "Gemma3TextForSequenceClassification", "vector": "Gemma3TextModel"}
REPEATS, UNREAD = llama.REPEATS, llama.UNREAD
_LAYER = {
    "attention_norm.weight": ("input_layernorm.weight",),
    "attention.qkv.weight": tuple(f"{part}.weight" for part in llama.QKV),
    "attention.out.weight": ("self_attn.o_proj.weight",), **llama.HEAD_NORMS,
    "attention_after.weight": ("post_attention_layernorm.weight",),
    "feedforward_norm.weight": ("pre_feedforward_layernorm.weight",),
    "feedforward.gate_up.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "feedforward.down.weight": ("mlp.down_proj.weight",),
    "feedforward_after.weight": ("post_feedforward_layernorm.weight",)}
_FIXED: dict[str, tuple[object, ...]] = {
    "hidden_activation": ("gelu_pytorch_tanh",), "attention_bias": (False, None), "final_logit_softcapping": (None,),
    "attn_logit_softcapping": (None,), "use_bidirectional_attention": (False, None)}
EVERY = 6  # the last of so many layers is global, where config.json does not name them


def names(config: TransformerConfig, head: Head) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each parameter of ours and the public tensors that its rows are, in order."""
    yield from llama.decoder_names(config, head, _LAYER)


rows = llama.rows


def forms(ours: str, config: TransformerConfig) -> tuple[Form, ...] | None:
    """Norms are one more than theirs."""
    return (Form(shift=1.0),) if ours.endswith(("norm.weight", "_after.weight")) else None


def public_config(config: TransformerConfig, head: Head, *, dtype: str, control: Mapping[str, int]) -> dict[str, Any]:
    """config.json."""
    made = config.made
    kinds = ["sliding_attention" if i in made.local_layers else "full_attention" for i in range(config.num_layers)]
    rope = {"full_attention": rope_parameters(config.rope_theta, made.stretch),
            "sliding_attention": rope_parameters(made.local_theta or config.rope_theta, None)}
    scale = made.score_scale or config.head_size**-0.5
    return llama.decoder_config(config, head, ARCHITECTURES, dtype=dtype, control=control) | {
        "hidden_activation": "gelu_pytorch_tanh", "attention_bias": False, "layer_types": kinds,
        "sliding_window": made.window or config.context_length, "query_pre_attn_scalar": round(scale**-2),
        "rope_parameters": rope, "final_logit_softcapping": None, "attn_logit_softcapping": None}


def our_config(public: Mapping[str, Any], *, where: object) -> tuple[TransformerConfig, Head]:
    """The configuration and head of a public config.json. Raises ModelError for what our decoder does not compute."""
    check_fixed(public, _FIXED, where)
    head = head_of(public, ARCHITECTURES, where)
    theta, stretch = rope_of(public, "full_attention", theta=1e6, where=where)
    # the file of today has both; the one before it has a key of its own for local layers
    both = isinstance((public.get("rope_parameters") or {}).get("sliding_attention"), Mapping)
    near = rope_of(public, "sliding_attention", where=where)[0] if both else public.get("rope_local_base_freq", 1e4)
    layers, every = range(int(public.get("num_hidden_layers") or 0)), int(public.get("sliding_window_pattern") or EVERY)
    kinds = public.get("layer_types") or ["full_attention" if (i + 1) % every == 0 else "sliding_attention"
                                          for i in layers]
    local = [i for i, kind in enumerate(kinds) if kind == "sliding_attention"]
    scalar = round(public.get("query_pre_attn_scalar") or 256)
    made = variant("decoder", {
        "family": "gemma3_text", "order": "around", "activation": "gelu_tanh", "head_norm": True,
        "head_dim": public.get("head_dim", 256), "embedding_scale": float(public.get("hidden_size") or 1) ** 0.5,
        "window": public.get("sliding_window") if local else None, "local_layers": local,
        "local_theta": float(near) if local else None, "score_scale": scalar**-0.5,
        "stretch": None if stretch is None else stretch.model_dump()})
    return llama.decoder_of({"tie_word_embeddings": True, **public}, made, theta, where=where), head
