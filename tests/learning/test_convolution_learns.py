"""Convolutional networks learn within seconds: copying inside the receptive field and not beyond, a word that decides a
label, a short sequence turned round."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cutaway.batch import Batch
from cutaway.generate.engine import Engine
from cutaway.generate.request import Request, Sampling
from cutaway.models.convolution import ConvolutionConfig
from cutaway.models.heads import Classes
from cutaway.models.model import Model, build
from cutaway.objectives.likelihood import Likelihood
from cutaway.objectives.objective import Loss
from cutaway.train.loop import Batches, steps
from cutaway.train.optimizer import OptimizerSettings, build_optimizer
from cutaway.train.schedule import Schedule

VOCABULARY = 12


def _learn(model: Model, batches: Batches, objective: object, total: int, *, rate: float = 1e-2) -> list[float]:
    optimizer = build_optimizer(model, OptimizerSettings(kind="adamw", learning_rate=rate))
    return [s.loss for s in steps(model, batches, objective, optimizer,  # type: ignore[arg-type]
                                  schedule=Schedule(), total=total)]


def _copies(step: int, half: int) -> Batch:
    """Random tokens, then the same again: only the second half can be predicted, from ``half - 1`` tokens before."""
    first = torch.randint(0, VOCABULARY, (32, half), generator=torch.Generator().manual_seed(step))
    tokens = torch.cat((first, first), 1)
    weights = torch.zeros(32, 2 * half - 1)
    weights[:, half - 1 :] = 1
    return Batch(tokens[:, :-1], tokens[:, 1:], weights)


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_decoder_copies_inside_its_receptive_field_and_not_beyond(gated: bool, dtype: torch.dtype) -> None:
    config = ConvolutionConfig(vocab_size=VOCABULARY, hidden_size=32, num_layers=3, dilations=(1, 2, 4), gated=gated)
    assert config.receptive_field == 15
    inside = _learn(build(config, seed=1, compute_dtype=dtype), lambda n: [_copies(n, 15)], Likelihood(), 150)
    assert abs(inside[0] - math.log(VOCABULARY)) < 0.5  # starts at the uniform line
    assert inside[-1] < 0.1
    beyond = _learn(build(config, seed=1, compute_dtype=dtype), lambda n: [_copies(n, 16)], Likelihood(), 150)
    assert min(beyond) > 0.97 * math.log(VOCABULARY)


class _Labelled:
    """Sum of the cross-entropies of the labels."""

    def weight(self, batch: Batch) -> float:
        return float(len(batch.tokens))

    def __call__(self, model: Model, batch: Batch) -> Loss:
        assert batch.labels is not None
        return Loss(F.cross_entropy(model(batch), batch.labels, reduction="sum"), self.weight(batch))


def _sentences(step: int) -> Batch:
    """Sentences of 2 to 12 words; the label is whether word 3 stands right before word 4 somewhere."""
    draw = np.random.default_rng(step)
    tokens, documents = draw.integers(1, 20, (64, 12)), np.full((64, 12), -1, np.int32)
    for row, length in enumerate(draw.integers(2, 13, 64)):
        documents[row, :length] = 0
        if row % 2:
            at = draw.integers(0, length - 1)
            tokens[row, at : at + 2] = 3, 4
    real = (documents[:, :-1] >= 0) & (documents[:, 1:] >= 0)
    labels = torch.from_numpy(((tokens[:, :-1] == 3) & (tokens[:, 1:] == 4) & real).any(1)).long()
    return Batch(torch.from_numpy(tokens), documents=torch.from_numpy(documents), labels=labels)


def test_kim_learns_a_phrase() -> None:
    config = ConvolutionConfig(vocab_size=20, hidden_size=30, shape="encoder", embedding_size=16, tie_embeddings=False)
    model = build(config, head=Classes(("without", "with")), seed=1)
    _learn(model, lambda n: [_sentences(n)], _Labelled(), 150)
    batch = _sentences(10_000)
    assert batch.labels is not None
    right = (model.eval()(batch).argmax(1) == batch.labels).double().mean()
    assert right > 0.95


def _turned(step: int, rows: int = 64) -> Batch:
    """Five tokens and the same turned round, behind a first token 0."""
    source = torch.randint(1, VOCABULARY, (rows, 5), generator=torch.Generator().manual_seed(step))
    target = source.flip(1)
    return Batch(torch.cat((torch.zeros(rows, 1, dtype=torch.long), target[:, :-1]), 1), target, source=source)


def test_an_encoder_decoder_turns_a_sequence_round() -> None:
    config = ConvolutionConfig(vocab_size=VOCABULARY, hidden_size=48, num_layers=2, shape="encoder-decoder",
                               context_length=8)
    model = build(config, seed=1)
    losses = _learn(model, lambda n: [_turned(n)], Likelihood(), 300, rate=5e-3)
    assert abs(losses[0] - math.log(VOCABULARY)) < 0.5 and losses[-1] < 0.1
    batch = _turned(10_000, 20)
    assert batch.source is not None and batch.targets is not None
    with torch.inference_mode():
        state = model.eval().new_state(20, capacity=8, sources=batch.source.tolist())
        token, written = torch.zeros(20, 1, dtype=torch.long), []
        for _ in range(5):
            token = model.logits(token, state).argmax(1, keepdim=True)
            written.append(token)
    right = (torch.cat(written, 1) == batch.targets).all(1).double().mean()
    assert right > 0.9


def test_a_decoder_writes_the_copy_it_learned() -> None:
    config = ConvolutionConfig(vocab_size=VOCABULARY, hidden_size=32, num_layers=3, dilations=(1, 2, 4), gated=False)
    model = build(config, seed=1)
    _learn(model, lambda n: [_copies(n, 15)], Likelihood(), 200)
    first = torch.randint(0, VOCABULARY, (15,), generator=torch.Generator().manual_seed(77)).tolist()
    done = Engine(model).generate([Request(tuple(first), 15, Sampling(temperature=0))])[0]
    assert list(done.tokens) == first
