"""Stage 3, fine-tuning: answers to requests, with some of the pre-training text among them against forgetting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cutaway.batch import Batch
from cutaway.data.conversations import Conversation
from cutaway.data.examples import chat
from cutaway.data.loader import ExampleLoader, Loader, Span
from cutaway.errors import TrainingError
from cutaway.objectives.likelihood import Likelihood
from cutaway.run.finish import finish
from cutaway.run.folder import Run
from cutaway.run.learner import learner
from cutaway.run.recipe import Recipe
from cutaway.run.stage_pretrain import loader, valid_bits
from cutaway.run.training import Job, length, train
from cutaway.run.work import Work
from cutaway.text.chat import Message
from cutaway.text.tokenizer import Tokenizer

STAGE, MODEL = "finetune", "finetuned"


@dataclass(frozen=True)
class Mixed:
    """Rows of packed conversations, and ``replay`` rows of pre-training text behind them."""

    answers: ExampleLoader
    replay: Loader | None
    left_out: int

    def batches(self, step: int, *, micro: int = 1, rank: int = 0, world: int = 1) -> list[Batch]:
        """This rank's micro-batches of a step."""
        parts = self.answers.batch(step, rank=rank, world=world).micro(micro)
        return parts + ([self.replay.batch(step, rank=rank, world=world)] if self.replay else [])

    def trace(self, step: int) -> list[Span]:
        """Where every token of the step comes from; replayed rows come last."""
        spans = self.answers.trace(step)
        again = self.replay.trace(step) if self.replay else []
        return spans + [s._replace(row=s.row + self.answers.rows) for s in again]


def mixed(run: Run, recipe: Recipe, tokenizer: Tokenizer, conversations: Sequence[Conversation]) -> Mixed:
    """The stage's data. A conversation longer than the context is left out and counted."""
    settings, context, made = recipe.finetune, recipe.model.context_length, []
    assert settings is not None
    for c in conversations:
        made.append((chat([Message("user", c.request), Message("assistant", c.answer)], tokenizer), c.name))
    kept = [(e, name) for e, name in made if len(e) - 1 <= context]
    if not kept:
        raise TrainingError(f"no conversation fits the context of {context}", way_out="raise model.context_length")
    replayed, seed = settings.replayed, recipe.seed + 1
    answers = ExampleLoader([e for e, _ in kept], rows=settings.rows - replayed, length=context, seed=seed,
                            pad_id=tokenizer.pad_id, names=[name for _, name in kept])
    return Mixed(answers, loader(run, recipe, replayed, seed) if replayed else None, len(made) - len(kept))


def finetune_stage(work: Work) -> None:
    """Train the fine-tuned model, starting from base."""
    settings, rank, world = work.recipe.finetune, work.parallel.rank, work.parallel.world
    assert settings is not None
    learns = learner(work, "base", settings.adapt)
    source = mixed(work.run, work.recipe, work.tokenizer, work.text.train)
    if source.left_out:
        work.note(f"{source.left_out:,} of {len(work.text.train):,} conversations are longer than the context of "
                  f"{source.answers.length} and are left out")
    job = Job(STAGE, learns.model, lambda n: source.batches(n, micro=settings.micro, rank=rank, world=world),
              Likelihood(), settings, look=lambda m: valid_bits(work, m), learner=learns, passes=learns.passes,
              step_tokens=settings.rows * source.answers.length)
    finish(work, job, train(work, job, length(work, job, settings.budget)), MODEL)
