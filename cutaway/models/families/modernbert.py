"""ModernBERT's public format (Warner et al. 2024, arXiv 2412.13663; transformers' ModernBertForMaskedLM), with global
attention in every layer, or local in some."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cutaway.errors import ModelError
from cutaway.models.families.family import Form, check_fixed, decoded, head_of, labels, variant
from cutaway.models.families.rope import rope_of, rope_parameters
from cutaway.models.heads import Head, HeadKind, kind_of
from cutaway.models.transformer import TransformerConfig

ARCHITECTURES: dict[HeadKind, str] = {
    "tokens": "ModernBertForMaskedLM", "classes": "ModernBertForSequenceClassification", "vector": "ModernBertModel"}
REPEATS, UNREAD = ("decoder.weight",), ("rotary_emb.inv_freq",)
_POOLED = {"mean": "mean", "cls": "first"}
_LAYER = {"attention_norm.weight": "attn_norm.weight", "attention.qkv.weight": "attn.Wqkv.weight",
          "attention.out.weight": "attn.Wo.weight", "feedforward_norm.weight": "mlp_norm.weight",
          "feedforward.gate_up.weight": "mlp.Wi.weight", "feedforward.down.weight": "mlp.Wo.weight"}
_FIXED: dict[str, tuple[object, ...]] = {
    "hidden_activation": ("gelu",), "attention_bias": (False,), "mlp_bias": (False,), "norm_bias": (False,),
    "classifier_bias": (False,), "classifier_activation": ("gelu",)}
_SIZES = {"vocab_size": "vocab_size", "hidden_size": "hidden_size", "num_layers": "num_hidden_layers",
          "num_heads": "num_attention_heads", "num_kv_heads": "num_attention_heads",
          "intermediate_size": "intermediate_size", "context_length": "max_position_embeddings", "norm_eps": "norm_eps"}


def names(config: TransformerConfig, head: Head) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each parameter of ours and its public tensor; the first layer has no norm before its attention."""
    base = "" if kind_of(head) == "vector" else "model."
    yield "backbone.embedding.weight", (f"{base}embeddings.tok_embeddings.weight",)
    yield "backbone.embedding_norm.weight", (f"{base}embeddings.norm.weight",)
    for i in range(config.num_layers):
        for ours, public in _LAYER.items():
            if i or ours != "attention_norm.weight":
                yield f"backbone.blocks.{i}.{ours}", (f"{base}layers.{i}.{public}",)
    yield "backbone.norm.weight", (f"{base}final_norm.weight",)
    if kind_of(head) in ("tokens", "classes"):
        yield "head.transform.dense.weight", ("head.dense.weight",)
        yield "head.transform.norm.weight", ("head.norm.weight",)
    if kind_of(head) == "classes":
        yield "head.weight", ("classifier.weight",)
        yield "head.bias", ("classifier.bias",)
    elif head == "tokens":
        if not config.tie_embeddings:
            yield "head.weight", ("decoder.weight",)
        if config.made.head_bias:
            yield "head.bias", ("decoder.bias",)


def rows(ours: str, config: TransformerConfig) -> tuple[int, ...] | None:
    """No matrix is split: q, k, v and both halves of the feed-forward are joined in the public format too."""
    return None


def forms(ours: str, config: TransformerConfig) -> tuple[Form, ...] | None:
    """The numbers are ours."""
    return None


def public_config(config: TransformerConfig, head: Head, *, dtype: str, control: Mapping[str, int]) -> dict[str, Any]:
    """config.json."""
    if kind_of(head) not in ARCHITECTURES:
        raise ModelError(f"ModernBERT's format has no place for a head of kind {kind_of(head)!r}",
                         way_out=f"use one of {', '.join(ARCHITECTURES)}")
    made = config.made
    near = made.local_theta or config.rope_theta
    kinds = ["sliding_attention" if i in made.local_layers else "full_attention" for i in range(config.num_layers)]
    return {
        "architectures": [ARCHITECTURES[kind_of(head)]], "model_type": "modernbert", "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size, "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers, "num_attention_heads": config.num_heads,
        "max_position_embeddings": config.context_length, "norm_eps": config.norm_eps, "norm_bias": False,
        "hidden_activation": "gelu", "attention_bias": False, "mlp_bias": False, "decoder_bias": made.head_bias,
        "classifier_bias": False, "classifier_activation": "gelu",
        "classifier_pooling": "cls" if made.pooling == "first" else "mean", "layer_types": kinds,
        **({} if made.local_layers else {"global_attn_every_n_layers": 1}),
        "local_attention": 2 * (made.window or 64),
        "rope_parameters": {"full_attention": rope_parameters(config.rope_theta, made.stretch),
                            "sliding_attention": rope_parameters(near, None)},
        "global_rope_theta": config.rope_theta, "local_rope_theta": near, "attention_dropout": 0.0,
        "embedding_dropout": 0.0, "tie_word_embeddings": config.tie_embeddings, "dtype": dtype,
        "bos_token_id": control.get("bos"), "cls_token_id": control.get("bos"), "eos_token_id": control.get("eos"),
        "sep_token_id": control.get("eos"), "pad_token_id": control.get("pad"), **labels(head),
    }


def our_config(public: Mapping[str, Any], *, where: object) -> tuple[TransformerConfig, Head]:
    """The configuration and head of a public config.json. Raises ModelError where ours is another function."""
    head = head_of(public, ARCHITECTURES, where)
    check_fixed(public, _FIXED | {"classifier_pooling": tuple(_POOLED)}, where)
    kinds = _kinds(public)
    local = [i for i, kind in enumerate(kinds) if kind == "sliding_attention"]
    theta, stretch = rope_of(public, "full_attention", theta=float(public.get("global_rope_theta") or 160_000.0),
                             where=where)
    both = isinstance((public.get("rope_parameters") or {}).get("sliding_attention"), Mapping)
    near = rope_of(public, "sliding_attention", where=where)[0] if both else public.get("local_rope_theta") or 1e4
    pooling = _POOLED[public.get("classifier_pooling", "cls")] if kind_of(head) == "classes" else "mean"
    made = variant("encoder", {
        "window": int(public.get("local_attention", 128)) // 2 if local else None, "local_layers": local,
        "local_theta": float(near) if local else None, "pooling": pooling,
        "head_bias": head == "tokens" and bool(public.get("decoder_bias", True)),
        "stretch": None if stretch is None else stretch.model_dump()})
    tree = {ours: public.get(theirs) for ours, theirs in _SIZES.items()} | {
        "shape": "encoder", "rope_theta": theta, "tie_embeddings": public.get("tie_word_embeddings", True),
        "variant": made}
    return decoded(tree, [theirs for theirs in _SIZES.values() if theirs not in public], where), head


def _kinds(public: Mapping[str, Any]) -> list[str]:
    """The kind of every layer: named, or one global among so many."""
    if public.get("layer_types"):
        return list(public["layer_types"])
    every, layers = int(public.get("global_attn_every_n_layers") or 3), int(public.get("num_hidden_layers") or 0)
    return ["sliding_attention" if i % every else "full_attention" for i in range(layers)]
