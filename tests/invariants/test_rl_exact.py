"""Reinforcement learning is right: estimators against exact gradients and optima, by enumerating every answer.

The world is small enough to list every answer with its exact probability; the policy is a table or a transformer.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cutaway.batch import Batch, Example, pad
from cutaway.models.heads import TokenHead
from cutaway.models.model import build, with_head
from cutaway.models.transformer import TransformerConfig
from cutaway.objectives.likelihood import Likelihood, token_logprobs
from cutaway.objectives.objective import Loss
from cutaway.objectives.policy import GRPO, Reinforce, group_advantages
from cutaway.objectives.preference import DPO, Reward, pairs, with_reference

END = 0
REQUEST = 1


def every_answer(vocab: int, most: int) -> list[tuple[int, ...]]:
    """Every answer of at most ``most`` tokens: it ends at END, or is cut off unfinished."""
    out = []
    for answer in itertools.product(range(vocab), repeat=most):
        cut = answer[: answer.index(END) + 1] if END in answer else answer
        if cut not in out:
            out.append(cut)
    return out


def batch_of(answers: list[tuple[int, ...]], advantage: Any = None, **fields: Tensor) -> Batch:
    """One answer a row behind the request; ``advantage (B,)`` is laid on every token of its answer."""
    examples = [Example(np.array([REQUEST, *a]), np.array([0.0] + [1.0] * len(a), np.float32)) for a in answers]
    batch = pad(examples, pad_id=END)
    if advantage is not None:
        fields["advantage"] = torch.as_tensor(advantage, dtype=torch.float32)[:, None].expand(batch.tokens.shape)
    return replace(batch, **fields)


class Table(nn.Module):
    """Logits of the next token looked up by the whole prefix: any distribution over answers, exactly."""

    def __init__(self, vocab: int, most: int, *, seed: int) -> None:
        super().__init__()
        self.vocab = vocab
        prefixes = sum(vocab ** (t + 1) for t in range(most))
        draw = torch.Generator().manual_seed(seed)
        self.head = TokenHead(nn.Parameter(torch.randn(vocab, prefixes, generator=draw)))
        self.device = torch.device("cpu")

    def hidden(self, batch: Batch) -> Tensor:
        index, before, out = torch.zeros(len(batch.tokens), dtype=torch.long), 0, []
        for t in range(batch.tokens.shape[1]):
            index = index * self.vocab + batch.tokens[:, t]
            out.append(before + index)
            before += self.vocab ** (t + 1)
        return nn.functional.one_hot(torch.stack(out, 1), self.head.weight.shape[1]).float()


def policy(kind: str, vocab: int, most: int, *, seed: int) -> Any:
    """A ``table`` or a real ``transformer`` with logits far from uniform."""
    if kind == "table":
        return Table(vocab, most, seed=seed)
    config = TransformerConfig(vocab_size=vocab, hidden_size=8, num_layers=1, num_heads=2, num_kv_heads=1,
                               intermediate_size=16, context_length=8, tie_embeddings=False)
    model = build(config, seed=seed)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.4 * torch.randn(p.shape, generator=draw))
    return model


def logprobs(model: Any, answers: list[tuple[int, ...]]) -> Tensor:
    """Exact ``log p(answer)``, with gradient, from plain log-softmax: nothing shared with the objectives."""
    batch = batch_of(answers)
    logits = nn.functional.linear(model.hidden(batch).double(), model.head.weight.double())
    each = logits.log_softmax(-1).gather(2, batch.targets[..., None]).squeeze(2)
    return (each * batch.weights).sum(1)


def gradient(model: Any, value: Tensor) -> Tensor:
    """The gradient of a scalar with respect to every parameter, as one vector."""
    parts = torch.autograd.grad(value, list(model.parameters()), allow_unused=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten().double()
                      for g, p in zip(parts, model.parameters(), strict=True)])


VOCAB, MOST, KL = 3, 2, 0.3
ANSWERS = every_answer(VOCAB, MOST)
REWARDS = torch.tensor(np.random.default_rng(7).normal(size=len(ANSWERS)))


def with_logprobs(model: Any, reference: Any, batch: Batch) -> Batch:
    with torch.no_grad():
        return replace(batch, reference_logprob=token_logprobs(reference, batch))


def exact(model: Any, reference: Any, kl: float) -> Tensor:
    """Gradient of ``-E[r] + kl KL(policy || reference)``, through the probabilities themselves."""
    own, other = logprobs(model, ANSWERS), logprobs(reference, ANSWERS).detach()
    return gradient(model, -(own.exp() * (REWARDS - kl * (own - other))).sum())


def expected(model: Any, reference: Any, objective: Any, *, size: int = 2, kl_in_reward: float = 0.0) -> Tensor:
    """The estimator's expectation: every group of ``size`` answers times its probability."""
    own, other = logprobs(model, ANSWERS).detach(), logprobs(reference, ANSWERS).detach()
    total = torch.zeros((), dtype=torch.float64)
    for group in itertools.product(range(len(ANSWERS)), repeat=size):
        at = list(group)
        values = REWARDS[at] - kl_in_reward * (own[at] - other[at])
        batch = batch_of([ANSWERS[i] for i in at], group_advantages(values, size))
        batch = with_logprobs(model, reference, batch)
        loss = objective(model, batch)
        assert loss.weight == objective.weight(batch) == size
        total = total + own[at].sum().exp() * loss.total.double() / loss.weight
    return gradient(model, total)


