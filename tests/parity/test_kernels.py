"""The compiled kernels beside plain PyTorch: forward and gradient, float32 and bfloat16, sizes that fit no vector."""

from __future__ import annotations

import ctypes
import functools
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cutaway.batch import Batch
from cutaway.nn import kernels, ops
from cutaway.nn.linear import Activation, After, Linear, PackedLinear, Packing, packed
from cutaway.nn.mask import Interval, across, within
from cutaway.nn.position import RelativeBias, rotary_table

Many = Callable[..., Tensor | tuple[Tensor, ...]]
# probabilities are rounded to bfloat16 between two products, by the kernels where it has instructions: 2^-8, twice
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
@pytest.mark.parametrize("center", [False, True], ids=["rms", "layer"])
def test_add_norm(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, width: int, center: bool) -> None:
    x, delta, weight = 3 + torch.randn(3, 5, width), torch.randn(3, 5, width).to(dtype), torch.randn(width)
    norm = functools.partial(ops.add_norm, eps=1e-5, dtype=dtype, center=center)
    _agree(monkeypatch, dtype, norm, x, delta, weight)
    _agree(monkeypatch, dtype, lambda a, w: norm(a, None, w), x, weight)


@needs_kernels
@pytest.mark.parametrize("precision", get_args(Packing))
@pytest.mark.parametrize(("inputs", "outputs"), [(2, 1), (34, 33), (64, 100), (256, 32), (136, 64)])
def test_a_packed_weight(inputs: int, outputs: int, precision: Packing) -> None:
    """The products of the rounded numbers, exact but for the order of a sum; a row's bits are its own."""
    linear, x = Linear(inputs, outputs, bias=True), torch.randn(2, 50, inputs).bfloat16()
    torch.nn.init.normal_(linear.weight)
    torch.nn.init.normal_(linear.bias)
    small = _packed(linear, precision)
    wanted = _product(x, linear, precision)
    for dtype, near in ((torch.bfloat16, 2**-8), (torch.float32, 2**-20)):
        found = small(x, dtype=dtype)
        assert found.dtype == dtype and (found.double() - wanted).abs().max() <= near * wanted.abs().max() + 1e-6
        for rows in (1, 3, 5, 6, 7, 8, 11, 13, 37):
            assert torch.equal(small(x[1, :rows], dtype=dtype), found[1, :rows])
    assert small(x[:0]).shape == (0, 50, outputs)
    assert small(torch.zeros(3, inputs).bfloat16(), dtype=torch.float32).allclose(linear.bias)
    x[1, 7, 1] = torch.nan
    assert small(x)[1, 7].isnan().all() and torch.equal(small(x)[1, 8:], small(x[1, 8:]))
    with torch.no_grad():
        linear.weight[0, 1] = torch.nan
    assert _packed(linear, precision)(x[0])[:, 0].isnan().all()


def _packed(linear: Linear, precision: Packing, **then: Any) -> PackedLinear:
    made = packed(linear, precision, **then)
    if made is None:
        pytest.skip("the library's products are faster on this processor")
    return made


def _blocks(x: Tensor, weight: Tensor) -> Tensor:
    """Inputs in steps of a 127th of the largest of 64, weights in steps of a 15th between lowest and highest of 32."""
    inputs = []
    for part in x.float().split(64, -1):
        scale = torch.tensor(127.0) / part.abs().amax(-1, keepdim=True)
        inputs.append((part * scale).round().double() / scale.double())
    parts = weight.view(len(weight), -1, 32)
    low, high = parts.amin(-1, keepdim=True), parts.amax(-1, keepdim=True)
    step, start = ((high - low) / 15).half().float(), low.half().float()
    grid = ((parts - start) * (torch.tensor(1.0) / step)).round().clamp(0, 15).double() * step.double() + start.double()
    return torch.cat(inputs, -1) @ grid.view(weight.shape).T


