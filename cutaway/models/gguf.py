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
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    tree: dict[str, Any] = {
        ours: file.number(f"{name}.{theirs}") if "epsilon" in theirs else file.whole(f"{name}.{theirs}", least=1)
        for ours, theirs in form.sizes.items()}
    layers = file.whole(f"{name}.block_count")
    if layers > max(1, len(file.placed)):  # before anything is made of each
        raise ModelError(f"holds {len(file.placed)} tensors, and says {layers} layers", where=file.path,
                         way_out=FILE_AGAIN)
    if not isinstance(tokens, list | None):
        raise ModelError("its vocabulary is damaged: tokens lack", where=file.path, way_out=FILE_AGAIN)
    embedding = file.placed.get("token_embd.weight")
    tree |= {"model_type": form.model_type, "architectures": [form.named],
             "vocab_size": embedding.shape[0] if embedding is not None else len(tokens or []),
             "tie_word_embeddings": "output.weight" not in file.placed}
    if not form.rotary:
        types = file.placed.get("token_types.weight")
        return tree | ({"type_vocab_size": types.shape[0] if types is not None else 0, "tie_word_embeddings": True}
                       if name == "bert" else {})
    heads = tree["num_attention_heads"]
    theta = file.number(f"{name}.rope.freq_base", 10_000.0)
    head = file.whole(f"{name}.attention.key_length", tree["hidden_size"] // heads, least=1)
    _refuse_parts(file, name, head)
    rope = rope_of(file, name, theta, head)
    return tree | {"num_key_value_heads": file.whole(f"{name}.attention.head_count_kv", heads, least=1),
                   "head_dim": head, "rope_theta": theta, "rope_parameters": rope, **_own(file, name, tree, rope)}


def architecture_of(file: GGUF) -> tuple[str, Architecture]:
    """The name of its architecture, and what that is."""
    name = file.metadata.get("general.architecture")
    form = ARCHITECTURES.get(name) if isinstance(name, str) else None
    if form is None:
        raise ModelError(f"its architecture {name!r} is unknown", where=file.path,
                         way_out=f"supported are {', '.join(ARCHITECTURES)}")
    return str(name), form


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
    layers, window_key = tree["num_hidden_layers"], "gemma3.attention.sliding_window"
    head = file.whole("gemma3.attention.key_length", 256)
    window = file.whole(window_key) if window_key in file.metadata else None
    scale = tree["hidden_size"] // tree["num_attention_heads"] if layers == LARGEST_GEMMA else head
    local = [bool(window) and near for near in _pattern(file, "gemma3.attention.sliding_window_pattern", layers)]
    near = {"rope_type": "default", "rope_theta": file.number("gemma3.rope.freq_base_swa", 10_000.0)}
    return {"query_pre_attn_scalar": scale, "sliding_window": window, "hidden_activation": "gelu_pytorch_tanh",
            "final_logit_softcapping": file.number(
                "gemma3.final_logit_softcapping", 0.0, least=-1.0) or None,
            "layer_types": ["sliding_attention" if near_by else "full_attention" for near_by in local],
            "rope_parameters": {"full_attention": rope, "sliding_attention": near}}


def _pattern(file: GGUF, key: str, layers: int) -> list[bool]:
    """Whether each layer sees a window alone: said one by one, or as every how many'th sees all."""
    if isinstance(said := file.metadata.get(key), list):
        if len(said) < layers or not all(isinstance(near, int) for near in said):
            raise ModelError(f"says {len(said)} layers for {key}, and has {layers}", where=file.path,
                             way_out=FILE_AGAIN)
        return [bool(near) for near in said[:layers]]
    every = file.whole(key, EVERY)
    return [not every or bool((i + 1) % every) for i in range(layers)]


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
        read, shape, blocks = stored.read, stored.shape, stored.blocks
        if form.paired and part in heads:
            read = _halves(read, heads[part])
            blocks = None if blocks is None else blocks._replace(read=_halves(blocks.read, heads[part]))
        elif form.shifted and "norm" in stem:
            read = _less_one(read)
        elif part in form.turned and end == "weight":
            read, shape, blocks = _turned(read), shape[::-1], None
        name = theirs if public is None else f"{public}.{end}"  # an unknown one is refused by its name
        out[name] = replace(stored, read=read, shape=shape, blocks=blocks)
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
    if isinstance(kind, bool) or not isinstance(kind, int) or kind not in form.poolings:
        raise ModelError(f"pools its tokens by {kind!r}", where=file.path,
                         way_out=f"supported are {', '.join(f'{k} ({v})' for k, v in form.poolings.items())}")
    return Vector(form.poolings[kind], unit=file.flag(UNIT, True))
