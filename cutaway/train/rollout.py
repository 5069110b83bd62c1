"""Rollouts: reinforcement learning as a source of batches for the one loop (groups as in GRPO, arXiv 2402.03300).

The model that trains is the model that generates, sampled at temperature 1 without top-k or top-p, because the
policy gradient is that of the distribution the answers came from. P prompts, G answers to each, T targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from cutaway.batch import Batch, Example, pad
from cutaway.data.examples import continued
from cutaway.data.order import share, shuffled
from cutaway.errors import DataError, TrainingError
from cutaway.generate.engine import Engine
from cutaway.generate.request import Completion, Request, Sampling
from cutaway.models.learning import Beginning, undropped
from cutaway.models.light import for_sampling
from cutaway.models.model import Model
from cutaway.objectives.likelihood import token_logprobs
from cutaway.objectives.policy import group_advantages
from cutaway.objectives.preference import with_reference
from cutaway.settings import Settings
from cutaway.text.tokenizer import Tokenizer
from cutaway.train.reward import Answer, Reward, prompt


class RolloutSettings(Settings):
    """How much is sampled for one step and what becomes of the rewards.

    ``scale``: "none" leaves the advantage in units of reward, which is unbiased; "group" divides by the group's
    standard deviation (GRPO's), which weighs prompts whose answers hardly differ as much as those that do.
    ``kl`` is a KL in the reward, sequence-wise and before ``scale``; the objective's own ``kl`` is the usual place.
    ``updates`` above 1 learns from the same answers again; ``old_logprob`` then holds what the ratio is against.
    """

    prompts: int = Field(default=8, ge=1)
    samples: int = Field(default=8, ge=2)
    max_tokens: int = Field(default=128, ge=1)
    updates: int = Field(default=1, ge=1)
    scale: Literal["none", "group"] = "none"
    kl: float = Field(default=0.0, ge=0)
    rows: int = Field(default=32, ge=1)  # answers in one micro-batch, neighbours in length


@dataclass(frozen=True, slots=True)
class Rollout:
    """One step's answers, in the order prompt by prompt, and the batches made of them.

    ``statistics`` are ``name -> (sum, weight)``, so that those of all ranks add up.
    """

    number: int
    requests: tuple[str, ...]
    answers: tuple[Answer, ...]
    rewards: tuple[float, ...]
    batches: tuple[Batch, ...]
    statistics: dict[str, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Rollouts:
    """Everything a rollout depends on beside its number; the same number and weights give the same rollout.

    ``judge`` scores the same answers for the statistics alone, so that what is wanted can be seen beside what is
    rewarded. Raises DataError for a prompt whose answer could not fit the context.
    """

    model: Model
    reference: Model | Beginning
    tokenizer: Tokenizer
    prompts: tuple[str, ...]
    reward: Reward
    settings: RolloutSettings
    seed: int = 0
    judge: Reward | None = None

    def __post_init__(self) -> None:
        if not self.prompts:
            raise DataError("reinforcement learning needs at least one prompt")
        longest = max(self.prompts, key=lambda p: len(prompt(p, self.tokenizer)))
        need, room = len(prompt(longest, self.tokenizer)) + self.settings.max_tokens, self.model.context_length
        if need > room:
            raise DataError(f"the prompt {longest[:40]!r} and an answer of {self.settings.max_tokens} tokens "
                            f"need {need}, and the context is {room}",
                            way_out="leave the prompt out or lower max_tokens")

    def sample(self, number: int, *, rank: int = 0, world: int = 1) -> Rollout:
        """Rollout ``number``; with ``world`` ranks each gets a contiguous share of the same prompts and answers."""
        count, size = self.settings.prompts, self.settings.samples
        groups = share(number, count, rank=rank, world=world)
        chosen = shuffled(groups, len(self.prompts), seed=self.seed).tolist()
        requests = tuple(self.prompts[c] for c in chosen for _ in range(size))
        ids = [prompt(r, self.tokenizer) for r in requests]
        completions = self._generate(ids, [row_seed(self.seed, int(g), row) for g in groups for row in range(size)])
        answers = tuple(self._answer(c) for c in completions)
        values = tuple(float(v) for v in self.reward(requests, answers))
        if not np.isfinite(values).all():
            bad = int((~np.isfinite(values)).sum())
            raise TrainingError(f"the reward of {bad} of {len(values)} answers is not finite")
        batches = self._batches(ids, completions, np.array(values))
        return Rollout(number, requests, answers, values, batches, self._statistics(requests, answers, values))

    def _generate(self, ids: Sequence[Sequence[int]], seeds: Sequence[int]) -> list[Completion]:
        sampling = Sampling(temperature=1.0)
        requests = [Request(tokens=tuple(i), max_tokens=self.settings.max_tokens, sampling=sampling, seed=s,
                            stop_ids=(self.tokenizer.end_id,)) for i, s in zip(ids, seeds, strict=True)]
        return Engine(for_sampling(self.model)).generate(requests)

    def _answer(self, completion: Completion) -> Answer:
        finished = completion.finish_reason == "stop"
        tokens = completion.tokens[:-1] if finished else completion.tokens  # the last one is the end of the turn
        return Answer(self.tokenizer.decode(tokens), tokens, finished)

    def _batches(self, ids: Sequence[Sequence[int]], completions: Sequence[Completion],
                 values: NDArray[np.float64]) -> tuple[Batch, ...]:
        """Micro-batches of answers of like length, so that little is computed on padding."""
        examples = [continued(i, c.tokens) for i, c in zip(ids, completions, strict=True)]
        order = sorted(range(len(examples)), key=lambda i: len(examples[i]))
        parts = [order[i : i + self.settings.rows] for i in range(0, len(order), self.settings.rows)]
        batches = [self._scored([examples[i] for i in part]) for part in parts]
        if self.settings.kl > 0:
            for part, batch in zip(parts, batches, strict=True):
                assert batch.old_logprob is not None and batch.reference_logprob is not None
                moved = (batch.old_logprob - batch.reference_logprob).sum(1).double()
                values[part] -= self.settings.kl * moved.cpu().numpy()
        gains = group_advantages(torch.from_numpy(values), self.settings.samples, scale=self.settings.scale)
        return tuple(_advised(b, gains[part]) for b, part in zip(batches, parts, strict=True))

    def _scored(self, examples: Sequence[Example]) -> Batch:
        """Log-probabilities by the path that training takes, so that the first ratio is exactly 1 where it drops
        nothing; here nothing is dropped, as when the answers were sampled."""
        batch = pad(examples, pad_id=self.tokenizer.pad_id).to(self.model.device)
        again = self.settings.updates > 1 or self.settings.kl > 0
        with torch.no_grad(), undropped(self.model):
            old = token_logprobs(self.model, batch) if again else None
        return replace(with_reference(self.reference, batch), old_logprob=old)

    def _statistics(self, requests: Sequence[str], answers: Sequence[Answer],
                    values: Sequence[float]) -> dict[str, tuple[float, float]]:
        n, groups = float(len(answers)), np.array(values).reshape(-1, self.settings.samples)
        out = {"reward": (float(sum(values)), n), "finished": (float(sum(a.finished for a in answers)), n),
               "answer_tokens": (float(sum(len(a.tokens) for a in answers)), n),
               "group_std": (float(groups.std(1).sum()), float(len(groups))),
               "equal_groups": (float((np.ptp(groups, 1) == 0).sum()), float(len(groups)))}
        if self.judge is not None:
            out["judge"] = (float(sum(self.judge(requests, answers))), n)
        return out


class Source:
    """Rollouts as ``steps`` wants its batches: ``source(step)``; ``latest`` is what the step learned from.

    Step s learns from rollout ``s // updates``. With one update a step depends on nothing but the weights and its
    number, and any step can be resumed; with more, only a multiple of ``updates`` can, and others are refused.
    """

    def __init__(self, rollouts: Rollouts, *, rank: int = 0, world: int = 1) -> None:
        self.rollouts, self.rank, self.world = rollouts, rank, world
        self.latest: Rollout | None = None

    def __call__(self, step: int) -> Sequence[Batch]:
        number, again = divmod(step, self.rollouts.settings.updates)
        if again == 0:
            self.latest = self.rollouts.sample(number, rank=self.rank, world=self.world)
        if self.latest is None or self.latest.number != number:
            raise TrainingError(f"step {step} learns again from answers that were sampled at step {step - again}",
                                way_out=f"resume at a multiple of {self.rollouts.settings.updates} updates")
        return self.latest.batches


def row_seed(seed: int, group: int, row: int) -> int:
    """The sampling seed of answer ``row`` of a group (counted over all rollouts), independent of every other's."""
    return int(np.random.SeedSequence([seed, group, row]).generate_state(1, np.uint64)[0])


def _advised(batch: Batch, gains: Tensor) -> Batch:
    column = gains.float().to(batch.tokens.device)
    return replace(batch, advantage=column[:, None].expand(batch.tokens.shape).contiguous())
