"""GGUF in: what the library writes is read with its numbers; a damaged or hostile file is refused and does no more."""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cutaway.batch import Batch
from cutaway.errors import CutawayError, ModelError, TokenizerError
from cutaway.models.folder import load_model, load_tokenizer, public_tensors
from cutaway.models.gguf import public_config
from cutaway.models.gguf_file import GGUF, Placed, read_gguf
from cutaway.models.gguf_tokenizer import tokenizer
from cutaway.models.model import Model, build
from cutaway.models.transformer import TransformerConfig
from cutaway.text.tokenizer import SubwordSettings, train

gguf = pytest.importorskip("gguf")
VOCABULARY = 300
CONFIG = TransformerConfig(vocab_size=VOCABULARY, hidden_size=64, num_layers=2, num_heads=4, num_kv_heads=2,
                           intermediate_size=256, context_length=64, rope_theta=500.0)
NAMES = {"input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
         "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
         "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}


def theirs(name: str) -> str:
    """A public tensor's name in GGUF."""
    whole = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
             "lm_head.weight": "output.weight"}
    if name in whole:
        return whole[name]
    _, _, layer, *rest = name.split(".")
    return f"blk.{layer}.{NAMES['.'.join(rest[:-1])]}.weight"


def side_by_side(rows: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Llama's queries and keys as the converter stores them (llama.cpp's ``permute``)."""
    return rows.reshape(heads, 2, len(rows) // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def rough() -> Model:
    model = build(CONFIG, seed=3)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    return model.eval()


def write(path: Path, model: Model, kind: str = "F32", *, change: Callable[[Any], None] | None = None) -> None:
    """A model and a byte-level tokenizer as the library writes them."""
    writer = gguf.GGUFWriter(path, "llama")
    c = model.config
    writer.add_context_length(c.context_length)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_heads)
    writer.add_head_count_kv(c.num_kv_heads)
    writer.add_layer_norm_rms_eps(c.norm_eps)
    writer.add_rope_freq_base(c.rope_theta)
    made = train(SubwordSettings(vocab_size=275, pattern="gpt2"), ["def add(a, b):\n    return a + b\n"] * 40)
    vocab = sorted(made._model.get_vocab().items(), key=lambda item: item[1])
    tree = json.loads(made.json)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    control = [t["content"] for t in tree["added_tokens"]]
    tokens = [*(t for t, _ in vocab), *control]
    tokens += [f"<unused{i}>" for i in range(VOCABULARY - len(tokens))]
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(vocab) + [3] * (VOCABULARY - len(vocab)))
    writer.add_token_merges([" ".join(m) for m in tree["model"]["merges"]])
    writer.add_bos_token_id(tokens.index("<|bos|>"))
    writer.add_eos_token_id(tokens.index("<|eos|>"))
    writer.add_add_bos_token(True)
    if change is not None:
        change(writer)
    for name, tensor in public_tensors(model).items():
        data = tensor.numpy()
        heads = c.num_heads if "q_proj" in name else c.num_kv_heads if "k_proj" in name else 0
        data = side_by_side(data, heads) if heads else data
        which = gguf.GGMLQuantizationType[kind if data.ndim == 2 else "F32"]
        writer.add_tensor(theirs(name), gguf.quants.quantize(data, which), raw_dtype=which)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def rounded(model: Model, kind: str) -> Model:
    """Every matrix quantised and turned back by the library; rows do not depend on their order."""
    which = gguf.GGMLQuantizationType[kind]
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                there = gguf.quants.quantize(p.numpy(), which)
                p.copy_(torch.from_numpy(gguf.quants.dequantize(there, which)))
    return model


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"])
def test_what_the_library_wrote(kind: str, tmp_path: Path) -> None:
    model = rough()
    write(tmp_path / "m.gguf", model, kind)
    model = rounded(model, kind)
    found = load_model(tmp_path / "m.gguf").eval()
    assert found.config == CONFIG
    tokens = torch.randint(0, VOCABULARY, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted, given = model(Batch(tokens)), found(Batch(tokens))
    assert wanted.std() > 0.3 and (wanted - given).abs().max() <= 1e-5


def test_the_tokenizer_in_its_metadata(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", rough())
    found = load_tokenizer(tmp_path / "m.gguf")
    plain = train(SubwordSettings(vocab_size=275, pattern="gpt2"), ["def add(a, b):\n    return a + b\n"] * 40)
    for text in ("def add(x):\n  return 1", "naïve 漢字 🙂", "<|bos|><|eos|>"):
        assert found.encode(text) == plain.encode(text)
        assert found.decode(found.encode(text)) == text
    assert found.roles.begin == ("<|bos|>",) and found.name_of(found.eos_id) == "<|eos|>"


@pytest.mark.parametrize(("change", "said"), [
    (lambda w: None, ""),
    (lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE), "longrope"),
    (lambda w: w.add_tensor("blk.0.extra.weight", np.zeros((32, 32), np.float32)), "blk.0.extra.weight"),
    (lambda w: w.add_tensor("rope_freqs.weight", np.ones(8, np.float32)), "rope_freqs"),
])
def test_what_we_do_not_compute_is_refused(change: Callable[[Any], None], said: str, tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", rough(), change=change)
    if not said:
        assert load_model(tmp_path / "m.gguf")
        return
    with pytest.raises(ModelError, match=said):
        load_model(tmp_path / "m.gguf")


@pytest.mark.parametrize(("key", "value"), [
    ("llama.rope.freq_base", "abc"), ("llama.rope.freq_base", [1.0]), ("llama.rope.scaling.factor", "2"),
    ("llama.block_count", 1.5), ("llama.block_count", 2**31 - 1), ("llama.attention.head_count", 0),
    ("llama.attention.head_count_kv", [2, 2]), ("llama.attention.key_length", "16"), ("llama.block_count", True),
    ("tokenizer.ggml.tokens", 7), ("tokenizer.ggml.model", ["gpt2"]), ("tokenizer.ggml.pre", ["gpt-2"]),
    ("tokenizer.ggml.token_type", ["1"] * 400), ("tokenizer.ggml.token_type", [1]),
    ("tokenizer.ggml.add_bos_token", "yes"), ("tokenizer.ggml.eos_token_id", True),
    ("tokenizer.ggml.eot_token_id", "x"), ("tokenizer.chat_template", 3)])
def test_a_value_of_another_kind_is_refused(key: str, value: object, tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", rough())
    file = read_gguf(tmp_path / "m.gguf")
    file = dataclasses.replace(file, metadata={**file.metadata, key: value})
    if key == "tokenizer.ggml.tokens":
        del file.placed["token_embd.weight"]
    with pytest.raises(ModelError, match=r"m\.gguf: .*; (get the file again|supported are)"):
        public_config(file)
        tokenizer(file)


@pytest.mark.parametrize(("key", "value"), [
    ("sliding_window_pattern", "x"), ("sliding_window_pattern", [True]), ("sliding_window_pattern", 0.5),
    ("sliding_window_pattern", ["x"] * 6), ("sliding_window", "8"), ("block_count", 2**31), ("block_count", 6.0)])
def test_gemma_s_layers_of_another_kind_are_refused(key: str, value: object, tmp_path: Path) -> None:
    said = {"embedding_length": 8, "block_count": 2, "feed_forward_length": 8, "attention.head_count": 2,
            "context_length": 8, "attention.layer_norm_rms_epsilon": 1e-6, "attention.sliding_window": 4}
    there = dict.fromkeys("abc", Placed(0, (8,), 0, 32))
    metadata = {"general.architecture": "gemma3", **{f"gemma3.{k}": v for k, v in said.items()},
                "gemma3.attention.key_length": 4}
    assert public_config(GGUF(tmp_path, metadata, there))["layer_types"] == ["sliding_attention"] * 2
    whole = key if key == "block_count" else f"attention.{key}"
    with pytest.raises(ModelError, match="get the file again"):
        public_config(GGUF(tmp_path, {**metadata, f"gemma3.{whole}": value}, there))


@pytest.mark.parametrize(("key", "value"), [
    ("scores", ["0.5"] * 3), ("scores", [1.0]), ("scores", 1), ("precompiled_charsmap", ["x"]),
    ("precompiled_charsmap", 5), ("add_space_prefix", "no"), ("remove_extra_whitespaces", 1)])
def test_pieces_of_another_kind_are_refused(key: str, value: object, tmp_path: Path) -> None:
    said = {"model": "t5", "tokens": ["<pad>", "</s>", "<unk>"], "scores": [0.0, 0.0, -1.0], "token_type": [3, 3, 2]}
    metadata = {f"tokenizer.ggml.{k}": v for k, v in {**said}.items()}
    assert tokenizer(GGUF(tmp_path, metadata, {})).eos_id == 1
    with pytest.raises(ModelError, match="get the file again"):
        tokenizer(GGUF(tmp_path, {**metadata, f"tokenizer.ggml.{key}": value}, {}))


def header(version: int = 3, tensors: int = 0, pairs: int = 0, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, pairs) + rest


def text(value: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(value) if length is None else length) + value


def tensor(shape: tuple[int, ...], offset: int, kind: int = 0) -> bytes:
    return text(b"t") + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


HOSTILE = {
    "empty": b"", "short": b"GG", "other": b"PK\x03\x04" + bytes(60), "cut": header()[:9], "old": header(1),
    "many tensors": header(tensors=2**63), "many pairs": header(pairs=2**62), "half of a pair": header(pairs=1),
    "long string": header(pairs=1, rest=text(b"k", 2**60)),
    "long array": header(pairs=1, rest=text(b"k") + struct.pack("<IIQ", 9, 4, 2**61) + bytes(40)),
    "array of arrays": header(pairs=1, rest=text(b"k") + struct.pack("<IIQ", 9, 9, 1) * 40),
    "unknown value": header(pairs=1, rest=text(b"k") + struct.pack("<I", 77) + bytes(40)),
    "no UTF-8": header(pairs=1, rest=text(b"\xff\xfe") + bytes(40)),
    "twice": header(pairs=2, rest=(text(b"k") + struct.pack("<IB", 0, 1)) * 2),
    "behind the end": header(tensors=1, rest=tensor((32, 4), 2**40)),
    "wraps around": header(tensors=1, rest=tensor((32, 4), 2**64 - 64) + bytes(600)),
    "huge": header(tensors=1, rest=tensor((2**40, 2**40), 0) + bytes(64)),
    "nothing": header(tensors=1, rest=tensor((0, 32), 0) + bytes(64)),
    "five dimensions": header(tensors=1, rest=tensor((1, 1, 1, 1, 1), 0) + bytes(64)),
    "broken block": header(tensors=1, rest=tensor((33, 2), 0, 8) + bytes(600)),
    "unknown kind": header(tensors=1, rest=tensor((32, 2), 0, 99) + bytes(600)),
    "alignment": header(tensors=1, pairs=1, rest=text(b"general.alignment") + struct.pack("<II", 4, 3)
                        + tensor((32, 2), 0) + bytes(600)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(HOSTILE[name])
    with pytest.raises(ModelError, match=r"m\.gguf"):
        read_gguf(tmp_path / "m.gguf")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("good") / "m.gguf"
    write(path, rough(), "Q8_0")
    return path.read_bytes()


@given(at=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6), cut=st.floats(0.2, 1))
def test_a_flipped_or_cut_file_is_read_or_refused(good: bytes, tmp_path_factory: pytest.TempPathFactory,
                                                  at: list[tuple[float, int]], cut: float) -> None:
    data = bytearray(good[: int(len(good) * (cut if cut > 0.9 else 1))])
    for where, value in at:
        data[int(where * where * (len(data) - 1))] = value  # more often near the beginning, where the header is
    path = tmp_path_factory.mktemp("flipped") / "m.gguf"
    path.write_bytes(data)
    for read in (load_model, load_tokenizer):
        try:
            read(path)
        except CutawayError as error:
            assert isinstance(error, ModelError | TokenizerError) and "\n" not in str(error)
