"""Generation is exact: batched = alone, cached = uncached, together with other settings = by itself."""

from __future__ import annotations

import pytest
import torch

from cutaway.batch import Batch
from cutaway.generate import prefill
from cutaway.generate.engine import Engine
from cutaway.generate.request import Request, Sampling
from cutaway.models.model import Model, build
from tests.tiny import CONFIGS, CONTEXT, VOCABULARY


@pytest.fixture(params=list(CONFIGS))
def model(request: pytest.FixtureRequest) -> Model:
    made = build(CONFIGS[request.param], seed=4)
    with torch.no_grad():
        for p in made.parameters():
            p.mul_(3 if p.ndim > 1 else 1)  # far from uniform, so that a slip shows
    return made


def mixed(count: int) -> list[Request]:
    draw = torch.Generator().manual_seed(0)
    kinds = [Sampling(), Sampling(temperature=0), Sampling(temperature=0.7, top_k=5), Sampling(top_p=0.8),
             Sampling(min_p=0.1, repetition_penalty=1.3), Sampling(presence_penalty=0.5)]
    sizes = torch.randint(1, 12, (count,), generator=draw).tolist()
    return [Request(tuple(torch.randint(0, VOCABULARY, (n,), generator=draw).tolist()), 1 + i % (CONTEXT - n),
                    kinds[i % len(kinds)], seed=i, stop_ids=(i % 7,), logprobs=i % 3) for i, n in enumerate(sizes)]


def test_batched_is_alone(model: Model) -> None:
    requests = mixed(24)
    alone = [Engine(model).generate([r])[0] for r in requests]
    for rows in (24, 5):
        for a, b in zip(alone, Engine(model, max_rows=rows).generate(requests), strict=True):
            assert (a.tokens, a.finish_reason) == (b.tokens, b.finish_reason)
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


def test_logprobs_are_those_of_one_uncached_pass(model: Model) -> None:
    for request, done in zip(requests := mixed(12), Engine(model).generate(requests), strict=True):
        if request.logprobs is None:
            continue
        tokens = torch.tensor([[*request.tokens, *done.tokens]])
        with torch.no_grad():
            logs = torch.log_softmax(model(Batch(tokens[:, :-1])), -1)[0, len(request.tokens) - 1 :]
        wanted = logs.gather(1, torch.tensor(done.tokens)[:, None]).squeeze(1)
        assert done.logprobs == pytest.approx(wanted.tolist(), abs=1e-4)
        if request.sampling == Sampling(temperature=0):
            assert list(done.tokens) == logs.argmax(1).tolist()


def test_prompts_read_in_pieces_are_prompts_read_at_once(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = mixed(10)
    whole = Engine(model).generate(requests)
    monkeypatch.setattr(prefill, "READ", 200)
    pieces = Engine(model).generate(requests)
    assert [p.tokens for p in pieces] == [w.tokens for w in whole]


def test_a_model_learns_after_it_has_generated(model: Model) -> None:
    Engine(model).generate([Request((1, 2), 4)])
    model(Batch(torch.tensor([[1, 2, 3]]))).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_drawn_shares_are_the_models_probabilities(model: Model) -> None:
    n = 4000
    done = Engine(model, max_rows=n).generate([Request((3, 1), 1, seed=s) for s in range(n)])
    with torch.no_grad():
        p = torch.softmax(model(Batch(torch.tensor([[3, 1]])))[0, -1], -1)
    share = torch.bincount(torch.tensor([d.tokens[0] for d in done]), minlength=VOCABULARY) / n
    assert ((share - p).abs() <= 5 * (p * (1 - p) / n).sqrt() + 1e-3).all()
