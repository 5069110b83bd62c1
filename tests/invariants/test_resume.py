"""Resumed equals uninterrupted, bit for bit: weights, optimizer state and every figure of every step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor

from cutaway.models.model import Model, build
from cutaway.train import checkpoint
from cutaway.train.loop import Step, steps
from cutaway.train.optimizer import Optimizer, OptimizerSettings, build_optimizer
from cutaway.train.schedule import Schedule

TOTAL, CUT = 7, 3


def fresh(case: tiny.Case, config: str, kind: str, *, seed: int = 1) -> tuple[Model, Optimizer]:
    model = tiny.start(case, config, seed=seed)
    return model, build_optimizer(model, OptimizerSettings.model_validate({"kind": kind}))


def run(case: tiny.Case, model: Model, optimizer: Optimizer, *, start: int, micro: int,
        save: Path | None = None) -> list[Step]:
    done = []
    for step in steps(model, tiny.batches(case, micro=micro), case.objective, optimizer,
                      schedule=Schedule(warmup=0.3, decay=0.6), total=TOTAL, start=start, clip=0.5):
        done.append(replace(step, seconds=0.0))
        if save is not None and step.number == CUT:
            checkpoint.save(save, step=CUT, model=model, optimizer=optimizer, resume={"tokens": 7, "name": "é"})
    return done


def everything(model: Model, optimizer: Optimizer) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **optimizer.tensors()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def check(tmp_path: Path, case: tiny.Case, config: str, kind: str, micro: int) -> None:
    alone = fresh(case, config, kind)
    expected = run(case, *alone, start=0, micro=micro)
    saved = fresh(case, config, kind)
    assert run(case, *saved, start=0, micro=micro, save=tmp_path) == expected, "saving changed the training"
    resumed = fresh(case, config, kind, seed=2)
    assert not same(everything(*resumed), everything(*alone))
    found = checkpoint.latest(tmp_path)
    assert found is not None and found.step == CUT and found.resume == {"tokens": 7, "name": "é"}
    checkpoint.load(found, model=resumed[0], optimizer=resumed[1])
    assert run(case, *resumed, start=CUT, micro=micro) == expected[CUT:]
    assert same(everything(*resumed), everything(*alone))


@pytest.mark.parametrize("config", tiny.EVERY)
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_resumed_is_uninterrupted_for_every_config(tmp_path: Path, kind: str, config: str) -> None:
    check(tmp_path, tiny.case_for("packed", config), config, kind, micro=3)


@pytest.mark.parametrize("name", tiny.CASES)
def test_resumed_is_uninterrupted_for_every_objective(tmp_path: Path, name: str) -> None:
    check(tmp_path, tiny.CASES[name], "tied", "muon", micro=2)


def test_resumed_is_uninterrupted_with_dropout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tiny.EVERY, "dropping", tiny.CONFIGS["tied"].model_copy(update={"dropout": 0.3}))
    check(tmp_path, tiny.CASES["packed"], "dropping", "muon", micro=2)
    case, said = tiny.CASES["packed"], []
    for seed, config in ((0, "dropping"), (0, "dropping"), (1, "dropping"), (1, "tied")):
        model, optimizer = fresh(case, config, "adamw")
        loop = steps(model, tiny.batches(case, micro=2), case.objective, optimizer, schedule=Schedule(), total=2,
                     seed=seed)
        before = torch.get_rng_state()
        said.append([step.loss for step in loop])
        assert torch.equal(torch.get_rng_state(), before), "training moved the caller's own generator"
        torch.manual_seed(len(said))  # what the caller draws is nothing to it
    assert said[0] == said[1] and len({losses[0] for losses in said}) == 3


def test_every_step_and_part_drops_something_else() -> None:
    case = tiny.CASES["likelihood"]
    config = tiny.CONFIGS["tied"].model_copy(update={"dropout": 0.3})
    model = build(config, seed=1)
    frozen = build_optimizer(model, OptimizerSettings(kind="adamw", learning_rate=1e-30))
    loop = steps(model, lambda _: [case.batch(0)], case.objective, frozen, schedule=Schedule(), total=4)
    assert len({step.loss for step in loop}) == 4
    halves = [steps(model, lambda _, o=order: [case.batch(i) for i in o], case.objective, frozen,
                    schedule=Schedule(), total=1) for order in ((0, 1), (1, 0))]
    assert len({next(loop).loss for loop in halves}) == 2


def test_resumed_is_uninterrupted_in_bfloat16(tmp_path: Path) -> None:
    case = tiny.CASES["packed"]
    finals = []
    for resumed in (False, True):
        model, optimizer = fresh(case, "tied", "muon")
        model.compute_dtype = torch.bfloat16
        if resumed:
            checkpoint.load(tmp_path / f"step-{CUT}", model=model, optimizer=optimizer)
        run(case, model, optimizer, start=CUT if resumed else 0, micro=2, save=None if resumed else tmp_path)
        finals.append(everything(model, optimizer))
    assert same(*finals)


def test_training_draws_from_no_global_generator() -> None:
    """Why a checkpoint holds no generator's state: there is none to hold."""
    batch = tiny.CASES["grpo"].batch(0)
    case = replace(tiny.CASES["grpo"], batch=lambda _: batch)
    model, optimizer = fresh(case, "tied", "muon")
    before = torch.get_rng_state()
    run(case, model, optimizer, start=0, micro=2)
    assert torch.equal(torch.get_rng_state(), before)
