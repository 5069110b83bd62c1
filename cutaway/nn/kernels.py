"""The compiled kernels: ``csrc/``, built once a machine with its own C compiler and called through ctypes.

Without a compiler everything works on plain PyTorch, only slower; ``status()`` says which, for reports and ``doctor``.
The library links against the OpenMP that PyTorch already runs, so both share one pool of threads.

Whoever needs it waits for it (``built``). Who can do without for a while begins to compile (``begin``), works
``without()`` it, and is told.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from cutaway.device import cores
from cutaway.errors import MachineError

log = logging.getLogger(__name__)
SOURCES = Path(__file__).with_name("csrc")
FLAGS = ("-O3", "-fPIC", "-fopenmp", "-fno-math-errno", "-fno-trapping-math",
         "-fno-strict-aliasing")  # rows of bfloat16 are also read as pairs
NATIVE = ("-march=native",)
LONGEST = 120  # seconds of a compiler's call
SELFTEST = ("-m", "cutaway.models.selftest")  # a process of its own: what crashes there is not used here


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


class _Ended(Exception):
    """``stop`` was called while a compiler ran."""


class _Here(threading.local):
    """What holds on one thread alone: what is there instead of what was built, if anything is."""

    instead: tuple[ctypes.CDLL | None, ...] = ()


_here = _Here()
_lock = threading.Lock()  # of what stands below
_begun: dict[Path, Future[Built]] = {}  # what was or is searched for, by where the library lies
_running: set[subprocess.Popen[str]] = set()
_stopping = threading.Event()


def _compiler() -> str | None:
    return os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def compiled(target: Path, processor: tuple[str, ...] = NATIVE) -> str:
    """Build the library at ``target`` for a processor's flags; why it failed, or an empty line."""
    compiler = _compiler()
    if compiler is None:
        return "no C compiler was found"
    log.warning("compiling kernels for this processor, once: about a quarter of a minute")
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