def _product(x: Tensor, linear: Linear, precision: Packing) -> Tensor:
    """Plain, in float64, of what the kernel multiplies."""
    assert linear.bias is not None
    x, weight = x.double(), linear.weight.detach()
    if precision == "int4" and x.shape[-1] % 32 == 0:
        return _blocks(x, weight) + linear.bias.detach().double()
    if precision not in ("int8", "int4"):
        return x @ (weight.bfloat16() if precision == "bfloat16" else weight).double().T + linear.bias.detach().double()
    scale = torch.tensor(127.0) / weight.abs().amax(-1, keepdim=True)
    whole, outputs = (weight * scale).round().double() / scale.double(), linear.bias.detach().double()
    for part, rows in zip(x.float().split(64, -1), whole.split(64, -1), strict=True):  # a scale for 64 inputs
        inputs = torch.tensor(127.0) / part.abs().amax(-1, keepdim=True)
        outputs = outputs + (part * inputs).round().double() / inputs.double() @ rows.T
    return outputs


@needs_kernels
@pytest.mark.parametrize("rows", [1, 2, 5, 9])
def test_int8_is_exact_at_its_ends(rows: int) -> None:
    """The largest magnitudes in every pair and every order of signs: sixteen bits must hold what is on the way."""
    signs = torch.randint(0, 2, (rows + 64, 132)) * 2.0 - 1
    x, linear = signs[:rows].bfloat16(), Linear(132, 64)
    linear.weight.data = signs[rows:]
    linear.weight.data[:3] = torch.tensor([[1.0], [-1.0], [1.0]])
    x[0] = -1
    found = _packed(linear, "int8")(x, dtype=torch.float32)
    assert (found - x.float() @ linear.weight.T).abs().max() <= 1e-4  # 127 * (1 / 127) is 1 but for a rounding


@needs_kernels
@pytest.mark.parametrize("precision", get_args(Packing))
@pytest.mark.parametrize("after", get_args(After))
def test_what_follows_a_packed_weight(after: After, precision: Packing) -> None:
    linear, x = Linear(40, 96, bias=True), 2 * torch.randn(5, 40).bfloat16()
    torch.nn.init.normal_(linear.weight, std=0.3)
    torch.nn.init.normal_(linear.bias)
    sums = _product(x, linear, precision).float()
    then = {"relu": F.relu, "silu": F.silu, "gelu": F.gelu, "gelu_tanh": functools.partial(F.gelu, approximate="tanh")}
    found = _packed(linear, precision, after=after)(x, dtype=torch.float32)
    assert (found - then[after](sums)).abs().max() <= 1e-5 * sums.abs().max()
    gate, up = sums.chunk(2, -1)
    if after != "relu":
        found = _packed(linear, precision, after=after, gated=True)(x, dtype=torch.float32)
        assert (found - then[after](gate) * up).abs().max() <= 1e-5 * (gate * up).abs().max()
    assert packed(Linear(40, 40), precision, after=after, gated=True) is None


@needs_kernels
@dtypes
@pytest.mark.parametrize("inner", [16, 21, 344])
@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
def test_gated(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, inner: int, activation: Activation) -> None:
    for size in (0.1, 1, 8):
        _agree(monkeypatch, dtype, lambda x: ops.gated(x, activation), size * torch.randn(2, 3, 2 * inner).to(dtype))


@needs_kernels
@dtypes
@pytest.mark.parametrize("inner", [16, 42])
@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
def test_gated_linear(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, inner: int,
                      activation: Activation) -> None:
    gate_up, weight = torch.randn(2, 3, 2 * inner).to(dtype), torch.randn(7, inner)

    def product(x: Tensor, w: Tensor) -> Tensor:
        return ops.gated_linear(x, w, activation)

    _agree(monkeypatch, dtype, product, gate_up, weight)
    _agree(monkeypatch, dtype, lambda x, w: product(x, w).transpose(0, 2), gate_up, weight)  # its gradient is turned
    if dtype == torch.bfloat16:
        _agree(monkeypatch, dtype, product, gate_up, weight.bfloat16())
    apart = F.linear(ops.gated(gate_up, activation), weight.to(dtype))
    assert torch.equal(product(gate_up, weight), apart)


def _gradients(gate_up: Tensor, weight: Tensor) -> tuple[Tensor | None, Tensor | None]:
    gate_up.grad = weight.grad = None
    ops.gated_linear(gate_up, weight, "gelu").square().sum().backward()
    return gate_up.grad, weight.grad


