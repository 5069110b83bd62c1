"""Checkpoints of llama2.c: a model of ours written as one is read with its numbers; the real one writes its story."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from cutaway.batch import Batch
from cutaway.errors import ModelError, TokenizerError
from cutaway.generate.engine import Engine
from cutaway.generate.request import Request, Sampling
from cutaway.models import llama2c
from cutaway.models.folder import load_model, load_tokenizer, public_tensors
from cutaway.models.model import Model, build
from cutaway.models.transformer import TransformerConfig

ORDER = ("input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
         "post_attention_layernorm", "mlp.gate_proj", "mlp.down_proj", "mlp.up_proj")


def config(*, tied: bool) -> TransformerConfig:
    return TransformerConfig(vocab_size=50, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2,
                             intermediate_size=40, context_length=24, tie_embeddings=tied)


def written(model: Model) -> bytes:
    """The file that llama2.c's own exporter would write."""
    c, tensors = model.config, {k: v.numpy() for k, v in public_tensors(model).items()}
    heads = {"self_attn.q_proj": c.num_heads, "self_attn.k_proj": c.num_kv_heads}
    parts = [tensors["model.embed_tokens.weight"]]
    for name in ORDER:
        for i in range(c.num_layers):
            part = tensors[f"model.layers.{i}.{name}.weight"]
            if name in heads:
                part = part.reshape(heads[name], 2, -1, part.shape[1]).swapaxes(1, 2).reshape(part.shape)
            parts.append(part)
    parts += [tensors["model.norm.weight"], np.zeros(c.context_length * c.head_size, np.float32)]
    parts += [] if c.tie_embeddings else [tensors["lm_head.weight"]]
    head = struct.pack("<7i", c.hidden_size, c.intermediate_size, c.num_layers, c.num_heads, c.num_kv_heads,
                       c.vocab_size if c.tie_embeddings else -c.vocab_size, c.context_length)
    return head + b"".join(p.astype("<f4").tobytes() for p in parts)


@pytest.mark.parametrize("tied", [True, False])
def test_its_numbers_are_read(tied: bool, tmp_path: Path) -> None:
    model = build(config(tied=tied), seed=2).eval()
    (tmp_path / "m.bin").write_bytes(written(model))
    found = load_model(tmp_path / "m.bin").eval()
    tokens = torch.randint(0, 50, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(found(Batch(tokens)), model(Batch(tokens)))
    assert found.config == model.config


@pytest.mark.parametrize("change", [
    lambda b: b[:20], lambda b: b[:-4], lambda b: b + b"\0", lambda b: b"PK\x03\x04" + b,
    lambda b: struct.pack("<i", -5) + b[4:], lambda b: struct.pack("<i", 2**30) + b[4:],
    lambda b: b[:12] + struct.pack("<i", 3) + b[16:]])
def test_another_file_is_refused(change: object, tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_bytes(change(written(build(config(tied=True), seed=2))))  # type: ignore[operator]
    with pytest.raises(ModelError, match=r"m\.bin: (is no checkpoint of llama2.c|has [\d,]+ bytes)"):
        load_model(tmp_path / "m.bin")


def pieces(*more: tuple[str, float], largest: int = 9) -> bytes:
    names = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{b:02X}>" for b in range(256))]
    rows = [*((name, 0.0) for name in names), *more]
    return struct.pack("<i", largest) + b"".join(
        struct.pack("<fi", score, len(text.encode())) + text.encode() for text, score in rows)


def test_pieces_are_joined_in_the_order_of_their_scores(tmp_path: Path) -> None:
    (tmp_path / "t.bin").write_bytes(pieces((" ", -9.0), ("a", -1.0), ("b", -2.0), ("c", -3.0), ("ab", -5.0),
                                            ("bc", -4.0), (" a", -6.0)))
    found = load_tokenizer(tmp_path / "t.bin")
    names = [found.name_of(i) for i in found.encode("abc")]
    assert names == [" a", "bc"] and found.begin_ids == (1,)
    assert found.decode(found.encode("abc naïve 漢\n")) == "abc naïve 漢\n"


@pytest.mark.parametrize("data", [b"", pieces()[:-3], pieces() + struct.pack("<fi", 0.0, 99), pieces() + b"\0\0",
                                  pieces(("a", 0.0), ("a", 1.0))])
def test_a_damaged_tokenizer_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "t.bin").write_bytes(data)
    with pytest.raises(TokenizerError, match=r"t\.bin"):
        llama2c.tokenizer(tmp_path / "t.bin")


@pytest.mark.skipif(not os.environ.get("CUTAWAY_DATA"), reason="CUTAWAY_DATA is not set: no stories260K")
def test_the_real_one_writes_its_story() -> None:
    folder = Path(os.environ["CUTAWAY_DATA"]) / "checkpoint_stories260K"
    model, tokenizer = load_model(folder / "stories260K.bin").eval(), load_tokenizer(folder / "tok512.bin")
    (found,) = Engine(model).generate([Request((tokenizer.bos_id,), 256, Sampling(temperature=0))])
    assert [tokenizer.bos_id, *found.tokens[:39]] == json.loads((folder / "expected_first40_ids.json").read_text())
    assert tokenizer.decode(found.tokens) == (folder / "expected_greedy.txt").read_text().rstrip("\n")
