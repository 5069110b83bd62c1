"""A training process that tests start and kill: the one loop, saved after every step, resumed from what is there."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import tiny
import torch

from cutaway.batch import Batch
from cutaway.cli.main import main as cutaway_main
from cutaway.errors import CutawayError
from cutaway.models.folder import save_model
from cutaway.models.model import Model
from cutaway.objectives.objective import Loss
from cutaway.run.folder import Run
from cutaway.train import checkpoint
from cutaway.train.loop import steps
from cutaway.train.optimizer import OptimizerSettings, build_optimizer
from cutaway.train.schedule import Schedule
from cutaway.train.signals import Stop


@dataclass(frozen=True)
class Poisoned:
    """An objective whose loss is not a number on the batches of the ``bad`` steps."""

    case: tiny.Case
    bad: frozenset[int]

    def weight(self, batch: Batch) -> float:
        return self.case.objective.weight(batch)

    def __call__(self, model: Model, batch: Batch) -> Loss:
        loss = self.case.objective(model, batch)
        poison = any(torch.equal(batch.tokens, part.tokens) for n in self.bad for part in self.case.batch(n).micro(2))
        return Loss(loss.total * (float("nan") if poison else 1.0), loss.weight, loss.metrics)


def drive(folder: Path, total: int, *, pause: float = 0.0, bad: Sequence[int] = ()) -> int:
    """Train to step ``total``, going on from the newest good checkpoint; 130 when stopped by a signal."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    case = tiny.CASES["likelihood"]
    with Run(folder).lock(), Stop() as stop:
        checkpoint.clean(folder, note=_note)
        model = tiny.start(case)
        optimizer = build_optimizer(model, OptimizerSettings(kind="muon"))
        found = checkpoint.latest(folder, note=_note)
        if found is not None:
            checkpoint.load(found, model=model, optimizer=optimizer)
        for step in steps(model, tiny.batches(case, micro=2), Poisoned(case, frozenset(bad)), optimizer,
                          schedule=Schedule(), total=total, start=0 if found is None else found.step, patience=3):
            checkpoint.save(folder, step=step.number, model=model, optimizer=optimizer, resume={"loss": step.loss},
                            metric=step.loss)
            checkpoint.prune(folder, keep=2)
            print(f"step {step.number}{' skipped' if step.skipped else ''}", flush=True)
            if stop.requested:
                return 130
            time.sleep(pause)
        save_model(folder / "final", model)
    return 0


def child(words: list[str], log: Path) -> None:
    """A whole command inside a forked child, its output in a file: ``cutaway ...`` or ``drive ...``."""
    with log.open("a", buffering=1) as file:
        sys.stdout = sys.stderr = file
        code = (cutaway_main if words[0] == "cutaway" else main)(words[1:])
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123  (for what is said while Python ends)
    sys.exit(code)


def command(context: ForkServerContext, log: Path, *words: object) -> ForkServerProcess:
    """Start such a command in a process of its own."""
    process = context.Process(target=child, args=([str(w) for w in words], log))
    process.start()
    return process


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr, flush=True)


def main(words: list[str]) -> int:
    """``drive.py FOLDER TOTAL PAUSE [BAD ...]``; an error is one line and its exit code."""
    try:
        return drive(Path(words[0]), int(words[1]), pause=float(words[2]), bad=[int(w) for w in words[3:]])
    except CutawayError as error:
        print(error, file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
