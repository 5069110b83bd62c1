"""Records: atomic files, JSON lines, and a number with its truth (Wilson 1927, Efron 1979).

Every figure the project reports is a Measurement: value, unit, n, interval, conditions.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from cutaway.errors import DataError, RunError


class Bar(Protocol):
    """Progress of one piece of work."""

    def advance(self, amount: float, text: str = "") -> None:
        """``amount`` more is done; ``text`` is shown beside the bar."""


class Screen(Protocol):
    """Where people see what happens; the work also goes on without anybody looking."""

    def note(self, text: str) -> None: ...
    def progress(self, name: str, *, total: float, unit: str) -> AbstractContextManager[Bar]: ...


def atomic_write(path: str | Path, data: bytes | str | Iterable[bytes | memoryview]) -> None:
    """Write the whole file, given at once or in pieces, or nothing: a temporary name beside it, flushed to the disk,
    then renamed.

    Raises RunError naming the file when the folder cannot be written or the disk is full; the old file stays.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            data = data.encode() if isinstance(data, str) else data
            file.writelines((data,) if isinstance(data, bytes | bytearray | memoryview) else data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise RunError(f"cannot be written ({error.strerror or error})", where=path,
                       way_out="free space or make the folder writable, then resume") from None
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def take_lock(path: Path) -> int:
    """A handle that holds the file's lock for this process until it is closed. Raises BlockingIOError, in the words of
    who has it, where another process does."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
    except BlockingIOError:
        owner = os.pread(handle, 32, 0).decode(errors="replace").strip() or "another"
        os.close(handle)
        raise BlockingIOError(f"process {owner}") from None
    except OSError:
        os.close(handle)
        raise
    return handle


@cache
def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


class TornLine(UserWarning):
    """The last line of a journal was cut off by a crash and was left out."""


@dataclass(frozen=True, slots=True)
class Journal:
    """A file of JSON lines that only grows: one ``write`` to an O_APPEND file per row, so rows never interleave."""

    path: Path

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one row; a torn last line left by a crash is closed first, so that it cannot swallow this row."""
        line = json.dumps(row, ensure_ascii=False, default=_plain).encode() + b"\n"
        try:
            handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                size = os.lseek(handle, 0, os.SEEK_END)
                if size and os.pread(handle, 1, size - 1) != b"\n":
                    line = b"\n" + line
                written = os.write(handle, line)
            finally:
                os.close(handle)
        except OSError as error:
            raise RunError(f"cannot be written ({error.strerror or error})", where=self.path) from None
        if written != len(line):
            raise RunError(f"only {written} of {len(line)} bytes could be written", where=self.path,
                           way_out="free space on the disk, then resume")

    def rows(self) -> list[dict[str, Any]]:
        """Every row (see ``read_journal``)."""
        return read_journal(self.path)


def _plain(value: object) -> object:
    """JSON for numpy and torch scalars and for paths; anything else is a mistake of ours."""
    if hasattr(value, "item"):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def read_journal(path: str | Path) -> list[dict[str, Any]]:
    """Every row of a journal. A last line torn by a crash is left out with a TornLine warning; a damaged line elsewhere
    that ends a torn write is reported the same way. A line that is JSON but no object raises DataError."""
    path = Path(path)
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror or error})", where=path) from None
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            warnings.warn(f"{path}: line {number} was cut off in writing and is left out", TornLine, stacklevel=2)
            continue
        if not isinstance(row, dict):
            raise DataError(f"line {number} is not an object", where=path)
        rows.append(row)
    return rows


