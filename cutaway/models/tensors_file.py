"""Files of tensors in the safetensors format that need no copying when they are read.

The library writes tensors by name, begins them anywhere and holds them twice. Here they lie in the order given, so
that queries, keys and values of a layer are one piece as the model has them; the first begins at a whole cache line, as
torch's own memory does (last bits of a library's products can depend on that), and with it all behind it, as long as
their sizes are whole lines; and they are written one after the other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from cutaway.records import atomic_write

LINE = 64  # bytes, a cache line and what torch aligns its memory to
_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}
_LENGTH = 8  # bytes that say how long the header is, little-endian


def write_tensors(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> str:
    """Write all tensors in ``dtype``, or nothing; returns the file's sha256. Raises RunError where it cannot be
    written."""
    header, end = dict[str, object](__metadata__={"format": "pt"}), 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    said = json.dumps(header, separators=(",", ":")).encode()
    said += b" " * (-(_LENGTH + len(said)) % LINE)  # the format's own padding
    hashed = hashlib.sha256()

    def pieces() -> Iterator[memoryview | bytes]:
        yield len(said).to_bytes(_LENGTH, "little") + said
        for tensor in tensors.values():
            yield tensor.detach().to("cpu", dtype).contiguous().reshape(-1).view(torch.uint8).numpy().data

    def seen() -> Iterator[memoryview | bytes]:
        for piece in pieces():
            hashed.update(piece)
            yield piece

    atomic_write(path, seen())
    return hashed.hexdigest()


def places(path: Path) -> dict[str, int]:
    """The byte of the file at which each tensor of float32 begins that begins at a whole cache line. Only for a file
    that the library has opened: that is, whose header it has checked."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH), "little")
        header = json.loads(file.read(length))
    begins = {name: _LENGTH + length + said["data_offsets"][0] for name, said in header.items()
              if name != "__metadata__" and said["dtype"] == "F32"}
    return {name: begin for name, begin in begins.items() if begin % LINE == 0}


class Mapped:
    """A file as memory: read when it is touched, and a private copy of a page when that is written to."""

    def __init__(self, path: Path) -> None:
        self._bytes = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)

    def floats(self, begin: int, shape: Sequence[int]) -> Tensor:
        """The numbers from byte ``begin`` on, float32, as a tensor that is the file."""
        size = torch.Size(shape).numel() * torch.float32.itemsize
        return self._bytes[begin : begin + size].view(torch.float32).view(*shape)
