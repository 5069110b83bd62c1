"""Every configuration on a GPU does what it does on the CPU, and each generates there what it generates here."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import CASES, COMBINATIONS, CONFIGS, CONTEXT, EVERY, VOCABULARY, batches, case_for, source_of, start

from cutaway.generate.beam import Beam, search
from cutaway.generate.engine import Engine
from cutaway.generate.paged import PagedRunner
from cutaway.generate.request import Request, Sampling
from cutaway.models.heads import Classes
from cutaway.models.model import Model, build
from cutaway.models.reading import outputs
from cutaway.train.loop import Step, steps
from cutaway.train.optimizer import OptimizerSettings, build_optimizer
from cutaway.train.schedule import Schedule

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU that CUDA serves")
GPU = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def _whole_floats() -> Iterator[None]:
    """cuDNN's convolutions round to TF32 unless told not to."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def _trained(case: str, config: str, place: torch.device, kind: str) -> tuple[list[Step], Model]:
    chosen = case_for(case, config)
    model = start(chosen, config).to(place)
    settings = OptimizerSettings(kind=kind, learning_rate=1e-3)  # type: ignore[arg-type]
    loop = steps(model, batches(chosen, micro=2), chosen.objective, build_optimizer(model, settings),
                 schedule=Schedule(kind="constant"), total=3)
    return list(loop), model


@pytest.mark.parametrize(("case", "config"), COMBINATIONS)
def test_three_steps_lose_what_they_lose_on_the_cpu(case: str, config: str) -> None:
    here, _ = _trained(case, config, torch.device("cpu"), "adamw")
    there, _ = _trained(case, config, GPU, "adamw")
    for a, b in zip(here, there, strict=True):
        assert (a.weight, a.tokens, a.skipped) == (pytest.approx(b.weight), b.tokens, b.skipped)
        assert b.loss == pytest.approx(a.loss, rel=2e-4, abs=2e-5)
        assert b.grad_norm == pytest.approx(a.grad_norm, rel=2e-3, abs=1e-5)


@pytest.mark.parametrize("config", EVERY)
def test_muon_moves_as_on_the_cpu(config: str) -> None:
    here, mine = _trained("likelihood", config, torch.device("cpu"), "muon")
    there, other = _trained("likelihood", config, GPU, "muon")
    assert [s.loss for s in there] == pytest.approx([s.loss for s in here], rel=5e-3)
    for a, b in zip(mine.parameters(), other.parameters(), strict=True):
        assert (a - b.cpu()).abs().max() < 5e-3


@pytest.mark.parametrize("case", CASES)
def test_two_runs_on_one_gpu_are_close(case: str) -> None:
    """Not bitwise: atomic sums come in any order."""
    first, second = (_trained(case, "tied", GPU, "adamw")[0] for _ in range(2))
    assert [s.loss for s in second] == pytest.approx([s.loss for s in first], rel=1e-5, abs=1e-6)


def _requests(model: Model) -> list[Request]:
    draw = np.random.default_rng(0)
    kinds = [Sampling(temperature=0), Sampling(), Sampling(top_k=5), Sampling(top_p=0.8, repetition_penalty=1.2)]
    out = []
    for i in range(12):
        prompt = draw.integers(3, VOCABULARY, 1 + i % 7).tolist()
        source = tuple(source_of(prompt).tolist()) if model.reads_source else None
        out.append(Request(tuple(prompt), CONTEXT - 8, kinds[i % 4], seed=i, stop_ids=(5,), logprobs=1, source=source))
    return out


def _far_from_uniform(config: str) -> Model:
    model = build(CONFIGS[config], seed=4)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3 if p.ndim > 1 else 1)
    return model.eval()


@pytest.mark.parametrize("config", CONFIGS)
def test_the_same_answers_and_logprobs(config: str) -> None:
    here = Engine(_far_from_uniform(config)).generate(_requests(_far_from_uniform(config)))
    model = _far_from_uniform(config).to(GPU)
    for rows in (12, 5):
        there = Engine(model, max_rows=rows).generate(_requests(model))
        for a, b in zip(here, there, strict=True):
            assert (a.tokens, a.finish_reason) == (b.tokens, b.finish_reason)
            assert b.logprobs == pytest.approx(a.logprobs, abs=1e-3)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")  # it is a prototype, torch says
@pytest.mark.parametrize("kind", [Sampling(temperature=0), Sampling(top_p=0.8)])
def test_a_step_waits_for_its_tokens_alone(kind: Sampling) -> None:
    model = _far_from_uniform("tied").to(GPU)
    engine = Engine(model)
    assert isinstance(engine.runner, PagedRunner) and engine.runner.shares_pages and not engine.runner.exact
    for i in range(4):
        engine.submit(Request((3, 4, 5 + i), 12, kind, seed=i))
    for _ in range(4):  # prompts, and the graph of this shape
        engine.step()
    try:
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            assert len(engine.step()) == 4
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([w for w in waits if "synchroniz" in str(w.message)]) == 1


@pytest.mark.parametrize("config", CONFIGS)
def test_the_same_beams(config: str) -> None:
    model = _far_from_uniform(config)
    asked = [replace(r, sampling=Sampling(), logprobs=None) for r in _requests(model)[:6]]
    beam = Beam(width=3)
    here = search(model, asked, beam)
    assert [h[0].tokens for h in search(model.to(GPU), asked, beam)] == [h[0].tokens for h in here]


@pytest.mark.parametrize("config", EVERY)
def test_texts_are_read_alike(config: str) -> None:
    draw = np.random.default_rng(1)
    rows: Sequence[list[int]] = [draw.integers(3, VOCABULARY, n).tolist() for n in (3, 9, 1, CONTEXT - 1)]
    model = build(EVERY[config], head=Classes(("a", "b", "c")), seed=2).eval()
    here = outputs(model, rows, pad_id=0, bos_id=1)
    there = outputs(model.to(GPU), rows, pad_id=0, bos_id=1)
    assert np.abs(here - there).max() < 1e-4
    low = build(EVERY[config], head=Classes(("a", "b", "c")), seed=2, compute_dtype=torch.bfloat16).eval().to(GPU)
    assert np.abs(here - outputs(low, rows, pad_id=0, bos_id=1)).max() < 0.15