def _made(target: Path) -> str:
    """Build the library and test it; what keeps it from being used, or an empty line."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        fresh = Path(folder) / target.name
        if reason := compiled(fresh):
            return reason
        path = os.pathsep.join(filter(None, sys.path))  # the same package, wherever it was found
        if reason := _call([sys.executable, *SELFTEST, str(fresh)], {**os.environ, "PYTHONPATH": path}):
            log.warning("the compiled kernels are not used, for they are not what PyTorch computes: %s", reason)
            return f"they were compiled and are not what PyTorch computes: {reason}"
        fresh.replace(target)
        return ""


def _call(command: list[str], environment: dict[str, str] | None = None) -> str:
    """Run the compiler; why it failed, or an empty line. Raises _Ended where it is told to stop."""
    try:
        with _lock:
            if _stopping.is_set():
                raise _Ended
            # in a group of its own: what it starts ends with it
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                                       process_group=0, env=environment)
            _running.add(process)
        said = _said(process)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{command[0]} failed: {error}"
    if not process.returncode:
        return ""
    if _stopping.is_set():
        raise _Ended
    lines = [line for line in said.splitlines() if line]
    why = next((line for line in lines if "error" in line), lines[-1] if lines else "nothing was said")
    return f"{Path(command[0]).name} failed with exit code {process.returncode}: {why}"


def _said(process: subprocess.Popen[str]) -> str:
    try:
        return process.communicate(timeout=LONGEST)[1]
    except subprocess.TimeoutExpired:
        _tell(process, signal.SIGKILL)
        process.communicate()
        raise
    finally:
        with _lock:
            _running.discard(process)


def _tell(process: subprocess.Popen[str], what: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        if process.returncode is None:
            os.killpg(process.pid, what)


def _wanted() -> Path | Built:
    """Where the library lies or will lie; or why there will be none."""
    if os.environ.get("CUTAWAY_KERNELS", "") == "off":
        return Built(None, "switched off by CUTAWAY_KERNELS=off")
    sources = sorted(SOURCES.glob("*.[ch]"))
    if not sources:
        return Built(None, "the sources of the kernels are not installed")
    machine = (_processor(), platform.platform())
    key = "|".join((*(p.read_text() for p in sources), *FLAGS, *_openmp(), *machine, *SELFTEST))
    try:
        return _folder() / f"kernels-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    except OSError as error:
        return Built(None, f"the compiled kernels cannot be used: {error}")


def _found(target: Path) -> Built:
    try:
        if not target.exists() and (reason := _made(target)):
            return Built(None, reason)
        return Built(ctypes.CDLL(str(target)), "compiled for this processor, tested against PyTorch")
    except OSError as error:
        return Built(None, f"the compiled kernels cannot be used: {error}")


def _search(target: Path, told: Future[Built]) -> None:
    try:
        told.set_result(_found(target))
    except BaseException as error:
        with _lock:
            del _begun[target]  # it may be begun again
        told.set_exception(MachineError("kernels were not compiled to the end", way_out="ask again")
                           if isinstance(error, _Ended) else error)


def ready() -> bool:
    """Whether ``built`` would answer without compiling."""
    wanted = _wanted()
    if isinstance(wanted, Built) or wanted.exists() or _compiler() is None:
        return True
    told = _begun.get(wanted)
    return told is not None and told.done()


def begin() -> Future[Built]:
    """Find or build the library in a thread of its own: what ``built`` will say. There is one compilation a process,
    whoever asks for it; it cannot be cancelled, only stopped."""
    wanted = _wanted()
    told: Future[Built] = Future()
    told.set_running_or_notify_cancel()
    if isinstance(wanted, Built):
        told.set_result(wanted)
        return told
    with _lock:
        if wanted not in _begun:
            _begun[wanted] = told
            threading.Thread(target=_search, args=(wanted, told), name="kernels", daemon=True).start()
        return _begun[wanted]


def stop() -> None:
    """End a compilation that is under way, since nobody is left to use it: who waits for it gets a MachineError."""
    with _lock:
        under_way = [told for told in _begun.values() if not told.done()]
        if not under_way:
            return
        _stopping.set()
    for what in (signal.SIGTERM, signal.SIGKILL):  # a compiler takes its files away at the first
        with _lock:
            for process in _running:
                _tell(process, what)
        if not wait(under_way, timeout=1).not_done:
            _stopping.clear()
            return
    log.warning("a compiler does not end; kernels are not compiled again in this process")


@functools.cache
def built() -> Built:
    """Build or find the library, and wait for it; asked once a process. ``CUTAWAY_KERNELS=off`` is PyTorch alone, for
    comparison. Raises MachineError where another thread calls ``stop`` meanwhile."""
    try:
        return begin().result()
    except KeyboardInterrupt:  # which the compiler, in a group of its own, did not get
        stop()
        raise


@contextmanager
def without(on: bool = True) -> Iterator[None]:
    """Inside, on this thread, there are no kernels, unless it is not ``on``: a model that was opened so has to be read
    so, from the first token of a request to the last, for the two paths round differently."""
    before, _here.instead = _here.instead, (None,) if on else _here.instead
    try:
        yield
    finally:
        _here.instead = before


@contextmanager
def instead(library: ctypes.CDLL) -> Iterator[None]:
    """Inside, on this thread, these are the kernels: they are about to be tested."""
    before, _here.instead = _here.instead, (library,)
    try:
        yield
    finally:
        _here.instead = before


def status() -> str:
    """One line: whether the fused kernels run here, or why not."""
    found = built()
    return f"fused CPU kernels: {'on' if found.library else 'off'} ({found.reason})"


def library_for(*tensors: torch.Tensor | None) -> ctypes.CDLL | None:
    """The kernels, where every tensor is a contiguous float32 or bfloat16 one on the CPU."""
    for t in tensors:
        if t is not None and (t.device.type != "cpu" or t.dtype not in (torch.float32, torch.bfloat16)):
            return None
    return _here.instead[0] if _here.instead else built().library


def pointer(tensor: torch.Tensor | None) -> ctypes.c_void_p:
    """Address of a tensor's first element, NULL for None."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())