def close(got: Tensor, wanted: Tensor, tolerance: float = 2e-6) -> None:
    assert float((got - wanted).norm() / wanted.norm()) < tolerance


@pytest.mark.parametrize("kind", ["table", "transformer"])
@pytest.mark.parametrize("objective", [Reinforce(), GRPO(kl=0.0), Reinforce(kl=KL), GRPO(kl=KL)], ids=str)
def test_the_estimators_expectation_is_the_exact_gradient(kind: str, objective: Any) -> None:
    model, reference = policy(kind, VOCAB, MOST, seed=1), policy(kind, VOCAB, MOST, seed=2)
    assert float(logprobs(model, ANSWERS).exp().sum().detach()) == pytest.approx(1, abs=1e-6)
    close(expected(model, reference, objective), exact(model, reference, objective.kl))


def test_a_kl_in_the_reward_has_the_same_expectation_for_any_group() -> None:
    model, reference = policy("table", VOCAB, MOST, seed=1), policy("table", VOCAB, MOST, seed=2)
    close(expected(model, reference, GRPO(kl=0.0), size=3, kl_in_reward=KL), exact(model, reference, KL))


def test_longer_answers_too() -> None:
    answers = every_answer(2, 4)
    model, reference = Table(2, 4, seed=3), Table(2, 4, seed=4)
    own, other = logprobs(model, answers), logprobs(reference, answers).detach()
    values = torch.tensor(np.random.default_rng(0).normal(size=len(answers)))
    wanted = gradient(model, -(own.exp() * (values - KL * (own - other))).sum())
    total = torch.zeros((), dtype=torch.float64)
    for i, answer in enumerate(answers):
        batch = with_logprobs(model, reference, batch_of([answer], [float(values[i])]))
        total = total + own[i].detach().exp() * GRPO(kl=KL)(model, batch).total.double()
    close(gradient(model, total), wanted)


def test_off_policy_the_ratio_corrects_answers_of_one_token() -> None:
    """With an open clip the expectation under the old policy is the exact gradient of the new one."""
    answers = [(i,) for i in range(4)]
    old, new, reference = Table(4, 1, seed=1), Table(4, 1, seed=2), Table(4, 1, seed=3)
    values = torch.tensor([1.0, -2.0, 0.5, 3.0])
    own, other = logprobs(new, answers), logprobs(reference, answers).detach()
    wanted = gradient(new, -(own.exp() * (values - KL * (own - other))).sum())
    total = torch.zeros((), dtype=torch.float64)
    for i, answer in enumerate(answers):
        batch = with_logprobs(new, reference, batch_of([answer], [float(values[i])]))
        with torch.no_grad():
            batch = replace(batch, old_logprob=token_logprobs(old, batch))
        loss = GRPO(clip=0.999999, clip_high=1e9, kl=KL)(new, batch)
        # min(rho A, clamp(rho) A) differs from rho A only outside the clip, here nowhere
        total = total + logprobs(old, answers)[i].detach().exp() * loss.total.double()
    close(gradient(new, total), wanted)


def test_the_metrics_are_unbiased() -> None:
    model, reference = Table(VOCAB, MOST, seed=1), Table(VOCAB, MOST, seed=2)
    own, other = logprobs(model, ANSWERS).detach(), logprobs(reference, ANSWERS).detach()
    kl = entropy = 0.0
    for i, answer in enumerate(ANSWERS):
        metrics = GRPO()(model, with_logprobs(model, reference, batch_of([answer], [1.0]))).metrics
        kl += float(own[i].exp()) * float(metrics["kl"][0])
        entropy += float(own[i].exp()) * float(metrics["entropy"][0])
    assert kl == pytest.approx(float((own.exp() * (own - other)).sum()), rel=1e-5)
    assert entropy == pytest.approx(float(-(own.exp() * own).sum()), rel=1e-5)


def optimum(reference: Any) -> Tensor:
    """``reference * exp(r / kl)``, normalised: the one maximiser of ``E[r] - kl KL``."""
    tilted = logprobs(reference, ANSWERS).detach() + REWARDS / KL
    return (tilted - tilted.logsumexp(0)).exp()


