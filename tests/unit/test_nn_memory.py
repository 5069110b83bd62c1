"""What is made again in the backward pass: the same gradients, and less kept."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from cutaway.nn.feedforward import Gated
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
