"""Device: limits read as the kernel states them, rates measured, stored once, believed only for this machine."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cutaway import device
from cutaway.device import Device, compute_dtype, cores, memory_bytes, peak_rss_bytes, pick, seed_everything
from cutaway.errors import MachineError

CPU = Device("cpu")
ALLOWED = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
FAKE = replace(device.describe(CPU), gemm_fp32_flops=1e11, gemm_bf16_flops=3e11, read_bytes_per_s=1e10,
               copy_bytes_per_s=2e10, measured_at="2026-01-01T00:00:00+00:00")


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_without_a_cgroup_the_affinity_counts(tmp_path: Path) -> None:
    assert cores(tmp_path) == ALLOWED


@pytest.mark.parametrize("files", [
    {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"},
    {"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
     "sys/fs/cgroup/a/cpu.max": "100000 100000\n"},
    {"proc/self/cgroup": "0::/not/mounted\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"},
    {"proc/self/cgroup": "4:cpu,cpuacct:/job\n3:memory:/job\n",
     "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "100000\n",
     "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000\n"},
    {"proc/self/cgroup": "4:cpu,cpuacct:/gone\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "199999\n",
     "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"},
])
def test_quotas_of_both_cgroup_versions_cut_to_one_core(tmp_path: Path, files: dict[str, str]) -> None:
    assert cores(tree(tmp_path, files)) == 1


@pytest.mark.parametrize("files", [
    {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"},
    {"proc/self/cgroup": "2:cpu:/\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
     "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"},
    {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "100000000 100000\n"},
])
def test_a_quota_that_does_not_bind_changes_nothing(tmp_path: Path, files: dict[str, str]) -> None:
    assert cores(tree(tmp_path, files)) == ALLOWED


def test_memory_is_cut_by_both_cgroup_versions(tmp_path: Path) -> None:
    whole = memory_bytes(tmp_path)
    v2 = tree(tmp_path / "2", {"proc/self/cgroup": "0::/x\n", "sys/fs/cgroup/x/memory.max": "12345678\n"})
    v1 = tree(tmp_path / "1", {"proc/self/cgroup": "9:memory:/x\n",
                               "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "23456789\n",
                               "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"})
    none = tree(tmp_path / "0", {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"})
    assert (memory_bytes(v2), memory_bytes(v1), memory_bytes(none)) == (12345678, 23456789, whole)


def test_devices_are_picked_by_name_and_absent_ones_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pick("cpu") == CPU and CPU.torch == torch.device("cpu") and str(CPU) == "cpu"
    assert pick("auto").kind in ("cpu", "cuda", "mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick("auto") == Device("cuda", 0)
    assert str(pick("cuda:1")) == "cuda:1"
    for name in ("cuda:2", "tpu", "cuda:x", "cpu:1", ""):
        with pytest.raises(MachineError):
            pick(name)


def test_peak_memory_grows_by_what_was_touched_and_is_this_process_alone() -> None:
    program = ("from cutaway.device import peak_rss_bytes as p\n"
               "a = p(); b = bytearray(100 << 20); print(a, p())")
    ballast = bytearray(300 << 20)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert len(ballast) > before
    assert 95 << 20 < after - before < 130 << 20
    assert peak_rss_bytes() > 300 << 20


def test_threads_follow_the_cores_and_the_openmp_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert device.set_threads() == torch.get_num_threads() == 1
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert device.set_threads() == torch.get_num_threads() == cores()
    assert device.set_threads(1) == torch.get_num_threads() == 1
    with pytest.raises(MachineError):
        device.set_threads(0)


STEPS = """
import resource
import torch
from cutaway.batch import Batch
from cutaway.models.model import build
from cutaway.models.transformer import TransformerConfig
from cutaway.objectives.likelihood import Likelihood
from cutaway.train import loop
from cutaway.train.optimizer import OptimizerSettings, build_optimizer
from cutaway.train.schedule import Schedule

if not KEEP:
    loop.keep_memory = lambda largest: False
config = TransformerConfig(vocab_size=60_000, hidden_size=192, num_layers=1, num_heads=2, num_kv_heads=2,
                           intermediate_size=64, context_length=16)
