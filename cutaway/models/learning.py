"""A model of which only a part learns: what that is, the rest made cheap, and what the model was before it learned.

What does not learn is never there twice: the reference of a preference or a policy is the same model with what learns
put back (as trl turns adapters off), and a copy shares it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from cutaway.models.heads import TokenHead
from cutaway.models.model import Model
from cutaway.nn.adapt import LowRank
from cutaway.nn.linear import Linear


def learned_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that learn, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def low_rank_of(model: nn.Module) -> list[LowRank]:
    """The adapters of a model."""
    return [part for part in model.modules() if isinstance(part, LowRank)]


def all_learns(model: nn.Module) -> bool:
    """Whether nothing stays as it is."""
    return all(p.requires_grad for p in model.parameters())


def settled(model: Model) -> Model:
    """The same model and the same numbers: weights of products that do not learn are kept in ``compute_dtype`` alone,
    in place, and not cast at each use. It can no longer be merged or saved whole."""
    if model.compute_dtype == torch.float32:
        return model
    for part in model.modules():
        if isinstance(part, Linear | TokenHead) and not part.weight.requires_grad:
            # a head that is tied lets go of the embedding, whose rows stay float32
            part.weight = nn.Parameter(part.weight.detach().to(model.compute_dtype), requires_grad=False)
    return model


def copied(model: Model) -> Model:
    """A copy to change: its own numbers where the model learns, the very same ones where it does not."""
    shared = {id(p): p for p in model.parameters() if not p.requires_grad}
    return copy.deepcopy(model, shared)


@contextmanager
def undropped(model: nn.Module) -> Iterator[None]:
    """Inside, nothing is dropped; afterwards every part trains that did."""
    parts = [part for part in model.modules() if part.training]
    for part in parts:
        part.training = False
    try:
        yield
    finally:
        for part in parts:
            part.training = True


class Beginning:
    """What ``model`` was when this was made. Only what learns is kept; adapters that added nothing are turned off."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.silent = [part for part in low_rank_of(model) if part.silent]
        off = {id(p) for part in self.silent for p in part.parameters()}
        self.kept = {name: p.detach().clone() for name, p in learned_of(model).items() if id(p) not in off}

    @contextmanager
    def __call__(self) -> Iterator[Model]:
        """Inside, the model is as it was. No graph of the model as it is may be waiting for its backward pass."""
        self._turn(off=True)
        try:
            yield self.model
        finally:
            self._turn(off=False)

    def _turn(self, *, off: bool) -> None:
        parameters: dict[str, Tensor] = dict(self.model.named_parameters()) if self.kept else {}
        for name, value in self.kept.items():
            self.kept[name], parameters[name].data = parameters[name].data, value
        for part in self.silent:
            part.off = off
