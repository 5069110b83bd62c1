"""Pipeline: the stages of a run in order, each done once; a run that stopped goes on inside the stage it was in."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from cutaway import device as machines
from cutaway.data.documents import read
from cutaway.errors import CutawayError
from cutaway.records import Screen
from cutaway.run import lineage
from cutaway.run.folder import Run, create
from cutaway.run.learner import check_model
from cutaway.run.preferences import check_preferences
from cutaway.run.recipe import FolderModel, PersonJudgeSettings, Preferences, Recipe
from cutaway.run.report import write_report
from cutaway.run.stage_align import align_stage
from cutaway.run.stage_evaluate import evaluate_stage, proxy_stage
from cutaway.run.stage_finetune import finetune_stage
from cutaway.run.stage_preferences import preferences_stage
from cutaway.run.stage_pretrain import pretrain_stage
from cutaway.run.stage_reward import reward_stage
from cutaway.run.stage_text import other_text, text_stage
from cutaway.run.work import Interrupted, Work
from cutaway.train.parallel import SINGLE, Parallel, launch
from cutaway.train.signals import Stop

Stage = Callable[[Work], None]


def plan(recipe: Recipe) -> list[tuple[str, Stage]]:
    """The stages of a run in order: those that the recipe has, and a measurement of every model they make."""
    def measured(name: str) -> tuple[str, Stage]:
        return f"evaluate-{name}", partial(evaluate_stage, name=name)

    stages: list[tuple[str, Stage]] = [("tokenizer", text_stage)]
    if recipe.pretrain is not None:
        stages += [measured("random"), ("pretrain", pretrain_stage)]
    stages.append(measured("base"))
    if recipe.finetune is not None:
        stages += [("finetune", finetune_stage), measured("finetuned")]
    if recipe.preferences is not None:
        stages.append(("preferences", preferences_stage))
    if recipe.reward is not None:
        stages += [("reward", reward_stage), ("evaluate-proxy", proxy_stage)]
    if recipe.align is not None:
        stages += [("align", align_stage), measured("aligned")]
    return stages


def start(recipe: Recipe, root: Path, screen: Screen) -> Run:
    """Make the run's folder and go through every stage. Raises Interrupted, all saved, when asked to stop.

    A folder that would hold nothing, because the text or the tokenizer is refused, does not stay.
    """
    if int(os.environ.get("RANK", "0")) > 0:
        return _session(Run(root / recipe.name), recipe, screen)
    read(recipe.data)  # no folder is made for text or a model that cannot be used
    other_text(recipe)
    check_model(recipe)
    check_preferences(recipe)
    run = create(root, recipe)
    try:
        return _session(run, recipe, screen)
    except CutawayError:
        if not (run.folder / "tokenizer").exists():
            shutil.rmtree(run.folder, ignore_errors=True)
        raise


def resume(run: Run, screen: Screen) -> Run:
    """Go on with a run exactly where it stopped."""
    return _session(run, run.recipe, screen)


def _session(run: Run, recipe: Recipe, screen: Screen) -> Run:
    device = machines.pick(recipe.device)
    recipe.check_ranks(int(os.environ.get("WORLD_SIZE", "1")))
    with launch(recipe.parallel.kind, device) as parallel:
        if parallel.rank > 0:
            return _go(run, recipe, screen, device, parallel)
        with run.lock():
            return _go(run, recipe, screen, device, parallel)


def _go(run: Run, recipe: Recipe, screen: Screen, device: machines.Device, parallel: Parallel = SINGLE) -> Run:
    machines.set_threads(max(1, recipe.threads // parallel.world))
    machines.seed_everything(recipe.seed)
    if parallel.kind != "single" and device.kind == "cuda":
        device = machines.Device("cuda", parallel.device.index or 0)
    with Stop() as stop:
        rows = run.rows(run.stages)
        work = Work(run, recipe, device, machines.known(device), parallel, screen, lambda: stop.requested,
                    earlier=max((r["elapsed"] for r in rows), default=0.0))
        parallel.any(True)  # nobody reads the folder before it is there
        if work.first:
            lineage.begin(run, work.machine)
            if isinstance(recipe.model, FolderModel):
                lineage.add_base(run, work.place("base"))
            _expect_a_person(work)
        try:
            _stages(work)
        except Interrupted:
            work.event("run", "stopped")
            raise
        if work.first:
            write_report(run.folder)
    return run


def _expect_a_person(work: Work) -> None:
    asks = isinstance(work.recipe.judge, PersonJudgeSettings) and isinstance(work.recipe.preferences, Preferences)
    if asks and not work.run.done("preferences") and not sys.stdin.isatty():
        work.note("judge.kind=person: there is no terminal here, so the run will stop before the preferences; "
                  "resume it at one")


def _stages(work: Work) -> None:
    stages = plan(work.recipe)
    done = {name for name, _ in stages if work.run.done(name)}
    work.parallel.any(True)  # every rank has read what is done before the first writes more
    for name, stage in stages:
        if name not in done:
            stage(work)
            if device_cache := getattr(torch, work.device.kind, None):
                getattr(device_cache, "empty_cache", lambda: None)()
        if work.parallel.any(work.asked()):
            raise Interrupted(work.run.folder)
