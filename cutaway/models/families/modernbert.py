"""ModernBERT's public format (Warner et al. 2024, arXiv 2412.13663; transformers' ModernBertForMaskedLM), with global
attention in every layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cutaway.errors import ModelError
from cutaway.models.families.family import check_fixed, decoded, head_of, labels
from cutaway.models.heads import Head, HeadKind, kind_of
from cutaway.models.transformer import TransformerConfig

ARCHITECTURES: dict[HeadKind, str] = {
    "tokens": "ModernBertForMaskedLM", "classes": "ModernBertForSequenceClassification", "vector": "ModernBertModel"}
REPEATS = ("decoder.weight",)
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
    elif head == "tokens" and not config.tie_embeddings:
        yield "head.weight", ("decoder.weight",)


def rows(ours: str, config: TransformerConfig) -> tuple[int, ...] | None:
    """No matrix is split: q, k, v and both halves of the feed-forward are joined in the public format too."""
    return None


def scales(ours: str, config: TransformerConfig) -> None:
    """The numbers are ours."""


def public_config(config: TransformerConfig, head: Head, *, dtype: str, control: Mapping[str, int]) -> dict[str, Any]:
    """config.json; every layer sees everything, labels are read off the mean of the tokens."""
    if kind_of(head) not in ARCHITECTURES:
        raise ModelError(f"ModernBERT's format has no place for a head of kind {kind_of(head)!r}",
                         way_out=f"use one of {', '.join(ARCHITECTURES)}")
    rope = {"rope_type": "default", "rope_theta": config.rope_theta}
    return {
        "architectures": [ARCHITECTURES[kind_of(head)]], "model_type": "modernbert", "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size, "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers, "num_attention_heads": config.num_heads,
        "max_position_embeddings": config.context_length, "norm_eps": config.norm_eps, "norm_bias": False,
        "hidden_activation": "gelu", "attention_bias": False, "mlp_bias": False, "decoder_bias": False,
        "classifier_bias": False, "classifier_activation": "gelu", "classifier_pooling": "mean",
        "layer_types": ["full_attention"] * config.num_layers, "global_attn_every_n_layers": 1,
        "rope_parameters": {"full_attention": rope, "sliding_attention": rope},
        "global_rope_theta": config.rope_theta, "attention_dropout": 0.0, "embedding_dropout": 0.0,
        "tie_word_embeddings": config.tie_embeddings, "dtype": dtype, "bos_token_id": control.get("bos"),
        "cls_token_id": control.get("bos"), "eos_token_id": control.get("eos"), "sep_token_id": control.get("eos"),
        "pad_token_id": control.get("pad"), **labels(head),
    }


def our_config(public: Mapping[str, Any], *, where: object) -> tuple[TransformerConfig, Head]:
    """The configuration and head of a public config.json. Raises ModelError where ours is another function."""
    head = head_of(public, ARCHITECTURES, where)
    check_fixed(public, {**_FIXED, **({"decoder_bias": (False,)} if head == "tokens" else {}),
                         **({"classifier_pooling": ("mean",)} if kind_of(head) == "classes" else {})}, where)
    layers = public.get("num_hidden_layers")
    every = public.get("global_attn_every_n_layers")
    kinds = public.get("layer_types") or (["full_attention"] if every == 1 else ["sliding_attention"])
    if set(kinds) != {"full_attention"}:
        raise ModelError(f"has {sum(k != 'full_attention' for k in kinds)} layers of local attention of {layers}",
                         where=where, way_out="only global attention in every layer is supported")
    rope = (public.get("rope_parameters") or {}).get("full_attention") or {}
    check_fixed(rope, {"rope_type": ("default",)}, where)
    tree = {ours: public.get(theirs) for ours, theirs in _SIZES.items()} | {
        "shape": "encoder", "rope_theta": rope.get("rope_theta", public.get("global_rope_theta", 160_000.0)),
        "tie_embeddings": public.get("tie_word_embeddings", True)}
    return decoded(tree, [theirs for theirs in _SIZES.values() if theirs not in public], where), head
