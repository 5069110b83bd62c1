"""Policy gradients: REINFORCE (Williams 1992) and GRPO (Shao et al. 2024, arXiv 2402.03300) with PPO's clipped ratio.

Three choices make the gradient the exact one of ``E[r] - kl * KL(policy || reference)`` per answer:

1. *Loss of an answer = sum over its tokens, divided by the number of answers* (as Dr. GRPO, arXiv 2503.20783, up to
   its constant). Dividing by the tokens drawn (GRPO per answer, DAPO per batch) makes the denominator depend on
   what was sampled, which favours some lengths.
2. *The KL is a reward, not a loss.* Differentiating a KL estimate gives another gradient: k1 averages to zero, k3
   (GRPO's) descends the forward KL (arXiv 2506.09477, 2510.01555, 2512.21852). The right one is
   ``log(policy / reference) * grad log policy``, so the log-ratio, without gradient, is taken off the advantage.
3. *To go*: token t answers for the log-ratios of t and of all that follows. Penalising each token for its own alone,
   as per-token losses do, is a partial gradient whose optimum is not ``reference * exp(r / kl)`` once an answer
   has two tokens.

B answers, T targets. One answer a row; ``weights`` is 1 on the answer's tokens and 0 on the request.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cutaway.batch import Batch
from cutaway.errors import DataError, SettingsError, TrainingError
from cutaway.models.model import Model
from cutaway.objectives.likelihood import token_logprobs
from cutaway.objectives.objective import Loss

Metrics = dict[str, tuple[Tensor | float, float]]


def answers(batch: Batch) -> float:
    """Rows with at least one learned token: what the losses of this file are divided by. Packed rows are refused."""
    if batch.weights is None:
        raise TrainingError("a rollout batch needs weights: 1 on the answer, 0 on the request")
    if batch.documents is not None and bool((batch.documents > 0).any()):
        raise DataError("packed rows hide where an answer ends", way_out="lay one answer a row with pad()")
    return float((batch.weights > 0).any(1).sum())


def group_advantages(rewards: Tensor, size: int, *, scale: Literal["none", "group"] = "none") -> Tensor:
    """Rewards ``(groups x size,)``, group by group, to advantages: each less the mean of its group's *other* answers.

    Leaving the answer itself out (RLOO, arXiv 2402.14740) keeps the gradient's expectation exact; with the plain
    group mean it is ``(size - 1) / size`` of it. "group" is GRPO's ``(r - mean) / std``: a prompt whose answers hardly
    differ then weighs as much as any other, and the optimum is no longer that of one ``kl``.
    """
    groups = rewards.view(-1, size)
    centred = groups - groups.mean(1, keepdim=True)
    if scale == "group":
        return (centred / (groups.std(1, correction=0, keepdim=True) + 1e-6)).flatten()
    return (centred * (size / (size - 1))).flatten()


@dataclass(frozen=True, slots=True)
class Reinforce:
    """``-advantage * log p`` on answers sampled by the model as it is; ``kl`` in units of reward per nat."""

    kl: float = 0.0

    def __post_init__(self) -> None:
        _at_least_zero("kl", self.kl)

    def weight(self, batch: Batch) -> float:
        """The number of answers."""
        return answers(batch)

    def __call__(self, model: Model, batch: Batch) -> Loss:
        logprob = token_logprobs(model, batch)
        advantage, weights = _advantage(logprob, batch, self.kl)
        return Loss(-(weights * advantage * logprob).sum(), answers(batch), _metrics(logprob, batch, weights))


@dataclass(frozen=True, slots=True)
class GRPO:
    """PPO's clipped surrogate over group advantages: ``-min(rho A, clamp(rho, 1 - clip, 1 + clip_high) A)``.

    ``rho = p / p_old`` per token. Without ``old_logprob`` the batch is taken to come from the model as it is: rho is
    1 and the gradient is REINFORCE's. ``clip_high`` above ``clip`` lets rare tokens grow (DAPO, arXiv 2503.14476).
    ``kl`` is in units of reward per nat; it needs ``reference_logprob`` and is part of A, hence clipped with it.
    """

    clip: float = 0.2
    clip_high: float = 0.28
    kl: float = 0.1

    def __post_init__(self) -> None:
        _at_least_zero("kl", self.kl)
        if not 0 < self.clip < 1 or self.clip_high <= 0:
            raise SettingsError(f"clip must lie between 0 and 1 and clip_high above 0, "
                                f"got {self.clip} and {self.clip_high}")

    def weight(self, batch: Batch) -> float:
        """The number of answers."""
        return answers(batch)

    def __call__(self, model: Model, batch: Batch) -> Loss:
        logprob = token_logprobs(model, batch)
        advantage, weights = _advantage(logprob, batch, self.kl)
        old = logprob.detach() if batch.old_logprob is None else batch.old_logprob
        ratio = ((logprob - old) * (weights > 0)).exp()
        held = ratio.clamp(1 - self.clip, 1 + self.clip_high)
        total = -(weights * torch.minimum(ratio * advantage, held * advantage)).sum()
        learned = float(weights.sum())
        low = weights * ((ratio < 1 - self.clip) & (advantage < 0))
        high = weights * ((ratio > 1 + self.clip_high) & (advantage > 0))
        clips: Metrics = {"clipped_low": (low.sum(), learned), "clipped_high": (high.sum(), learned)}
        return Loss(total, answers(batch), _metrics(logprob, batch, weights) | clips)


def _advantage(logprob: Tensor, batch: Batch, kl: float) -> tuple[Tensor, Tensor]:
    """``(B, T)`` advantage with the KL to go taken off, and the weights; neither carries a gradient."""
    if batch.advantage is None or batch.weights is None:
        raise TrainingError("a rollout batch needs weights and an advantage for every token of the answer")
    if kl == 0:
        return batch.advantage, batch.weights
    if batch.reference_logprob is None:
        raise TrainingError("the KL needs reference_logprob in the batch", way_out="give a reference or set kl to 0")
    ratio = (logprob.detach() - batch.reference_logprob) * (batch.weights > 0)
    to_go = ratio.flip(1).cumsum(1).flip(1)
    return batch.advantage - kl * to_go, batch.weights


def _metrics(logprob: Tensor, batch: Batch, weights: Tensor) -> Metrics:
    """``entropy`` in nats a token and ``kl`` to the reference in nats an answer, both unbiased while on-policy.

    ``kl`` sums k3 = exp(-d) - 1 + d over tokens (Schulman 2020): as a value, not a loss, it is the best of the three.
    """
    own = logprob.detach()
    out: Metrics = {"entropy": (-(weights * own).sum(), float(weights.sum()))}
    if batch.reference_logprob is not None:
        d = (own - batch.reference_logprob) * (weights > 0)
        out["kl"] = ((torch.expm1(-d) + d).sum(), answers(batch))
    return out


def _at_least_zero(name: str, value: float) -> None:
    if value < 0:
        raise SettingsError(f"{name} must be at least 0, got {value}")
