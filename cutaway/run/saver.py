"""Saver: when a training stage is saved, and how it goes on from there as if it had never stopped."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cutaway.models.adapted import base_name
from cutaway.models.model import Model
from cutaway.run.learner import Learner
from cutaway.run.work import Work
from cutaway.train import checkpoint
from cutaway.train.optimizer import Optimizer
from cutaway.train.parallel import Parallel


@dataclass
class Saver:
    """One stage's checkpoints. ``best`` names the figure of a look that says which one is best, and its sign."""

    work: Work
    parallel: Parallel
    stage: str
    model: Model
    optimizer: Optimizer
    best: tuple[str, int] | None = None
    learner: Learner | None = None
    saved_at: float = field(default_factory=time.perf_counter)

    def restore(self) -> tuple[int, int]:
        """Load the newest checkpoint if there is one; the step to go on from, and the tokens read so far.

        What was logged behind it is taken off the log, because it will be logged again.
        """
        work, folder = self.work, self.work.run.checkpoints(self.stage)
        with work.alone() as mine:
            if mine:
                checkpoint.clean(folder, note=work.note)
        found = checkpoint.latest(folder)
        step = 0 if found is None else found.step
        if found is not None:
            checkpoint.load(found, model=self.model, optimizer=self.optimizer, tokenizer=work.tokenizer,
                            parallel=self.parallel)
            work.note(f"{self.stage}: going on from step {step:,}")
        with work.alone() as mine:
            if mine:
                work.run.keep(work.run.log, lambda r: r.get("stage") != self.stage or r["step"] <= step)
        return step, 0 if found is None else int(found.resume["tokens"])

    def due(self, step: int, row: Mapping[str, Any]) -> bool:
        """Whether it is time to save: by the clock of the first rank, by steps, or because a look was taken."""
        settings = self.work.recipe.checkpoint
        if settings.steps is not None and step % settings.steps == 0:
            return True
        if self.best is not None and self.best[0] in row:
            return True
        late = time.perf_counter() - self.saved_at > settings.seconds
        return self.work.parallel.any(self.work.first and late)

    def save(self, step: int, row: Mapping[str, Any]) -> None:
        """Write the checkpoint, then let go of those that are neither new nor best. Collective over the ranks."""
        work, folder = self.work, self.work.run.checkpoints(self.stage)
        metric = None if self.best is None or self.best[0] not in row else -self.best[1] * float(row[self.best[0]])
        # from any folder of a step
        base = "" if self.learner is None else base_name(self.learner.base, folder / str(step))
        checkpoint.save(folder, step=step, model=self.model, optimizer=self.optimizer, tokenizer=work.tokenizer,
                        resume={"tokens": row["tokens"], "stage": self.stage}, metric=metric, parallel=self.parallel,
                        base=base)
        if work.first:
            checkpoint.prune(folder, keep=work.recipe.checkpoint.keep)
        self.saved_at = time.perf_counter()
