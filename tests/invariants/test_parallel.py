"""Two ranks equal one: real processes started by torchrun over gloo, DDP and FSDP2, every objective and config."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from safetensors.torch import load_file
from torch import Tensor

from cutaway.device import Device
from cutaway.errors import SettingsError
from cutaway.models.model import Model
from cutaway.train import checkpoint
from cutaway.train.parallel import SINGLE, launch

TESTS = Path(__file__).resolve().parents[1]
# Adam divides by the root of a gradient's square: where that is small its last bit moves a weight further. The most
# that was seen is 1.4e-5 of the largest weight on an AMD processor, and below 1e-5 on an Intel one.
# (biases begin at zero and are small after three steps)
WEIGHTS = {"likelihood-vanilla": 2e-5, "likelihood-lstm-encoder-decoder": 2e-5, "likelihood-encoder-post": 2e-5,
           "likelihood-learned": 2e-5}
# Muon in bfloat16: 1.2e-3 of a norm is the most that was seen, which may be ten times this
TOLERANCE = {"muon-bfloat16": 2e-4, "bfloat16": 3e-3}


@pytest.fixture(scope="session")
def two(tmp_path_factory: pytest.TempPathFactory, worker_count: int) -> Path:
    """What two ranks wrote; made once, also when several test workers share the session."""
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if worker_count > 1 else base) / "two-ranks"
    root.mkdir(exist_ok=True)
    with (root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / "done").exists():
            _train_on_two(root)
            (root / "done").touch()
    return root


@pytest.fixture(scope="session")
def worker_count() -> int:
    """Test workers of this session: 1 without xdist."""
    return int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))


def _train_on_two(root: Path) -> None:
    """Save a checkpoint of one process, then start the two ranks, which also go on from it."""
    model, optimizer = ranks.begin("muon", SINGLE)
    ranks.go("muon", model, optimizer, total=ranks.CUT)
    checkpoint.save(root / "one", step=ranks.CUT, model=model, optimizer=optimizer, resume={"tokens": 1})
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
               str(TESTS / "ranks.py"), str(root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False,
                          env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}"})
    assert done.returncode == 0, done.stderr[-4000:]


def outcome(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    return json.loads((folder / "steps.json").read_text()), load_file(folder / "tensors.safetensors")


def close(said: list[dict[str, Any]], expected: list[dict[str, Any]], tolerance: float) -> None:
    assert len(said) == len(expected)
    for one, other in zip(said, expected, strict=True):
        for exact in ("number", "weight", "tokens", "learning_rate", "skipped"):
            assert one[exact] == other[exact], exact
        assert one["loss"] == pytest.approx(other["loss"], rel=tolerance, abs=1e-6)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=10 * tolerance, abs=1e-6)
        assert one["metrics"] == pytest.approx(other["metrics"], rel=10 * tolerance, abs=1e-5)


def seen(model: Model, name: str, value: Tensor) -> Tensor:
    """Without the bias of keys: it adds as much to all scores of a query, so that its gradient is rounding alone, which
    AdamW makes steps of."""
    if not name.endswith("qkv.bias"):
        return value
    heads, kv, size = model.config.heads
    return torch.cat(value.split([heads * size, kv * size, kv * size])[::2])


@pytest.mark.parametrize("kind", ranks.KINDS)
@pytest.mark.parametrize("plan", ranks.PLANS)
def test_two_ranks_are_one(two: Path, plan: str, kind: str) -> None:
    model, optimizer = ranks.begin(plan, SINGLE)
    expected = ranks.go(plan, model, optimizer)
    said, tensors = outcome(two / kind / plan)
    close(said, expected, TOLERANCE.get(plan, 1e-5))
    if plan not in TOLERANCE:
        for name, parameter in model.named_parameters():
            there, here = seen(model, name, tensors[name]), seen(model, name, parameter.detach())
            assert float((there - here).abs().max() / here.abs().max()) <= WEIGHTS.get(plan, 1e-5), name
    assert tensors.keys() == {*dict(model.named_parameters()), *optimizer.tensors()}


@pytest.mark.parametrize("kind", ranks.KINDS)
def test_a_run_of_one_goes_on_as_two(two: Path, kind: str) -> None:
    expected = ranks.go("muon", *ranks.begin("muon", SINGLE))
    close(outcome(two / kind / "from-one")[0], expected[ranks.CUT :], 1e-5)


@pytest.mark.parametrize("kind", ranks.KINDS)
def test_a_run_of_two_goes_on_as_one(two: Path, kind: str) -> None:
    expected = ranks.go("muon", *ranks.begin("muon", SINGLE))
    model, optimizer = ranks.begin("muon", SINGLE)
    found = checkpoint.latest(two / f"two-{kind}")
    assert found is not None and found.step == ranks.CUT
    checkpoint.load(found, model=model, optimizer=optimizer)
    close(ranks.go("muon", model, optimizer, start=ranks.CUT), expected[ranks.CUT :], 1e-5)


def test_processes_and_kind_must_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SettingsError, match=r"torchrun --nproc-per-node 2 -m cutaway"), launch("ddp", Device("cpu")):
        pass
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SettingsError, match="2 processes were started for a run that is not parallel"), \
            launch("single", Device("cpu")):
        pass


def test_one_process_needs_no_group() -> None:
    with launch("single", Device("cpu")) as parallel:
        assert parallel is SINGLE and not torch.distributed.is_initialized()
        assert parallel.any(True) and not parallel.any(False)


