"""What an answer is worth: programs, reward models and mixtures behind one protocol (InstructGPT, arXiv 2203.02155).

An answer that the model did not end is an answer of its own kind here, never silently the same as one that ended.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch

from cutaway.batch import Example, pad
from cutaway.data.examples import continued
from cutaway.errors import TrainingError
from cutaway.models.model import Model
from cutaway.objectives.preference import rewards
from cutaway.text.chat import Message, render
from cutaway.text.tokenizer import Tokenizer

ROUNDING = 1e-6  # scores closer than that are one score: a product of few rows and of many may round otherwise


@dataclass(frozen=True, slots=True)
class Answer:
    """What was sampled: ``tokens`` without the turn's end, and whether that end came (``finished``) or room ran out."""

    text: str
    tokens: tuple[int, ...]
    finished: bool


class Reward(Protocol):
    """One number for each (request, answer), higher is better, a pure function of the two."""

    def __call__(self, requests: Sequence[str], answers: Sequence[Answer]) -> list[float]: ...


@dataclass(frozen=True, slots=True)
class ModelReward:
    """A reward model's score at the answer's last token, as ``(score - mean) / std`` of the fine-tuned model's answers.

    0 is then an average answer before alignment and 1 is one standard deviation better, whatever the model's own
    scale. ``bounded`` > 0 squashes to ``bounded * tanh(r / bounded)`` (reward shaping of arXiv 2502.18770): far
    outside the scores it was trained on, a reward model knows nothing, and the squashed reward has nothing to win
    there. An unfinished answer is scored as it stands, without ``<|end|>``, and gets at most ``unfinished``.
    """

    model: Model
    tokenizer: Tokenizer
    mean: float = 0.0
    std: float = 1.0
    bounded: float = 0.0
    unfinished: float = -1.0
    rows: int = 64  # answers in one forward pass

    def __call__(self, requests: Sequence[str], answers: Sequence[Answer]) -> list[float]:
        scores = [(s - self.mean) / self.std for s in self.scores(requests, answers)]
        if self.bounded > 0:
            scores = [self.bounded * math.tanh(s / self.bounded) for s in scores]
        return [s if a.finished else min(s, self.unfinished) for s, a in zip(scores, answers, strict=True)]

    def scores(self, requests: Sequence[str], answers: Sequence[Answer]) -> list[float]:
        """The model's own numbers. Raises ModelError where request and answer exceed its context."""
        examples = [example(r, a, self.tokenizer) for r, a in zip(requests, answers, strict=True)]
        order = sorted(range(len(examples)), key=lambda i: len(examples[i]))
        out = [0.0] * len(examples)
        for start in range(0, len(order), self.rows):
            chosen = order[start : start + self.rows]
            batch = pad([examples[i] for i in chosen], pad_id=self.tokenizer.pad_id).to(self.model.device)
            with torch.no_grad():
                values = rewards(self.model, batch).tolist()
            for i, value in zip(chosen, values, strict=True):
                out[i] = value
        return out

    def calibrated(self, requests: Sequence[str], answers: Sequence[Answer]) -> ModelReward:
        """The same model with mean and std of these answers: what the fine-tuned model says before alignment."""
        scores = np.array(self.scores(requests, answers))
        if len(scores) < 2 or not float(scores.std()) > ROUNDING * max(1.0, abs(float(scores.mean()))):
            raise TrainingError(f"a reward model that scores {len(scores)} answers all alike cannot rank any",
                                way_out="train the reward model longer or on more pairs")
        return replace(self, mean=float(scores.mean()), std=float(scores.std()))


@dataclass(frozen=True, slots=True)
class Mixed:
    """``sum(weight * reward)`` over its parts, for instance a reward model and a program."""

    parts: tuple[tuple[float, Reward], ...]

    def __call__(self, requests: Sequence[str], answers: Sequence[Answer]) -> list[float]:
        columns = [[weight * value for value in reward(requests, answers)] for weight, reward in self.parts]
        return [sum(row) for row in zip(*columns, strict=True)]


def prompt(request: str, tokenizer: Tokenizer) -> list[int]:
    """The ids of a conversation of one request, up to where the answer begins."""
    ids, _ = render([Message("user", request)], tokenizer, add_generation_prompt=True)
    return list(ids)


def example(request: str, answer: Answer, tokenizer: Tokenizer) -> Example:
    """Request and answer, and the turn's end only if it came; the answer and its end have weight 1."""
    end = [tokenizer.end_id] if answer.finished else []
    return continued(prompt(request, tokenizer), [*answer.tokens, *end])
