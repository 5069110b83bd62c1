"""Folders of adapters that have learned something, for tests: what they add is drawn, not learned."""

from __future__ import annotations

import copy
from pathlib import Path

import torch

from cutaway.models.adapter import Lora, adapt, load_adapter, merge, save_adapter
from cutaway.models.model import Model
from cutaway.nn.adapt import LowRank


def drawn(folder: Path, model: Model, settings: Lora, *, seed: int, size: float = 0.3) -> Path:
    """A folder of adapters beside ``model``, which stays as it is."""
    made = adapt(copy.deepcopy(model), settings, seed=seed)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in made.modules():
            for up in part.up if isinstance(part, LowRank) else ():
                up.copy_(size * torch.randn(up.shape, generator=draw))
    save_adapter(folder, made)
    return folder


def merged(folder: Path, model: Model) -> Model:
    """A copy of ``model`` with a folder's adapters in its weights."""
    return merge(load_adapter(folder, copy.deepcopy(model)))
