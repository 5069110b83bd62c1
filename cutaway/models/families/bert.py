"""BERT's format (Devlin et al. 2018; MiniLM's too) and RoBERTa's (Liu et al. 2019): norms behind each addition, learned
positions, token types, biases everywhere. Every text is of the first type.

RoBERTa counts positions from behind its padding id, so the first rows of its table are nobody's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cutaway.errors import FOLDER_AGAIN, ModelError
from cutaway.models.families.family import Form, check_fixed, decoded, head_of, labels, variant
from cutaway.models.heads import Head, HeadKind, kind_of
from cutaway.models.transformer import TransformerConfig

_STEMS = {"bert": "Bert", "roberta": "Roberta"}
_ENDS: dict[HeadKind, str] = {"tokens": "ForMaskedLM", "classes": "ForSequenceClassification", "vector": "Model"}
REPEATS = ("cls.predictions.decoder.weight", "lm_head.decoder.weight")
# tables; a pooler where none is asked for; the head of a task that was for pre-training alone
UNREAD = ("embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias", "cls.seq_relationship.weight",
          "cls.seq_relationship.bias", "cls.predictions.decoder.bias", "lm_head.decoder.bias", "cls.predictions.bias",
          "lm_head.bias")
_LAYER = {"attention.qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
          "attention.out": ("attention.output.dense",), "attention_norm": ("attention.output.LayerNorm",),
          "feedforward.up": ("intermediate.dense",), "feedforward.down": ("output.dense",),
          "feedforward_norm": ("output.LayerNorm",)}
_TOKENS = {"bert": {"head.transform.dense.weight": "cls.predictions.transform.dense.weight",
                    "head.transform.dense.bias": "cls.predictions.transform.dense.bias",
                    "head.transform.norm.weight": "cls.predictions.transform.LayerNorm.weight",
                    "head.transform.norm.bias": "cls.predictions.transform.LayerNorm.bias",
                    "head.bias": "cls.predictions.bias"},
           "roberta": {"head.transform.dense.weight": "lm_head.dense.weight",
                       "head.transform.dense.bias": "lm_head.dense.bias",
                       "head.transform.norm.weight": "lm_head.layer_norm.weight",
                       "head.transform.norm.bias": "lm_head.layer_norm.bias", "head.bias": "lm_head.bias"}}
_CLASSES = {"bert": {"head.transform.dense": "bert.pooler.dense", "head": "classifier"},
            "roberta": {"head.transform.dense": "classifier.dense", "head": "classifier.out_proj"}}
_DECODERS = {"bert": "cls.predictions.decoder", "roberta": "lm_head.decoder"}  # apart from the embedding
_PARTS = ("weight", "bias")
_FIXED: dict[str, tuple[object, ...]] = {
    "hidden_act": ("gelu",), "position_embedding_type": ("absolute",), "is_decoder": (False,),
    "add_cross_attention": (False,)}
_SIZES = {"vocab_size": "vocab_size", "hidden_size": "hidden_size", "num_layers": "num_hidden_layers",
          "num_heads": "num_attention_heads", "num_kv_heads": "num_attention_heads",
          "intermediate_size": "intermediate_size", "norm_eps": "layer_norm_eps"}


def _architectures(family: str) -> dict[HeadKind, str]:
    return {kind: _STEMS[family] + end for kind, end in _ENDS.items()}


def names(config: TransformerConfig, head: Head) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each parameter of ours and the public tensors that its rows are, in order."""
    family, kind = config.made.family, kind_of(head)
    base = "" if kind == "vector" else f"{family}."
    yield "backbone.embedding.weight", (f"{base}embeddings.word_embeddings.weight",)
    yield "backbone.positions.weight", (f"{base}embeddings.position_embeddings.weight",)
    yield "backbone.token_types.weight", (f"{base}embeddings.token_type_embeddings.weight",)
    for part in _PARTS:
        yield f"backbone.embedding_norm.{part}", (f"{base}embeddings.LayerNorm.{part}",)
    for i in range(config.num_layers):
        for ours, public in _LAYER.items():
            for part in _PARTS:
                yield (f"backbone.blocks.{i}.{ours}.{part}",
                       tuple(f"{base}encoder.layer.{i}.{p}.{part}" for p in public))
    if kind == "tokens":
        apart = {} if config.tie_embeddings else {f"head.{part}": f"{_DECODERS[family]}.{part}" for part in _PARTS}
        yield from ((ours, (public,)) for ours, public in (_TOKENS[family] | apart).items())
    elif kind == "classes":
        for ours, theirs in _CLASSES[family].items():
            for part in _PARTS:
                yield f"{ours}.{part}", (f"{theirs}.{part}",)


