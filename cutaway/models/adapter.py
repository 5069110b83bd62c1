"""What of a model learns: all of it, named parts, or low-rank matrices beside its linear maps; and the folder in which
peft keeps the latter (adapter_config.json, adapter_model.safetensors), both ways.

Applied from outside: a model with adapters is the same model to every objective, loop and engine.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from cutaway.errors import ModelError, SettingsError
from cutaway.models.folder import family_for
from cutaway.models.model import Model
from cutaway.models.tensors_file import write_tensors
from cutaway.models.whole import AGAIN, SIDE, TOKENIZER, damaged, read_json, whole_folder, write_json
from cutaway.nn.adapt import LowRank, scale_of
from cutaway.nn.beside import Pair
from cutaway.nn.linear import Linear
from cutaway.settings import Settings, decode, nearest
from cutaway.text.tokenizer import Tokenizer

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_Halves = list[tuple[Tensor | None, Tensor | None]]  # down and up of each public module of a linear map


class Full(Settings):
    """Everything learns."""

    kind: Literal["full"] = "full"


class Partial(Settings):
    """The parameters whose names hold one of ``names`` learn (``blocks.29``, ``norm``, ``head``), and no others."""

    kind: Literal["partial"] = "partial"
    names: tuple[str, ...] = Field(min_length=1)


class Lora(Settings):
    """Matrices of ``rank`` beside the linear maps that a public format calls by one of ``targets``; all of the blocks'
    where there are none."""

    kind: Literal["lora"] = "lora"
    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    rooted: bool = False
    targets: tuple[str, ...] = ()


Adapt = Annotated[Full | Partial | Lora, Field(discriminator="kind")]


@dataclass(frozen=True, slots=True)
class _Place:
    """A linear map of ours: who holds it, where and by which name, and the public modules that its rows are."""

    holder: nn.Module
    path: str
    name: str
    linear: Linear | LowRank
    modules: tuple[str, ...]
    rows: tuple[int, ...]


def adapt(model: Model, settings: Full | Partial | Lora, *, seed: int = 0) -> Model:
    """The same model, of which only that learns. Raises ModelError for a name that is nowhere, with the nearest."""
    if isinstance(settings, Full):
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        return model
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    if isinstance(settings, Partial):
        return _partial(model, settings)
    places = list(_places(model))
    if not places:
        raise ModelError(f"no linear map of a {model.config.kind} model can have an adapter",
                         way_out="learn all of it, or parts of it")
    known = sorted({module.rpartition(".")[2] for place in places for module in place.modules})
    for target in settings.targets:
        if target not in known:
            _refuse_outer(model, target)
            near = nearest(target, known)
            raise ModelError(f"no linear map is called {target!r}", way_out=f"did you mean {near!r}?" if near
                             else f"there are {', '.join(known)}")
    draw = torch.Generator().manual_seed(seed)
    for place in places:
        ranks = _ranks(place, settings)
        if any(ranks):
            _beside(place, ranks, settings).draw(draw)
    return model


def _ranks(place: _Place, settings: Lora) -> list[int]:
    """The rank that each public module of a linear map is to have."""
    return [settings.rank if not settings.targets or m.rpartition(".")[2] in settings.targets else 0
            for m in place.modules]


def difference(model: Model, settings: Lora) -> str | None:
    """The first thing in which the adapters of a model are others than ``settings`` ask for, None where they are the
    same; what is dropped beside them is no part of them."""
    scale = scale_of(settings.alpha, settings.rank, rooted=settings.rooted)
    for place in _places(model):
        wanted, there = _ranks(place, settings), [0] * len(place.modules)
        scales = (0.0,) * len(there)
        if isinstance(place.linear, LowRank):
            there, scales = [len(down) for down in place.linear.down], place.linear.scales
        for module, asked, rank, found in zip(place.modules, wanted, there, scales, strict=True):
            if bool(asked) != bool(rank):
                return (f"has {'an' if rank else 'no'} adapter beside {module}, and adapt.targets asks for "
                        f"{'none' if rank else 'one'}")
            if asked != rank:
                return f"has adapters of rank {rank}, and adapt.rank is {asked}"
            if asked and not math.isclose(found, scale, rel_tol=1e-6):
                return f"has adapters of scale {found:g}, and adapt.alpha = {settings.alpha:g} makes it {scale:g}"
    return None


def _refuse_outer(model: Model, module: str, where: object = None) -> None:
    """Raises ModelError for the embedding and the head of tokens, which stand outside the blocks."""
    family, name = family_for(model), module.rpartition(".")[2]
    outer = {public.removesuffix(".weight").rpartition(".")[2] for ours, names in
             family.names(model.config, model.head_spec) for public in names
             if ours == "head.weight" or ours.endswith("embedding.weight")}
    outer |= {repeat.removesuffix(".weight").rpartition(".")[2] for repeat in family.REPEATS}
    if name in outer:
        reason = ("embedding and head are one tied matrix: an adapter beside one of its two uses would make them two"
                  if model.config.tie_embeddings else "adapters stand beside the linear maps of the blocks alone")
        raise ModelError(f"{name} can have no adapter: {reason}", where=where,
                         way_out="leave it out of the targets, or let it learn itself with adapt.kind=partial")


def _partial(model: Model, settings: Partial) -> Model:
    for name in settings.names:
        chosen = [p for n, p in model.named_parameters() if name in n]
        if not chosen:
            raise ModelError(f"no parameter's name holds {name!r}",
                             way_out=f"they are called like {next(iter(dict(model.named_parameters())))!r}")
        for parameter in chosen:
            parameter.requires_grad_(True)
    return model


def _beside(place: _Place, ranks: list[int], settings: Lora) -> LowRank:
    if isinstance(place.linear, LowRank):
        raise ModelError(f"{place.modules[0]} has an adapter already", way_out="merge it first")
    made = LowRank(place.linear, place.rows, ranks, alpha=settings.alpha, dropout=settings.dropout,
                   rooted=settings.rooted)
    setattr(place.holder, place.name, made)
    return made


def _places(model: Model) -> Iterator[_Place]:
    """The linear maps of a model's blocks with the public modules that they are."""
    family = family_for(model)
    public = {ours: names for ours, names in family.names(model.config, model.head_spec) if ".blocks." in ours}
    for path, part in list(model.named_modules()):
        for name, child in list(part.named_children()):
            ours = f"{path}.{name}.weight"
            # a loop that multiplies with the weight itself would never ask what stands beside it
            called = isinstance(child, LowRank) or (isinstance(child, Linear) and child.called)
            if called and ours in public:
                rows = family.rows(ours, model.config) or (child.weight.shape[0],)
                if family.forms(ours, model.config) is not None:
                    raise ModelError(f"{model.config.traits.family} writes its matrices another way than peft's "
                                     "adapters", way_out="learn all of it, or parts of it")
                yield _Place(part, path, name, child, tuple(n.removesuffix(".weight") for n in public[ours]), rows)