model = build(config)
optimizer = build_optimizer(model, OptimizerSettings(kind="adamw"))
tokens = torch.randint(60_000, (2, 16), generator=torch.Generator().manual_seed(1))
faults = []
batches = lambda _: [Batch(tokens, tokens)]  # noqa: E731
for step in loop.steps(model, batches, Likelihood(), optimizer, schedule=Schedule(), total=16):
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(faults[-1] - faults[7], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_what_a_step_frees_is_kept_for_the_next_at_the_same_peak() -> None:
    assert not device.keep_memory((32 << 20) - 1)  # a small model's tensors are kept by themselves
    if not device.keep_memory(32 << 20):
        pytest.skip("no glibc here")

    def run(keep: bool) -> tuple[int, int]:
        code = STEPS.replace("KEEP", str(keep))
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        faults, peak = done.stdout.split()
        return int(faults), int(peak)

    (kept, peak), (mapped, usual) = run(True), run(False)
    assert mapped > 8 * 10_000  # tensors of 44 MiB are 11,250 pages each; the heap may grow by some in its first steps
    assert kept < mapped / 4 and peak < 1.25 * usual


def test_seeding_repeats_every_generator() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    seed_everything(2**40 + 3)
    first = draw()
    seed_everything(2**40 + 3)
    assert draw() == first
    seed_everything(4)
    assert draw() != first


def test_auto_computes_in_bf16_only_where_it_was_measured_faster() -> None:
    assert compute_dtype("auto", CPU, FAKE) is torch.bfloat16
    assert compute_dtype("auto", CPU, replace(FAKE, gemm_bf16_flops=1.1e11)) is torch.float32
    assert compute_dtype("float32", CPU, FAKE) is torch.float32
    assert compute_dtype("bfloat16", CPU, replace(FAKE, gemm_bf16_flops=1.0)) is torch.bfloat16
    with pytest.raises(MachineError, match="float16"):
        compute_dtype("float16", CPU, FAKE)
    assert (FAKE.peak(torch.float32), FAKE.peak(torch.bfloat16)) == (1e11, 3e11)
    with pytest.raises(MachineError):
        FAKE.peak(torch.float64)


def test_measuring_gives_positive_rates_near_the_time_asked_for() -> None:
    threads, start = torch.get_num_threads(), time.perf_counter()
    machine = device.measure(CPU, seconds=0.5)
    assert time.perf_counter() - start < 8
    assert min(machine.gemm_fp32_flops, machine.gemm_bf16_flops) > 1e8
    assert min(machine.read_bytes_per_s, machine.copy_bytes_per_s) > 1e8
    assert machine.cores == cores() and machine.measured_at and machine.accelerator is None
    assert torch.get_num_threads() == threads


def test_a_stored_machine_is_read_back_and_only_for_this_machine(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert device.stored(CPU) is None
    path = device.store(FAKE)
    assert path.is_relative_to(tmp_path / "cutaway") and [path] == list(path.parent.iterdir())
    assert device.stored(CPU) == FAKE
    monkeypatch.setattr(device, "measure", lambda _: pytest.fail("it was stored"))
    assert device.known(CPU) == FAKE
    device.store(replace(FAKE, cores=FAKE.cores + 1)).replace(path)  # a file that came from elsewhere
    assert device.stored(CPU) is None
    path.write_text('{"device": "cp')
    assert device.stored(CPU) is None


def test_what_is_unknown_is_measured_and_stored_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked: list[Device] = []
    monkeypatch.setattr(device, "measure", lambda d: asked.append(d) or FAKE)
    assert device.known(CPU) == device.known(CPU) == FAKE
    assert asked == [CPU]


def test_a_cache_that_cannot_be_written_is_an_error_for_store_and_none_for_known(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cutaway").write_text("a file stands where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(MachineError, match="XDG_CACHE_HOME"):
        device.store(FAKE)
    monkeypatch.setattr(device, "measure", lambda _: FAKE)
    with pytest.warns(UserWarning, match="measured anew by every command: .*set XDG_CACHE_HOME"):
        assert device.known(CPU) == FAKE
