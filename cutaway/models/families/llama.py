"""The format of Llama (Touvron et al. 2023; transformers' LlamaForCausalLM) and of those that write it with little
else: Mistral (a window), Qwen 2 (biases), Qwen 3 (normalised queries and keys).

Only names and the splitting of joined matrices differ from ours: rows of q, k and v stand in ``qkv``, gate and up in
``gate_up``, and the rotary layout is the same half-split one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cutaway.models.families.family import Form, check_fixed, decoded, head_dim, head_of, labels, variant
from cutaway.models.families.rope import rope_of, rope_parameters
from cutaway.models.heads import Head, HeadKind, kind_of
from cutaway.models.transformer import TransformerConfig

STEMS = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
_ENDS: dict[HeadKind, str] = {"tokens": "ForCausalLM", "scalar": "ForSequenceClassification",
                              "classes": "ForSequenceClassification", "vector": "Model"}
REPEATS, UNREAD = ("lm_head.weight",), ("rotary_emb.inv_freq",)
QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_LAYER = {
    "attention_norm.weight": ("input_layernorm.weight",),
    "attention.qkv.weight": tuple(f"{part}.weight" for part in QKV),
    "attention.out.weight": ("self_attn.o_proj.weight",),
    "feedforward_norm.weight": ("post_attention_layernorm.weight",),
    "feedforward.gate_up.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "feedforward.down.weight": ("mlp.down_proj.weight",),
}
_BIASES = {"qkv": {"attention.qkv.bias": tuple(f"{part}.bias" for part in QKV)}}
_BIASES |= {"none": {}, "all": {**_BIASES["qkv"], "attention.out.bias": ("self_attn.o_proj.bias",)}}
HEAD_NORMS = {"attention.query_norm.weight": ("self_attn.q_norm.weight",),
              "attention.key_norm.weight": ("self_attn.k_norm.weight",)}
# what our decoder computes: a public model that says otherwise is another function
_FIXED: dict[str, tuple[object, ...]] = {"hidden_act": ("silu",), "mlp_bias": (False, None)}
SIZES = {"vocab_size": "vocab_size", "hidden_size": "hidden_size", "num_layers": "num_hidden_layers",
         "num_heads": "num_attention_heads", "intermediate_size": "intermediate_size",
         "context_length": "max_position_embeddings", "norm_eps": "rms_norm_eps"}


def architectures(stem: str) -> dict[HeadKind, str]:
    """What transformers calls the model under each head."""
    return {kind: stem + end for kind, end in _ENDS.items()}


def names(config: TransformerConfig, head: Head) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each parameter of ours and the public tensors that its rows are, in order; a tied head has none of its own."""
    made = config.made
    layer = _LAYER | _BIASES[made.attention_biases] | (HEAD_NORMS if made.head_norm else {})
    yield from decoder_names(config, head, layer)