@needs_kernels
def test_gated_linear_where_one_side_is_frozen() -> None:
    gate_up, weight = torch.randn(2, 3, 64).requires_grad_(), torch.randn(7, 32).requires_grad_()
    both = _gradients(gate_up, weight)
    assert both[0] is not None and both[1] is not None
    for frozen in (0, 1):
        (gate_up, weight)[frozen].requires_grad_(False)
        found = _gradients(gate_up, weight)
        assert found[frozen] is None and torch.equal(found[1 - frozen], both[1 - frozen])  # type: ignore[arg-type]
        (gate_up, weight)[frozen].requires_grad_(True)


@needs_kernels
def test_gated_linear_under_autocast() -> None:
    gate_up, weight = torch.randn(2, 3, 64).requires_grad_(), torch.randn(7, 32).requires_grad_()
    plain = _gradients(gate_up, weight)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = _gradients(gate_up, weight)
    for a, b in zip(plain, mixed, strict=True):
        assert a is not None and b is not None and (a - b).abs().max() < 0.05 * a.abs().max()


@needs_kernels
def test_a_second_derivative_is_refused() -> None:
    gate_up, weight = torch.randn(2, 3, 64).requires_grad_(), torch.randn(7, 32).requires_grad_()
    loss = ops.gated_linear(gate_up, weight, "silu").square().sum()
    (slope,) = torch.autograd.grad(loss, weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.square().sum().backward()


@needs_kernels
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_gelu_is_exact_where_it_nearly_vanishes(activation: Activation) -> None:
    gate = torch.linspace(-12, 12, 4801)
    ours = ops.gated(torch.stack((gate, torch.ones_like(gate)), -1)[None], activation)[0, :, 0].double()
    exact = torch.nn.functional.gelu(gate.double(), approximate="none" if activation == "gelu" else "tanh")
    assert ((ours - exact).abs() <= 3e-7 * gate.abs() + 1e-9).all()


SHAPES = [(1, (2, 2, 8)), (7, (2, 1, 10)), (33, (4, 2, 32)), (100, (4, 4, 32)), (130, (6, 2, 64))]


def _documents(steps: int) -> Tensor:
    documents = torch.sort(torch.randint(0, 4, (3, steps)), 1).values.int()
    documents[:, -2:] = -1
    return documents


def _beside(documents: Tensor, source: Tensor) -> Batch:
    return Batch(documents.long(), documents=documents, source=source.long(), source_documents=source)


def _attention(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, steps: int, heads: tuple[int, int, int], *,
               packed: bool, causal: bool) -> None:
    rotary = rotary_table(heads[2], steps, theta=1e4)
    documents = _documents(steps) if packed else None
    angles = rotary[:, torch.randint(0, steps, (3, steps))] if packed else rotary[:, None]
    counted = torch.ones(3, steps, 1) if documents is None else (documents >= 0)[..., None].float()
    qkv, seen = torch.randn(3, steps, (heads[0] + 2 * heads[1]) * heads[2]).to(dtype), within(documents, causal=causal)
    _agree(monkeypatch, dtype, lambda x: counted * ops.self_attention(x, angles, heads, seen=seen), qkv)


@needs_kernels
@dtypes
@pytest.mark.parametrize(("steps", "heads"), SHAPES)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_self_attention(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, steps: int, heads: tuple[int, int, int],
                        packed: bool, causal: bool) -> None:
    _attention(monkeypatch, dtype, steps, heads, packed=packed, causal=causal)


@needs_kernels
@dtypes
@pytest.mark.parametrize(("steps", "heads"), SHAPES)
@pytest.mark.parametrize("causal", [False, True])
def test_attention_with_biases_by_distance(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, steps: int,
                                           heads: tuple[int, int, int], causal: bool) -> None:
    qkv = torch.randn(3, steps, (heads[0] + 2 * heads[1]) * heads[2]).to(dtype)
    bias = RelativeBias(heads[0], both_ways=not causal)
    # numbers that bfloat16 holds: the plain form rounds them, the kernel does not
    torch.nn.init.normal_(bias.weight)
    table = bias.table(steps, steps).detach().bfloat16().float()
    documents = _documents(steps)
    counted, seen = (documents >= 0)[..., None].float(), within(documents, causal=causal)
    _agree(monkeypatch, dtype,
           lambda x, b: counted * ops.self_attention(x, None, heads, seen=seen, bias=b, scale=0.3), qkv, table)


@needs_kernels
@dtypes
@pytest.mark.parametrize(("steps", "heads"), SHAPES[1:])
@pytest.mark.parametrize(("source", "packed"), [(3, False), (75, False), (18, True), (75, True)])
def test_cross_attention(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, steps: int, heads: tuple[int, int, int],
                         source: int, packed: bool) -> None:
    q, kv = (torch.randn(3, n, h * heads[2]).to(dtype) for n, h in ((steps, heads[0]), (source, 2 * heads[1])))
    seen = across(_beside(_documents(steps), _documents(source))) if packed else Interval()
    _agree(monkeypatch, dtype, lambda x, y: ops.cross_attention(x, y, heads, seen=seen, scale=0.5), q, kv)


@pytest.mark.parametrize("causal", [False, True])
def test_an_interval_is_the_mask_of_its_documents(causal: bool) -> None:
    documents, source = _documents(40), _documents(25)
    same = (documents[:, :, None] == documents[:, None]) & (documents[:, None] >= 0) | torch.eye(40, dtype=torch.bool)
    expected = same.tril() if causal else same
    dense = within(documents, causal=causal).dense(40, 40, documents.device)
    assert dense is not None and torch.equal(dense[:, 0], expected)
    looks = (documents[:, :, None] == source[:, None]) & (source[:, None] >= 0)
    looks[:, :, 0] |= ~looks.any(-1)
    dense = across(_beside(documents, source)).dense(40, 25, documents.device)
    assert dense is not None and torch.equal(dense[:, 0], looks)


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
        for causal in (False, True):
            _attention(monkeypatch, torch.bfloat16, steps, heads, packed=True, causal=causal)
    for activation in get_args(Activation):
        for dtype in TOLERANCE:
            gate = functools.partial(ops.gated, activation=activation)
            _agree(monkeypatch, dtype, gate, 8 * torch.randn(2, 3, 42).to(dtype))
            _agree(monkeypatch, dtype, functools.partial(ops.gated_linear, activation=activation),
                   torch.randn(2, 3, 42).to(dtype), torch.randn(5, 21))
            assert ops.gated(torch.full((1, 1, 42), torch.nan, dtype=dtype), activation).isnan().all()


@needs_kernels
def test_attention_of_a_row_does_not_depend_on_its_batch() -> None:
    qkv = torch.randn(3, 70, 3 * 4 * 32).bfloat16()
    angles = rotary_table(32, 70, theta=1e4)[:, None]
    together = ops.self_attention(qkv, angles, (4, 4, 32), seen=Interval(causal=True))
    for row in range(3):
        alone = ops.self_attention(qkv[row : row + 1], angles, (4, 4, 32), seen=Interval(causal=True))
        assert torch.equal(alone[0], together[row])


@needs_kernels
@dtypes
@pytest.mark.parametrize("vocabulary", [5, 101, 512])
def test_cross_entropy(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, vocabulary: int) -> None:
    hidden, weight = 4 * torch.randn(3, 20, 24).to(dtype), torch.randn(vocabulary, 24)
    targets, weights = torch.randint(0, vocabulary, (3, 20)), torch.rand(3, 20)
    weights[1, :5] = 0
    _agree(monkeypatch, dtype, lambda h, w: ops.linear_cross_entropy(h.flatten(0, 1), w, targets.flatten(),
                                                                     weights.flatten(), chunk=16), hidden, weight)


@needs_kernels
def test_what_is_not_finite_stays_visible() -> None:
    """A kernel that turned NaN into a number would hide a broken step from the loop."""
    bad = torch.randn(1, 4, 96)
    bad[0, 1, 3] = float("nan")
    for activation in get_args(Activation):
        assert ops.gated(bad, activation).isnan().any()
    for center in (False, True):
        assert ops.add_norm(bad, None, torch.ones(96), eps=1e-5, dtype=torch.bfloat16, center=center)[1].isnan().any()
    mixed = ops.self_attention(bad, rotary_table(32, 4, theta=1e4)[:, None], (1, 1, 32), seen=Interval(causal=True))
    assert mixed[0, 1:].isnan().any() and not mixed[0, 0].isnan().any()
    hidden, targets = torch.full((2, 8), float("nan")), torch.zeros(2, dtype=torch.long)
    loss = ops.linear_cross_entropy(hidden, torch.randn(9, 8), targets, torch.ones(2), chunk=4)
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
