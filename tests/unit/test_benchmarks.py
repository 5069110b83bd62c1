"""The training race: contenders take turns, ratios are paired, and a missed target is said."""

from __future__ import annotations

import importlib.util
import math
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2] / "benchmarks"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"bench_{Path(name).stem}", ROOT / name)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def train() -> ModuleType:
    return script("train.py")


CASE = {
    "num_layers": 1,
    "hidden_size": 16,
    "num_heads": 2,
    "context": 8,
    "batch": 2,
    "vocab_size": 32,
    "inner": 48,
    "dtype": "float32",
    "device": "cpu",
    "threads": 1,
}


def test_contenders_take_the_steps_they_are_told(train: ModuleType) -> None:
    racers = train.race(["nanogpt eager"], CASE, sys.executable, 0.01, 3, time.monotonic() + 60)
    assert [r.name for r in racers] == ["cutaway", "nanogpt eager"]
    for racer in racers:
        assert len(racer.rates) == 3
        assert racer.process.poll() == 0
        assert abs(racer.last["loss"] - math.log(32)) < 1
        row = train.figure(racer, CASE)
        assert row["low"] <= row["tokens_per_second"] <= row["high"]
        assert row["memory_bytes"] > 2**26


def test_a_contender_that_dies_is_named_with_its_last_words(train: ModuleType) -> None:
    racer = train.start("broken", "plain.py", sys.executable, {**CASE, "num_heads": 3, "compiled": False})
    racer.ask(1)
    with pytest.raises(SystemExit, match=r"broken stopped: .*RuntimeError"):
        racer.answer()
    racer.end()


def test_targets_are_judged_in_speed_and_memory(train: ModuleType) -> None:
    assert train.judged({"S bfloat16": 1.6, "L float32": 1.2}, {"S bfloat16": 0.9, "L float32": 1.0}) == (
        {"S bfloat16": 1.5, "L float32": 1.15},
        True,
    )
    assert train.judged({"S bfloat16": 1.4}, {"S bfloat16": 0.9})[1] is False
    assert train.judged({"S bfloat16": 1.6}, {"S bfloat16": 1.1})[1] is False


def test_flops_are_those_of_the_paper(train: ModuleType) -> None:
    # 6 N + 6 L D (T + 1): PaLM's appendix B with causal attention, where a token sees half the context on average
    assert train.flops_per_token(train.SHAPES["L"], 123_600_000) == 6 * 123_600_000 + 6 * 12 * 768 * 513


def test_every_peer_has_its_script(train: ModuleType) -> None:
    for name, (file, _) in train.PEERS.items():
        assert (ROOT / "peers" / file).is_file(), name
    assert set(train.QUICK) <= set(train.PEERS)


def test_recurrent_contenders_train_the_same_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)  # as it is when the script is run
    recurrent = script("recurrent.py")
    for cell in ("lstm", "gru", "vanilla"):
        racers = recurrent.race({**CASE, "cell": cell}, 0.01, 3, time.monotonic() + 60)
        row = recurrent.figures(racers)
        assert row["ratio"] > 0 and row["ours"]["rounds"] == row["torch"]["rounds"] == 3
        assert all(abs(row[name]["loss"] - math.log(32)) < 1 for name in ("ours", "torch"))
