"""Files of tensors: what they say, and parameters that are the file."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import CONFIGS
from torch import nn

from cutaway.errors import RunError
from cutaway.models.folder import load_model, public_tensors, save_model
from cutaway.models.model import Model, build
from cutaway.models.tensors_file import LINE, Mapped, places, write_tensors
from cutaway.models.transformer import TransformerConfig
from cutaway.records import digest

WIDE = TransformerConfig(vocab_size=64, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2,
                         intermediate_size=48, context_length=16)


def borrowed(model: Model) -> set[str]:
    """The parameters whose memory is a mapped file: one storage, larger than any of them."""
    return {name for name, p in model.named_parameters()
            if p.untyped_storage().nbytes() > p.numel() * p.element_size()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_library_reads_what_is_written(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {"z": torch.randn(3, 5), "a": torch.randn(7), "scalar": torch.tensor(2.5), "none": torch.zeros(0, 4),
               "turned": torch.randn(4, 6).T, "double": torch.randn(2, dtype=torch.float64)}
    path = tmp_path / "model.safetensors"
    assert write_tensors(path, tensors, dtype) == digest(path)
    found = load_file(path)
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == dtype and torch.equal(found[name], tensor.to(dtype)), name
    header = path.read_bytes()
    length = int.from_bytes(header[:8], "little")
    assert (8 + length) % LINE == 0 and list(json.loads(header[8 : 8 + length])) == ["__metadata__", *tensors]


def test_what_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_tensors(path, {"a": torch.ones(3)}, torch.float32)
    before = path.read_bytes()
    path.with_name("gone").mkdir()
    with pytest.raises(RunError, match="cannot be written"):
        write_tensors(tmp_path / "nowhere" / "model.safetensors", {"a": torch.zeros(3)}, torch.float32)
    with pytest.raises(KeyError):
        write_tensors(path, {"a": torch.zeros(3)}, torch.int64)
    assert path.read_bytes() == before and not list(tmp_path.glob(".*"))


def test_only_whole_lines_of_float32_have_a_place(tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    write_tensors(path, {"a": torch.randn(16), "b": torch.randn(3), "c": torch.randn(5)}, torch.float32)
    found = places(path)
    assert set(found) == {"a", "b"}  # c begins 12 bytes behind a line
    assert torch.equal(Mapped(path).floats(found["b"], (3,)), load_file(path)["b"])
    write_tensors(path, {"a": torch.randn(16)}, torch.bfloat16)
    assert places(path) == {}


@pytest.mark.parametrize("config", CONFIGS)
def test_a_model_read_is_the_model_saved(tmp_path: Path, config: str) -> None:
    model = build(CONFIGS[config], seed=3)
    save_model(tmp_path / "m", model)
    again = load_model(tmp_path / "m")
    mine, found = dict(model.named_parameters()), dict(again.named_parameters())
    assert mine.keys() == found.keys() and all(torch.equal(mine[n], found[n]) for n in mine)
    save_model(tmp_path / "again", again)
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (tmp_path / "m/model.safetensors").read_bytes()


def test_what_we_save_is_the_file_and_learning_leaves_it_alone(tmp_path: Path) -> None:
    save_model(tmp_path / "m", build(WIDE, seed=3))
    path = tmp_path / "m" / "model.safetensors"
    before = path.read_bytes()
    model, other = load_model(tmp_path / "m"), load_model(tmp_path / "m")
    assert borrowed(model) == set(dict(model.named_parameters()))  # all, queries, keys and values as one
    assert all(p.data_ptr() % LINE == 0 for p in model.parameters())
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    assert path.read_bytes() == before
    assert all(torch.equal(p, q + 1) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def test_a_model_in_use_outlives_its_folder(tmp_path: Path) -> None:
    save_model(tmp_path / "m", build(WIDE, seed=3))
    model = load_model(tmp_path / "m")
    save_model(tmp_path / "m", build(WIDE, seed=4))
    old = build(WIDE, seed=3)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), old.parameters(), strict=True))
    for file in (tmp_path / "m").iterdir():
        file.unlink()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), old.parameters(), strict=True))


def test_the_order_of_others_is_copied_where_it_has_to_be(tmp_path: Path) -> None:
    model = build(WIDE, seed=3)
    save_model(tmp_path / "m", model)
    path = tmp_path / "m" / "model.safetensors"
    save_file(public_tensors(model), path, metadata={"format": "pt"})  # by name: queries and values, not keys
    side = json.loads((tmp_path / "m" / "cutaway.json").read_text())
    (tmp_path / "m" / "cutaway.json").write_text(json.dumps({**side, "weights_sha256": digest(path)}))
    again = load_model(tmp_path / "m")
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))
    assert not any(name.endswith("qkv.weight") for name in borrowed(again))
    names = [n for n in public_tensors(model) if n.endswith(("gate_proj.weight", "up_proj.weight"))]
    aligned = set(places(path))
    joined = {n for n in borrowed(again) if n.endswith("gate_up.weight")}
    assert bool(joined) == all(n in aligned for n in names)



def test_copies_of_a_mapped_model_are_their_own(tmp_path: Path) -> None:
    save_model(tmp_path / "m", build(WIDE, seed=3))
    copied = copy.deepcopy(load_model(tmp_path / "m"))
    assert not borrowed(copied)
    assert all(isinstance(p, nn.Parameter) for p in copied.parameters())
