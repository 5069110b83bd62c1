"""Many adapters beside one base, for reading: each row of a batch has its own by name, or none, and the weights are
there once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cutaway.errors import ModelError
from cutaway.models.adapted import refuse_other_base
from cutaway.models.adapter import pairs_of
from cutaway.models.model import Model
from cutaway.nn.beside import Beside, Pair
from cutaway.nn.linear import Linear


def with_adapters(model: Model, folders: Mapping[str, str | Path], *, base: Path) -> Model:
    """``model``, which comes from ``base``, with the adapters of some folders beside it under their names; a request
    asks for one (``Request.adapter``). It has yet to be made fast (``models.light``), and learns nothing. Raises
    ModelError for a folder whose adapters were learned beside another model, or are no LoRA."""
    if model.adapters:
        raise ModelError(f"has the adapters {', '.join(model.adapters)} already", way_out="give all of them at once")
    if not folders:
        return model
    found: list[dict[str, Pair]] = []
    for folder in map(Path, folders.values()):
        refuse_other_base(folder, model, base)
        found.append(pairs_of(folder, model))
    for path, part in list(model.named_modules()):
        pairs = [each.get(path) for each in found]
        if isinstance(part, Linear) and any(pair is not None for pair in pairs):
            part.beside = Beside(model.rows, pairs)
    model.adapters = tuple(folders)
    return model