def merge(model: Model) -> Model:
    """What adapters learned added to the weights beside them: the same function without them, and all of it learns."""
    for part in list(model.modules()):
        for name, child in list(part.named_children()):
            if isinstance(child, LowRank):
                assert child.weight.dtype == torch.float32, "what is settled has lost the digits that a sum needs"
                setattr(part, name, child.merged())
    return adapt(model, Full())


def save_adapter(folder: str | Path, model: Model, *, base: str = "", tokenizer: Tokenizer | None = None,
                 side: Mapping[str, Any] | None = None) -> None:
    """The adapters of a model as peft keeps them, with what else should be known of them in ``side``'s file. Raises
    ModelError for a model that has none, or of several ranks."""
    folder, tensors = Path(folder), dict[str, Tensor]()
    ranks, targets = set[tuple[int, float, float]](), set[str]()
    for place in _places(model):
        if not isinstance(place.linear, LowRank):
            continue
        for module, down, up, scale in zip(place.modules, place.linear.down, place.linear.up, place.linear.scales,
                                           strict=True):
            if scale:
                tensors[f"{_PREFIX}{module}.lora_A.weight"] = down.detach().cpu().contiguous()
                tensors[f"{_PREFIX}{module}.lora_B.weight"] = up.detach().cpu().contiguous()
                ranks.add((len(down), scale, place.linear.dropout))
                targets.add(module.rpartition(".")[2])
    if len(ranks) != 1:
        raise ModelError("has adapters of several ranks" if ranks else "has no adapters",
                         way_out="give it some of one rank, with adapt(model, Lora(…))")
    rank, scale, dropout = ranks.pop()
    with whole_folder(folder, {CONFIG, WEIGHTS, "README.md", SIDE, *TOKENIZER}) as temporary:
        if tokenizer is not None:
            tokenizer.save(temporary)
        if tokenizer is not None or side is not None:
            write_json(temporary / SIDE, {"format": 1, **(side or {}), "tokenizer_sha256":
                                          None if tokenizer is None else tokenizer.digest})
        write_tensors(temporary / WEIGHTS, tensors, torch.float32)
        write_json(temporary / CONFIG, {
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": scale * rank,
            "lora_dropout": dropout, "use_rslora": False, "bias": "none", "fan_in_fan_out": False,
            "target_modules": sorted(targets), "modules_to_save": None, "base_model_name_or_path": base or None,
            "inference_mode": True})


def load_adapter(folder: str | Path, model: Model) -> Model:
    """The model with the adapters of a folder, peft's or ours. Raises ModelError for another thing than LoRA of linear
    maps."""
    settings, found = _found(Path(folder), model)
    for place, halves in found:
        made = _beside(place, [0 if down is None else settings.rank for down, _ in halves], settings)
        with torch.no_grad():
            for i, (down, up) in enumerate(halves):
                if down is not None and up is not None:
                    made.down[i].copy_(down)
                    made.up[i].copy_(up)
    return model