def rows(ours: str, config: TransformerConfig) -> tuple[int, ...] | None:
    """How many rows of a joined matrix belong to each public tensor; None where there is only one."""
    return (config.hidden_size,) * 3 if ".qkv." in ours else None


def forms(ours: str, config: TransformerConfig) -> tuple[Form, ...] | None:
    """RoBERTa's table of positions begins with two rows of nobody."""
    behind = ours == "backbone.positions.weight" and config.made.family == "roberta"
    return (Form(skip=2),) if behind else None


def public_config(config: TransformerConfig, head: Head, *, dtype: str, control: Mapping[str, int]) -> dict[str, Any]:
    """config.json."""
    made, kind = config.made, kind_of(head)
    if kind not in _ENDS:
        raise ModelError(f"{_STEMS[made.family]}'s format has no place for a head of kind {kind!r}",
                         way_out=f"use one of {', '.join(_ENDS)}")
    more = 2 if made.family == "roberta" else 0
    return {
        "architectures": [_architectures(made.family)[kind]], "model_type": made.family,
        "vocab_size": config.vocab_size, "hidden_size": config.hidden_size, "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads, "intermediate_size": config.intermediate_size, "hidden_act": "gelu",
        "max_position_embeddings": config.context_length + more, "type_vocab_size": made.token_types,
        "layer_norm_eps": config.norm_eps, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
        "tie_word_embeddings": config.tie_embeddings, "dtype": dtype, "bos_token_id": control.get("bos"),
        "eos_token_id": control.get("eos"), "pad_token_id": control.get("pad", 1 if more else 0), **labels(head)}


def our_config(public: Mapping[str, Any], *, where: object) -> tuple[TransformerConfig, Head]:
    """The configuration and head of a public config.json. Raises ModelError for what our encoder does not compute."""
    family = str(public["model_type"])
    check_fixed(public, _FIXED, where)
    head = head_of(_as_masked(public), _architectures(family), where)
    places, pad = public.get("max_position_embeddings"), public.get("pad_token_id", 1)
    if not isinstance(places, int):
        raise ModelError("max_position_embeddings is missing", where=where, way_out=FOLDER_AGAIN)
    if family == "roberta" and pad != 1:
        raise ModelError(f"pad_token_id is {pad}, from which RoBERTa counts its positions", where=where,
                         way_out="only 1 is supported")
    made = variant("encoder", {
        "family": family, "norm_bias": True, "order": "post", "first_norm": True, "gated": False, "inner_bias": True,
        "attention_biases": "all", "positions": "learned", "token_types": public.get("type_vocab_size", 2),
        "transform_bias": True, "head_bias": True, "pooler": True, "pooling": "first"})
    tree = {ours: public.get(theirs) for ours, theirs in _SIZES.items()} | {
        "shape": "encoder", "context_length": places - (2 if family == "roberta" else 0),
        "tie_embeddings": public.get("tie_word_embeddings", True), "variant": made}
    return decoded(tree, [theirs for theirs in _SIZES.values() if theirs not in public], where), head


def _as_masked(public: Mapping[str, Any]) -> Mapping[str, Any]:
    """A folder of pre-training holds a masked model and one head more."""
    named = public.get("architectures") or []
    swapped = [name.replace("ForPreTraining", "ForMaskedLM") for name in named]
    return {**public, "architectures": swapped}
