"""The only file that asks what machine this is: cores, memory, dtypes, measured peaks, seeds (after gpt-fast's GB/s).

Peaks are measured, not looked up: the best GEMM over several shapes and the best streaming read and copy are what
predictions and the share of the machine used (MFU, PaLM 2022, appendix B) stand on.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import sys
import sysconfig
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cutaway.errors import MachineError

if TYPE_CHECKING:
    import torch

Kind = Literal["cpu", "cuda", "mps"]
ROOT = Path("/")
_MAPPED_BYTES = 32 << 20  # what glibc never takes from its heap, unless told to (M_MMAP_THRESHOLD's upper bound)
_BF16_GAIN = 1.2  # bf16 must beat fp32 by this much: casts and norms between the products eat a smaller gain


@dataclass(frozen=True, slots=True)
class Device:
    """Where tensors live: ``cpu``, ``cuda`` or ``mps``, and which one of them."""

    kind: Kind
    index: int = 0

    @property
    def torch(self) -> torch.device:
        """The same as torch's own value."""
        import torch

        return torch.device("cpu") if self.kind == "cpu" else torch.device(self.kind, self.index)

    def __str__(self) -> str:
        return self.kind if self.kind != "cuda" else f"cuda:{self.index}"


def pick(name: str = "auto") -> Device:
    """The device of that name (``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``); one that is absent is refused."""
    import torch

    present = {"cpu": 1, "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
               "mps": int(torch.backends.mps.is_available())}
    if name == "auto":
        name = next(k for k in ("cuda", "mps", "cpu") if present[k])
    kind, _, index = name.partition(":")
    here = ", ".join(k for k, n in present.items() if n)
    if kind not in present or not (index == "" or index.isdecimal()):
        raise MachineError(f"no device is called {name!r}", way_out=f"this machine has: {here}; or say auto")
    if int(index or 0) >= present[kind]:
        raise MachineError(f"this machine has no {name}", way_out=f"use one of: {here}")
    return Device(kind, int(index or 0))  # type: ignore[arg-type]


def cores(root: Path = ROOT) -> int:
    """Cores this process may use: its affinity, cut by the cgroup's quota (v2 or v1) rounded down, at least one."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limits = [float(allowed)]
    for folder in _cgroups("cpu", root):
        v2 = _read(folder / "cpu.max").split()
        v1 = [_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")]
        for quota, period in (p for p in (v2, v1) if len(p) == 2):
            if quota.isdecimal() and period.isdecimal() and int(period):  # "max" and -1 mean no quota
                limits.append(int(quota) / int(period))
    return max(1, int(min(limits)))


def memory_bytes(root: Path = ROOT) -> int:
    """Memory this process may use: the machine's, cut by the cgroup's limit (v2 or v1)."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for folder in _cgroups("memory", root):
        found = (_read(folder / "memory.max"), _read(folder / "memory.limit_in_bytes"))
        limits += [int(text) for text in found if text.isdecimal()]
    return min(limits)


def free_bytes(device: torch.device) -> int:
    """Memory of a GPU that nobody has; what PyTorch keeps of it, freed and ready to be taken again, counts."""
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _cgroups(controller: str, root: Path) -> Iterator[Path]:
    """Folders whose limits bind this process: its own group and every one above it, for v2 and for v1."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        names = controllers.split(",")
        if controllers and controller not in names:
            continue
        mounts = [""] if not controllers else [controllers, controller]
        for mount in mounts:
            base = root / "sys/fs/cgroup" / mount
            folder = base / path.lstrip("/")
            while folder != base and base in folder.parents:
                yield folder
                folder = folder.parent
            yield base


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def peak_rss_bytes() -> int:
    """Largest resident memory of this process so far, without its few short children (the C compiler, git).

    Linux's own high-water mark is asked first: ``getrusage`` also counts the parent's size from before ``exec``, which
    is why a child's figure would be this process's over again.
    """
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    mine = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    for line in _read(Path("/proc/self/status")).splitlines():
        if line.startswith("VmHWM:"):
            mine = int(line.split()[1]) * 1024
    return mine


def set_threads(count: int | None = None) -> int:
    """Let torch use ``count`` threads; None means every core allowed, or fewer if OMP_NUM_THREADS says so."""
    import torch

    if count is None:
        asked = os.environ.get("OMP_NUM_THREADS", "")
        count = min(cores(), int(asked)) if asked.isdecimal() and int(asked) else cores()
    if count < 1:
        raise MachineError(f"{count} threads cannot run anything", way_out="use 1 or more, or none for all cores")
    torch.set_num_threads(count)
    return count


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch (every device of it)."""
    import random

    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def compute_dtype(name: str, device: Device, machine: Machine | None = None) -> torch.dtype:
    """``float32``, ``bfloat16``, or ``auto``: bfloat16 where this machine's measured GEMM is faster in it."""
    import torch

    known_names = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if name != "auto":
        if name not in known_names:
            raise MachineError(f"no dtype is called {name!r}", way_out="use auto, float32 or bfloat16")
        return known_names[name]
    here = machine if machine is not None else known(device)
    return torch.bfloat16 if here.gemm_bf16_flops > _BF16_GAIN * here.gemm_fp32_flops else torch.float32


