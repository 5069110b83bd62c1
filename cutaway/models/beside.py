"""Many adapters beside one base, for reading: each row of a batch has its own by name, or none, and the weights are
there once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from cutaway.errors import ModelError
from cutaway.models.adapted import refuse_other_base
from cutaway.models.adapter import pairs_of
from cutaway.models.model import Model
from cutaway.nn.beside import Beside, Pair
from cutaway.nn.linear import Linear

Lost = Callable[[str, ModelError], None]


def with_adapters(model: Model, folders: Mapping[str, str | Path], *, base: Path, lost: Lost | None = None) -> Model:
    """``model``, which comes from ``base``, with the adapters of some folders beside it under their names; a request
    asks for one (``Request.adapter``). It has yet to be made fast (``models.light``), learns nothing, and is read by
    one thread at a time. Raises ModelError for a folder whose adapters were learned beside another model, or are no
    LoRA; with ``lost`` that is told of it and the others are there."""
    if model.adapters:
        raise ModelError(f"has the adapters {', '.join(model.adapters)} already", way_out="give all of them at once")
    found: dict[str, dict[str, Pair]] = {}
    for name, folder in folders.items():
        try:
            refuse_other_base(Path(folder), model, base)
            found[name] = pairs_of(folder, model)
        except ModelError as error:
            if lost is None:
                raise
            lost(name, error)
    for path, part in list(model.named_modules()):
        pairs = [each.get(path) for each in found.values()]
        if isinstance(part, Linear) and any(pair is not None for pair in pairs):
            part.beside = Beside(model.rows, pairs)
    model.adapters = tuple(found)
    return model
