"""A model as one GGUF file, for llama.cpp and what is built on it: the way back of ``gguf``, tokenizer and chat
template included."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from cutaway.errors import ModelError
from cutaway.models import gguf_rope
from cutaway.models.folder import public_tensors, refuse_larger
from cutaway.models.gguf import UNIT
from cutaway.models.gguf_form import ARCHITECTURES, EVERY, LARGEST_GEMMA, OF_FAMILY, Architecture
from cutaway.models.gguf_vocabulary import describe_tokens
from cutaway.models.heads import Vector
from cutaway.models.model import Model
from cutaway.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import gguf

KINDS = ("f32", "f16", "bf16", "q8_0", "q4_0")
_FILE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 7, "bf16": 32}
_WAY_OUT = "export it as safetensors"


def write_gguf(path: str | Path, model: Model, tokenizer: Tokenizer, *, kind: str = "f16", name: str = "") -> None:
    """The whole file or none. Norms, biases and tables of positions are float32, matrices of the ``kind``; one whose
    rows no block divides is float16. Raises ModelError for a model or a tokenizer that the format has no place for."""
    import gguf

    path, family = Path(path), model.config.traits.family
    if kind not in KINDS:
        raise ModelError(f"GGUF of the kind {kind!r} is not written", way_out=f"choose one of {', '.join(KINDS)}")
    there = OF_FAMILY.get(family, "")
    if model.head_kind != ("vector" if there == "bert" else "tokens") or not there:
        raise ModelError(f"a model of the family {family} with a head of {model.head_kind} has no place in GGUF here",
                         way_out=f"supported are decoders of {', '.join(n for n in OF_FAMILY if n != 'bert')}, and "
                                 "BERT's vectors")
    refuse_larger(tokenizer, model, path)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        writer = gguf.GGUFWriter(draft, there)
        _describe(writer, model, name or path.stem, kind)
        describe_tokens(writer, tokenizer, model.vocab_size)
        for tensor, data, which in _laid(model, ARCHITECTURES[there], kind):
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
    writer.add_name(name)
    writer.add_file_type(_FILE_TYPES[kind])
    writer.add_quantization_version(2)
    writer.add_vocab_size(c.vocab_size)
    writer.add_context_length(c.context_length)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_heads)
    if writer.arch in ("gpt2", "bert"):
        writer.add_layer_norm_eps(c.norm_eps)
        _pooled(writer, model)
        return
    writer.add_head_count_kv(c.num_kv_heads)
    writer.add_key_length(c.head_size)
    writer.add_value_length(c.head_size)
    writer.add_rope_dimension_count(c.head_size)
    writer.add_layer_norm_rms_eps(c.norm_eps)
    writer.add_rope_freq_base(c.rope_theta)
    _windows(writer, model)
    if c.made.stretch is not None:
        for key, value in gguf_rope.described(writer.arch, c.made.stretch).items():
            if isinstance(value, str):
                writer.add_string(key, value)
            elif isinstance(value, int):
                writer.add_uint32(key, value)
            else:
                writer.add_float32(key, value)


def _pooled(writer: gguf.GGUFWriter, model: Model) -> None:
    """How an encoder's vector is made."""
    import gguf

    head = model.head_spec
    if not isinstance(head, Vector):
        return
    kinds = {how: kind for kind, how in ARCHITECTURES["bert"].poolings.items()}
    if model.pooling not in kinds:
        raise ModelError(f"vectors that pool tokens by {model.pooling} have no place in GGUF", way_out=_WAY_OUT)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType(kinds[model.pooling]))
    writer.add_token_type_count(model.config.made.token_types)
    writer.add_bool(UNIT, head.unit)


def _windows(writer: gguf.GGUFWriter, model: Model) -> None:
    """Which layers see a window: those of Gemma 3. llama.cpp has none for the others, and one as wide as the context
    is none."""
    c, made = model.config, model.config.made
    narrow = bool(made.local_layers) and (made.window or 0) < c.context_length
    if writer.arch != "gemma3":
        if narrow:
            raise ModelError(f"layers of the family {made.family} that see a window of {made.window} have no place in "
                             "GGUF", way_out=_WAY_OUT)
        return
    width = c.hidden_size // c.num_heads if c.num_layers == LARGEST_GEMMA else c.head_size
    if abs((made.score_scale or c.head_size**-0.5) * width**0.5 - 1) > 1e-6 or (
            abs(made.embedding_scale / c.hidden_size**0.5 - 1) > 1e-6):
        raise ModelError("scores or embeddings scaled otherwise than in Gemma 3 have no place in GGUF",
                         way_out=_WAY_OUT)
    if not made.local_layers:
        return
    writer.add_sliding_window(made.window or c.context_length)
    writer.add_rope_freq_base_swa(made.local_theta or c.rope_theta)
    local = [i in made.local_layers for i in range(c.num_layers)]
    if local != [(i + 1) % EVERY != 0 for i in range(c.num_layers)]:
        writer.add_sliding_window_pattern(local)


def _laid(model: Model, form: Architecture, kind: str) -> Iterator[tuple[str, np.ndarray[Any, Any], Any]]:
    """Every tensor under its name there, as bytes of its kind."""
    import gguf

    c = model.config
    heads = {"attn_q": c.num_heads, "attn_k": c.num_kv_heads}
    for public, tensor in public_tensors(model).items():
        if public.startswith("pooler."):
            continue
        stem, _, end = public.rpartition(".")
        there = f"{form.theirs(stem)}.{end}"
        part = there.split(".")[-2]
        if form.paired and part in heads:
            tensor = _side_by_side(tensor, heads[part])
        elif form.shifted and "norm" in part:
            tensor = tensor + 1
        elif part in form.turned and end == "weight":
            tensor = tensor.T.contiguous()
        data = tensor.to(torch.float32).numpy()
        which = gguf.GGMLQuantizationType[_kind_of(data, part, kind).upper()]
        yield there, gguf.quants.quantize(data, which), which
    if (table := gguf_rope.table_of(c.made.stretch, c.rope_theta, c.head_size)) is not None:
        yield gguf_rope.TABLE, table.numpy(), gguf.GGMLQuantizationType.F32


def _kind_of(data: np.ndarray[Any, Any], part: str, kind: str) -> str:
    if data.ndim < 2 or part in ("position_embd", "token_types"):  # which llama.cpp adds as they are
        return "f32"
    return "f16" if kind.startswith("q") and data.shape[-1] % 32 else kind


def _side_by_side(rows: Tensor, heads: int) -> Tensor:
    """Rows of each head with the two of a pair beside each other."""
    return rows.view(heads, 2, -1, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)
