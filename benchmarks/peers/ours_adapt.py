"""Ours: adapters beside SmolLM2 under the one loop: fine-tuning, DPO, GRPO, as a run has them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from worker import Case, Turns, enter

from cutaway.batch import Batch, lay
from cutaway.data.examples import continued
from cutaway.data.loader import best_fit
from cutaway.models.adapted import open_model, open_tokenizer
from cutaway.models.adapter import Lora, adapt
from cutaway.models.learning import Beginning, settled
from cutaway.models.model import Model
from cutaway.objectives.likelihood import Likelihood
from cutaway.objectives.objective import Objective
from cutaway.objectives.policy import GRPO
from cutaway.objectives.preference import DPO, pairs, with_reference
from cutaway.train.loop import steps
from cutaway.train.optimizer import OptimizerSettings, build_optimizer
from cutaway.train.reward import Answer
from cutaway.train.rollout import Rollouts, RolloutSettings, Source
from cutaway.train.schedule import Schedule

Batches = Callable[[int], Sequence[Batch]]


def alternating(requests: Sequence[str], answers: Sequence[Answer]) -> list[float]:
    """A reward that costs nothing."""
    return [float(i % 3) for i in range(len(answers))]


def work_of(case: Case, plan: dict[str, Any], model: Model) -> tuple[Batches, Objective]:
    """What each step learns from; the same rows in the same order as the peer has."""
    tokenizer = open_tokenizer(plan["model"])
    rows, size = plan["rows"], plan["batch"]

    def taken(step: int) -> list[dict[str, Any]]:
        return [rows[(step * size + i) % len(rows)] for i in range(size)]

    def packed(step: int) -> Sequence[Batch]:
        examples = [continued(r["prompt"], r["answer"]) for r in taken(step)]
        lengths = [len(e) - 1 for e in examples]
        bins = best_fit(lengths, max(lengths), seed=step)
        width = max(sum(lengths[i] for i in b) for b in bins)
        return [lay([[examples[i] for i in b] for b in bins], pad_id=tokenizer.pad_id, width=width)]

    def paired(step: int) -> Sequence[Batch]:
        chosen, rejected = ([continued(r["prompt"], r[side]) for r in taken(step)] for side in ("answer", "rejected"))
        return [with_reference(beginning, pairs(chosen, rejected, pad_id=tokenizer.pad_id))]

    if case.work == "lora":
        return packed, Likelihood()
    beginning = Beginning(model)
    if case.work == "dpo":
        return paired, DPO(beta=0.1)
    # no answer ends before its last token, as the peer is told too
    endless = replace(tokenizer, roles=replace(tokenizer.roles, end="<empty_output>"))
    settings = RolloutSettings(prompts=size, samples=plan["samples"], max_tokens=plan["max_tokens"])
    rollouts = Rollouts(model, beginning, endless, tuple(r["request"] for r in rows), alternating, settings)
    return Source(rollouts), GRPO(kl=0.02)


def main(case: Case, turns: Turns) -> None:
    """Take the turns that the race gives."""
    plan = json.loads(Path(case.network).read_text("utf-8"))
    model = open_model(plan["model"])
    model.compute_dtype = getattr(torch, case.dtype)
    settled(adapt(model, Lora(rank=plan["rank"], alpha=plan["alpha"])))
    batches, objective = work_of(case, plan, model)
    optimizer = build_optimizer(model, OptimizerSettings(kind="adamw", learning_rate=2e-4, weight_decay=0.0,
                                                         betas=(0.9, 0.999), eps=1e-8))
    turn = iter(turns)
    next(turn)
    for step in steps(model, batches, objective, optimizer, schedule=Schedule(kind="constant", warmup=0.0),
                      total=1 << 20):
        turns.note["loss"] = step.loss
        if next(turn, None) is None:
            break


if __name__ == "__main__":
    main(*enter())