@dataclass(frozen=True, slots=True)
class Measurement:
    """A number with its truth: ``value`` in ``unit``, over ``n`` observations, inside ``low``..``high`` (95 %)."""

    name: str
    value: float
    unit: str
    n: int | None = None
    low: float | None = None
    high: float | None = None
    conditions: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, conditions included."""
        return asdict(self)

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Measurement:
        """The inverse of ``to_dict``."""
        return cls(row["name"], row["value"], row["unit"], row["n"], row["low"], row["high"], row["conditions"])

    def __str__(self) -> str:
        share = self.unit == "share"
        number = _percent if share else _short
        text = number(self.value) + ("" if share or not self.unit else f" {self.unit}")
        if self.low is not None and self.high is not None:
            text += f" [{number(self.low)}, {number(self.high)}]"
        return f"{self.name} {text}" + ("" if self.n is None else f" (n = {self.n:,})")


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def wilson(successes: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a share (1927), right at 0 and at n too; without observations it is (0, 1)."""
    if n < 0 or not 0 <= successes <= max(n, 0):
        raise DataError(f"{successes} successes of {n} is no share")
    if n == 0:
        return 0.0, 1.0
    p, z2 = successes / n, z * z
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    low = 0.0 if successes == 0 else max(0.0, middle - half)
    high = 1.0 if successes == n else min(1.0, middle + half)
    return low, high


def bootstrap(
    values: Sequence[float], weights: Sequence[float] | None = None, seed: int = 0, *, resamples: int = 1000
) -> tuple[float, float]:
    """95 % percentile interval (Efron 1979) of ``sum(values) / sum(weights)``, observations resampled together.

    Without weights this is the interval of the mean. One observation gives no interval: both ends are its value.
    """
    top = np.asarray(values, np.float64)
    bottom = np.ones_like(top) if weights is None else np.asarray(weights, np.float64)
    if top.ndim != 1 or top.shape != bottom.shape or not len(top):
        raise DataError(f"{top.shape} values and {bottom.shape} weights cannot be resampled")
    draw = np.random.default_rng(seed)
    ratios = np.empty(resamples)
    for i in range(resamples):
        picked = draw.integers(0, len(top), len(top))
        ratios[i] = top[picked].sum() / max(bottom[picked].sum(), np.finfo(np.float64).tiny)
    low, high = np.quantile(ratios, (0.025, 0.975))
    return float(low), float(high)


def bootstrap_quantile(groups: Sequence[Sequence[float]], share: float, seed: int = 0, *,
                       resamples: int = 1000) -> tuple[float, float]:
    """95 % percentile interval of the quantile ``share`` of all values together, groups resampled whole: values of one
    group (the gaps between one answer's tokens) are no independent observations."""
    if not groups or not all(len(group) for group in groups) or not 0 <= share <= 1:
        raise DataError(f"a quantile of {share} of {len(groups)} groups cannot be resampled")
    values, draw = [np.asarray(group, np.float64) for group in groups], np.random.default_rng(seed)
    found = np.empty(resamples)
    for i in range(resamples):
        picked = draw.integers(0, len(values), len(values))
        found[i] = np.quantile(np.concatenate([values[k] for k in picked]), share)
    low, high = np.quantile(found, (0.025, 0.975))
    return float(low), float(high)


@dataclass(slots=True)
class Stopwatch:
    """Wall-clock seconds: ``with Stopwatch() as watch: …`` then ``watch.seconds``; readable while it runs."""

    started: float = field(default_factory=time.perf_counter)
    stopped: float | None = None

    def __enter__(self) -> Self:
        self.started, self.stopped = time.perf_counter(), None
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds since the start, up to the end if it has ended."""
        return (time.perf_counter() if self.stopped is None else self.stopped) - self.started


_PACKAGES = ("cutaway", "torch", "numpy", "tokenizers", "gigatoken", "safetensors", "pydantic", "pyarrow",
             "scikit-learn", "scipy", "sacrebleu", "rouge-score")


def environment() -> dict[str, Any]:
    """What a result was made with: versions, system, processor, and the package's commit where it is a checkout."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {"versions": versions, "system": platform.platform(), "machine": platform.machine(),
            "byteorder": sys.byteorder, "commit": _commit()}


@cache
def _commit() -> str | None:
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def digest(data: bytes | Path) -> str:
    """sha256 in hexadecimal of bytes, or of a file read in pieces."""
    if isinstance(data, bytes):
        return hashlib.sha256(data).hexdigest()
    try:
        with data.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror or error})", where=data) from None