def decoder_names(config: TransformerConfig, head: Head,
                  layer: Mapping[str, tuple[str, ...]]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The same for blocks of the tensors in ``layer``."""
    base = "" if kind_of(head) == "vector" else "model."
    yield "backbone.embedding.weight", (f"{base}embed_tokens.weight",)
    for i in range(config.num_layers):
        for ours, public in layer.items():
            yield f"backbone.blocks.{i}.{ours}", tuple(f"{base}layers.{i}.{p}" for p in public)
    yield "backbone.norm.weight", (f"{base}norm.weight",)
    if kind_of(head) in ("scalar", "classes"):
        yield "head.weight", ("score.weight",)
    elif head == "tokens" and not config.tie_embeddings:
        yield "head.weight", ("lm_head.weight",)


def rows(ours: str, config: TransformerConfig) -> tuple[int, ...] | None:
    """How many rows of a joined matrix belong to each public tensor; None where there is only one."""
    if ours.endswith(("qkv.weight", "qkv.bias")):
        return tuple(h * config.head_size for h in (config.num_heads, config.num_kv_heads, config.num_kv_heads))
    if ours.endswith("gate_up.weight"):
        return (config.intermediate_size, config.intermediate_size)
    return None


def forms(ours: str, config: TransformerConfig) -> tuple[Form, ...] | None:
    """The numbers are ours."""
    return None


def public_config(config: TransformerConfig, head: Head, *, dtype: str, control: Mapping[str, int]) -> dict[str, Any]:
    """config.json; ``control`` holds the tokenizer's ids."""
    made = config.made
    local = len(made.local_layers)
    kinds = ["sliding_attention" if i in made.local_layers else "full_attention" for i in range(config.num_layers)]
    window = {"sliding_window": made.window if local else None}
    scaling = {} if made.stretch is None else {"rope_scaling": {
        k: v for k, v in rope_parameters(config.rope_theta, made.stretch).items() if k != "rope_theta"}}
    own: dict[str, Any] = {"mlp_bias": False} if made.family == "llama" else window
    if made.family.startswith("qwen"):
        own = {**window, "use_sliding_window": bool(local), "layer_types": kinds}
    return decoder_config(config, head, architectures(STEMS[made.family]), dtype=dtype, control=control) | own | {
        "hidden_act": "silu", "attention_bias": made.attention_biases != "none",
        # older readers know the first two of these, newer ones the third
        "rope_theta": config.rope_theta, **scaling,
        "rope_parameters": rope_parameters(config.rope_theta, made.stretch)}


def decoder_config(config: TransformerConfig, head: Head, named: Mapping[HeadKind, str], *, dtype: str,
                   control: Mapping[str, int]) -> dict[str, Any]:
    """What every decoder's config.json says."""
    return {
        "architectures": [named[kind_of(head)]], "model_type": config.made.family, "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size, "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers, "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads, "head_dim": config.head_size,
        "max_position_embeddings": config.context_length, "rms_norm_eps": config.norm_eps, "attention_dropout": 0.0,
        "tie_word_embeddings": config.tie_embeddings and head == "tokens", "use_cache": True, "dtype": dtype,
        "bos_token_id": control.get("bos"), "pad_token_id": control.get("pad"),
        "eos_token_id": [control["eos"], control["end"]] if control else None, **labels(head),
    }


def our_config(public: Mapping[str, Any], *, where: object) -> tuple[TransformerConfig, Head]:
    """The configuration and head of a public config.json. Raises ModelError for what our decoder does not compute."""
    family = str(public["model_type"])
    check_fixed(public, _FIXED, where)
    head = head_of(public, architectures(STEMS[family]), where)
    theta, stretch = rope_of(public, where=where)
    biases = {"qwen2": "qkv", "mistral": "none"}.get(family, "all" if public.get("attention_bias") else "none")
    window, local = _windows(public, family)
    made = variant("decoder", {
        "family": family, "attention_biases": biases, "head_norm": family == "qwen3", "window": window,
        "local_layers": local, "stretch": None if stretch is None else stretch.model_dump(),
        "head_dim": head_dim(public)})
    return decoder_of(public, made, theta, where=where), head


def decoder_of(public: Mapping[str, Any], made: dict[str, Any] | None, theta: float, *,
               where: object) -> TransformerConfig:
    """The sizes that every decoder's config.json says, with the variant."""
    tree = {ours: public.get(theirs) for ours, theirs in SIZES.items()} | {
        "num_kv_heads": public.get("num_key_value_heads") or public.get("num_attention_heads"), "rope_theta": theta,
        "tie_embeddings": public.get("tie_word_embeddings", False), "variant": made}
    return decoded(tree, [theirs for theirs in SIZES.values() if theirs not in public], where)


def _windows(public: Mapping[str, Any], family: str) -> tuple[int | None, list[int]]:
    """How far local layers see, and which they are: all of Mistral's; of Qwen's those that it names, if it asks."""
    window, layers = public.get("sliding_window"), range(int(public.get("num_hidden_layers") or 0))
    if window is None or family == "llama" or (family.startswith("qwen") and not public.get("use_sliding_window")):
        return None, []
    kinds = public.get("layer_types")
    if family == "mistral" and kinds is None:
        return window, list(layers)
    if kinds is None:
        return window, [i for i in layers if i >= int(public.get("max_window_layers", 28))]
    return window, [i for i, kind in enumerate(kinds) if kind == "sliding_attention"]
