"""What is made again in the backward pass: the same gradients, and less kept."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from cutaway.nn.feedforward import Gated
from cutaway.nn.linear import Linear
from cutaway.nn.memory import made_again


def test_gradients_are_the_same_numbers() -> None:
    linear, x = nn.Linear(6, 3, bias=False), torch.randn(2, 4, 6, requires_grad=True)

    def grads(again: bool) -> tuple[Tensor, ...]:
        y = x.sigmoid()
        if again:
            with made_again(y, x.sigmoid):
                out = linear(y)
        else:
            out = linear(y)
        return torch.autograd.grad(out.square().sum(), (x, linear.weight))

    assert all(torch.equal(a, b) for a, b in zip(grads(True), grads(False), strict=True))


def test_it_is_made_again_and_only_then() -> None:
    calls = []
    x = torch.randn(2, 6, requires_grad=True)
    y = x.sigmoid()

    def make() -> Tensor:
        calls.append(1)
        return x.sigmoid()

    with made_again(y, make):
        out = nn.Linear(6, 3)(y)
    assert not calls
    out.sum().backward()
    assert calls == [1]


def test_the_inner_activation_of_a_feedforward_is_not_kept() -> None:
    layer = Gated(16, 40)
    nn.init.normal_(layer.gate_up.weight)
    nn.init.normal_(layer.down.weight)
    kept: list[tuple[int, ...]] = []

    def note(t: Tensor) -> Tensor:
        kept.append(tuple(t.shape))
        return t

    with saved_tensors_hooks(note, lambda t: t):
        out = layer(torch.randn(2, 5, 16, requires_grad=True))
    assert (2, 5, 80) in kept or (10, 80) in kept  # gate and up, of which it is made
    assert not any(shape[-1] == 40 and len(shape) == 2 and shape[0] == 10 for shape in kept)
    assert not any(shape == (2, 5, 40) for shape in kept)
    out.sum().backward()


class Mark:
    """Lives as long as the graph that holds it."""


class Marked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mark: Mark) -> Tensor:
        ctx.mark = mark
        return x * 1

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def test_a_forward_pass_without_a_backward_one_is_let_go() -> None:
    """Attention keeps its own output: kept as it is, graph and output would hold each other."""
    mark = Mark()
    x, alive = torch.randn(1, 2, 4, 8, requires_grad=True), weakref.ref(mark)
    y: Tensor = Marked.apply(x, mark)  # type: ignore[no-untyped-call]
    with made_again(torch.empty(1), lambda: torch.empty(1)):
        out = nn.functional.scaled_dot_product_attention(y, y, y)
    del mark, y, out
    gc.collect()
    assert alive() is None


def test_a_change_after_the_forward_pass_is_noticed() -> None:
    x, weight = torch.randn(3, 4, requires_grad=True), torch.randn(4)
    with made_again(torch.empty(1), lambda: torch.empty(1)):
        out = x * weight
    weight.mul_(10)
    with pytest.raises(RuntimeError, match="changed in place"):
        out.sum().backward()


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4)])
def test_a_linear_map_in_bfloat16_has_the_gradients_of_its_cast(shape: tuple[int, ...]) -> None:
    layer = Linear(4, 5)
    nn.init.normal_(layer.weight)
    x = torch.randn(shape).bfloat16().requires_grad_()
    layer(x).sum().backward()
    cast, y = layer.weight.detach().bfloat16().requires_grad_(), x.detach().clone().requires_grad_()
    nn.functional.linear(y, cast).sum().backward()
    assert layer.weight.grad is not None and cast.grad is not None
    assert torch.equal(x.grad, y.grad) and torch.allclose(layer.weight.grad, cast.grad.float(), rtol=1e-2)
