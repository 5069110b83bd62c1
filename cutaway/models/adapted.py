"""A folder of adapters as a model: its base is found by the name that the folder says, and compared with the one it was
learned beside."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from cutaway.errors import ModelError
from cutaway.models.adapter import CONFIG, load_adapter, merge
from cutaway.models.folder import load_model, load_tokenizer, stored_small
from cutaway.models.learning import low_rank_of
from cutaway.models.model import Model
from cutaway.models.store import located, model_file, name_of
from cutaway.models.whole import AGAIN, SIDE, TOKENIZER, read_json
from cutaway.nn.linear import Linear, Room
from cutaway.text.tokenizer import Tokenizer

SAMPLE, SMALL = "base_sample", "base_stored_small"
_NUMBERS = 64  # that are compared
_SMALL, _MERGED = 2**-8, 2**-16  # how near: one side was stored in 16 bits, or is a sum of weights and adapters


def is_adapter(folder: str | Path) -> bool:
    """Whether a folder holds adapters and no model of its own."""
    return (Path(folder) / CONFIG).is_file()


def open_model(folder: str | Path, *, dtype: torch.dtype = torch.float32, mapped: bool = False) -> Model:
    """The model of a folder or file, ``mapped`` as ``load_model`` says; of a folder of adapters its base with them
    beside. Raises ModelError where the base is not on this machine, or is not the one that the adapters were learned
    beside."""
    *adapters, root = line_of(folder)
    model, base = load_model(root, dtype=dtype, mapped=mapped), root
    for one in reversed(adapters):
        if base != root:
            model = merge(model)
        refuse_other_base(one, model, base)
        model, base = load_adapter(one, model), one
    return model


def refuse_other_base(folder: Path, model: Model, base: Path) -> None:
    """Raises ModelError where ``model``, which comes from ``base``, is not what a folder's adapters were learned
    beside."""
    side = read_json(folder / SIDE) if (folder / SIDE).is_file() else {}
    if side.get(SAMPLE) is not None:
        *_, root = line_of(base)
        small = side.get(SMALL) is not False or stored_small(root)
        _compare(side[SAMPLE], model, _SMALL if small else _MERGED if base != root else 0.0, folder, base)


def open_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of a folder or file; of adapters that come without one that of their base."""
    place = Path(folder)
    for place in line_of(folder):
        if (place / TOKENIZER[0]).is_file():
            break
    return load_tokenizer(place)


def line_of(folder: str | Path) -> Iterator[Path]:
    """A folder or file; where it holds adapters what they stand beside, and so on to a model of its own. Raises
    ModelError where one is not on this machine, or stands beside itself."""
    place, seen = Path(folder), set[Path]()
    yield place
    while is_adapter(place):
        seen.add(place.resolve())
        base = base_of(place)
        if base.resolve() in seen:
            raise ModelError("names as its base what stands beside it itself", where=f"{place / CONFIG} ({base})",
                             way_out="write the place of the model it was learned beside as base_model_name_or_path")
        place = base
        yield place


def base_of(folder: Path) -> Path:
    """The folder or file of the model that adapters stand beside. Raises ModelError where it is not on this machine."""
    name = read_json(folder / CONFIG).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise ModelError("says no base_model_name_or_path", where=folder / CONFIG,
                         way_out="write the folder or the name of the model it was learned beside")
    beside = (folder / Path(name).expanduser()).resolve()  # the way from the adapters, else from where we are
    for path in (model_file(beside), model_file(Path(name).expanduser())):
        if path.exists():
            return path
    if (found := located(name)) is not None:
        return found
    elsewhere = "write another place of it as base_model_name_or_path"
    if name.count("/") > 1 or Path(name).expanduser().is_absolute() or name.startswith("."):  # a place, and no name
        raise ModelError("its base is not on this machine", where=f"{folder / CONFIG} ({name})", way_out=elsewhere)
    raise ModelError(f"its base {name!r} is not on this machine", where=folder / CONFIG,
                     way_out=f"cutaway pull {name}, or {elsewhere}")


def base_name(base: Path, folder: Path) -> str:
    """What ``base_of`` finds the base of adapters in ``folder`` by, on any machine: the name that it was fetched under,
    else the way to it from there."""
    return name_of(base) or Path(os.path.relpath(base.resolve(), folder.resolve())).as_posix()


def known_by(model: Model, base: Path) -> dict[str, Any]:
    """By what the ``base`` of adapters is known again, in whatever precision it is kept then; ``model`` is it."""
    *_, root = line_of(base)
    return {SAMPLE: [float(v) for v, _ in _sample(model)], SMALL: stored_small(root)}


def _sample(model: Model) -> list[tuple[float, bool]]:
    """Numbers of a model, and whether each is of a vector; adapters do not count."""
    own = {id(p) for part in low_rank_of(model) for p in part.added()}
    parameters = [p for p in model.parameters() if id(p) not in own]
    lying = {id(part.weight): part for part in model.modules() if isinstance(part, Linear) and part.lying}
    out = []
    for i in range(_NUMBERS):
        chosen, room = parameters[i * len(parameters) // _NUMBERS], Room()
        read = room.read(lying[id(chosen)]) if id(chosen) in lying else chosen.detach()
        out.append((float(read.flatten()[(7919 * (i + 1)) % read.numel()]), read.ndim == 1))
    return out


def _compare(known: Any, model: Model, near: float, folder: Path, base: Path) -> None:
    """A vector may be stored as one less than it is (Gemma's norms), and then keeps fewer digits of its own."""
    found = _sample(model)
    if not isinstance(known, list) or not all(isinstance(k, float | int) for k in known):
        raise ModelError(f"{SAMPLE} is no list of numbers", where=folder / SIDE, way_out=AGAIN)
    if len(known) != len(found) or any(abs(k - f) > near * (abs(k) + (1 if vector else 1e-4))
                                       for k, (f, vector) in zip(known, found, strict=True)):
        raise ModelError("was learned beside another model than its base", where=f"{folder} ({base})",
                         way_out="write the place of its own base as base_model_name_or_path in adapter_config.json")
