"""Copies of a model that read and write faster and learn nothing: weights in the dtype of their products, or laid out
for this processor's kernels in float32, bfloat16, int8 or int4."""

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
from cutaway.nn.linear import Linear, PackedLinear, Packing, Room, packed, packs

ROOM = 1 << 26  # bytes of weights that lie together
Precision = Literal["float32", "bfloat16", "int8", "int4"]


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
    weight is rounded to 255 steps of its output's largest, and every 64 inputs likewise; in int4 to 16 steps between
    the lowest and the highest of 32, but for the head, whose weights are int8. Raises MachineError for these where
    this processor has no dot products for them, and ModelError where a product cannot be made of them (a recurrent
    network's loop).
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
                weight = Room().read(part)
                part.weight, part.lying = nn.Parameter(weight.to(dtype)), ()
        for part in list(light.modules()):
            for name, child in list(part.named_children()):
                if isinstance(child, LowRank):
                    setattr(part, name, child.light(dtype))
    return light.requires_grad_(False)


def _pack(light: Model, precision: Packing) -> None:
    whole = precision in ("int8", "int4")
    if whole and packs(torch.zeros(1, 2), precision) is None:
        raise MachineError(f"no dot products of {precision} are here (they need AVX2, FMA and a C compiler)",
                          way_out="ask for bfloat16 or float32")
    room, whole_parts = Room(ROOM), set[nn.Module]()
    for part in list(light.modules()):
        for name, child in [] if part in whole_parts else list(part.named_children()):
            made = (child.packed(precision, room) if isinstance(child, Gated | Plain) else
                    packed(child, precision, room=room) if isinstance(child, Linear) else None)
            if made is not None:
                setattr(part, name, made)
                whole_parts.add(child)
    left = sum(isinstance(part, Linear) for part in light.modules())
    if whole and left:
        raise ModelError(f"{left} of its products cannot be of {precision} here", way_out="ask for bfloat16 or float32")
    fine: Packing = "int8" if precision == "int4" else precision  # rounding a head to four bits costs the most
    if isinstance(light.head, TokenHead) and (lib := packs(light.head.weight, fine)) is not None:
        light.head.packed = PackedLinear(lib, light.head.weight, light.head.bias, fine, room=room)
