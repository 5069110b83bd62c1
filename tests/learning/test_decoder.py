"""A decoder learns to copy within seconds: attention, positions, loss, optimizer and schedule all have to be right."""

from __future__ import annotations

import math

import pytest
import torch

from cutaway.batch import Batch
from cutaway.models.model import build
from cutaway.models.transformer import TransformerConfig
from cutaway.objectives.likelihood import Likelihood
from cutaway.train.loop import steps
from cutaway.train.optimizer import OptimizerSettings, build_optimizer
from cutaway.train.schedule import Schedule

CONFIG = TransformerConfig(vocab_size=24, hidden_size=48, num_layers=2, num_heads=4, num_kv_heads=2,
                           intermediate_size=96, context_length=15)


def _copies(step: int) -> Batch:
    """Eight random tokens, then the same again: only the second half can be predicted."""
    half = torch.randint(0, 24, (64, 8), generator=torch.Generator().manual_seed(step))
    tokens = torch.cat((half, half), 1)
    weights = torch.zeros(64, 15)
    weights[:, 7:] = 1
    return Batch(tokens[:, :-1], tokens[:, 1:], weights)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_decoder_learns_to_copy(kind: str, dtype: torch.dtype) -> None:
    model = build(CONFIG, seed=1, compute_dtype=dtype)
    settings = OptimizerSettings.model_validate({"kind": kind, "learning_rate": 5e-3})
    done = list(steps(model, lambda n: _copies(n).micro(2), Likelihood(), build_optimizer(model, settings),
                      schedule=Schedule(), total=250))
    assert abs(done[0].loss - math.log(24)) < 0.5  # starts at the uniform line
    assert done[-1].loss < 0.1
    assert not any(s.skipped for s in done)