@dataclass(frozen=True, slots=True)
class Machine:
    """What this machine is and what was measured on it: FLOP/s (a multiply-add is two) and bytes/s."""

    device: str
    cpu: str
    cores: int
    memory_bytes: int
    accelerator: str | None
    accelerator_memory_bytes: int | None
    torch_version: str
    gemm_fp32_flops: float
    gemm_bf16_flops: float
    read_bytes_per_s: float
    copy_bytes_per_s: float
    measured_at: str

    def peak(self, dtype: torch.dtype) -> float:
        """Measured peak FLOP/s of matrix products in that dtype; other dtypes were not measured and are refused."""
        peaks = {"torch.float32": self.gemm_fp32_flops, "torch.bfloat16": self.gemm_bf16_flops}
        if str(dtype) not in peaks:
            raise MachineError(f"no peak was measured for {dtype}", way_out="use float32 or bfloat16")
        return peaks[str(dtype)]

    @property
    def fingerprint(self) -> str:
        """The same for the same hardware, limits and torch: what a stored measurement is good for."""
        parts = (self.device, self.cpu, self.cores, self.memory_bytes, self.accelerator, self.torch_version)
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def describe(device: Device) -> Machine:
    """The machine before any measuring: every rate is 0."""
    import torch

    name, memory = _accelerator(device)
    return Machine(str(device), _cpu_name(), cores(), memory_bytes(), name, memory, torch.__version__,
                   0.0, 0.0, 0.0, 0.0, "")


def _cpu_name() -> str:
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        if line.lower().startswith(("model name", "hardware")):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _accelerator(device: Device) -> tuple[str | None, int | None]:
    import torch

    if device.kind == "cuda":
        return torch.cuda.get_device_name(device.torch), torch.cuda.mem_get_info(device.torch)[1]
    if device.kind == "mps":
        return f"{platform.machine()} GPU", torch.mps.recommended_max_memory()
    return None, None


def pays_to_compile(device: Device, seconds: float) -> bool:
    """Whether ``torch.compile`` (about a minute) is worth it: on CUDA for work of at least ten minutes, where Triton,
    a C compiler and Python's headers are there and the GPU is one that Triton serves (capability 7 and newer).

    On the CPU the compiled kernels have fused what it would fuse; see docs/decisions/kernels.md.
    """
    if device.kind != "cuda" or seconds < 600:
        return False
    import torch

    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    ready = bool(compiler) and headers.is_file() and importlib.util.find_spec("triton") is not None
    return ready and torch.cuda.get_device_capability(device.torch) >= (7, 0)


def keep_memory(largest: int = _MAPPED_BYTES) -> bool:
    """Let glibc keep what a training step frees, if its largest tensor has so many bytes that it would not by itself.

    Every tensor above 32 MiB is mapped anew and the kernel clears its pages at first touch: a gigabyte and a seventh of
    the time of a 124M model's step. The peak of a step is the same; ``release_memory`` gives it back. False: not done.
    """
    return largest >= _MAPPED_BYTES and _keep_memory()


@functools.cache
def _keep_memory() -> bool:
    if sys.platform != "linux":
        return False
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    no_mapping, no_trimming = (-4, 0), (-1, -1)  # M_MMAP_MAX, M_TRIM_THRESHOLD of malloc.h
    return mallopt is not None and all(mallopt(*setting) for setting in (no_mapping, no_trimming))


def forget_pages(tensor: torch.Tensor) -> None:
    """Let the system take back the pages of a tensor that is a mapped file and that nobody holds any more: they would
    count beside the copy that was made of them until the file is closed."""
    if sys.platform != "linux":
        return
    import ctypes
    import mmap

    start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * tensor.element_size()
    start, end = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
    if end > start:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)


