"""Cutaway's own contender: ``steps()`` with Likelihood and AdamW, as a user's loop has it."""

from __future__ import annotations

import cutaway  # noqa: F401  (first, as a user has it: it sets how long waiting threads spin)

# isort: split
import torch
from worker import ADAMW, CLIP, Case, Turns, enter

from cutaway.batch import Batch
from cutaway.models.model import Architecture, build
from cutaway.models.transformer import TransformerConfig
from cutaway.objectives.likelihood import Likelihood
from cutaway.train.loop import steps
from cutaway.train.optimizer import OptimizerSettings, build_optimizer
from cutaway.train.schedule import Schedule


def contend(case: Case, turns: Turns, config: Architecture) -> None:
    """Train a model of ``config`` in the turns given to it."""
    model = build(config, compute_dtype=getattr(torch, case.dtype)).to(case.device)
    turns.note["parameters"] = sum(p.numel() for p in model.parameters())
    optimizer = build_optimizer(
        model,
        OptimizerSettings(
            kind="adamw",
            learning_rate=ADAMW["lr"],
            betas=ADAMW["betas"],
            eps=ADAMW["eps"],
            weight_decay=ADAMW["weight_decay"],
        ),
    )
    batches = [[Batch(tokens, targets)] for tokens, targets in case.batches()]
    turn = iter(turns)
    next(turn)  # waits until the race asks for the first step
    for step in steps(
        model,
        lambda number: batches[number % len(batches)],
        Likelihood(),
        optimizer,
        schedule=Schedule(kind="constant", warmup=0.0),
        total=1 << 30,
        clip=CLIP,
    ):
        turns.note["loss"] = step.loss
        if next(turn, None) is None:
            break


if __name__ == "__main__":
    case, turns = enter()
    contend(
        case,
        turns,
        TransformerConfig(
            vocab_size=case.vocab_size,
            hidden_size=case.hidden_size,
            num_layers=case.num_layers,
            num_heads=case.num_heads,
            num_kv_heads=case.num_heads,
            intermediate_size=case.inner,
            context_length=case.context,
        ),
    )
