"""What the tasks on tables share: the splits written down once for every system, and the tokenizer of their texts."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from cutaway.data.documents import SPLITS
from cutaway.data.table import (
    Labelled,
    LabelledSettings,
    Pairs,
    PairsSettings,
    Table,
    read_labelled,
    read_pairs,
)
from cutaway.data.tasks import TaskSettings, packages, searches, summaries
from cutaway.device import pick
from cutaway.errors import RunError
from cutaway.models.model import Model, build
from cutaway.records import Screen, atomic_write
from cutaway.run.compare_notes import write_notes
from cutaway.run.compare_recipe import Comparison, NeuralSystem, TransformationTask
from cutaway.run.recipe import SecondsBudget, StepsBudget
from cutaway.text.tokenizer import Tokenizer, train
from cutaway.train.fit import FitSettings

Rows = list[tuple[str, str | tuple[str, ...]]]


def prepare(comparison: Comparison, folder: Path, screen: Screen) -> None:
    """Read the table, write its splits, learn the tokenizer on the training texts."""
    table = _table(comparison)
    counts = {}
    for name in SPLITS:
        rows = _rows(table.split(name))
        counts[name] = len(rows)
        atomic_write(folder / "data" / f"{name}.jsonl", "".join(
            json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    labelled = comparison.task.kind == "classification"
    learned = [row[:1] if labelled else row for row in _rows(table.split("train"))]
    tokenizer = train(comparison.tokenizer, [text for row in learned for text in row])
    tokenizer.save(folder / "tokenizer")
    sizes = (f"{counts['train']:,} rows to learn from, {counts['valid']:,} to choose by, {counts['test']:,} held out"
             f"{_scored(comparison, counts['test'])}; {tokenizer.vocab_size:,} tokens")
    notes = [*table.notes, sizes]
    for note in notes:
        screen.note(note)
    write_notes(folder, notes, table.skipped)


def _scored(comparison: Comparison, held: int) -> str:
    """How many of the held-out rows count, where it is not all of them."""
    most = comparison.task.items if isinstance(comparison.task, TransformationTask) else held
    return f", of which the first {most:,} are scored (task.items)" if most < held else ""


def _table(comparison: Comparison) -> Table[Labelled] | Table[Pairs]:
    data = comparison.data
    if isinstance(data, LabelledSettings):
        return read_labelled(data)
    if isinstance(data, PairsSettings):
        return read_pairs(data)
    assert isinstance(data, TaskSettings)
    if comparison.task.kind == "classification":
        return packages(data)
    return summaries(data) if comparison.task.kind == "transformation" else searches(data)


def _rows(part: Labelled | Pairs) -> Rows:
    if isinstance(part, Labelled):
        return list(zip(part.texts, part.labels, strict=True))
    return list(zip(part.sources, part.targets, strict=True))


def read_split(folder: Path, name: str) -> Rows:
    """The rows of a split as ``prepare`` wrote them; several labels are a tuple."""
    path = folder / "data" / f"{name}.jsonl"
    try:
        rows = [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]
    except (OSError, ValueError) as error:
        raise RunError(f"damaged or unreadable ({error})", where=path, way_out="begin the comparison again") from None
    return [(text, tuple(other) if isinstance(other, list) else other) for text, other in rows]


def settings_of(comparison: Comparison, system: NeuralSystem) -> FitSettings:
    """How a network is trained: within the budget, longer texts cut and counted, the best look kept."""
    budget = comparison.budget
    given = {"seconds": budget.seconds} if isinstance(budget, SecondsBudget) else {
        "steps": budget.steps if isinstance(budget, StepsBudget) else None}
    return FitSettings(rows=system.rows, optimizer=system.optimizer, schedule=system.schedule, clip=system.clip,
                       label_smoothing=system.label_smoothing, word_dropout=system.word_dropout, too_long="cut",
                       **given)


def cut_note(count: int, of: int, what: str, context: int) -> tuple[str, ...]:
    """The note on held-out ``what`` of which a network read only the head; none where all are read whole."""
    return (f"{count:,} of {of:,} held-out {what} do not fit the context of {context} tokens and were cut before they "
            "were scored",) if count else ()


def fresh(comparison: Comparison, system: NeuralSystem, tokenizer: Tokenizer, seed: int) -> Model:
    """The network before any learning, in the comparison's arithmetic."""
    dtype = torch.bfloat16 if comparison.dtype == "bfloat16" else torch.float32
    place = pick(comparison.device).torch
    return build(system.config(tokenizer.vocab_size), seed=seed, compute_dtype=dtype).to(place)
