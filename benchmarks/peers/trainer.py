"""A contender of Cutaway's own: any configuration under ``steps()`` and AdamW, as a user's loop has it."""

from __future__ import annotations

import torch
from worker import ADAMW, CLIP, Case, Turns

from cutaway.batch import Batch
from cutaway.models.architectures import AnyConfig
from cutaway.models.heads import Head
from cutaway.models.model import build
from cutaway.objectives.objective import Objective
from cutaway.train.loop import steps
from cutaway.train.optimizer import OptimizerSettings, build_optimizer
from cutaway.train.schedule import Schedule


def train(
    case: Case, turns: Turns, config: AnyConfig, objective: Objective, *, head: Head = "tokens"
) -> None:
    """Take the turns that the race gives."""
    model = build(config, head=head, compute_dtype=getattr(torch, case.dtype)).to(case.device)
    turns.note["parameters"] = sum(p.numel() for p in model.parameters())
    settings = OptimizerSettings(
        kind="adamw",
        learning_rate=ADAMW["lr"],
        betas=ADAMW["betas"],
        eps=ADAMW["eps"],
        weight_decay=ADAMW["weight_decay"],
    )
    batches = [[Batch(tokens, targets)] for tokens, targets in case.batches()]
    turn = iter(turns)
    next(turn)  # waits until the race asks for the first step
    for step in steps(
        model,
        lambda number: batches[number % len(batches)],
        objective,
        build_optimizer(model, settings),
        schedule=Schedule(kind="constant", warmup=0.0),
        total=1 << 30,
        clip=CLIP,
    ):
        turns.note["loss"] = step.loss
        if next(turn, None) is None:
            break
