"""Stage 5, the reward model: Bradley-Terry on the judge's pairs, tested on pairs of requests it never saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cutaway.batch import Batch, Example
from cutaway.data.order import share, shuffled
from cutaway.errors import TrainingError
from cutaway.models.adapter import merge
from cutaway.models.model import Model, with_head
from cutaway.objectives.preference import Reward, pairs, rewards
from cutaway.records import Measurement, wilson
from cutaway.run.finish import finish
from cutaway.run.preferences import Preference, read_preferences
from cutaway.run.training import Job, length, train
from cutaway.run.work import Work
from cutaway.train.reward import example

STAGE, MODEL = "reward", "reward"
_ROWS = 64


@dataclass(frozen=True)
class Pairs:
    """(chosen, rejected) sequences of one side of the split; a batch is a function of (seed, step)."""

    sides: tuple[tuple[Example, Example], ...]
    pad_id: int
    seed: int = 0

    def mean_tokens(self, rows: int) -> int:
        """Tokens of ``rows`` pairs, both sides, on average."""
        return round(rows * sum(len(a) + len(b) - 2 for a, b in self.sides) / len(self.sides))

    def batch(self, step: int, rows: int, *, rank: int = 0, world: int = 1) -> Batch:
        """This rank's pairs of a step."""
        return self.take(shuffled(share(step, rows, rank=rank, world=world), len(self.sides), seed=self.seed).tolist())

    def take(self, numbers: Sequence[int]) -> Batch:
        """The pairs with these numbers."""
        chosen, rejected = zip(*(self.sides[i] for i in numbers), strict=True)
        return pairs(chosen, rejected, pad_id=self.pad_id)


def pairs_of(work: Work, preferences: Sequence[Preference], *, held_out: bool) -> Pairs:
    """The pairs of the requests on one side. Raises TrainingError if there are none."""
    sides = tuple((example(p.request, p.answers[a], work.tokenizer), example(p.request, p.answers[b], work.tokenizer))
                  for p in preferences if p.held_out == held_out for a, b in p.pairs)
    if not sides:
        raise TrainingError(f"the judge left no {'held-out ' if held_out else ''}pair that is not a tie",
                            where=work.run.folder / "preferences.jsonl", way_out="raise preferences.budget or samples")
    return Pairs(sides, work.tokenizer.pad_id, work.recipe.seed + 2)


def accuracy(model: Model, held: Pairs) -> Measurement:
    """Share of held-out pairs whose chosen side gets the higher reward; a tie counts as wrong."""
    won = 0
    order = sorted(range(len(held.sides)), key=lambda i: max(len(e) for e in held.sides[i]))
    for at in range(0, len(order), _ROWS):
        batch = held.take(order[at : at + _ROWS]).to(model.device)
        assert batch.pair is not None
        with torch.inference_mode():
            won += int((rewards(model, batch) > rewards(model, batch.pair)).sum())
    n = len(order)
    return Measurement("reward_accuracy", won / n, "share", n, *wilson(won, n), {"split": "held-out requests"})


def reward_stage(work: Work) -> None:
    """Train the reward model on a copy of the fine-tuned one."""
    settings, preferences = work.recipe.reward, read_preferences(work.run)
    assert settings is not None
    learned, held = pairs_of(work, preferences, held_out=False), pairs_of(work, preferences, held_out=True)
    rank, world = work.parallel.rank, work.parallel.world
    model = with_head(merge(work.load(work.recipe.tuned)), "scalar", seed=work.recipe.seed)
    job = Job(STAGE, model, lambda n: learned.batch(n, settings.rows, rank=rank, world=world).micro(settings.micro),
              Reward(settings.centring), settings, look=lambda m: {"held_out_accuracy": accuracy(m, held).value},
              best=("held_out_accuracy", 1), step_tokens=learned.mean_tokens(settings.rows))
    finish(work, job, train(work, job, length(work, job, settings.budget)), MODEL)
    with work.alone() as mine:
        if mine:
            work.run.write_json("evals/reward.json", {
                "stage": STAGE, "accuracy": accuracy(work.load(MODEL), held).to_dict(),
                "pairs": len(learned.sides), "held_out_pairs": len(held.sides)})
