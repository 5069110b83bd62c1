"""The compiled kernels beside plain PyTorch: forward and gradient, float32 and bfloat16, sizes that fit no vector."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cutaway.nn import kernels, ops
from cutaway.nn.position import rotary_table

Many = Callable[..., Tensor | tuple[Tensor, ...]]
# both round the probabilities to bfloat16 between two products, and each its own way: 2^-8 relative, twice
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1.6e-2}

needs_kernels = pytest.mark.skipif(kernels.built().library is None, reason=kernels.status())
dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


def _results(operation: Many, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    out = operation(*leaves)
    outs = out if isinstance(out, tuple) else (out,)
    draw = torch.Generator().manual_seed(1)
    loss = sum((o.float() * torch.randn(o.shape, generator=draw)).sum() for o in outs)
    assert isinstance(loss, Tensor)
    return [t.detach().float() for t in (*outs, *torch.autograd.grad(loss, leaves))]


def _agree(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, operation: Many, *inputs: Tensor) -> None:
    fused = _results(operation, inputs)
    with monkeypatch.context() as patch:
        patch.setattr(ops, "library_for", lambda *tensors: None)
        plain = _results(operation, inputs)
    for ours, theirs in zip(fused, plain, strict=True):
        assert (ours - theirs).abs().max() <= TOLERANCE[dtype] * (theirs.abs().max() + 1e-6)


@needs_kernels
@dtypes
@pytest.mark.parametrize("width", [16, 20, 33, 128])
def test_add_rms_norm(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, width: int) -> None:
    x, delta, weight = torch.randn(3, 5, width), torch.randn(3, 5, width).to(dtype), torch.randn(width)
    _agree(monkeypatch, dtype, lambda a, b, w: ops.add_rms_norm(a, b, w, eps=1e-5, dtype=dtype), x, delta, weight)
    _agree(monkeypatch, dtype, lambda a, w: ops.add_rms_norm(a, None, w, eps=1e-5, dtype=dtype), x, weight)


@needs_kernels
@dtypes
@pytest.mark.parametrize("inner", [16, 21, 344])
def test_swiglu(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, inner: int) -> None:
    _agree(monkeypatch, dtype, lambda x: ops.gated(x, "silu"), 8 * torch.randn(2, 3, 2 * inner).to(dtype))


SHAPES = [(1, (2, 2, 8)), (7, (2, 1, 10)), (33, (4, 2, 32)), (100, (4, 4, 32)), (130, (6, 2, 64))]


def _attention(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, steps: int, heads: tuple[int, int, int], *,
               packed: bool) -> None:
    rotary = rotary_table(heads[2], steps, theta=1e4)
    documents, counted = None, torch.tensor(1.0)
    if packed:
        documents = torch.sort(torch.randint(0, 4, (3, steps)), 1).values.int()
        documents[:, -2:] = -1
        counted = (documents >= 0)[..., None].float()
        angles = rotary[:, torch.randint(0, steps, (3, steps))]
    else:
        angles = rotary[:, None]
    qkv = torch.randn(3, steps, (heads[0] + 2 * heads[1]) * heads[2]).to(dtype)
    _agree(monkeypatch, dtype,
           lambda x: counted * ops.self_attention(x, angles, heads, documents=documents, causal=True),
           qkv)


@needs_kernels
@dtypes
@pytest.mark.parametrize(("steps", "heads"), SHAPES)
@pytest.mark.parametrize("packed", [False, True])
def test_self_attention(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, steps: int, heads: tuple[int, int, int],
                        packed: bool) -> None:
    _attention(monkeypatch, dtype, steps, heads, packed=packed)


@needs_kernels
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the flags of other x86 processors mean nothing here")
@pytest.mark.parametrize("processor", [("-march=native", "-mno-amx-bf16"),
                                       ("-march=native", "-mno-amx-bf16", "-mno-avx512bf16"), ("-march=x86-64",)],
                         ids=["without tiles", "without dot products", "plain"])
def test_attention_on_lesser_processors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                                        processor: tuple[str, ...]) -> None:
    """The same sources for a processor that has less: what another machine would run."""
    target = tmp_path / "kernels.so"
    assert not kernels.compiled(target, processor)
    library = ctypes.CDLL(str(target))
    monkeypatch.setattr(ops, "library_for", lambda *tensors: library)
    for steps, heads in SHAPES:
        _attention(monkeypatch, torch.bfloat16, steps, heads, packed=True)
    _agree(monkeypatch, torch.bfloat16, lambda x: ops.gated(x, "silu"), 8 * torch.randn(2, 3, 42).bfloat16())


@needs_kernels
def test_attention_of_a_row_does_not_depend_on_its_batch() -> None:
    qkv = torch.randn(3, 70, 3 * 4 * 32).bfloat16()
    angles = rotary_table(32, 70, theta=1e4)[:, None]
    together = ops.self_attention(qkv, angles, (4, 4, 32), documents=None, causal=True)
    for row in range(3):
        alone = ops.self_attention(qkv[row : row + 1], angles, (4, 4, 32), documents=None, causal=True)
        assert torch.equal(alone[0], together[row])


@needs_kernels
@dtypes
@pytest.mark.parametrize("vocabulary", [5, 101, 512])
def test_cross_entropy(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, vocabulary: int) -> None:
    hidden, weight = 4 * torch.randn(3, 20, 24).to(dtype), torch.randn(vocabulary, 24)
    targets, weights = torch.randint(0, vocabulary, (3, 20)), torch.rand(3, 20)
    weights[1, :5] = 0
    _agree(monkeypatch, dtype, lambda h, w: ops.linear_cross_entropy(h, w, targets, weights, chunk=16), hidden, weight)


@needs_kernels
def test_what_is_not_finite_stays_visible() -> None:
    """A kernel that turned NaN into a number would hide a broken step from the loop."""
    bad = torch.randn(1, 4, 96)
    bad[0, 1, 3] = float("nan")
    assert ops.gated(bad, "silu").isnan().any()
    assert ops.add_rms_norm(bad, None, torch.ones(96), eps=1e-5, dtype=torch.bfloat16)[1].isnan().any()
    mixed = ops.self_attention(bad, rotary_table(32, 4, theta=1e4)[:, None], (1, 1, 32), documents=None, causal=True)
    assert mixed[0, 1:].isnan().any() and not mixed[0, 0].isnan().any()
    hidden = torch.full((1, 2, 8), float("nan"))
    targets = torch.zeros(1, 2, dtype=torch.long)
    loss = ops.linear_cross_entropy(hidden, torch.randn(9, 8), targets, torch.ones(1, 2), chunk=4)
    assert loss.isnan()


def test_without_a_compiler_there_is_a_reason_and_no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = kernels.built.__wrapped__()
    assert found.library is None and "no-such-compiler" in found.reason


def test_a_failed_compilation_names_the_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if kernels.built().library is None:
        pytest.skip(kernels.status())
    assert "error" in kernels.compiled(tmp_path / "kernels.so", ("-march=no-such-processor",))
