"""The compiled kernels: ``csrc/``, built once a machine with its own C compiler and called through ctypes.

Without a compiler everything works on plain PyTorch, only slower; ``status()`` says which, for reports and ``doctor``.
The library links against the OpenMP that PyTorch already runs, so both share one pool of threads.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from cutaway.device import cores

log = logging.getLogger(__name__)
SOURCES = Path(__file__).with_name("csrc")
FLAGS = ("-O3", "-fPIC", "-fopenmp", "-fno-math-errno", "-fno-trapping-math",
         "-fno-strict-aliasing")  # rows of bfloat16 are also read as pairs
NATIVE = ("-march=native",)


@dataclass(frozen=True, slots=True)
class Built:
    """The library, or None and why it is absent."""

    library: ctypes.CDLL | None
    reason: str


class Shape(ctypes.Structure):
    """``Shape`` of attention.h."""

    _fields_ = (("rows", ctypes.c_int64), ("steps", ctypes.c_int64), ("keys", ctypes.c_int64),
                ("heads", ctypes.c_int64), ("kv_heads", ctypes.c_int64), ("size", ctypes.c_int64),
                ("bf", ctypes.c_int), ("causal", ctypes.c_int), ("scale", ctypes.c_float),
                ("query_stride", ctypes.c_int64), ("key_stride", ctypes.c_int64),
                ("cosines", ctypes.c_void_p), ("sines", ctypes.c_void_p), ("rotary_stride", ctypes.c_int64),
                ("first", ctypes.c_void_p), ("last", ctypes.c_void_p),
                ("bias", ctypes.c_void_p), ("bias_stride", ctypes.c_int64))


def _folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(root) / "cutaway"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def _processor() -> str:
    # -march=native code must not travel to another processor through a shared home
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor()
    return next((line for line in info.read_text().splitlines() if line.startswith(("flags", "Features"))), "")


def _openmp() -> list[str]:
    return [str(p) for p in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*"))]


def compiled(target: Path, processor: tuple[str, ...] = NATIVE) -> str:
    """Build the library at ``target`` for a processor's flags; why it failed, or an empty line."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return "no C compiler was found"
    log.warning("compiling kernels for this processor, once: about a quarter of a minute")  # somebody waits for it
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:  # beside it, so that it can be moved
        draft = Path(folder) / "kernels.so"
        pieces = [(source, str(Path(folder) / f"{source.stem}.o")) for source in sorted(SOURCES.glob("*.c"))]
        calls = [[compiler, *FLAGS, *processor, "-c", str(source), "-o", piece] for source, piece in pieces]
        last = [compiler, *FLAGS, "-shared", *(piece for _, piece in pieces), *_openmp(), "-o", str(draft), "-lm"]
        with ThreadPoolExecutor(cores()) as pool:  # a file each: half a minute on one core
            failed = next(filter(None, pool.map(_call, calls)), "") or _call(last)
        if not failed:
            draft.replace(target)
        return failed


def _call(command: list[str]) -> str:
    """Run the compiler; why it failed, or an empty line."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{command[0]} failed: {error}"
    if done.returncode:
        lines = done.stderr.splitlines()
        return f"{command[0]} failed: {next((x for x in lines if 'error' in x), f'exit code {done.returncode}')}"
    return ""


@functools.cache
def built() -> Built:
    """Build or find the library; asked once a process. ``CUTAWAY_KERNELS=off`` is PyTorch alone, for comparison."""
    if os.environ.get("CUTAWAY_KERNELS", "") == "off":
        return Built(None, "switched off by CUTAWAY_KERNELS=off")
    sources = sorted(SOURCES.glob("*.[ch]"))
    if not sources:
        return Built(None, "the sources of the kernels are not installed")
    key = "|".join((*(p.read_text() for p in sources), *FLAGS, *_openmp(), _processor(), platform.platform()))
    try:
        target = _folder() / f"kernels-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
        if not target.exists() and (reason := compiled(target)):
            return Built(None, reason)
        return Built(ctypes.CDLL(str(target)), "compiled for this processor")
    except OSError as error:
        return Built(None, f"the compiled kernels cannot be used: {error}")


def status() -> str:
    """One line: whether the fused kernels run here, or why not."""
    found = built()
    return f"fused CPU kernels: {'on' if found.library else 'off'} ({found.reason})"


def library_for(*tensors: torch.Tensor | None) -> ctypes.CDLL | None:
    """The kernels, where every tensor is a contiguous float32 or bfloat16 one on the CPU."""
    for t in tensors:
        if t is not None and (t.device.type != "cpu" or t.dtype not in (torch.float32, torch.bfloat16)):
            return None
    return built().library


def pointer(tensor: torch.Tensor | None) -> ctypes.c_void_p:
    """Address of a tensor's first element, NULL for None."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())
