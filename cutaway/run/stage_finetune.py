"""Stage 3, fine-tuning: answers to requests, with some of the pre-training text among them against forgetting."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cutaway.batch import Batch, Example
from cutaway.data.conversations import Conversation
from cutaway.data.loader import ExampleLoader
from cutaway.errors import TrainingError
from cutaway.objectives.likelihood import Likelihood
from cutaway.run.finish import finish
from cutaway.run.stage_pretrain import loader, valid_bits
from cutaway.run.training import Job, length, train
from cutaway.run.work import Work
from cutaway.text.chat import Message, render

STAGE, MODEL = "finetune", "finetuned"


def examples(work: Work, conversations: Sequence[Conversation]) -> list[Example]:
    """Conversations as tokens; the answer and its end are learned. One too long for the context is left out and noted."""
    made = []
    for c in conversations:
        ids, weights = render([Message("user", c.request), Message("assistant", c.answer)], work.tokenizer)
        made.append(Example(np.array(ids, np.int64), np.array(weights, np.float32)))
    kept = [e for e in made if len(e) - 1 <= work.recipe.model.context_length]
    if len(kept) < len(made):
        work.note(f"{len(made) - len(kept):,} of {len(made):,} conversations are longer than the context of "
                  f"{work.recipe.model.context_length} and are left out")
    if not kept:
        raise TrainingError("no conversation fits the context", way_out="raise model.context_length")
    return kept


def finetune_stage(work: Work) -> None:
    """Train the fine-tuned model, starting from base."""
    settings, context = work.recipe.finetune, work.recipe.model.context_length
    replayed = min(round(settings.rows * settings.replay), settings.rows - 1)
    seed = work.recipe.seed + 1
    answers = ExampleLoader(examples(work, work.text.train), rows=settings.rows - replayed, length=context, seed=seed,
                            pad_id=work.tokenizer.pad_id)
    replay = loader(work, replayed, seed) if replayed else None
    rank, world = work.parallel.rank, work.parallel.world

    def batches(step: int) -> list[Batch]:
        parts = answers.batch(step, rank=rank, world=world).micro(settings.micro)
        return parts + ([replay.batch(step, rank=rank, world=world)] if replay else [])

    job = Job(STAGE, work.load("base"), batches, Likelihood(), settings, look=lambda m: valid_bits(work, m),
              step_tokens=settings.rows * context)
    finish(work, job, train(work, job, length(work, job, settings.budget)), MODEL)
