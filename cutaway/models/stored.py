"""Tensors in files, read one by one into a model: nothing is allocated before every name and shape is what the
configuration says."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cutaway.device import forget_pages
from cutaway.errors import ModelError
from cutaway.models.families.family import Family, Form
from cutaway.models.heads import Head
from cutaway.models.model import Model, blank
from cutaway.models.tensors_file import Mapped, places
from cutaway.models.transformer import TransformerConfig
from cutaway.models.whole import AGAIN, WEIGHTS, check_digest, damaged, read_json
from cutaway.nn.linear import Blocks, Linear, Lying

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor that lies in a file: its shape, whether its numbers are floating, how it is read, whether what is read
    is the mapped file itself, whether a number takes less than 32 bits, where a parameter can be the file, which and
    the byte at which it begins there, and its ``blocks`` as ``Lying`` has them."""

    shape: tuple[int, ...]
    floating: bool
    read: Callable[[], Tensor]
    mapped: bool = False
    small: bool = False
    file: Mapped | None = None
    begin: int = 0
    blocks: Blocks | None = None


Tensors = dict[str, Stored]


def half_split(rows: Tensor, heads: int) -> Tensor:
    """Rows of queries or keys in Llama's half-split order, of a file in which the two of a pair lie side by side."""
    return rows.view(heads, -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def of_folder(folder: Path, expected: str | None) -> Tensors:
    """All tensors of a folder, in one file (whose sha256 is ``expected``, if given) or, as large models are, in
    several. Raises ModelError for a file that is missing or damaged."""
    if (folder / WEIGHTS).exists() or not (folder / INDEX).exists():
        return _of_file(folder / WEIGHTS, expected)
    named = read_json(folder / INDEX).get("weight_map")
    files = list(named.values()) if isinstance(named, dict) else [""]
    if any(not isinstance(name, str) or Path(name).name != name or not name for name in files):
        raise ModelError("names a file outside the folder", where=folder / INDEX, way_out=AGAIN)
    return {k: v for name in sorted(set(files)) for k, v in _of_file(folder / name, None).items()}


def _of_file(path: Path, expected: str | None) -> Tensors:
    from safetensors import SafetensorError, safe_open

    try:
        before = path.stat()
        if expected is not None:
            check_digest(path, expected)
        file: Any = safe_open(path, "pt")
        begins = places(path)
        mapped = Mapped(path) if begins else None
        if (now := path.stat()).st_ino != before.st_ino or now.st_mtime_ns != before.st_mtime_ns:
            raise ModelError("was replaced while it was opened", where=path, way_out="open it again")
        return {name: _lying(file, name, mapped, begins.get(name)) for name in file.keys()}  # noqa: SIM118 - no mapping
    except FileNotFoundError:
        raise ModelError("no such file", where=path, way_out="name a folder that holds a model") from None
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise damaged(path, error) from None


def _lying(file: Any, name: str, mapped: Mapped | None, begin: int | None) -> Stored:
    found = file.get_slice(name)
    kind = str(found.get_dtype())
    return Stored(tuple(found.get_shape()), kind.startswith(("F", "BF")), partial(file.get_tensor, name),
                  mapped=True, small=kind not in ("F32", "F64"), file=None if begin is None else mapped,
                  begin=begin or 0)


def filled(config: Any, head: Head, tensors: Tensors, family: Family, dtype: torch.dtype, where: Path, *,
           mapped: bool = False) -> Model:
    """The model of a configuration with a file's numbers; ``mapped``: weights of products stay in the file until they
    are asked for, see ``Linear``. Raises ModelError where the two do not belong together."""
    if config.num_layers > max(1, len(tensors)):
        raise ModelError(f"holds {len(tensors)} tensors, and config.json says {config.num_layers} layers", where=where,
                         way_out=AGAIN)
    try:
        config = _as_written(config, head, tensors, family)
        with torch.device("meta"):
            _check(blank(config, head=head), tensors, family, where)
    except (RuntimeError, TypeError, OverflowError) as error:  # torch's own, of sizes that no memory holds
        raise ModelError(f"config.json says sizes that cannot be ({str(error)[:80]})", where=where,
                         way_out=AGAIN) from None
    model = blank(config, head=head, compute_dtype=dtype)
    if mapped:
        _take(model, tensors, family)
    else:
        _borrow(model, tensors, family)
    _assign(model, tensors, family)
    _refuse_left(model, tensors, family, where)
    return model


def _as_written(config: Any, head: Head, tensors: Tensors, family: Family) -> Any:
    """Untied where the file holds a head of other numbers than the embedding: transformers reads it so too."""
    if head != "tokens" or not config.tie_embeddings or not isinstance(config, TransformerConfig):
        return config
    apart = config.model_copy(update={"tie_embeddings": False})
    known = {ours.rpartition("embedding")[1] or ours: public[0] for ours, public in family.names(apart, head)
             if ours == "head.weight" or ours.endswith(".embedding.weight")}
    written, embedding = tensors.get(known["head.weight"]), tensors.get(known["embedding"])
    if written is None or embedding is None or (written.shape == embedding.shape and torch.equal(written.read(),
                                                                                               embedding.read())):
        return config
    if apart.traits.head_scale == config.traits.head_scale:
        return apart
    return apart.model_copy(update={"variant": apart.made.model_copy(update={"head_scale": config.traits.head_scale})})


def _parts(model: Model, family: Family) -> list[tuple[str, Tensor, Form]]:
    """The public tensor that each part of each parameter is, and how it says it."""
    mine, out = dict(model.named_parameters(remove_duplicate=False)), []
    for ours, public in family.names(model.config, model.head_spec):
        rows = family.rows(ours, model.config) or (mine[ours].shape[0],)
        forms = family.forms(ours, model.config) or (Form(),) * len(rows)
        out += list(zip(public, mine[ours].detach().split(rows), forms, strict=True))
    return out


def _check(sketch: Model, tensors: Tensors, family: Family, where: Path) -> None:
    for name, part, form in _parts(sketch, family):
        if name not in tensors:
            raise ModelError(f"lacks the tensor {name}", where=where, way_out=AGAIN)
        wanted = tuple(part.T.shape if form.turned else (len(part) + form.skip, *part.shape[1:]))
        if tensors[name].shape != wanted or not tensors[name].floating:
            kind = "" if tensors[name].floating else " of whole numbers"
            raise ModelError(f"{name} is {tensors[name].shape}{kind}, and config.json says {wanted}", where=where,
                             way_out=AGAIN)


def _take(model: Model, tensors: Tensors, family: Family) -> None:
    """Leave the weights of products in the file, in one piece or several."""
    products = {f"{name}.weight": part for name, part in model.named_modules() if isinstance(part, Linear)}
    for ours, public in family.names(model.config, model.head_spec):
        if ours in products and products[ours].called and not family.forms(ours, model.config):
            taken = (tensors.pop(name) for name in public)
            products[ours].lying = tuple(Lying(t.read, t.mapped, t.blocks) for t in taken)


def _borrow(model: Model, tensors: Tensors, family: Family) -> None:
    """Parameters that lie in a file as the model has them, in one piece, are the file, and nothing is copied."""
    mine = dict(model.named_parameters(remove_duplicate=False))
    for ours, public in family.names(model.config, model.head_spec):
        pieces = [tensors[name] for name in public if name in tensors]
        if len(pieces) < len(public) or family.forms(ours, model.config) or (file := pieces[0].file) is None:
            continue
        follow = accumulate((4 * math.prod(p.shape) for p in pieces), initial=pieces[0].begin)
        if all(p.file is file and p.begin == at for p, at in zip(pieces, follow, strict=False)):
            mine[ours].data = file.floats(pieces[0].begin, mine[ours].shape)
            for name in public:
                tensors.pop(name)


def _assign(model: Model, tensors: Tensors, family: Family) -> None:
    for name, part, form in _parts(model, family):
        if name not in tensors:  # taken: see above
            continue
        stored = tensors.pop(name)
        found = stored.read()
        part.copy_(found.T if form.turned else found[form.skip :])
        if form.shift:
            part.add_(form.shift)
        if form.scale != 1:
            part.div_(form.scale)
        if stored.mapped:
            forget_pages(found)


def _refuse_left(model: Model, left: Tensors, family: Family, where: Path) -> None:
    """Nothing is ignored but what says nothing new: a tied head written out, and what the family says is not read."""
    for name, tensor in left.items():
        same = name in family.REPEATS and torch.equal(tensor.read().float(), model.backbone.embedding.weight.detach())
        if not same and not name.endswith(family.UNREAD or ("\0",)):
            raise ModelError(f"holds the tensor {name}, which the configuration has no place for",
                             where=where, way_out="check config.json")