def large_pages(size: int) -> torch.Tensor:
    """``size`` bytes in pages of two megabytes where the system gives them to those who ask: what is read from end to
    end at every token then costs no search for its pages."""
    import torch

    page = 1 << 21
    room = torch.empty(size + 2 * page, dtype=torch.uint8)
    start = -(-room.data_ptr() // page) * page
    if sys.platform == "linux":
        import ctypes

        huge = 14  # MADV_HUGEPAGE, which mmap has no name for everywhere
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(-(-size // page) * page), huge)
    return room[start - room.data_ptr() :][:size]


def release_memory() -> None:
    """Give back what was freed: between two stages of different sizes it is of no use."""
    if sys.platform == "linux":
        import ctypes

        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def measure(device: Device, *, seconds: float = 3.0) -> Machine:
    """Measure GEMM in fp32 and bf16 and memory read and copy, in about that many seconds; the best of each counts."""
    from dataclasses import replace

    import torch

    before = torch.get_num_threads()
    if device.kind == "cpu":
        torch.set_num_threads(cores())
    try:
        fp32 = _gemm(device, torch.float32, seconds * 0.35)
        bf16 = _gemm(device, torch.bfloat16, seconds * 0.35)
        read, copied = _stream(device, seconds * 0.3)
    finally:
        torch.set_num_threads(before)
    return replace(describe(device), gemm_fp32_flops=fp32, gemm_bf16_flops=bf16, read_bytes_per_s=read,
                   copy_bytes_per_s=copied, measured_at=datetime.now(UTC).isoformat(timespec="seconds"))


def _gemm(device: Device, dtype: torch.dtype, seconds: float) -> float:
    """Best FLOP/s of square products, size by size while the next size still fits the time that is left."""
    import torch

    sizes = (256, 512, 1024, 1536, 2048, 3072, 4096, *((8192,) if device.kind == "cuda" else ()))
    end, best = time.perf_counter() + seconds, 0.0
    for size in sizes:
        flops = 2.0 * size**3
        if best and 3 * flops / best > end - time.perf_counter():
            break
        a = torch.full((size, size), 0.5, dtype=dtype, device=device.torch)
        out = torch.empty_like(a)
        share = min(end, time.perf_counter() + seconds / 4)
        took = _fastest(lambda a=a, out=out: torch.mm(a, a, out=out), device, share)  # type: ignore[misc]
        best = max(best, flops / took)
    return best


def _stream(device: Device, seconds: float) -> tuple[float, float]:
    """Best bytes/s of reading one large tensor, and of copying half of it (bytes read plus bytes written)."""
    import torch

    half = min(256 << 20, memory_bytes() // 16) // 8  # one tensor serves both: measuring must not set a run's peak
    a = torch.ones(2 * half, dtype=torch.float32, device=device.torch)
    size, now = 8.0 * half, time.perf_counter()
    reads: tuple[Callable[[], object], ...] = (lambda: torch.dot(a, a), a.sum)
    read = min(_fastest(call, device, now + seconds * (i + 1) / 3) for i, call in enumerate(reads))
    copied = _fastest(lambda: a[:half].copy_(a[half:]), device, now + seconds)
    return size / read, size / copied


def _fastest(call: Callable[[], object], device: Device, until: float) -> float:
    """Fewest seconds of one call, after one unmeasured call; on an accelerator ten calls are timed together."""
    import torch

    def wait() -> None:
        if device.kind != "cpu":
            torch.accelerator.synchronize(device.torch)

    repeats = 1 if device.kind == "cpu" else 10
    call()
    wait()
    best = float("inf")
    while best == float("inf") or time.perf_counter() < until:
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        wait()
        best = min(best, (time.perf_counter() - start) / repeats)
    return best


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/cutaway``, by default ``~/.cache/cutaway``: what can be made again."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "cutaway"


def _file(machine: Machine) -> Path:
    return cache_folder() / f"machine-{machine.fingerprint}.json"


def stored(device: Device) -> Machine | None:
    """The measurement kept for this very machine, or None; a damaged file counts as none (it is measured again)."""
    here = describe(device)
    try:
        row = json.loads(_file(here).read_text())
        machine = Machine(**{f.name: row[f.name] for f in fields(Machine)})
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return machine if machine.fingerprint == here.fingerprint and machine.gemm_fp32_flops > 0 else None


def store(machine: Machine) -> Path:
    """Keep the measurement for later commands; returns its file. Raises MachineError if the cache cannot be written."""
    path = _file(machine)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(asdict(machine), indent=1) + "\n")
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise MachineError(f"cannot be written ({error.strerror or error})", where=path,
                           way_out="set XDG_CACHE_HOME to a folder that can be written") from None
    return path


def known(device: Device) -> Machine:
    """The stored measurement, or a new one that is stored; where the cache cannot be written it is only measured."""
    found = stored(device)
    if found is not None:
        return found
    machine = measure(device)
    try:
        store(machine)
    except MachineError as error:  # a read-only home costs three seconds each time, not the run
        warnings.warn(f"this machine is measured anew by every command: {error}", stacklevel=2)
    return machine
