"""Trace: the document behind every token of any step's batch, because a batch is a function of (seed, step)."""

from __future__ import annotations

from cutaway.data.loader import Span
from cutaway.errors import RunError, SettingsError
from cutaway.run.folder import Run
from cutaway.run.recipe import Pretrain, StepsBudget
from cutaway.run.stage_finetune import mixed
from cutaway.run.stage_pretrain import loader
from cutaway.run.stage_text import read_text
from cutaway.text.tokenizer import load as load_tokenizer

STAGES = ("pretrain", "finetune")


def trace(run: Run, step: int, stage: str = "pretrain") -> list[Span]:
    """Where every token of step ``step`` (counted from 1, as in the log) came from.

    Raises SettingsError for a stage whose batches are not text, or a step the run does not have.
    """
    if stage not in STAGES:
        raise SettingsError(f"batches of {stage!r} are not cut from documents", way_out=f"choose {' or '.join(STAGES)}")
    if not (run.folder / "data" / "text.json").exists():
        raise RunError("has no text yet", where=run.folder, way_out=f"cutaway resume {run.folder}")
    recipe = run.recipe
    settings = recipe.pretrain if stage == "pretrain" else recipe.finetune
    if settings is None:
        raise SettingsError(f"this run has no stage {stage}", where=run.folder,
                            way_out=f"its stages are in {run.folder / 'recipe.toml'}")
    budget = settings.budget
    if step < 1 or (isinstance(budget, StepsBudget) and step > budget.steps):
        last = f" to {budget.steps:,}" if isinstance(budget, StepsBudget) else ""
        raise SettingsError(f"{stage} has no step {step:,}", where=run.folder, way_out=f"its steps run from 1{last}")
    if isinstance(settings, Pretrain):
        return loader(run, recipe, settings.rows, recipe.seed).trace(step - 1)
    tokenizer = load_tokenizer(run.folder / "tokenizer")
    return mixed(run, recipe, tokenizer, read_text(run).train).trace(step - 1)
