"""Recurrent models learn within seconds what needs a memory: a token after a delay, which word came first, reversal."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from cutaway.batch import Batch
from cutaway.generate.engine import Engine
from cutaway.generate.request import Request, Sampling
from cutaway.models.heads import Classes
from cutaway.models.model import build
from cutaway.models.recurrent import RecurrentConfig
from cutaway.nn.recurrence import Cell
from cutaway.objectives.likelihood import Likelihood
from cutaway.train.loop import steps
from cutaway.train.optimizer import OptimizerSettings, build_optimizer
from cutaway.train.schedule import Schedule

cells = pytest.mark.parametrize("cell", ["vanilla", "gru", "lstm"])
ADAMW = OptimizerSettings(kind="adamw", learning_rate=1e-2)


def _repeats(step: int) -> Batch:
    """Four random tokens over and over: after the first round each is known from four steps before."""
    period = torch.randint(0, 16, (32, 4), generator=torch.Generator().manual_seed(step))
    tokens = period.repeat(1, 4)
    weights = torch.zeros(32, 15)
    weights[:, 3:] = 1
    return Batch(tokens[:, :-1], tokens[:, 1:], weights)


@cells
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cell_remembers_a_token_for_four_steps(cell: Cell, dtype: torch.dtype) -> None:
    config = RecurrentConfig(vocab_size=16, hidden_size=64, num_layers=1, cell=cell)
    model = build(config, seed=1, compute_dtype=dtype)
    done = list(steps(model, lambda n: [_repeats(n)], Likelihood(), build_optimizer(model, ADAMW), schedule=Schedule(),
                      total=250))
    assert abs(done[0].loss - math.log(16)) < 0.7  # starts near the uniform line
    assert done[-1].loss < 0.3
    model.compute_dtype = torch.float32
    (answer,) = Engine(model).generate([Request((3, 7, 1, 12, 3, 7), 6, Sampling(temperature=0))])
    assert answer.tokens == (1, 12, 3, 7, 1, 12)


@cells
def test_an_encoder_tells_which_word_came_first(cell: Cell) -> None:
    """The same words in both classes: no bag of words could do it. Every row has its own length."""
    config = RecurrentConfig(vocab_size=16, hidden_size=32, num_layers=1, cell=cell, shape="encoder")
    model = build(config, head=Classes(("one", "two")), seed=1)
    optimizer = build_optimizer(model, ADAMW)
    for step in range(150):
        draw = torch.Generator().manual_seed(step)
        tokens, labels = torch.randint(4, 16, (64, 12), generator=draw), torch.randint(0, 2, (64,), generator=draw)
        lengths = torch.randint(8, 13, (64, 1), generator=draw)
        tokens[:, 2], tokens[:, 6] = 1 + labels, 2 - labels
        documents = torch.where(torch.arange(12) < lengths, 0, -1)
        logits = model(Batch(tokens, documents=documents))
        F.cross_entropy(logits, labels).backward()
        optimizer.step(1.0)
        optimizer.zero_grad()
    assert (logits.argmax(1) == labels).float().mean() > 0.98


def _reversals(step: int) -> Batch:
    """A source of 4 to 6 letters; the target is 1 and the source from its end."""
    draw = torch.Generator().manual_seed(step)
    source, lengths = torch.randint(2, 14, (48, 6), generator=draw), torch.randint(4, 7, (48, 1), generator=draw)
    at = torch.arange(6)
    real = at < lengths
    turned = source.gather(1, (lengths - 1 - at).clamp(min=0))
    tokens = torch.cat((torch.ones(48, 1, dtype=torch.long), turned), 1)
    documents = torch.where(real, 0, -1).int()
    return Batch(tokens[:, :-1], tokens[:, 1:], real.float(), documents, source=source, source_documents=documents)


def test_an_encoder_decoder_learns_to_reverse() -> None:
    config = RecurrentConfig(vocab_size=14, hidden_size=64, cell="gru", shape="encoder-decoder")
    model = build(config, seed=1)
    done = list(steps(model, lambda n: [_reversals(n)], Likelihood(), build_optimizer(model, ADAMW),
                      schedule=Schedule(), total=300))
    assert done[-1].loss < 0.1
    state = model.new_state(2, capacity=8, sources=[[5, 9, 2, 13, 4], [7, 3, 3, 8]])
    token, written = torch.ones(2, 1, dtype=torch.long), []
    with torch.inference_mode():
        for _ in range(5):
            token = model.logits(token, state).argmax(1, keepdim=True)
            written.append(token)
    rows = torch.cat(written, 1).tolist()
    assert rows[0] == [4, 13, 2, 9, 5]
    assert rows[1][:4] == [8, 3, 3, 7]
