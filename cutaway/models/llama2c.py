"""A checkpoint of llama2.c (github.com/karpathy/llama2.c, the float32 format of its first version) and its tokenizer.

Seven 32-bit numbers, then float32 weights whose number they fix: a file of any other length is refused. Put into the
public form of Llama, which is then read as any folder is (``folder``).
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cutaway.errors import FILE_AGAIN, ModelError, TokenizerError
from cutaway.models.stored import Stored, Tensors, half_split
from cutaway.text import public
from cutaway.text.spelling import SPACE
from cutaway.text.tokenizer import Tokenizer

_HEADER = struct.Struct("<7i")
LARGEST = 1 << 20  # of any of its sizes


def read(path: Path) -> tuple[dict[str, Any], Tensors]:
    """config.json of Llama, and its tensors under their public names."""
    raw = _bytes(path)
    if len(raw) < _HEADER.size:
        raise ModelError("is no checkpoint of llama2.c: it has no header", where=path, way_out=FILE_AGAIN)
    width, inner, layers, heads, kv_heads, vocab, context = _HEADER.unpack_from(raw)
    sizes = (width, inner, layers, heads, kv_heads, abs(vocab), context)
    if min(sizes) < 1 or max(sizes) > LARGEST or width % (2 * heads) or heads % kv_heads:
        raise ModelError(f"is no checkpoint of llama2.c: its header says {list(sizes)}", where=path, way_out=FILE_AGAIN)
    shapes = _shapes(width, inner, layers, kv_heads * (width // heads), vocab, context * (width // heads // 2))
    needed = _HEADER.size + 4 * sum(math.prod(shape) for shape in shapes.values())
    if needed != len(raw):
        raise ModelError(f"has {len(raw):,} bytes, and its header asks for {needed:,}", where=path, way_out=FILE_AGAIN)
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": abs(vocab),
              "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers,
              "num_attention_heads": heads, "num_key_value_heads": kv_heads, "max_position_embeddings": context,
              "rms_norm_eps": 1e-5, "rope_theta": 10_000.0, "tie_word_embeddings": vocab > 0}
    return config, _tensors(raw, shapes, heads, kv_heads)


def _shapes(width: int, inner: int, layers: int, kv_width: int, vocab: int, angles: int) -> dict[str, tuple[int, ...]]:
    """What lies in the file, in its order; the angles of rotary positions are there and not needed."""
    return {"embed": (abs(vocab), width), "input_layernorm": (layers, width),
            "self_attn.q_proj": (layers, width, width),
            "self_attn.k_proj": (layers, kv_width, width), "self_attn.v_proj": (layers, kv_width, width),
            "self_attn.o_proj": (layers, width, width), "post_attention_layernorm": (layers, width),
            "mlp.gate_proj": (layers, inner, width), "mlp.down_proj": (layers, width, inner),
            "mlp.up_proj": (layers, inner, width), "norm": (width,), "cosines": (angles,), "sines": (angles,),
            **({} if vocab > 0 else {"head": (abs(vocab), width)})}


def _tensors(raw: bytes, shapes: dict[str, tuple[int, ...]], heads: int, kv_heads: int) -> Tensors:
    whole = {"embed": "model.embed_tokens.weight", "norm": "model.norm.weight", "head": "lm_head.weight"}
    turned = {"self_attn.q_proj": heads, "self_attn.k_proj": kv_heads}
    out: Tensors = {}
    at = _HEADER.size
    for name, shape in shapes.items():
        count = math.prod(shape)
        found = torch.from_numpy(np.frombuffer(raw, "<f4", count, at).reshape(shape).copy())
        at += 4 * count
        if name in whole:
            out[whole[name]] = _given(found)
        elif name not in ("cosines", "sines"):
            for i, part in enumerate(found):
                rows = half_split(part, turned[name]) if name in turned else part
                out[f"model.layers.{i}.{name}.weight"] = _given(rows)
    return out


def _given(tensor: Tensor) -> Stored:
    return Stored(tuple(tensor.shape), True, lambda: tensor)


def tokenizer(path: Path) -> Tokenizer:
    """A tokenizer of llama2.c (``tok512.bin``): SentencePiece's BPE, pieces joined in the order of their scores."""
    raw = _bytes(path)
    pieces: list[tuple[str, float]] = []
    at = 4
    while at < len(raw):
        if at + 8 > len(raw):
            raise TokenizerError("ends in the middle of a piece", where=path, way_out=FILE_AGAIN)
        score, length = struct.unpack_from("<fi", raw, at)
        if not 0 <= length <= len(raw) - at - 8:
            raise TokenizerError(f"says that a piece has {length} bytes", where=path, way_out=FILE_AGAIN)
        pieces.append((raw[at + 8 : at + 8 + length].decode(errors="replace"), score))
        at += 8 + length
    return public.made(_tree(pieces, path), {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}, where=path)


def _tree(pieces: list[tuple[str, float]], path: Path) -> dict[str, Any]:
    names = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    if len(pieces) < len(names):
        raise TokenizerError(f"holds {len(pieces)} pieces, and bytes and control tokens alone are {len(names)}",
                             where=path, way_out=FILE_AGAIN)
    words = [(text.replace(" ", SPACE), score) for text, score in pieces[len(names) :]]
    vocab = {name: i for i, name in enumerate([*names, *(text for text, _ in words)])}
    if len(vocab) != len(pieces):
        raise TokenizerError("holds a piece twice", where=path, way_out=FILE_AGAIN)
    return public.sentence_pieces(vocab, public.merges_of(dict(words)), bos="<s>")


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot be read ({error.strerror or error})", where=path) from None
