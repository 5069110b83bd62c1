"""GPT-2's format (Radford et al. 2019; transformers' GPT2LMHeadModel): learned positions, layer norms and products with
biases, matrices turned (``Conv1D``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cutaway.models.families.family import Form, check_fixed, decoded, head_of, labels, variant
from cutaway.models.heads import Head, HeadKind, kind_of
from cutaway.models.transformer import TransformerConfig

ARCHITECTURES: dict[HeadKind, str] = {
    "tokens": "GPT2LMHeadModel", "scalar": "GPT2ForSequenceClassification", "classes": "GPT2ForSequenceClassification",
    "vector": "GPT2Model"}
REPEATS = ("lm_head.weight",)
UNREAD = (".attn.bias", ".attn.masked_bias")  # who may see whom, written out
_LAYER = {"attention_norm": "ln_1", "attention.qkv": "attn.c_attn", "attention.out": "attn.c_proj",
          "feedforward_norm": "ln_2", "feedforward.up": "mlp.c_fc", "feedforward.down": "mlp.c_proj"}
_FIXED: dict[str, tuple[object, ...]] = {
    "activation_function": ("gelu_new",), "scale_attn_weights": (True,), "add_cross_attention": (False,),
    "scale_attn_by_inverse_layer_idx": (False,)}
_SIZES = {"vocab_size": "vocab_size", "hidden_size": "n_embd", "num_layers": "n_layer", "num_heads": "n_head",
          "num_kv_heads": "n_head", "context_length": "n_positions", "norm_eps": "layer_norm_epsilon"}


def names(config: TransformerConfig, head: Head) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each parameter of ours and its public tensor."""
    base = "" if kind_of(head) == "vector" else "transformer."
    yield "backbone.embedding.weight", (f"{base}wte.weight",)
    yield "backbone.positions.weight", (f"{base}wpe.weight",)
    for i in range(config.num_layers):
        for ours, public in _LAYER.items():
            for part in ("weight", "bias"):
                yield f"backbone.blocks.{i}.{ours}.{part}", (f"{base}h.{i}.{public}.{part}",)
    for part in ("weight", "bias"):
        yield f"backbone.norm.{part}", (f"{base}ln_f.{part}",)
    if kind_of(head) in ("scalar", "classes"):
        yield "head.weight", ("score.weight",)
    elif head == "tokens" and not config.tie_embeddings:
        yield "head.weight", ("lm_head.weight",)


def rows(ours: str, config: TransformerConfig) -> tuple[int, ...] | None:
    """No matrix is split."""
    return None


def forms(ours: str, config: TransformerConfig) -> tuple[Form, ...] | None:
    """Matrices of blocks are turned."""
    inside = ours.startswith("backbone.blocks.") and "norm" not in ours and ours.endswith("weight")
    return (Form(turned=True),) if inside else None


def public_config(config: TransformerConfig, head: Head, *, dtype: str, control: Mapping[str, int]) -> dict[str, Any]:
    """config.json."""
    return {
        "architectures": [ARCHITECTURES[kind_of(head)]], "model_type": "gpt2", "vocab_size": config.vocab_size,
        "n_embd": config.hidden_size, "n_layer": config.num_layers, "n_head": config.num_heads,
        "n_inner": config.intermediate_size, "n_positions": config.context_length,
        "layer_norm_epsilon": config.norm_eps, "activation_function": "gelu_new", "resid_pdrop": 0.0, "embd_pdrop": 0.0,
        "attn_pdrop": 0.0, "tie_word_embeddings": config.tie_embeddings and head == "tokens", "use_cache": True,
        "dtype": dtype, "bos_token_id": control.get("bos"), "pad_token_id": control.get("pad"),
        "eos_token_id": control.get("eos"), **labels(head)}


def our_config(public: Mapping[str, Any], *, where: object) -> tuple[TransformerConfig, Head]:
    """The configuration and head of a public config.json. Raises ModelError for what our decoder does not compute."""
    check_fixed(public, _FIXED, where)
    head = head_of(public, ARCHITECTURES, where)
    made = variant("decoder", {
        "family": "gpt2", "norm": "layer", "norm_bias": True, "gated": False, "activation": "gelu_tanh",
        "inner_bias": True, "attention_biases": "all", "positions": "learned"})
    tree = {ours: public.get(theirs) for ours, theirs in _SIZES.items()} | {
        "intermediate_size": public.get("n_inner") or 4 * int(public.get("n_embd") or 0),
        "tie_embeddings": public.get("tie_word_embeddings", True), "variant": made}
    return decoded(tree, [theirs for theirs in _SIZES.values() if theirs not in public], where), head
