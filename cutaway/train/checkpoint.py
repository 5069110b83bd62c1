"""Checkpoints: a folder ``step-N/`` that is there whole or not at all, and is checked bit by bit before it is used.

What learns (a model folder, a folder of adapters, or parts by name), ``optimizer.safetensors`` and ``resume.json``
(step, the caller's own position, sha256 of every file).
Nothing draws from a global random generator while training (every draw is seeded by (seed, step)), so these are all
that a bitwise equal continuation needs, at any number of ranks (after OLMo-core's world-size-independent position).
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cutaway.errors import CheckpointError, ModelError, RunError
from cutaway.models.adapted import is_adapter
from cutaway.models.adapter import adapter_tensors, save_adapter
from cutaway.models.folder import load_model, save_model
from cutaway.models.learning import all_learns, learned_of, low_rank_of
from cutaway.models.model import Model
from cutaway.records import digest, environment
from cutaway.text.tokenizer import Tokenizer
from cutaway.train.optimizer import Optimizer
from cutaway.train.parallel import SINGLE, Parallel

FORMAT = 1
OPTIMIZER, RESUME, LEARNED = "optimizer.safetensors", "resume.json", "learned.safetensors"
_NAME = re.compile(r"step-(\d+)")
_REPLACED = re.compile(r"\.(step-\d+)\.replaced")
Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One verified or listed checkpoint. ``metric`` is the figure it may be kept for as the best: lower is better."""

    folder: Path
    step: int
    resume: dict[str, Any]
    metric: float | None
    tokenizer: str | None
    files: dict[str, str]  # name -> sha256


def save(folder: Path, *, step: int, model: Model, optimizer: Optimizer, resume: Mapping[str, Any],
         tokenizer: Tokenizer | None = None, metric: float | None = None, parallel: Parallel = SINGLE,
         base: str = "") -> Path:
    """Write ``folder/step-N`` after step N and return it; it has that name only once all of it is on the disk.

    Of a model of which only a part learns that part alone is kept: adapters as peft keeps them, with ``base`` as the
    name of what they stand beside, or the parameters of ``learned.safetensors``. ``resume`` is the caller's own
    position, plain JSON. Every rank calls this, the first one writes; older checkpoints are not touched.
    Raises RunError when the folder cannot be written or the disk is full.
    """
    whole, state = parallel.unwrap(model), parallel.gathered(optimizer.tensors())
    target, failure = folder / f"step-{step}", None
    facts = {"step": step, "metric": metric, "tokenizer": None if tokenizer is None else tokenizer.digest,
             "resume": dict(resume), "environment": _environment()} | ({"base": base} if base else {})
    if parallel.rank == 0:
        try:
            _write(target, whole, tokenizer, state, facts)
        except (OSError, SafetensorError, RunError) as error:
            failure = error
    if parallel.any(failure is not None):
        older = [f"{name} is intact; " for n, name in _listed(folder) if n != step][-1:]
        raise RunError(_reason(failure), where=target,
                       way_out=f"{''.join(older)}free space or make the folder writable, then resume")
    return target


def load(checkpoint: Checkpoint | Path, *, model: Model, optimizer: Optimizer | None = None,
         tokenizer: Tokenizer | None = None, parallel: Parallel = SINGLE) -> Checkpoint:
    """Put a checkpoint's weights and optimizer state into ``model`` and ``optimizer``, in place.

    A path is verified first; a Checkpoint already was, by ``verify`` or ``latest``. Under ``fsdp2`` the model must
    be wrapped before. Raises CheckpointError for a damaged one, another model's, or another tokenizer's.
    """
    found = verify(checkpoint) if isinstance(checkpoint, Path) else checkpoint
    if tokenizer is not None and found.tokenizer != tokenizer.digest:
        raise CheckpointError(f"made with the tokenizer {str(found.tokenizer)[:12]}, not with {tokenizer.digest[:12]}",
                              where=found.folder, way_out="resume with the run's own tokenizer")
    parameters = dict(model.named_parameters())
    weights = _weights(found.folder, model)
    state = {} if optimizer is None else _state(found.folder / OPTIMIZER)
    with torch.no_grad():
        for name, tensor in parallel.scattered(weights, parameters).items():
            parameters[name].copy_(tensor)
    if optimizer is not None:
        like = {key: parameters[name] for key in state if (name := key.partition("|")[0]) in parameters}
        optimizer.load_tensors(parallel.scattered(state, like))
    return found


