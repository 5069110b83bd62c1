"""T5's public format (Raffel et al. 2020, arXiv 1910.10683; transformers' T5ForConditionalGeneration): v1.1 and FLAN-T5
with a gated feed-forward, v1.0 with a plain one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cutaway.errors import ModelError
from cutaway.models.families.family import Form, check_fixed, decoded, head_dim, head_of, variant
from cutaway.models.heads import Head, HeadKind, kind_of
from cutaway.models.transformer import TransformerConfig
from cutaway.nn.position import BUCKETS, FARTHEST

ARCHITECTURES: dict[HeadKind, str] = {"tokens": "T5ForConditionalGeneration"}
REPEATS = ("lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
# cross-attention has no positions; some old files hold a table that nobody reads
UNREAD = ("layer.1.EncDecAttention.relative_attention_bias.weight",)
_SELF = {"attention_norm.weight": ("layer_norm",), "attention.qkv.weight": ("SelfAttention.q", "SelfAttention.k",
         "SelfAttention.v"), "attention.out.weight": ("SelfAttention.o",)}
_CROSS = {"cross_norm.weight": ("layer_norm",), "cross.query.weight": ("EncDecAttention.q",),
          "cross.key_value.weight": ("EncDecAttention.k", "EncDecAttention.v"),
          "cross.out.weight": ("EncDecAttention.o",)}
_GATED = {"feedforward_norm.weight": ("layer_norm",), "feedforward.gate_up.weight": ("DenseReluDense.wi_0",
          "DenseReluDense.wi_1"), "feedforward.down.weight": ("DenseReluDense.wo",)}
_PLAIN = {"feedforward_norm.weight": ("layer_norm",), "feedforward.up.weight": ("DenseReluDense.wi",),
          "feedforward.down.weight": ("DenseReluDense.wo",)}
_FEEDS: dict[str, dict[str, object]] = {"gated-gelu": {}, "relu": {"gated": False, "activation": "relu"}}
_FIXED: dict[str, tuple[object, ...]] = {
    "feed_forward_proj": ("relu", "gated-gelu"), "relative_attention_num_buckets": (BUCKETS,),
    "relative_attention_max_distance": (FARTHEST,), "is_encoder_decoder": (True,)}
_SIZES = {"vocab_size": "vocab_size", "hidden_size": "d_model", "num_layers": "num_layers", "num_heads": "num_heads",
          "num_kv_heads": "num_heads", "intermediate_size": "d_ff", "norm_eps": "layer_norm_epsilon"}


def names(config: TransformerConfig, head: Head) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each parameter of ours and the public tensors that its rows are, in order."""
    yield "backbone.encoder.embedding.weight", ("shared.weight",)
    feed = _GATED if config.made.gated else _PLAIN
    for side, parts in (("encoder", (_SELF, feed)), ("decoder", (_SELF, _CROSS, feed))):
        for i in range(config.num_layers):
            for n, part in enumerate(parts):
                for ours, public in part.items():
                    yield (f"backbone.{side}.blocks.{i}.{ours}",
                           tuple(f"{side}.block.{i}.layer.{n}.{p}.weight" for p in public))
        yield f"backbone.{side}.bias.weight", (f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",)
        yield f"backbone.{side}.norm.weight", (f"{side}.final_layer_norm.weight",)
    if not config.tie_embeddings:
        yield "head.weight", ("lm_head.weight",)


def rows(ours: str, config: TransformerConfig) -> tuple[int, ...] | None:
    """How many rows of a joined matrix belong to each public tensor; None where there is only one."""
    inner = config.num_heads * config.head_size
    if ours.endswith("qkv.weight"):
        return (inner,) * 3
    if ours.endswith("key_value.weight"):
        return (inner,) * 2
    if ours.endswith("gate_up.weight"):
        return (config.intermediate_size,) * 2
    return None


def forms(ours: str, config: TransformerConfig) -> tuple[Form, ...] | None:
    """T5 does not scale its scores: its queries are ours times what we multiply scores with."""
    if ours.endswith("attention.qkv.weight"):
        return (Form(scale=config.score_scale), Form(), Form())
    return (Form(scale=config.score_scale),) if ours.endswith("cross.query.weight") else None


def public_config(config: TransformerConfig, head: Head, *, dtype: str, control: Mapping[str, int]) -> dict[str, Any]:
    """config.json; a target begins with our bos."""
    if head != "tokens":
        raise ModelError(f"an encoder-decoder with a head of kind {kind_of(head)!r} has no public format",
                         way_out="let it write the label, or use an encoder")
    return {
        "architectures": [ARCHITECTURES["tokens"]], "model_type": "t5", "vocab_size": config.vocab_size,
        "d_model": config.hidden_size, "d_kv": config.head_size, "d_ff": config.intermediate_size,
        "num_layers": config.num_layers, "num_decoder_layers": config.num_layers, "num_heads": config.num_heads,
        "feed_forward_proj": "gated-gelu" if config.made.gated else "relu", "is_gated_act": config.made.gated,
        "dense_act_fn": "gelu_new" if config.made.gated else "relu",
        "layer_norm_epsilon": config.norm_eps, "n_positions": config.context_length, "dropout_rate": 0.0,
        "relative_attention_num_buckets": BUCKETS, "relative_attention_max_distance": FARTHEST,
        "is_encoder_decoder": True, "tie_word_embeddings": config.tie_embeddings,
        "scale_decoder_outputs": config.traits.head_scale != 1.0, "use_cache": True, "dtype": dtype,
        "decoder_start_token_id": control.get("bos"), "eos_token_id": control.get("eos"),
        "pad_token_id": control.get("pad"),
    }


def our_config(public: Mapping[str, Any], *, where: object) -> tuple[TransformerConfig, Head]:
    """The configuration of a public config.json. Raises ModelError for what our encoder-decoder does not compute."""
    head = head_of(public, ARCHITECTURES, where)
    check_fixed(public, {**_FIXED, "num_decoder_layers": (public.get("num_layers"), None)}, where)
    size = head_dim({"hidden_size": public.get("d_model"), "num_attention_heads": public.get("num_heads"),
                     "head_dim": public.get("d_kv")})
    feed = _FEEDS[str(public.get("feed_forward_proj", "relu"))]
    tied = bool(public.get("tie_word_embeddings", True))
    scaled = bool(public.get("scale_decoder_outputs", tied))
    scale = None if scaled == tied else float(public.get("d_model") or 1) ** -0.5 if scaled else 1.0
    made = variant("encoder-decoder", {**feed, "head_dim": size, "head_scale": scale})
    tree = {ours: public.get(theirs) for ours, theirs in _SIZES.items()} | {
        "shape": "encoder-decoder", "context_length": public.get("n_positions", 512),
        "tie_embeddings": tied, "variant": made}
    return decoded(tree, [theirs for theirs in _SIZES.values() if theirs not in public], where), head
