"""A GGUF file: metadata and tensors, every count, offset and size checked against the file before it is used.

The header is read here, because the library trusts what it reads; the library turns quantised blocks into numbers.
Format: github.com/ggml-org/ggml, docs/gguf.md.
"""

from __future__ import annotations

import functools
import math
import mmap
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cutaway.errors import FILE_AGAIN, ModelError
from cutaway.models.gguf_numbers import BLOCK, FOUR_BITS, numbers
from cutaway.models.stored import Stored, Tensors
from cutaway.nn.linear import Blocks

KINDS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")
_NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_F32 = 0  # ggml's number of the kind
_DEEPEST = 4  # arrays of arrays


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a tensor lies: its kind's number, its shape as torch has it, and its bytes."""

    kind: int
    shape: tuple[int, ...]
    start: int
    size: int


@dataclass(frozen=True)
class GGUF:
    """What a file holds. ``tensors`` gives each one as float32 when it is called for."""

    path: Path
    metadata: dict[str, Any]
    placed: dict[str, Placed]

    def tensors(self) -> Tensors:
        """Every tensor by its name; nothing is read before it is called for."""
        with self.path.open("rb") as file:
            data = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), np.uint8)
        return {name: Stored(place.shape, True, _later(data, place), small=place.kind != _F32,
                             blocks=_blocks_later(data, place))
                for name, place in self.placed.items()}

    def number(self, key: str, plain: float | None = None, *, least: float = 0.0) -> float:
        """A finite number above ``least``. As of the others: ``plain`` where nothing is said; raises ModelError for a
        value of another kind, or where there is none and must be."""
        value = self.metadata.get(key, plain)
        if isinstance(value, bool) or not isinstance(value, int | float) or not least < value < math.inf:
            raise self._odd(key)
        return float(value)

    def whole(self, key: str, plain: int | None = None, *, least: int = 0, below: int = 1 << 31) -> int:
        """A whole number from ``least`` on."""
        value = self.metadata.get(key, plain)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value < below:
            raise self._odd(key)
        return value

    def flag(self, key: str, plain: bool) -> bool:
        """Yes or no."""
        value = self.metadata.get(key, plain)
        if not isinstance(value, bool):
            raise self._odd(key)
        return value

    def text(self, key: str, plain: str) -> str:
        """A string."""
        value = self.metadata.get(key, plain)
        if not isinstance(value, str):
            raise self._odd(key)
        return value

    def numbers(self, key: str, least: int, kind: type[int] | type[float] = int) -> list[Any]:
        """At least so many numbers, whole ones where ``kind`` says so."""
        value = self.metadata.get(key)
        if not isinstance(value, list) or len(value) < least or not {type(v) for v in value} <= {int, kind}:
            raise self._odd(key)
        return value

    def _odd(self, key: str) -> ModelError:
        value = self.metadata.get(key)
        said = f"{len(value):,} values" if isinstance(value, list) else repr(value)
        return ModelError(f"says {said[:80]} for {key}", where=self.path, way_out=FILE_AGAIN)


def _later(data: np.ndarray[Any, np.dtype[np.uint8]], place: Placed) -> Callable[[], Tensor]:
    return lambda: numbers(data[place.start : place.start + place.size], place.kind).view(place.shape)