def verify(folder: Path) -> Checkpoint:
    """Read a checkpoint's ``resume.json`` and compare every file with its sha256.

    Raises CheckpointError naming the damaged file and the newest older checkpoint that is good.
    """
    try:
        found = _described(folder)
        for name, expected in found.files.items():
            path = folder / name
            if not path.is_file():
                raise CheckpointError("missing", where=path)
            if digest(path) != expected:
                raise CheckpointError(f"damaged: its {path.stat().st_size:,} bytes are not those that were saved",
                                      where=path)
    except CheckpointError as error:
        raise CheckpointError(error.what, where=error.where, way_out=_way_out(folder)) from None
    return found


def latest(folder: Path, *, note: Note | None = None) -> Checkpoint | None:
    """The newest checkpoint, verified; None if there is none.

    With ``note`` a damaged one is reported to it and the next older one is taken; without, CheckpointError is raised.
    It is raised too when every one of them is damaged: nothing begins again from nothing unseen.
    """
    listed = _listed(folder)
    for i, (_, name) in enumerate(reversed(listed)):
        try:
            return verify(folder / name)
        except CheckpointError as error:
            if note is None or i == len(listed) - 1:
                raise
            note(f"{error.where}: {error.what}; going on from {listed[-2 - i][1]} instead")
    return None


def prune(folder: Path, *, keep: int, best: bool = True) -> list[Path]:
    """Remove all but the newest ``keep`` checkpoints and, with ``best``, the one with the lowest metric."""
    listed = _listed(folder)
    stay = {name for _, name in listed[-max(1, keep):]}
    if best:
        rated = [(m, -step, name) for step, name in listed if (m := _metric(folder / name)) is not None]
        stay |= {min(rated)[2]} if rated else set()
    removed = [folder / name for _, name in listed if name not in stay]
    for path in removed:
        # renamed first: a removal that is cut short leaves nothing that looks like a checkpoint
        aside = path.rename(path.with_name(f".{path.name}.removed"))
        shutil.rmtree(aside, ignore_errors=True)
    return removed


def clean(folder: Path, *, note: Note) -> None:
    """Clear away what a killed process left half written; call it before the first ``latest``, holding the run."""
    for path in sorted(folder.glob(".*step-*")) if folder.is_dir() else []:
        replaced = _REPLACED.fullmatch(path.name)
        if replaced and not (folder / replaced[1]).exists():
            path.rename(folder / replaced[1])
            note(f"{folder / replaced[1]}: put back, a process had ended while writing it again")
        else:
            shutil.rmtree(path)
            note(f"{path}: removed, a process had ended while writing it")


def _listed(folder: Path) -> list[tuple[int, str]]:
    """Steps and names, oldest first, unverified."""
    if not folder.is_dir():
        return []
    return sorted((int(m[1]), m[0]) for p in folder.iterdir() if (m := _NAME.fullmatch(p.name)))


