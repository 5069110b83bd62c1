"""GRPO through everything it runs on: engine, rollouts, the loop, on a tiny transformer."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence

import numpy as np
import torch

from cutaway.batch import Example, pad
from cutaway.models.model import Model, build
from cutaway.models.transformer import TransformerConfig
from cutaway.objectives.likelihood import token_logprobs
from cutaway.objectives.policy import GRPO
from cutaway.text.tokenizer import Tokenizer, train
from cutaway.text.vocabulary import ByteSettings
from cutaway.train.loop import Step, steps
from cutaway.train.optimizer import OptimizerSettings, build_optimizer
from cutaway.train.reward import Answer, prompt
from cutaway.train.rollout import Rollouts, RolloutSettings, Source
from cutaway.train.schedule import Schedule

TOKENIZER: Tokenizer = train(ByteSettings(), [])
LETTERS = "abc"
CONFIG = TransformerConfig(vocab_size=TOKENIZER.vocab_size, hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=1,
                           intermediate_size=32, context_length=16, tie_embeddings=False)
KL = 0.5
WORDS = ["".join(w) for w in itertools.product(LETTERS, repeat=2)]
VALUE = dict(zip(WORDS, np.random.default_rng(4).normal(size=9), strict=True))


def speller(seed: int) -> Model:
    """A model that says hardly anything but the letters a, b and c, each about as often."""
    model = build(CONFIG, seed=seed)
    with torch.no_grad():  # one direction common to every hidden state, which the letters' rows share
        model.backbone.embedding.weight[:, 0] += 1.0
        model.head.weight *= 0.1
        model.head.weight[TOKENIZER.encode(LETTERS), 0] += 4.0
    return model


def worth(requests: Sequence[str], answers: Sequence[Answer]) -> list[float]:
    return [float(VALUE.get(a.text, 0.0)) for a in answers]


def grpo(model: Model, reference: Model, *, updates: int, total: int, rate: float = 5e-3) -> list[Step]:
    settings = RolloutSettings(prompts=16, samples=8, max_tokens=2, updates=updates, rows=128)
    source = Source(Rollouts(model, reference, TOKENIZER, ("?",), worth, settings, seed=1))
    optimizer = build_optimizer(model, OptimizerSettings(kind="adamw", learning_rate=rate, weight_decay=0.0))
    return list(steps(model, source, GRPO(kl=KL), optimizer, schedule=Schedule(warmup=0.0, decay=0.7), total=total))


def chances(model: Model) -> np.ndarray:
    """Probability of each of the nine words."""
    ids = prompt("?", TOKENIZER)
    rows = [[*ids, *TOKENIZER.encode(w)] for w in WORDS]
    weights = np.array([0.0] * len(ids) + [1.0, 1.0], np.float32)
    with torch.no_grad():
        logs = token_logprobs(model, pad([Example(np.array(r), weights) for r in rows], pad_id=TOKENIZER.pad_id))
    return logs.sum(1).double().exp().numpy()


def test_sampled_grpo_comes_to_the_optimum_of_reward_and_kl() -> None:
    """Total variation to ``reference * exp(r / kl)`` over the words and everything else the model might say."""
    reference = speller(0)
    model = copy.deepcopy(reference)
    before = chances(reference)
    tilted = before * np.exp(np.array([VALUE[w] for w in WORDS]) / KL)
    rest = 1 - before.sum()  # worth 0, so its weight is its probability
    optimum = np.append(tilted, rest) / (tilted.sum() + rest)
    done = grpo(model, reference, updates=1, total=150)
    after = chances(model)
    distance = np.abs(np.append(after, 1 - after.sum()) - optimum).sum() / 2
    assert np.abs(np.append(before, rest) - optimum).sum() / 2 > 0.4
    assert distance < 0.08
    wanted = float((optimum * np.log(optimum / np.append(before, rest))).sum())
    assert abs(float(np.mean([s.metrics["kl"] for s in done[-30:]])) - wanted) < 0.2


def test_answers_may_be_learned_from_twice() -> None:
    """The second update of a rollout is clipped here and there, and the words that are worth more still win."""
    model = speller(0)
    done = grpo(model, speller(0), updates=2, total=60, rate=3e-2)
    value = np.array([VALUE[w] for w in WORDS])
    assert chances(model)[value.argmax()] > 2 * chances(speller(0))[value.argmax()]
    assert max(s.metrics["clipped_high"] for s in done[1::2]) > 0
    assert max(s.metrics["clipped_high"] for s in done[0::2]) == 0
