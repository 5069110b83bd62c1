"""Copies of a model that read and write faster and learn nothing: weights in the dtype of their products, or laid out
for this processor's kernels in bfloat16 or int8."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import nn

from cutaway.errors import MachineError, ModelError
from cutaway.models.heads import TokenHead
from cutaway.models.model import Model
from cutaway.nn.adapt import LowRank
from cutaway.nn.feedforward import Gated, Plain
from cutaway.nn.linear import Linear, PackedLinear, Packing, lay_together, packed, packs

Precision = Literal["float32", "bfloat16", "int8"]


def for_sampling(model: Model) -> Model:
    """A copy whose products find their weights already in ``compute_dtype``, and adapters laid together, for many
    tokens between two updates.

    The same numbers as ``model``, which would make the same cast at every token; a quarter of a small model's time.
    """
    if model.compute_dtype == torch.float32 and not any(isinstance(part, LowRank) for part in model.modules()):
        return model
    return _cast(_copied(model, model.compute_dtype), model.compute_dtype)


def for_reading(model: Model, precision: Precision | None = None, *, in_place: bool = False) -> Model:
    """A copy that reads and writes faster, with products of ``precision``, which is ``compute_dtype`` if not given; or
    the model itself made so, which needs no memory for two.

    It learns nothing and is not saved. Its numbers differ from the model's in the last place; in int8 every
    weight is rounded to 255 steps of its output's largest, and every 64 inputs likewise. Raises MachineError for
    int8 where this processor has no dot products for it, and ModelError where one of the products cannot be made of
    them (a recurrent network's loop).
    """
    if precision is None:
        precision = "bfloat16" if model.compute_dtype == torch.bfloat16 else "float32"
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    light = model.eval() if in_place else _copied(model, dtype)
    light.compute_dtype = dtype
    _pack(light, precision)
    return _cast(light, dtype)


def _copied(model: Model, dtype: torch.dtype) -> Model:
    """A copy that shares with ``model`` the weights of products of another dtype, for they are about to be replaced,
    and what does not learn, for it cannot change under the copy."""
    shared = {id(m.weight): m.weight for m in model.modules() if isinstance(m, Linear) and m.weight.dtype != dtype}
    shared |= {id(p): p for p in model.parameters() if not p.requires_grad}
    return copy.deepcopy(model, dict(shared)).eval()


def _cast(light: Model, dtype: torch.dtype) -> Model:
    with torch.no_grad():
        # apart from the embedding, whose rows stay float32
        if isinstance(light.head, TokenHead) and light.head.packed is None:
            light.head.weight = nn.Parameter(light.head.weight.to(dtype))
        for part in light.modules():
            if isinstance(part, Linear):
                part.weight = nn.Parameter(part.weight.to(dtype))
        for part in list(light.modules()):
            for name, child in list(part.named_children()):
                if isinstance(child, LowRank):
                    setattr(part, name, child.light(dtype))
    return light.requires_grad_(False)


def _pack(light: Model, precision: Packing) -> None:
    if precision == "int8" and packs(torch.zeros(1, 2), precision) is None:
        raise MachineError("no dot products of int8 are here (they need AVX2 and a C compiler)",
                          way_out="ask for bfloat16 or float32")
    laid: list[nn.Module] = []
    for part in list(light.modules()):
        for name, child in list(part.named_children()):
            made = (child.packed(precision) if isinstance(child, Gated | Plain) else
                    packed(child, precision) if isinstance(child, Linear) else None)
            if made is not None:
                setattr(part, name, made)
                laid.append(made)
    left = sum(isinstance(part, Linear) for part in light.modules())
    if precision == "int8" and left:
        raise ModelError(f"{left} of its products cannot be of int8 here", way_out="ask for bfloat16 or float32")
    if isinstance(light.head, TokenHead) and (lib := packs(light.head.weight, precision)) is not None:
        light.head.packed = PackedLinear(lib, light.head.weight, light.head.bias, precision)
        laid.append(light.head.packed)
    lay_together([part for one in laid for part in one.modules() if isinstance(part, PackedLinear)])