@dataclass(frozen=True)
class LossOfK3:
    """What this project does not do: k3 as a loss per token, GRPO's printed formula."""

    def __call__(self, model: Any, batch: Batch) -> Loss:
        logprob = token_logprobs(model, batch)
        d = batch.reference_logprob - logprob
        return Loss((batch.weights * (KL * (d.exp() - d - 1) - batch.advantage * logprob)).sum(), 1.0)


@dataclass(frozen=True)
class OwnTokenOnly:
    """What this project does not do either: each token answers for its own log-ratio, not for what follows."""

    def __call__(self, model: Any, batch: Batch) -> Loss:
        logprob = token_logprobs(model, batch)
        advantage = batch.advantage - KL * (logprob.detach() - batch.reference_logprob)
        return Loss(-(batch.weights * advantage * logprob).sum(), 1.0)


def distance_after_training(objective: Any, *, updates: int = 1200) -> float:
    """Total variation to the optimum after training on all answers, each weighted by its probability."""
    model, reference = Table(VOCAB, MOST, seed=5), Table(VOCAB, MOST, seed=6)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for step in range(updates):
        chance = logprobs(model, ANSWERS).detach().exp()
        batch = batch_of(ANSWERS, REWARDS - (chance * REWARDS).sum())
        # the weight of an answer is its probability: the batch is the expectation itself
        batch = with_logprobs(model, reference, replace(batch, weights=batch.weights * chance[:, None].float()))
        optimizer.zero_grad()
        objective(model, batch).total.backward()
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / updates)
        optimizer.step()
    return float((logprobs(model, ANSWERS).exp() - optimum(reference)).abs().sum().detach()) / 2


@pytest.mark.parametrize("objective", [Reinforce(kl=KL), GRPO(kl=KL)], ids=str)
def test_training_reaches_the_optimum(objective: Any) -> None:
    assert distance_after_training(objective) < 0.002


@pytest.mark.parametrize("objective", [LossOfK3(), OwnTokenOnly()], ids=str)
def test_the_two_common_shortcuts_reach_another_policy(objective: Any) -> None:
    assert distance_after_training(objective) > 0.02


# Accumulation: any split into micro-batches, over rows of uneven masks, gives the gradient of the whole.

CONFIG = TransformerConfig(vocab_size=11, hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=1,
                           intermediate_size=32, context_length=16)


def uneven(rows: int, seed: int) -> list[Example]:
    draw = np.random.default_rng(seed)
    out = []
    for _ in range(rows):
        length = int(draw.integers(3, 13))
        weights = np.zeros(length, np.float32)
        weights[int(draw.integers(1, length)) :] = 1
        out.append(Example(draw.integers(3, 11, length), weights))
    return out


def rollout_batch(model: Any) -> Batch:
    batch = pad(uneven(9, 3), pad_id=END)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        own = token_logprobs(model, batch)
    kept = batch.weights != 0
    noise = [0.3 * torch.randn(own.shape, generator=draw) * kept for _ in range(2)]
    silent = batch.weights.clone()
    silent[4] = 0  # an answer masked out counts for nothing
    return replace(batch, weights=silent, advantage=torch.randn(own.shape, generator=draw),
                   old_logprob=own + noise[0], reference_logprob=own + noise[1])


@pytest.mark.parametrize("parts", [2, 4, 9])
@pytest.mark.parametrize("objective", [Reward(), DPO(), DPO(kind="ipo", label_smoothing=0.1), Reinforce(kl=0.1),
                                       GRPO(), Likelihood()], ids=str)
def test_accumulation_is_the_big_batch(objective: Any, parts: int) -> None:
    model = build(CONFIG, seed=0)
    reference = build(CONFIG, seed=1)
    if isinstance(objective, GRPO | Reinforce):
        batch = rollout_batch(model)
    else:
        batch = with_reference(reference, pairs(uneven(9, 1), uneven(9, 2), pad_id=END))
    if isinstance(objective, Reward):
        model = with_head(model, "scalar", seed=0)
    whole = objective(model, batch)
    wanted = gradient(model, whole.total / whole.weight)
    micro = batch.micro(parts)
    weight = sum(objective.weight(m) for m in micro)
    losses = [objective(model, m) for m in micro]
    got = sum(gradient(model, loss.total / weight) for loss in losses)
    assert weight == whole.weight == sum(loss.weight for loss in losses)
    assert float((got - wanted).norm() / wanted.norm()) < 1e-6
    for name, (value, count) in whole.metrics.items():
        assert sum(loss.metrics[name][1] for loss in losses) == count
        assert float(sum(loss.metrics[name][0] for loss in losses)) == pytest.approx(float(value), rel=1e-5, abs=1e-5)

