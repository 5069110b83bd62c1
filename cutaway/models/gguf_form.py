"""What GGUF calls the sizes and tensors of each architecture, both ways: data for ``gguf`` and ``gguf_write``.

Names: github.com/ggml-org/llama.cpp, gguf-py/gguf/constants.py and tensor_mapping.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cutaway.models.heads import Pooling


@dataclass(frozen=True, slots=True)
class Architecture:
    """One of GGUF's. ``sizes``: a key of config.json and that of the metadata behind the architecture's name; ``whole``
    and ``layer``: a tensor there and its public name; ``paired``: the two of a rotated pair lie side by side in the
    rows of queries and keys; ``turned``: matrices that the public format has the other way round; ``shifted``: norms
    are one more than the public ones."""

    model_type: str
    named: str
    sizes: Mapping[str, str]
    whole: Mapping[str, str]
    block: str
    layer: Mapping[str, str]
    paired: bool = False
    turned: tuple[str, ...] = ()
    shifted: bool = False
    rotary: bool = True
    poolings: Mapping[int, Pooling] = field(default_factory=dict)

    def public(self, stem: str) -> str | None:
        """The public name of a tensor without its end; None for one that is unknown."""
        block = stem.split(".")
        if stem in self.whole:
            return self.whole[stem]
        if len(block) == 3 and block[0] == "blk" and block[2] in self.layer:
            return f"{self.block}.{block[1]}.{self.layer[block[2]]}"
        return None

    def theirs(self, public: str) -> str:
        """The name there of a public tensor without its end. Raises KeyError for one that has no place."""
        whole = {ours: theirs for theirs, ours in self.whole.items()}
        if public in whole:
            return whole[public]
        number, _, rest = public.removeprefix(f"{self.block}.").partition(".")
        return f"blk.{number}.{({ours: theirs for theirs, ours in self.layer.items()})[rest]}"


_SIZES = {"hidden_size": "embedding_length", "num_hidden_layers": "block_count",
          "intermediate_size": "feed_forward_length", "num_attention_heads": "attention.head_count",
          "max_position_embeddings": "context_length"}
_RMS = {**_SIZES, "rms_norm_eps": "attention.layer_norm_rms_epsilon"}
_LAYER = {"attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
          "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
          "attn_k_norm": "self_attn.k_norm", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
          "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_AROUND = {"post_attention_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm",
           "post_ffw_norm": "post_feedforward_layernorm"}
_WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_GPT2 = {"n_embd": "embedding_length", "n_layer": "block_count", "n_inner": "feed_forward_length",
         "n_head": "attention.head_count", "n_positions": "context_length",
         "layer_norm_epsilon": "attention.layer_norm_epsilon"}
_GPT2_LAYER = {"attn_norm": "ln_1", "attn_qkv": "attn.c_attn", "attn_output": "attn.c_proj", "ffn_norm": "ln_2",
               "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}
_BERT_LAYER = {"attn_q": "attention.self.query", "attn_k": "attention.self.key", "attn_v": "attention.self.value",
               "attn_output": "attention.output.dense", "attn_output_norm": "attention.output.LayerNorm",
               "ffn_up": "intermediate.dense", "ffn_down": "output.dense", "layer_output_norm": "output.LayerNorm"}
_EMBEDDINGS = {"token_embd": "embeddings.word_embeddings", "position_embd": "embeddings.position_embeddings",
               "token_types": "embeddings.token_type_embeddings", "token_embd_norm": "embeddings.LayerNorm"}


def _decoder(model_type: str, named: str, layer: Mapping[str, str] = _LAYER, *, paired: bool = False,
             shifted: bool = False) -> Architecture:
    return Architecture(model_type, f"{named}ForCausalLM", _RMS, _WHOLE, "model.layers", layer, paired=paired,
                        shifted=shifted)


ARCHITECTURES = {
    "llama": _decoder("llama", "Llama", paired=True), "qwen2": _decoder("qwen2", "Qwen2"),
    "qwen3": _decoder("qwen3", "Qwen3"), "gemma3": _decoder("gemma3_text", "Gemma3", _LAYER | _AROUND, shifted=True),
    "gpt2": Architecture("gpt2", "GPT2LMHeadModel", _GPT2, {
        "token_embd": "transformer.wte", "position_embd": "transformer.wpe", "output_norm": "transformer.ln_f",
        "output": "lm_head"}, "transformer.h", _GPT2_LAYER, rotary=False,
        turned=("attn_qkv", "attn_output", "ffn_up", "ffn_down")),
    "bert": Architecture("bert", "BertModel", {**_SIZES, "layer_norm_eps": "attention.layer_norm_epsilon"}, _EMBEDDINGS,
                         "encoder.layer", _BERT_LAYER, rotary=False,
                         poolings={1: "mean", 2: "first", 3: "last"})}
OF_FAMILY = {"mistral": "llama", **{a.model_type: name for name, a in ARCHITECTURES.items()}}
EVERY = 6  # of Gemma's layers the last of so many is global, where nothing else is said
LARGEST_GEMMA = 62  # layers: of that one the scores are divided otherwise
