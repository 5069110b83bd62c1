"""A GGUF file as a model and its tokenizer: what it says is put into the public form of its family, which is then read
as any folder is (``folder``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from cutaway.errors import ModelError
from cutaway.models.families.rope import KINDS
from cutaway.models.gguf_file import GGUF
from cutaway.models.stored import Tensors, half_split
from cutaway.text import public
from cutaway.text.tokenizer import Tokenizer
from cutaway.text.vocabulary import added_token, word_pattern

AGAIN = "get the file again"
# architectures that are supported: the model_type of each and whether its queries and keys are stored interleaved
_FAMILIES = {"llama": ("llama", True), "qwen2": ("qwen2", False), "qwen3": ("qwen3", False),
             "gemma3": ("gemma3_text", False)}
_ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM",
                  "gemma3_text": "Gemma3ForCausalLM"}
_SIZES = {"hidden_size": "embedding_length", "num_hidden_layers": "block_count",
          "intermediate_size": "feed_forward_length", "num_attention_heads": "attention.head_count",
          "max_position_embeddings": "context_length",
          "rms_norm_eps": "attention.layer_norm_rms_epsilon"}
LAYER = {"attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
          "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
          "attn_k_norm": "self_attn.k_norm", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
          "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
AROUND = {"post_attention_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm",
           "post_ffw_norm": "post_feedforward_layernorm"}
WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_PATTERNS = {"default": ("gpt2", False), "gpt-2": ("gpt2", False), "smollm": ("gpt2", True),
             "llama-bpe": ("gpt4", False), "qwen2": ("qwen2", False)}
_CONTROL = 3  # a token's type


def public_config(file: GGUF) -> dict[str, Any]:
    """config.json of the file's family. Raises ModelError for an architecture that is unknown and sizes that lack."""
    said = file.metadata
    name = said.get("general.architecture")
    if name not in _FAMILIES:
        raise ModelError(f"its architecture {name!r} is unknown", where=file.path,
                         way_out=f"supported are {', '.join(_FAMILIES)}")
    family = _FAMILIES[name][0]
    tree: dict[str, Any] = {ours: _said(file, f"{name}.{theirs}") for ours, theirs in _SIZES.items()}
    heads = tree["num_attention_heads"]
    theta = float(said.get(f"{name}.rope.freq_base", 10_000.0))
    tokens = said.get("tokenizer.ggml.tokens")
    rows = file.placed["token_embd.weight"].shape[0] if "token_embd.weight" in file.placed else 0
    return tree | {
        "model_type": family, "architectures": [_ARCHITECTURES[family]],
        "vocab_size": rows or len(tokens or []),
        "num_key_value_heads": said.get(f"{name}.attention.head_count_kv", heads),
        "head_dim": said.get(f"{name}.attention.key_length", tree["hidden_size"] // max(heads, 1)),
        "tie_word_embeddings": "output.weight" not in file.placed, "rope_theta": theta,
        **_rope(file, name, theta), **_own(file, name, theta)}


def _said(file: GGUF, key: str) -> Any:
    value = file.metadata.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ModelError(f"says {value!r} for {key}", where=file.path, way_out=AGAIN)
    return value


def _rope(file: GGUF, name: str, theta: float) -> dict[str, Any]:
    """How its rotary positions are stretched."""
    kind = file.metadata.get(f"{name}.rope.scaling.type", "none")
    if "rope_freqs.weight" in file.placed:
        raise ModelError("stretches its rotary positions by a table (rope_freqs)", where=file.path,
                         way_out="get the model's safetensors, whose config.json says how the table was made")
    if kind == "none":
        return {}
    if kind not in KINDS:
        raise ModelError(f"stretches its rotary positions by {kind!r}", where=file.path,
                         way_out=f"supported are {', '.join(KINDS[1:])}")
    tree = {"rope_type": kind, "rope_theta": theta, "factor": _said(file, f"{name}.rope.scaling.factor")}
    original = file.metadata.get(f"{name}.rope.scaling.original_context_length")
    return {"rope_parameters": tree | ({} if original is None else {"original_max_position_embeddings": original})}


def _own(file: GGUF, name: str, theta: float) -> dict[str, Any]:
    """What one family says beside the sizes."""
    if name != "gemma3":
        return {}
    size = file.metadata.get("gemma3.attention.key_length", 256)
    return {"query_pre_attn_scalar": size, "sliding_window": file.metadata.get("gemma3.attention.sliding_window", 1024),
            "hidden_activation": "gelu_pytorch_tanh", "rope_parameters": {
                "full_attention": _rope(file, name, theta).get("rope_parameters",
                                                              {"rope_type": "default", "rope_theta": theta}),
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0}}}