def pairs_of(folder: str | Path, model: Model) -> dict[str, Pair]:
    """The same by the names of the linear maps of ``model``, which stays as it is."""
    settings, found = _found(Path(folder), model)
    scale, out = scale_of(settings.alpha, settings.rank, rooted=settings.rooted), dict[str, Pair]()
    for place, halves in found:
        inputs = place.linear.weight.shape[1]
        out[f"{place.path}.{place.name}"] = Pair(
            tuple(torch.zeros(0, inputs) if down is None else down.float() for down, _ in halves),
            tuple(torch.zeros(rows, 0) if up is None else scale * up.float()
                  for rows, (_, up) in zip(place.rows, halves, strict=True)))
    return out


def _found(folder: Path, model: Model) -> tuple[Lora, list[tuple[_Place, _Halves]]]:
    """How a folder's adapters were learned, and beside which linear maps of ``model``, which learns no more."""
    said = read_json(folder / CONFIG)
    _refuse_other(said, folder)
    tensors = _read(folder / WEIGHTS)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    try:
        settings = decode(Lora, {"rank": said.get("r"), "alpha": said.get("lora_alpha"),
                                 "rooted": said.get("use_rslora") or False}, where="")
    except SettingsError as error:
        raise ModelError(f"does not describe an adapter: {error.what}", where=folder / CONFIG, way_out=AGAIN) from None
    found = []
    for place in _places(model):
        halves = [(tensors.pop(f"{_PREFIX}{m}.lora_A.weight", None), tensors.pop(f"{_PREFIX}{m}.lora_B.weight", None))
                  for m in place.modules]
        if any(half is not None for both in halves for half in both):
            _check(place, halves, settings.rank, folder)
            found.append((place, halves))
    for name in sorted(tensors):
        _refuse_outer(model, name.removeprefix(_PREFIX).partition(".lora_")[0], folder / WEIGHTS)
    if tensors:
        raise ModelError(f"holds {min(tensors)}, which this model has no place for", where=folder / WEIGHTS,
                         way_out="use the model it was learned beside")
    return settings, found


def adapter_tensors(folder: str | Path, model: Model) -> dict[str, Tensor]:
    """The adapters of a folder by the names that ``model``, which has adapters of the same shapes, has for them. Raises
    ModelError where they are others."""
    path = Path(folder) / WEIGHTS
    tensors, out = _read(path), dict[str, Tensor]()
    for place in _places(model):
        if isinstance(place.linear, LowRank):
            for i, (module, scale) in enumerate(zip(place.modules, place.linear.scales, strict=True)):
                for half, name in (("A", "down"), ("B", "up")) if scale else ():
                    found = tensors.pop(f"{_PREFIX}{module}.lora_{half}.weight", None)
                    here = getattr(place.linear, name)[i]
                    if found is None or found.shape != here.shape:
                        raise ModelError(f"holds for {module} {'nothing' if found is None else tuple(found.shape)} "
                                         f"where {tuple(here.shape)} learns", where=path,
                                         way_out="use the adapt settings it was made with")
                    out[f"{place.path}.{place.name}.{name}.{i}"] = found
    if tensors:
        raise ModelError(f"holds {min(tensors)}, which does not learn here", where=path,
                         way_out="use the adapt settings it was made with")
    return out


def _check(place: _Place, halves: _Halves, rank: int, folder: Path) -> None:
    inputs = place.linear.weight.shape[1]
    for module, count, (down, up) in zip(place.modules, place.rows, halves, strict=True):
        if (down is None) != (up is None):
            raise ModelError(f"holds one half of the adapter of {module}", where=folder / WEIGHTS, way_out=AGAIN)
        wanted = ((rank, inputs), (count, rank))
        if down is not None and up is not None and (down.shape, up.shape) != wanted:
            raise ModelError(f"{module} is {tuple(down.shape)} and {tuple(up.shape)}, and {wanted[0]} and "
                             f"{wanted[1]} go with it", where=folder / WEIGHTS,
                             way_out="use the model it was learned beside")


def _refuse_other(said: Mapping[str, Any], folder: Path) -> None:
    """What of peft's is another function than ours."""
    if said.get("peft_type") != "LORA":
        raise ModelError(f"is an adapter of the kind {said.get('peft_type')!r}", where=folder / CONFIG,
                         way_out="only LORA is supported")
    other = {"use_dora": False, "bias": "none", "fan_in_fan_out": False, "modules_to_save": None, "rank_pattern": {},
             "alpha_pattern": {}, "layer_replication": None, "trainable_token_indices": None, "use_qalora": False}
    for key, plain in other.items():
        if said.get(key, plain) not in (plain, None, [], {}):
            raise ModelError(f"{key} is {json.dumps(said[key])[:60]}", where=folder / CONFIG,
                             way_out=f"only {json.dumps(plain)} is supported")


def _read(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError:
        raise ModelError("no such file", where=path, way_out="name a folder that holds an adapter") from None
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise damaged(path, error) from None