def _blocks_later(data: np.ndarray[Any, np.dtype[np.uint8]], place: Placed) -> Blocks | None:
    if place.kind not in FOUR_BITS or len(place.shape) != 2:
        return None
    (rows, inputs), size = place.shape, FOUR_BITS[place.kind]
    raw = data[place.start : place.start + place.size]
    return Blocks(lambda: torch.from_numpy(raw).view(rows, inputs // BLOCK, size), size)


def read_gguf(path: str | Path) -> GGUF:
    """The header of a file. Raises ModelError for one that is no GGUF, is cut off, or says what cannot be."""
    path = Path(path)
    try:
        state = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from None
    with _ONE:  # who comes while it is being read waits for it
        return _read(path, state.st_size, state.st_mtime_ns)


_ONE = threading.Lock()


@functools.lru_cache(maxsize=1)
def _read(path: Path, size: int, changed: int) -> GGUF:
    """Once for as long as the file stays the same: the model and its tokenizer ask for it, maybe at once, and a
    vocabulary of fifty thousand words takes half a second."""
    if size == 0:
        raise ModelError("is empty", where=path, way_out=FILE_AGAIN)
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    with data:
        return _Header(data, path).read()


def _unreadable(path: Path, error: OSError | ValueError) -> ModelError:
    why = getattr(error, "strerror", None) or error
    return ModelError(f"cannot be read ({why})", where=path, way_out="name a .gguf file")


class _Header:
    """A cursor over the header's bytes that never leaves them."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data, self.path, self.at = data, path, 0

    def read(self) -> GGUF:
        if self.data[:4] != b"GGUF":
            raise self._wrong("is no GGUF file")
        self.at = 4
        version = self._number(4)
        if version not in (2, 3):
            raise self._wrong(f"is of version {version}, and 2 and 3 are known")
        tensors, pairs = self._number(10), self._number(10)
        metadata: dict[str, Any] = {}
        for _ in range(self._count(pairs, 13)):
            key = self._string()
            if key in metadata:
                raise self._wrong(f"says {key!r} twice")
            metadata[key] = self._value(self._number(4), 0)
        return GGUF(self.path, metadata, self._tensors(self._count(tensors, 24), metadata))

    def _tensors(self, count: int, metadata: dict[str, Any]) -> dict[str, Placed]:
        found: dict[str, tuple[int, tuple[int, ...], int]] = {}
        for _ in range(count):
            name, dimensions = self._string(), self._number(4)
            if name in found or not 1 <= dimensions <= 4:
                raise self._wrong(f"says {name!r} twice" if name in found else f"{name!r} has {dimensions} dimensions")
            shape = tuple(self._number(10) for _ in range(dimensions))
            found[name] = (self._number(4), shape[::-1], self._number(10))
        every = metadata.get("general.alignment", 32)
        if not isinstance(every, int) or every < 8 or every > 1 << 20 or every & (every - 1):
            raise self._wrong(f"is aligned to {every!r}")
        begin = -(-self.at // every) * every
        return {name: self._placed(name, *what, begin) for name, what in found.items()}

    def _placed(self, name: str, kind: int, shape: tuple[int, ...], offset: int, begin: int) -> Placed:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        known = {int(k): k for k in GGMLQuantizationType if k.name in KINDS}
        if kind not in known:
            names = {int(k): k.name for k in GGMLQuantizationType}
            raise ModelError(f"{name!r} is of the kind {names.get(kind, kind)}", where=self.path,
                             way_out=f"supported are {', '.join(KINDS)}")
        block, each = GGML_QUANT_SIZES[known[kind]]
        numbers = 1
        for length in shape:
            numbers *= length
        size = numbers // block * each
        if min(shape) < 1 or shape[-1] % block or begin + offset + size > len(self.data):
            raise self._wrong(f"{name!r} of {list(shape)} {known[kind].name} does not lie in its "
                              f"{len(self.data):,} bytes")
        return Placed(kind, shape, begin + offset, size)

    def _value(self, kind: int, depth: int) -> Any:
        if kind in _NUMBERS:
            return self._number(kind)
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY or depth >= _DEEPEST:
            raise self._wrong(f"holds a value of the kind {kind}")
        inside, count = self._number(4), self._number(10)
        if inside in _NUMBERS:
            width = struct.calcsize(_NUMBERS[inside])
            raw = self._bytes(self._count(count, width) * width)
            return np.frombuffer(raw, np.dtype(_NUMBERS[inside])).tolist()
        if inside == _STRING:
            return self._strings(self._count(count, 8))
        return [self._value(inside, depth + 1) for _ in range(self._count(count, 8))]

    def _strings(self, count: int) -> list[str]:
        """A vocabulary's, which has tens of thousands: as ``_string``, without its calls."""
        data, at, end, length, found = self.data, self.at, len(self.data), struct.Struct("<Q").unpack_from, []
        for _ in range(count):
            begin = at + 8
            at = begin + length(data, at)[0] if begin <= end else end + 1
            if at > end:
                raise self._wrong("ends in the middle of its header")
            found.append(data[begin:at])
        self.at = at
        try:
            return [raw.decode() for raw in found]
        except UnicodeDecodeError as error:
            raise self._wrong(f"holds a string that is not UTF-8: {error.object[:40]!r}") from None

    def _number(self, kind: int) -> Any:
        how = _NUMBERS[kind]
        found = struct.unpack(how, self._bytes(struct.calcsize(how)))[0]
        # the shortest decimal of that float32: somebody meant 1e-5 and not 9.999999747378752e-06
        return float(str(np.float32(found))) if how == "<f" else found

    def _string(self) -> str:
        raw = self._bytes(self._count(self._number(10), 1))
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise self._wrong(f"holds a string that is not UTF-8 at byte {self.at - len(raw):,}") from None

    def _bytes(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            raise self._wrong("ends in the middle of its header")
        self.at += count
        return self.data[self.at - count : self.at]

    def _count(self, count: int, least: int) -> int:
        """A number of things of at least so many bytes each, which must be there."""
        if count * least > len(self.data) - self.at:
            raise self._wrong(f"says it holds {count:,} things where {len(self.data) - self.at:,} bytes are left")
        return count

    def _wrong(self, what: str) -> ModelError:
        return ModelError(what, where=self.path, way_out=FILE_AGAIN)
