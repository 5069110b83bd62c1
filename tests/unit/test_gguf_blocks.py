"""GGUF's blocks of 256 numbers (Q4_K, Q5_K, Q6_K), held against their published layout, number by number.

The layout: github.com/ggml-org/ggml, src/ggml-common.h (block_q4_K and its like) and ggml-quants.c.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cutaway.models.folder import load_model, public_tensors
from cutaway.models.gguf_file import read_gguf
from cutaway.models.model import build
from cutaway.models.stored import half_split
from cutaway.models.transformer import TransformerConfig

gguf = pytest.importorskip("gguf")
Draw = np.random.Generator


def half(data: bytes, at: int) -> float:
    return float(struct.unpack_from("<e", data, at)[0])


def scale_and_least(packed: bytes, j: int) -> tuple[int, int]:
    """Two of sixteen numbers of six bits in twelve bytes."""
    if j < 4:
        return packed[j] & 63, packed[j + 4] & 63
    return (packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4, (packed[j + 4] >> 4) | (packed[j] >> 6) << 4


def q4_k(block: bytes) -> list[float]:
    d, least, packed, quants = half(block, 0), half(block, 2), block[4:16], block[16:144]
    out = []
    for i in range(256):
        part, within = divmod(i, 32)
        byte = quants[part // 2 * 32 + within]
        scale, minimum = scale_and_least(packed, part)
        out.append(d * scale * (byte >> 4 if part % 2 else byte & 15) - least * minimum)
    return out


def q5_k(block: bytes) -> list[float]:
    d, least, packed, high, quants = half(block, 0), half(block, 2), block[4:16], block[16:48], block[48:176]
    out = []
    for i in range(256):
        part, within = divmod(i, 32)
        byte = quants[part // 2 * 32 + within]
        quant = (byte >> 4 if part % 2 else byte & 15) + 16 * (high[within] >> part & 1)
        scale, minimum = scale_and_least(packed, part)
        out.append(d * scale * quant - least * minimum)
    return out


def q6_k(block: bytes) -> list[float]:
    low, high, scales, d = block[:128], block[128:192], struct.unpack("<16b", block[192:208]), half(block, 208)
    out = []
    for i in range(256):
        side, rest = divmod(i, 128)
        quarter, within = divmod(rest, 32)
        byte = low[64 * side + 32 * (quarter % 2) + within]
        four = byte >> 4 if quarter > 1 else byte & 15
        two = high[32 * side + within] >> 2 * quarter & 3
        out.append(d * scales[i // 16] * ((four | two << 4) - 32))
    return out


REFERENCE: dict[str, tuple[int, tuple[int, ...], Callable[[bytes], list[float]]]] = {
    "Q4_K": (144, (0, 2), q4_k), "Q5_K": (176, (0, 2), q5_k), "Q6_K": (210, (208,), q6_k)}


def blocks(kind: str, count: int, draw: Draw) -> list[bytes]:
    """Blocks of random bits, but for their scales: those are small numbers and not, say, infinite."""
    size, halves, _ = REFERENCE[kind]
    out = []
    for _ in range(count):
        block = bytearray(draw.bytes(size))
        for at in halves:
            struct.pack_into("<e", block, at, draw.uniform(1e-4, 1e-3) * draw.choice([-1, 1]))
        out.append(bytes(block))
    return out


def laid(kind: str, rows: int, columns: int, draw: Draw) -> tuple[np.ndarray[Any, Any], torch.Tensor]:
    """A matrix's bytes, a row a line, and the numbers they stand for."""
    found = blocks(kind, rows * columns // 256, draw)
    numbers = torch.tensor([REFERENCE[kind][2](block) for block in found], dtype=torch.float64)
    return np.frombuffer(b"".join(found), np.uint8).reshape(rows, -1), numbers.view(rows, columns)


@pytest.mark.parametrize("kind", REFERENCE)
def test_blocks_of_random_bits(kind: str, tmp_path: Path) -> None:
    raw, wanted = laid(kind, 6, 512, np.random.default_rng(1))
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("t", raw, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = read_gguf(tmp_path / "m.gguf").tensors()["t"]
    assert found.shape == (6, 512)
    assert wanted.std() > 1e-3 and (found.read().double() - wanted).abs().max() <= 1e-6 * wanted.abs().max()


def test_a_whole_model_of_mixed_kinds(tmp_path: Path) -> None:
    config = TransformerConfig(vocab_size=64, hidden_size=256, num_layers=2, num_heads=4, num_kv_heads=2,
                               intermediate_size=512, context_length=64, tie_embeddings=False)
    kinds = {"token_embd": "Q6_K", "output": "Q6_K", "attn_q": "Q4_K", "attn_k": "Q5_K", "attn_v": "Q6_K",
             "attn_output": "Q4_K", "ffn_gate": "Q5_K", "ffn_up": "Q4_K", "ffn_down": "Q6_K"}
    public = {"token_embd": "model.embed_tokens", "output": "lm_head", "attn_q": "self_attn.q_proj",
              "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
              "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
    shapes = {name: tuple(t.shape) for name, t in public_tensors(build(config, seed=1)).items()}
    draw, wanted = np.random.default_rng(2), dict[str, torch.Tensor]()
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(256)
    writer.add_block_count(2)
    writer.add_feed_forward_length(512)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    for stem, kind in kinds.items():
        for layer in (0, 1) if stem in ("attn_q", "attn_k", "attn_v", "attn_output") or stem[:3] == "ffn" else (None,):
            here = f"{public[stem]}.weight" if layer is None else f"model.layers.{layer}.{public[stem]}.weight"
            raw, numbers = laid(kind, *shapes[here], draw)
            heads = {"attn_q": 4, "attn_k": 2}.get(stem)
            wanted[here] = numbers if heads is None else half_split(numbers, heads)
            writer.add_tensor(f"{stem}.weight" if layer is None else f"blk.{layer}.{stem}.weight", raw,
                              raw_dtype=gguf.GGMLQuantizationType[kind])
    for layer in (0, 1):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{norm}.weight", np.ones(256, np.float32))
    writer.add_tensor("output_norm.weight", np.ones(256, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = public_tensors(load_model(tmp_path / "m.gguf"))
    for name, numbers in wanted.items():
        assert (found[name].double() - numbers).abs().max() <= 1e-6 * numbers.abs().max(), name
