"""A model as one GGUF file, for llama.cpp and what is built on it: the way back of ``gguf``, tokenizer and chat
template included."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from cutaway.errors import ModelError
from cutaway.models.folder import public_tensors
from cutaway.models.gguf import AROUND, LAYER, WHOLE
from cutaway.models.model import Model
from cutaway.text.tokenizer import Tokenizer
from cutaway.text.vocabulary import word_pattern

if TYPE_CHECKING:
    import gguf

KINDS = ("f32", "f16", "bf16", "q8_0", "q4_0")
# our family's architecture there, and whether its queries and keys are stored interleaved
_ARCHITECTURES = {"llama": ("llama", True), "mistral": ("llama", True), "qwen2": ("qwen2", False),
                  "qwen3": ("qwen3", False), "gemma3_text": ("gemma3", False)}
_FILE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 7, "bf16": 32}
_NORMAL, _CONTROL, _UNUSED = 1, 3, 5


def write_gguf(path: str | Path, model: Model, tokenizer: Tokenizer, *, kind: str = "f16", name: str = "") -> None:
    """The whole file or none. Norms and biases are float32, matrices of the ``kind``; one whose rows no block divides
    is float16. Raises ModelError for a model or a tokenizer that the format has no place for."""
    import gguf

    path, family = Path(path), model.config.traits.family
    if kind not in KINDS:
        raise ModelError(f"GGUF of the kind {kind!r} is not written", way_out=f"choose one of {', '.join(KINDS)}")
    if family not in _ARCHITECTURES or model.head_kind != "tokens":
        raise ModelError(f"a model of the family {family} with a head of {model.head_kind} has no place in GGUF here",
                         way_out=f"supported are decoders of {', '.join(_ARCHITECTURES)}")
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        writer = gguf.GGUFWriter(draft, _ARCHITECTURES[family][0])
        _describe(writer, model, name or path.stem, kind)
        _tokenize(writer, tokenizer, model.vocab_size)
        for tensor, data, which in _laid(model, kind):
            writer.add_tensor(tensor, data, raw_dtype=which)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        draft.replace(path)
    except OSError as error:
        raise ModelError(f"cannot be written ({error.strerror or error})", where=path) from None
    finally:
        draft.unlink(missing_ok=True)


def _describe(writer: gguf.GGUFWriter, model: Model, name: str, kind: str) -> None:
    c = model.config
    made = c.made
    writer.add_name(name)
    writer.add_file_type(_FILE_TYPES[kind])
    writer.add_quantization_version(2)
    writer.add_vocab_size(c.vocab_size)
    writer.add_context_length(c.context_length)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_heads)
    writer.add_head_count_kv(c.num_kv_heads)
    writer.add_key_length(c.head_size)
    writer.add_value_length(c.head_size)
    writer.add_rope_dimension_count(c.head_size)
    writer.add_layer_norm_rms_eps(c.norm_eps)
    writer.add_rope_freq_base(c.rope_theta)
    if made.family == "gemma3_text":
        writer.add_sliding_window(made.window or c.context_length)
    elif made.local_layers:
        raise ModelError("layers that see a window have no place in GGUF here", way_out="export it as safetensors")
    if made.stretch is not None:
        if made.stretch.kind != "linear":
            raise ModelError(f"rotary positions stretched by {made.stretch.kind} are not written to GGUF",
                             way_out="export it as safetensors")
        writer.add_string(f"{writer.arch}.rope.scaling.type", "linear")
        writer.add_rope_scaling_factor(made.stretch.factor)


def _laid(model: Model, kind: str) -> Iterator[tuple[str, np.ndarray[Any, Any], Any]]:
    """Every tensor under its name there, as bytes of its kind."""
    import gguf

    family, c = model.config.traits.family, model.config
    turned = _ARCHITECTURES[family][1]
    heads = {"attn_q": c.num_heads, "attn_k": c.num_kv_heads}
    for public, tensor in public_tensors(model).items():
        there, stem = _name(public, around=family == "gemma3_text")
        if turned and stem in heads:
            tensor = _side_by_side(tensor, heads[stem])
        if family == "gemma3_text" and "norm" in stem:
            tensor = tensor + 1
        data = tensor.to(torch.float32).numpy()
        which = gguf.GGMLQuantizationType[_kind_of(data, kind).upper()]
        yield there, gguf.quants.quantize(data, which), which


def _kind_of(data: np.ndarray[Any, Any], kind: str) -> str:
    if data.ndim < 2:
        return "f32"
    return "f16" if kind.startswith("q") and data.shape[-1] % 32 else kind


def _name(public: str, *, around: bool) -> tuple[str, str]:
    stem, _, end = public.rpartition(".")
    whole = {ours: theirs for theirs, ours in WHOLE.items()}
    if stem in whole:
        return f"{whole[stem]}.{end}", whole[stem]
    layer = {ours: theirs for theirs, ours in (LAYER | (AROUND if around else {})).items()}
    number, _, rest = stem.removeprefix("model.layers.").partition(".")
    return f"blk.{number}.{layer[rest]}.{end}", layer[rest]


def _side_by_side(rows: Tensor, heads: int) -> Tensor:
    """Rows of each head with the two of a pair beside each other."""
    return rows.view(heads, 2, -1, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def _tokenize(writer: gguf.GGUFWriter, tokenizer: Tokenizer, vocab_size: int) -> None:
    tree = json.loads(tokenizer.json)
    before = _before(tree)
    if tree["model"].get("type") != "BPE" or tokenizer.spelling.name != "bytes" or before is None:
        raise ModelError(f"a tokenizer of the kind {tokenizer.kind!r} that cuts words its own way has no place in GGUF",
                         way_out="byte-level BPE is supported, cut as by GPT-2, SmolLM, Llama 3 or Qwen 2")
    tokens = [f"<unused{i}>" for i in range(vocab_size)]
    types = [_UNUSED] * vocab_size
    for token, number in tree["model"]["vocab"].items():
        tokens[number], types[number] = token, _NORMAL
    for added in tree["added_tokens"]:
        tokens[added["id"]], types[added["id"]] = added["content"], _CONTROL if added.get("special") else _NORMAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(before)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in tree["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.bos_id)
    writer.add_eos_token_id(tokenizer.eos_id)
    writer.add_pad_token_id(tokenizer.pad_id)
    writer.add_eot_token_id(tokenizer.end_id)
    writer.add_add_bos_token(bool(tokenizer.begin_ids))
    writer.add_add_space_prefix(False)
    if tokenizer.roles.template:
        writer.add_chat_template(tokenizer.roles.template)


def _before(tree: dict[str, Any]) -> str | None:
    """llama.cpp's name of how a tokenizer.json cuts text into words, or None where it has none."""
    steps = tree.get("pre_tokenizer") or {}
    parts = steps.get("pretokenizers") or [steps]
    kinds = [part.get("type") for part in parts]
    if kinds == ["ByteLevel"]:
        return "gpt-2" if parts[0].get("use_regex") else None
    if kinds == ["Digits", "ByteLevel"]:
        return "smollm"
    if kinds != ["Split", "ByteLevel"]:
        return None
    regex = str((parts[0].get("pattern") or {}).get("Regex"))
    return {word_pattern("gpt4"): "llama-bpe", word_pattern("qwen2"): "qwen2"}.get(regex)
