"""A GGUF file as a model: what it says is put into the public form of its family, which is then read as any folder is
(``folder``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from cutaway.errors import FILE_AGAIN, ModelError
from cutaway.models.gguf_file import GGUF
from cutaway.models.gguf_form import ARCHITECTURES, EVERY, LARGEST_GEMMA, Architecture
from cutaway.models.gguf_rope import TABLE, rope_of
from cutaway.models.heads import Vector
from cutaway.models.stored import Tensors, half_split

UNIT = "cutaway.unit_vectors"  # what GGUF has no key for; llama.cpp's own programs make vectors of length 1


def public_config(file: GGUF) -> dict[str, Any]:
    """config.json of the file's family. Raises ModelError for an architecture that is unknown and sizes that lack."""
    name, form = architecture_of(file)
    said, tokens = file.metadata, file.metadata.get("tokenizer.ggml.tokens")
    tree: dict[str, Any] = {ours: _said(file, f"{name}.{theirs}") for ours, theirs in form.sizes.items()}
    embedding = file.placed.get("token_embd.weight")
    tree |= {"model_type": form.model_type, "architectures": [form.named],
             "vocab_size": embedding.shape[0] if embedding is not None else len(tokens or []),
             "tie_word_embeddings": "output.weight" not in file.placed}
    if not form.rotary:
        types = file.placed.get("token_types.weight")
        return tree | ({"type_vocab_size": types.shape[0] if types is not None else 0, "tie_word_embeddings": True}
                       if name == "bert" else {})
    heads = tree["num_attention_heads"]
    theta = float(said.get(f"{name}.rope.freq_base", 10_000.0))
    head = said.get(f"{name}.attention.key_length", tree["hidden_size"] // max(heads, 1))
    _refuse_parts(file, name, head)
    rope = rope_of(file, name, theta, head)
    return tree | {"num_key_value_heads": said.get(f"{name}.attention.head_count_kv", heads), "head_dim": head,
                   "rope_theta": theta, "rope_parameters": rope, **_own(file, name, tree, rope)}


def architecture_of(file: GGUF) -> tuple[str, Architecture]:
    """The name of its architecture, and what that is."""
    name = file.metadata.get("general.architecture")
    form = ARCHITECTURES.get(name) if isinstance(name, str) else None
    if form is None:
        raise ModelError(f"its architecture {name!r} is unknown", where=file.path,
                         way_out=f"supported are {', '.join(ARCHITECTURES)}")
    return str(name), form


def _said(file: GGUF, key: str) -> Any:
    value = file.metadata.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ModelError(f"says {value!r} for {key}", where=file.path, way_out=FILE_AGAIN)
    return value


def _refuse_parts(file: GGUF, name: str, head: int) -> None:
    """Heads of which a part turns, and values that are wider than keys, are another function."""
    for key in ("rope.dimension_count", "attention.value_length"):
        if (width := file.metadata.get(f"{name}.{key}", head)) != head:
            raise ModelError(f"says {width!r} for {name}.{key}, and {head} for a key", where=file.path,
                             way_out="only equal ones are supported")


def _own(file: GGUF, name: str, tree: Mapping[str, Any], rope: Mapping[str, Any]) -> dict[str, Any]:
    """What Gemma says beside the sizes."""
    if name != "gemma3":
        return {}
    said, layers = file.metadata, tree["num_hidden_layers"]
    head, window = said.get("gemma3.attention.key_length", 256), said.get("gemma3.attention.sliding_window")
    scale = tree["hidden_size"] // max(tree["num_attention_heads"], 1) if layers == LARGEST_GEMMA else head
    pattern = said.get("gemma3.attention.sliding_window_pattern", EVERY)
    local = [bool(window) and bool(pattern[i] if isinstance(pattern, list) else not pattern or (i + 1) % pattern)
             for i in range(layers)]
    near = {"rope_type": "default", "rope_theta": float(said.get("gemma3.rope.freq_base_swa", 10_000.0))}
    return {"query_pre_attn_scalar": scale, "sliding_window": window, "hidden_activation": "gelu_pytorch_tanh",
            "final_logit_softcapping": said.get("gemma3.final_logit_softcapping") or None,
            "layer_types": ["sliding_attention" if near_by else "full_attention" for near_by in local],
            "rope_parameters": {"full_attention": rope, "sliding_attention": near}}


def public_tensors(file: GGUF, config: Mapping[str, Any]) -> Tensors:
    """The tensors under the names and in the order of rows of the family's public format."""
    _, form = architecture_of(file)
    heads = {"attn_q": config.get("num_attention_heads", 0), "attn_k": config.get("num_key_value_heads", 0)}
    out: Tensors = {}
    for theirs, stored in file.tensors().items():
        if theirs == TABLE and form.rotary:
            continue  # is what ``rope_of`` read
        stem, _, end = theirs.rpartition(".")
        public, part = form.public(stem), stem.rpartition(".")[2]
        read, shape = stored.read, stored.shape
        if form.paired and part in heads:
            read = _halves(read, heads[part])
        elif form.shifted and "norm" in stem:
            read = _less_one(read)
        elif part in form.turned and end == "weight":
            read, shape = _turned(read), shape[::-1]
        name = theirs if public is None else f"{public}.{end}"  # an unknown one is refused by its name
        out[name] = replace(stored, read=read, shape=shape)
    return out


def _halves(read: Callable[[], Tensor], heads: int) -> Callable[[], Tensor]:
    return lambda: half_split(read(), heads)


def _less_one(read: Callable[[], Tensor]) -> Callable[[], Tensor]:
    return lambda: read() - 1


def _turned(read: Callable[[], Tensor]) -> Callable[[], Tensor]:
    return lambda: read().T


def vector_of(file: GGUF) -> Vector | None:
    """The vector that an encoder's file makes of a text; None for a model that writes."""
    name, form = architecture_of(file)
    if not form.poolings:
        return None
    kind = file.metadata.get(f"{name}.pooling_type")
    if not isinstance(kind, int) or kind not in form.poolings:
        raise ModelError(f"pools its tokens by {kind!r}", where=file.path,
                         way_out=f"supported are {', '.join(f'{k} ({v})' for k, v in form.poolings.items())}")
    return Vector(form.poolings[kind], unit=bool(file.metadata.get(UNIT, True)))
