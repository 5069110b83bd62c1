"""``torch.compile`` of a stage's blocks: one whole graph each, the same numbers, and plain again afterwards.

Without the C kernels, as on a GPU; with a backend that traces forward and backward but generates no code.
"""

from __future__ import annotations

import copy

import pytest
import torch
from tiny import CASES, start

from cutaway.device import Device, pays_to_compile
from cutaway.errors import SettingsError
from cutaway.nn import block, ops
from cutaway.nn.block import compiled
from cutaway.run import recipe as recipes

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch, about its own compiler


@pytest.fixture
def plain_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "library_for", lambda *tensors: None)
    monkeypatch.setattr(block, "library_for", lambda *tensors: None)


@pytest.mark.usefixtures("plain_kernels")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_block_is_one_graph_with_the_same_gradients(dtype: torch.dtype) -> None:
    case = CASES["packed"]
    model = start(case)
    model.compute_dtype = dtype
    other = copy.deepcopy(model)
    for part in other.backbone.blocks:
        part.compile(backend="aot_eager", fullgraph=True)
    for m in (model, other):
        case.objective(m, case.batch(0)).total.backward()
    for (name, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None
        assert torch.allclose(a.grad, b.grad, rtol=1e-4, atol=1e-5 if dtype == torch.float32 else 2e-2), name
    torch.compiler.reset()


def test_afterwards_the_model_is_plain_again() -> None:
    model = start(CASES["likelihood"])
    with compiled(model):
        assert all(b._compiled_call_impl is not None for b in model.backbone.blocks)
        assert all(b._compiled_call_impl is None for b in copy.deepcopy(model).backbone.blocks)
        with compiled(model, False):
            assert all(b._compiled_call_impl is None for b in model.backbone.blocks)
        assert all(b._compiled_call_impl is not None for b in model.backbone.blocks)
    assert all(b._compiled_call_impl is None for b in model.backbone.blocks)


def test_auto_compiles_long_work_on_a_ready_gpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("pathlib.Path.is_file", lambda path: True)
    monkeypatch.setenv("CC", "cc")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda place: (9, 0))
    assert pays_to_compile(Device("cuda"), 600)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda place: (6, 1))
    assert not pays_to_compile(Device("cuda"), 600)
    assert not pays_to_compile(Device("cuda"), 599) and not pays_to_compile(Device("cpu"), 1e6)


def test_a_recipe_on_the_cpu_does_not_compile_and_refuses_to() -> None:
    assert recipes.load("quickstart", ["device=cpu"]).pretrain.compile is False
    with pytest.raises(SettingsError, match=r"pretrain\.compile is for a GPU"):
        recipes.load("quickstart", ["device=cpu", "pretrain.compile=true"])