def public_tensors(file: GGUF, config: Mapping[str, Any]) -> Tensors:
    """The tensors under the names and in the order of rows of the family's public format."""
    name = file.metadata["general.architecture"]
    layer = LAYER | (AROUND if name == "gemma3" else {})
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    out: Tensors = {}
    for theirs, stored in file.tensors().items():
        stem, _, end = theirs.rpartition(".")
        block = stem.split(".")
        if stem in WHOLE:
            public_name = f"{WHOLE[stem]}.{end}"
        elif len(block) == 3 and block[0] == "blk" and block[2] in layer:
            public_name = f"model.layers.{block[1]}.{layer[block[2]]}.{end}"
        else:
            public_name = theirs  # is refused by its name
        turned = _FAMILIES[name][1] and block[-1] in heads
        shifted = name == "gemma3" and "norm" in stem
        read = stored.read
        if turned:
            read = _halves(read, heads[block[-1]])
        elif shifted:
            read = _less_one(read)
        out[public_name] = replace(stored, read=read)
    return out


def _halves(read: Callable[[], Tensor], heads: int) -> Callable[[], Tensor]:
    return lambda: half_split(read(), heads)


def _less_one(read: Callable[[], Tensor]) -> Callable[[], Tensor]:
    return lambda: read() - 1


def tokenizer(file: GGUF) -> Tokenizer:
    """The tokenizer in a file's metadata. Raises ModelError for a kind that is unknown."""
    said = file.metadata
    kind, before = said.get("tokenizer.ggml.model"), said.get("tokenizer.ggml.pre", "default")
    if kind != "gpt2" or before not in _PATTERNS:
        raise ModelError(f"its tokenizer is of the kind {kind!r}, {before!r}", where=file.path,
                         way_out=f"supported are gpt2 with {', '.join(_PATTERNS)}; or give the folder with the model's "
                                 "tokenizer.json")
    tokens, merges = said.get("tokenizer.ggml.tokens"), said.get("tokenizer.ggml.merges")
    if not isinstance(tokens, list) or not isinstance(merges, list) or len(set(tokens)) != len(tokens):
        raise ModelError("its vocabulary is damaged: tokens or merges lack, or a token is there twice", where=file.path,
                         way_out=AGAIN)
    pattern, digits = _PATTERNS[before]
    tree = public.byte_level({t: i for i, t in enumerate(tokens)}, merges,
                             pattern=None if pattern == "gpt2" else word_pattern(pattern), digits=digits,
                             where=file.path)
    types = said.get("tokenizer.ggml.token_type") or []
    tree["added_tokens"] = [added_token(i, tokens[i]) for i, of in enumerate(types[: len(tokens)])
                            if of == _CONTROL]
    names = {f"{role}_token": tokens[number] for role, number in _roles(file, len(tokens))}
    if said.get("tokenizer.ggml.add_bos_token") and "bos_token" in names:
        tree["post_processor"] = {
            "type": "TemplateProcessing", "single": [{"SpecialToken": {"id": names["bos_token"], "type_id": 0}},
                                                     {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {names["bos_token"]: {"id": names["bos_token"], "tokens": [names["bos_token"]],
                                                    "ids": [tokens.index(names["bos_token"])]}}}
    ends = [said.get(f"tokenizer.ggml.{key}_token_id") for key in ("eot", "eom")]
    return public.made(tree, names, template=str(said.get("tokenizer.chat_template", "")), where=file.path,
                       stops=[number for number in ends if isinstance(number, int) and number < len(tokens)])


def _roles(file: GGUF, count: int) -> Iterator[tuple[str, int]]:
    for role, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        number = file.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if isinstance(number, int) and number < count:
            yield role, number
        elif number is not None:
            raise ModelError(f"its {role} token {number!r} is not in its vocabulary of {count}", where=file.path,
                             way_out=AGAIN)
