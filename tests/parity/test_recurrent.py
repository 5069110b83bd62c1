"""Recurrent layers beside torch's own with the same weights, and the compiled loop beside plain PyTorch."""

from __future__ import annotations

import ctypes
import platform
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cutaway.nn import kernels, recurrence
from cutaway.nn.recurrence import GATES, Cell, Recurrence, Resets, plain

TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 2.5e-2}
THEIRS: dict[Cell, type[nn.RNNBase]] = {"vanilla": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
cells = pytest.mark.parametrize("cell", THEIRS)
reversals = pytest.mark.parametrize("reverse", [False, True], ids=["forth", "back"])
needs_kernels = pytest.mark.skipif(kernels.built().library is None, reason=kernels.status())


@pytest.fixture(params=["compiled", "plain"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the kernels and without them."""
    if request.param == "plain":
        monkeypatch.setattr(recurrence, "library_for", lambda *tensors: None)
    elif kernels.built().library is None:
        pytest.skip(kernels.status())
    return str(request.param)


def _layer(cell: Cell, inputs: int, width: int, *, reverse: bool) -> Recurrence:
    layer, draw = Recurrence(inputs, width, cell=cell, reverse=reverse), torch.Generator().manual_seed(width)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn(p.shape, generator=draw) * width**-0.5)
    return layer


NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def _ours(by: list[Tensor], cell: Cell, *, gradients: bool) -> list[Tensor]:
    """Torch's weights, or their gradients, in our order: its GRU has r z n of both sides, ours n r z and r z n. Two
    biases that are only ever added are one of ours, with the gradient of either."""
    into, over, first, second = by
    both = first if gradients else first + second
    if cell != "gru":
        return [into, over, both]
    n, q = first.chunk(3)[2], second.chunk(3)[2]
    r, z, _ = both.chunk(3)
    return [torch.cat((into.chunk(3)[2], *into.chunk(3)[:2])), over, torch.cat((n, r, z, q))]


@cells
@reversals
def test_a_layer_is_torchs(way: str, cell: Cell, reverse: bool) -> None:
    theirs = THEIRS[cell](11, 21, bidirectional=reverse)
    weights = [getattr(theirs, f"{n}_l0{'_reverse' if reverse else ''}") for n in NAMES]
    layer = Recurrence(11, 21, cell=cell, reverse=reverse)
    own = [layer.input.weight, layer.state.weight, layer.bias]
    with torch.no_grad():
        for mine, their in zip(own, _ours(weights, cell, gradients=False), strict=True):
            mine.copy_(their)
    x, grad = torch.randn(13, 4, 11, requires_grad=True), torch.randn(13, 4, 21)
    out, (other, _) = layer(x), theirs(x)
    other = other[..., 21:] if reverse else other
    assert (out - other).abs().max() < 1e-6
    grad_x, *got = torch.autograd.grad(out, [x, *own], grad)
    their_x, *wanted = torch.autograd.grad(other, [x, *weights], grad)
    for a, b in zip([grad_x, *got], [their_x, *_ours(wanted, cell, gradients=True)], strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


def _compared(cell: Cell, width: int, dtype: torch.dtype, *, reverse: bool, library: ctypes.CDLL) -> None:
    """Fused and plain, forward and every gradient, with documents that begin anew inside the rows."""
    layer = _layer(cell, 12, width, reverse=reverse)
    documents = torch.tensor([0, 0, 0, 1, 2, 2, 2, 2, -1])[:, None].repeat(1, 19)  # more than a tile's rows
    documents[:, 2] = 0
    resets = Resets.of(documents, reverse=reverse)
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(9, 19, 12, generator=draw).to(dtype).requires_grad_()
    grad = torch.randn(9, 19, width, generator=draw)
    weights = [layer.input.weight, layer.state.weight, layer.bias]
    one = recurrence._Fused.apply(library, x, *weights, cell, resets, reverse)
    other = plain(x, *weights, cell=cell, resets=resets, reverse=reverse).hidden
    other = other[:-1] if reverse else other[1:]
    assert (one - other).abs().max() <= TOLERANCE[dtype]
    for a, b in zip(*(torch.autograd.grad(y, [x, *weights], grad.to(dtype)) for y in (one, other)), strict=True):
        assert a.dtype == b.dtype
        assert (a - b).abs().max() <= TOLERANCE[dtype] * b.abs().max()


@needs_kernels
@cells
@reversals
@pytest.mark.parametrize("width", [7, 16, 96])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_compiled_is_plain(cell: Cell, reverse: bool, width: int, dtype: torch.dtype) -> None:
    library = kernels.built().library
    assert library is not None
    _compared(cell, width, dtype, reverse=reverse, library=library)


@needs_kernels
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the flags of other x86 processors mean nothing here")
def test_compiled_is_plain_on_a_lesser_processor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("recurrence.c", "tiles.h", "vectors.h"):
        shutil.copy(kernels.SOURCES / name, tmp_path)
    monkeypatch.setattr(kernels, "SOURCES", tmp_path)
    assert not kernels.compiled(tmp_path / "kernels.so", ("-march=x86-64",))
    for cell in THEIRS:
        for dtype in TOLERANCE:
            _compared(cell, 21, dtype, reverse=False, library=ctypes.CDLL(str(tmp_path / "kernels.so")))


@needs_kernels
@cells
def test_what_is_not_finite_stays_visible(cell: Cell) -> None:
    layer, x = _layer(cell, 6, 20, reverse=False), torch.randn(4, 2, 6)
    x[1, 0, 2] = float("nan")
    out = layer(x)
    assert out[1:, 0].isnan().any() and not out[0].isnan().any() and not out[:, 1].isnan().any()
    x[1, 0, 2] = 1e30  # a gate far beyond what exp can hold is shut or open, not broken
    assert layer(x).isfinite().all()


@cells
def test_no_step_is_longer_than_the_rotation_it_begins_with(cell: Cell) -> None:
    layer = _layer(cell, 6, 20, reverse=False)
    layer.adjust_initial()
    for gate in layer.state.weight.split(20):
        assert (gate @ gate.T - torch.eye(20)).abs().max() < 1e-5


def test_the_gradient_is_taken_once(way: str) -> None:
    layer, x = _layer("lstm", 6, 20, reverse=False), torch.randn(4, 2, 6)
    out = layer(x).sum()
    out.backward(retain_graph=True)
    if way == "compiled":
        with pytest.raises(RuntimeError, match="already taken"):
            out.backward()


def test_a_long_row_of_padding_and_one_token_need_no_resets() -> None:
    assert Resets.of(None, reverse=False) is None
    assert Resets.of(torch.zeros(1, 3), reverse=True) is None
    assert Resets.of(torch.tensor([[0, 0], [0, 1], [-1, 1]]), reverse=True).steps == {0, 1}  # type: ignore[union-attr]
    assert GATES["gru"].slots == 4