def _write(target: Path, model: Model, tokenizer: Tokenizer | None, state: Mapping[str, Tensor],
           facts: Mapping[str, Any]) -> None:
    work = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    try:
        _save_learned(work, model, tokenizer, str(facts.get("base", "")))
        save_file({k: v.contiguous() for k, v in state.items()}, work / OPTIMIZER)
        files = {p.name: digest(p) for p in sorted(work.iterdir())}
        body = {"format": FORMAT, **facts, "files": files}
        (work / RESUME).write_text(json.dumps(body | {"digest": _seal(body)}, indent=1, ensure_ascii=False), "utf-8")
        for path in [*work.iterdir(), work]:
            path.chmod(0o755 if path.is_dir() else 0o644)
            _flush(path)
        _publish(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _save_learned(work: Path, model: Model, tokenizer: Tokenizer | None, base: str) -> None:
    if low_rank_of(model):
        save_adapter(work, model, base=base)
    elif all_learns(model):
        save_model(work, model, tokenizer)
    else:
        work.mkdir(parents=True)
        save_file({k: p.detach().cpu().contiguous() for k, p in learned_of(model).items()}, work / LEARNED)


def _publish(work: Path, target: Path) -> None:
    """Give the finished folder its name; one that stands there already stays until the new one is on the disk."""
    aside = target.with_name(f".{target.name}.replaced")
    if target.exists():
        target.rename(aside)
    try:
        work.rename(target)
    except OSError:
        if aside.exists():
            aside.rename(target)
        raise
    _flush(target.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _seal(body: Mapping[str, Any]) -> str:
    return digest(json.dumps(body, sort_keys=True, ensure_ascii=False).encode())


def _described(folder: Path) -> Checkpoint:
    path = folder / RESUME
    try:
        body = json.loads(path.read_text("utf-8"))
        sealed = body.pop("digest")
    except OSError as error:
        raise CheckpointError(f"cannot be read ({error.strerror or error})", where=path) from None
    except (ValueError, AttributeError, KeyError, TypeError):
        raise CheckpointError("damaged: not the JSON that was saved", where=path) from None
    if sealed != _seal(body):
        raise CheckpointError("damaged: its contents are not those that were saved", where=path)
    if body["format"] != FORMAT:
        raise CheckpointError(f"written in format {body['format']}, this version reads {FORMAT}", where=path)
    return Checkpoint(folder, body["step"], body["resume"], body["metric"], body["tokenizer"], body["files"])


def _way_out(damaged: Path) -> str:
    """Which older checkpoint is good."""
    step = int(damaged.name.partition("-")[2]) if _NAME.fullmatch(damaged.name) else 0
    for older, name in reversed(_listed(damaged.parent)):
        if older < step:
            try:
                found = _described(damaged.parent / name)
            except CheckpointError:
                continue
            if all((p := found.folder / f).is_file() and digest(p) == d for f, d in found.files.items()):
                return f"{name} is good: delete {damaged.name} to go on from there"
    return "no older checkpoint is good: delete this one to begin the stage again"


def _metric(folder: Path) -> float | None:
    try:
        return _described(folder).metric
    except CheckpointError:
        return None


@cache
def _environment() -> dict[str, Any]:
    return environment()  # reads the metadata of every package: 25 ms, and the same all along


def _reason(failure: Exception | None) -> str:
    if isinstance(failure, RunError):
        return failure.what
    return f"cannot be written ({getattr(failure, 'strerror', None) or failure or 'the first rank says why'})"


def _weights(folder: Path, model: Model) -> dict[str, Tensor]:
    """What a checkpoint kept under the names of ``model``, which must be of the same shape and learn the same."""
    learned = "adapters" if is_adapter(folder) else "parts" if (folder / LEARNED).is_file() else "all"
    wanted = "adapters" if low_rank_of(model) else "all" if all_learns(model) else "parts"
    if learned != wanted:
        raise CheckpointError(f"holds {learned} of a model of which {wanted} learns", where=folder,
                              way_out="resume with the recipe that made it")
    try:
        if learned == "adapters":
            return adapter_tensors(folder, model)
        if learned == "parts":
            return _parts(folder, model)
        saved = load_model(folder)
    except ModelError as error:
        raise CheckpointError(error.what, where=error.where, way_out=_way_out(folder)) from None
    if (saved.config, saved.head_spec) != (model.config, model.head_spec):
        here, there = ({"head": m.head_kind, **m.config.model_dump()} for m in (model, saved))
        name = next(n for n in here if here[n] != there[n])
        raise CheckpointError(f"made by another model: {name} is {there[name]} there and {here[name]} here",
                              where=folder, way_out="resume with the recipe that made it")
    return dict(saved.named_parameters())


def _parts(folder: Path, model: Model) -> dict[str, Tensor]:
    tensors, learned = _state(folder / LEARNED), learned_of(model)
    other = {k: v.shape for k, v in tensors.items()}.items() ^ {k: v.shape for k, v in learned.items()}.items()
    if other:
        raise CheckpointError(f"learned other parts: {min(other)[0]} differs", where=folder / LEARNED,
                              way_out="resume with the recipe that made it")
    return tensors


def _state(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot be read ({error})", where=path, way_out=_way_out(path.parent)) from None
