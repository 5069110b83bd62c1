"""Suites: a finished model measured again, on its run's held-out text and requests, other text, or a task."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from cutaway.data.documents import PathSettings, read
from cutaway.device import Device, compute_dtype
from cutaway.errors import SettingsError
from cutaway.evaluate.answers import ask
from cutaway.evaluate.bits import bits_per_byte
from cutaway.evaluate.held import HeldOut, held_out
from cutaway.evaluate.items import Items
from cutaway.evaluate.outcome import Outcome, context_of, outcomes
from cutaway.evaluate.task import AnyTask, is_task, packaged
from cutaway.evaluate.task_scores import Scored, scored
from cutaway.generate.request import Sampling
from cutaway.models.adapted import open_tokenizer
from cutaway.models.model import Model
from cutaway.models.ngram import NGram
from cutaway.models.open import Asked, open_language_model, open_writer
from cutaway.records import Measurement
from cutaway.run.folder import Run
from cutaway.run.place import models_in, named
from cutaway.run.stage_evaluate import chosen_requests
from cutaway.run.stage_text import read_text
from cutaway.settings import nearest
from cutaway.text.tokenizer import Tokenizer
from cutaway.train.judge import program_judge

SUITES = ("all", "bits", "answers")


def models_of(name: str, runs: Path) -> tuple[Run | None, list[Path]]:
    """The run and the model folders (or the GGUF file) that the name of a run, a folder or a fetched model stands
    for, as for every verb; of a run all its models, the first stage first."""
    found = named(name, runs)
    if isinstance(found, Run):
        return found, models_in(found)[::-1]
    above = found.resolve().parents
    inside = found.is_dir() and len(above) > 1 and (above[1] / "recipe.toml").is_file()
    return (Run(above[1]) if inside else None), [found]


def check_suite(name: str) -> None:
    """Raises SettingsError for what is neither a suite nor a task's name."""
    if name not in SUITES and not is_task(name):
        known = [*SUITES, *packaged()]
        near = nearest(name, known)
        raise SettingsError(f"no suite or task {name!r}", way_out=f"did you mean {near!r}?" if near else
                            f"there are {', '.join(known)}, or give a .toml file")


def measure(folder: Path, suite: str, *, run: Run | None, data: Path | None, device: Device,
            precision: Asked | None = None) -> dict[str, Measurement]:
    """Figures of one model. Raises SettingsError for an unknown suite, or where there is nothing to measure on."""
    check_suite(suite)
    if run is None and data is None:
        raise SettingsError("a model outside a run has no held-out text", where=folder, way_out="add --data PATH")
    if suite == "answers" and run is None:
        raise SettingsError("only a run has held-out requests", where=folder, way_out="name a run, or the suite bits")
    model, tokenizer = opened(folder, run, device, precision)
    out: dict[str, Measurement] = {}
    if suite in ("all", "bits"):
        out["bits_per_byte"] = bits_per_byte(model, tokenizer, _text(run, data))
    if suite in ("all", "answers") and run is not None and isinstance(model, Model):
        out |= _answers(model, run)
    dtype = _dtype(model, precision)
    return {name: replace(m, conditions={**m.conditions, "dtype": dtype}) for name, m in out.items()}


def _dtype(model: Model | NGram, precision: Asked | None) -> str | None:
    """The arithmetic of a model's products, None where it has none."""
    if not isinstance(model, Model):
        return None
    return precision if precision in ("int8", "int4") else str(model.compute_dtype).removeprefix("torch.")


def opened(folder: Path, run: Run | None, device: Device,
           precision: Asked | None = None) -> tuple[Model | NGram, Tokenizer]:
    """A model ready to be measured, in the ``precision`` that is asked for, its run's arithmetic or else float32, and
    its tokenizer."""
    tokenizer = open_tokenizer(folder)
    if precision is not None:
        return open_language_model(folder, precision=precision, place=device.torch), tokenizer
    model = open_writer(folder)
    if isinstance(model, Model):
        model = model.to(device.torch)
        model.compute_dtype = compute_dtype("float32" if run is None else run.recipe.dtype, device)
    return model, tokenizer


def answered(folder: Path, task: AnyTask, items: Items, run: Run | None, device: Device,
             precision: Asked | None = None) -> Iterator[int | Scored]:
    """A task's items answered by one model: how many more are done, again and again, and at last the figures."""
    model, tokenizer = opened(folder, run, device, precision)
    found: list[Outcome] = []
    for part in outcomes(model, tokenizer, task, items.items):
        found += part
        yield len(part)
    yield scored(task, items, found, context=context_of(model, task), tokenizer_sha256=tokenizer.digest,
                 dtype=_dtype(model, precision))


def _text(run: Run | None, data: Path | None) -> HeldOut:
    if data is not None:
        corpus = read(PathSettings(path=str(data), valid_share=0.0, test_share=0.0))
        held = held_out(corpus)
        if corpus.skipped.counts:
            warnings.warn(f"left out of {data}: {corpus.skipped}", stacklevel=2)
        if sum(held.bytes) < held.available_bytes:
            warnings.warn(f"bits per byte of {sum(held.bytes):,} of {held.available_bytes:,} bytes of {data}, chosen "
                          "by hash", stacklevel=2)
        return held
    assert run is not None
    return read_text(run).held


def _answers(model: Model, run: Run) -> dict[str, Measurement]:
    recipe, text, tokenizer = run.recipe, read_text(run), open_tokenizer(run.folder / "tokenizer")
    requests, _ = chosen_requests(text.test, tokenizer, recipe)
    judge = program_judge(text.kind, text.learned)
    answered = ask(model, tokenizer, requests, judge, max_tokens=recipe.evaluate.max_tokens,
                   sampling=Sampling(temperature=recipe.evaluate.temperature), seed=recipe.seed)
    return answered.measurements()
