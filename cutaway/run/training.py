"""One stage of training as the caller's own loop over ``steps``: log, look at held-out data, save, stop when asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cutaway.device import release_memory
from cutaway.models.learning import copied
from cutaway.models.model import Model, build
from cutaway.nn.block import compiled
from cutaway.objectives.objective import Objective
from cutaway.run.learner import Learner
from cutaway.run.predict import predict
from cutaway.run.recipe import Learning, SecondsBudget, StepsBudget, TokensBudget
from cutaway.run.saver import Saver
from cutaway.run.work import Interrupted, Work
from cutaway.train.loop import Batches, Step, steps
from cutaway.train.optimizer import build_optimizer
from cutaway.train.pace import Pace, measure_pace
from cutaway.train.parallel import Parallel

Facts = Mapping[str, float]


@dataclass(frozen=True)
class Job:
    """A stage: what is trained, on which batches, towards what; ``look`` measures on held-out data, ``facts`` adds to
    each row of the log. ``stride``: a step can only be resumed at a multiple of it. ``learner`` says what of the model
    learns, where that is not all of it."""

    stage: str
    model: Model
    batches: Batches
    objective: Objective
    settings: Learning
    look: Callable[[Model], Facts] | None = None
    facts: Callable[[], Facts] | None = None
    best: tuple[str, int] | None = None  # the figure of ``look`` that says which checkpoint is best, and its sign
    step_tokens: int = 0  # most tokens a step can read
    passes: float = 3.0  # forward passes' worth of work on each token: 3 is a forward and a backward
    stride: int = 1
    whole: bool = False  # every rank needs the whole model, because it also generates with it
    compile: bool = False
    learner: Learner | None = None


def length(work: Work, job: Job, budget: StepsBudget | TokensBudget | SecondsBudget) -> int:
    """The stage's number of steps; a budget in seconds is measured once, and the number is written down."""
    if isinstance(budget, StepsBudget):
        _plan(work, job, budget.steps, "steps")
        return budget.steps
    if isinstance(budget, TokensBudget):
        total = -(-budget.tokens // job.step_tokens)
        _plan(work, job, total, "tokens")
    else:
        seconds = work.allowance(job.stage, budget.seconds)
        total, each = calibrate(work, job, seconds)
        _plan(work, job, total, "calibration", each=each)
        if seconds < 0.95 * budget.seconds:
            work.note(f"{job.stage}: {seconds:.0f} s instead of {budget.seconds:.0f} s, to keep the whole run within "
                      f"{work.recipe.seconds:.0f} s")
    work.with_budget(job.stage, StepsBudget(steps=total))
    return total


def _plan(work: Work, job: Job, total: int, basis: str, *, each: float | None = None) -> None:
    """Write down what the stage should cost: by the configuration alone, and by the calibration where there was one."""
    context = work.recipe.model.context_length
    by_machine = predict(job.model.config, total * job.step_tokens, context=context, passes=job.passes,
                         rows=max(1, job.step_tokens // context), machine=work.machine, dtype=work.dtype)
    seconds = by_machine.seconds if each is None else total * each
    work.event(job.stage, "plan", {
        "basis": basis, "steps": total, "tokens": total * job.step_tokens, "flops": by_machine.flops,
        "seconds": seconds, "seconds_by_configuration": by_machine.seconds, "memory_bytes": by_machine.memory_bytes})


def calibrate(work: Work, job: Job, seconds: float) -> tuple[int, float]:
    """How many steps fit into ``seconds``, and the seconds of one, from a few steps of a copy on this rank alone."""
    trial = copied(job.model)
    pace = measure_pace(job.model, job.batches, job.objective, optimizer=job.settings.optimizer,
                        schedule=job.settings.schedule, clip=job.settings.clip, seconds=seconds,
                        prepared=_prepared(job, trial), trial=trial)
    shared = Pace(work.shared(pace.each), work.shared(pace.spent))
    return -(-shared.fits(seconds) // job.stride) * job.stride, shared.each


def train(work: Work, job: Job, total: int) -> Model:
    """Run the stage to its end and return its model. Raises Interrupted after saving when the run was asked to stop."""
    parallel = _parallel(work, job)
    parallel.wrap(job.model)
    optimizer = build_optimizer(job.model, job.settings.optimizer)
    saver = Saver(work, parallel, job.stage, job.model, optimizer, job.best, job.learner)
    start, tokens = saver.restore()
    with _prepared(job, job.model), work.progress(job.stage, total=total - start) as bar:
        for step in steps(job.model, job.batches, job.objective, optimizer, schedule=job.settings.schedule, total=total,
                          start=start, clip=job.settings.clip, parallel=parallel,
                          seed=work.recipe.seed):
            tokens += step.tokens
            row = _row(job, step, tokens)
            if _due(step.number, total, job.settings.looks):
                row |= _look(work, job, parallel)
            work.append(row)
            bar.advance(1, _shown(row))
            stop = work.parallel.any(work.asked())
            if step.number < total and step.number % job.stride == 0 and (stop or saver.due(step.number, row)):
                saver.save(step.number, row)
                if stop:
                    raise Interrupted(work.run.folder)
    return job.model


@contextmanager
def _prepared(job: Job, model: Model) -> Iterator[None]:
    """The model as the stage runs it; afterwards plain again, and the memory of its steps given back."""
    with compiled(model) if job.compile else nullcontext():
        yield
    release_memory()


def _parallel(work: Work, job: Job) -> Parallel:
    if not job.whole or work.parallel.kind != "fsdp2":
        return work.parallel
    work.note(f"{job.stage}: the model also generates, so every rank keeps it whole (ddp instead of fsdp2)")
    return replace(work.parallel, kind="ddp")


def _look(work: Work, job: Job, parallel: Parallel) -> Facts:
    """The first rank measures, on whole weights, while the others wait; every rank knows which figure was measured."""
    if job.look is None:
        return {}
    model = job.model
    if parallel.kind == "fsdp2":
        tensors = parallel.gathered(dict(model.named_parameters()))
        model = whole(job.model, tensors) if work.first else model
    with work.alone() as mine, compiled(model, False):  # its shapes and its mode would be compiled anew
        return job.look(model) if mine else {} if job.best is None else {job.best[0]: 0.0}


def whole(model: Model, tensors: Mapping[str, Tensor]) -> Model:
    """A model of the same shape on one device with these weights."""
    out = build(model.config, head=model.head_spec, compute_dtype=model.compute_dtype).to(model.device)
    with torch.no_grad():
        for key, parameter in out.named_parameters():
            parameter.copy_(tensors[key])
    return out


def _row(job: Job, step: Step, tokens: int) -> dict[str, Any]:
    row: dict[str, Any] = {
        "stage": job.stage, "step": step.number, "tokens": tokens, "loss": step.loss,
        "learning_rate": step.learning_rate, "grad_norm": step.grad_norm,
        "tokens_per_second": step.tokens / max(step.seconds, 1e-9), "seconds": step.seconds, **step.metrics,
        **(job.facts() if job.facts else {})}
    return row | ({"skipped": True} if step.skipped else {})


def _due(number: int, total: int, looks: int) -> bool:
    """Whether one of ``looks`` evenly spaced looks, the last at the end, falls on this step."""
    return looks > 0 and number * looks // total > (number - 1) * looks // total


def _shown(row: Mapping[str, Any]) -> str:
    text = f"loss {row['loss']:.3f}"
    for key in ("accuracy", "reward", "judge", "kl"):
        if key in row:
            text += f" {key} {row[key]:.2f}"
    return text + (" SKIPPED: not finite" if row.get("skipped") else "")
