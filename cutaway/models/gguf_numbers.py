"""The numbers in the blocks of a GGUF tensor. The library knows every kind; the three that most small models are stored
in are also here, with its bits, on all cores."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BLOCK = 32
_Q4_0, _Q4_1, _Q8_0 = 2, 3, 8  # ggml's numbers of the kinds
FOUR_BITS = {_Q4_0: 18, _Q4_1: 20}  # bytes of a block of each


def numbers(raw: NDArray[Any], kind: int) -> Tensor:
    """Float32, one behind another, of the bytes ``raw`` of whole blocks, which may be changed."""
    if kind in (_Q4_0, _Q4_1):
        return _of_four_bits(torch.from_numpy(raw), lowest=kind == _Q4_1)
    if kind == _Q8_0:
        blocks = torch.from_numpy(raw).view(-1, 2 + BLOCK)
        return (blocks[:, 2:].view(torch.int8).float() * _half(blocks[:, :2])).flatten()
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    found = np.require(dequantize(raw, GGMLQuantizationType(kind)), np.float32, ["C", "W"])
    return torch.from_numpy(found).flatten()


def _of_four_bits(raw: Tensor, *, lowest: bool) -> Tensor:
    """``d q + m``, or ``d (q - 8)``: sixteen numbers in the low halves of the bytes, sixteen in the high ones."""
    at = 4 if lowest else 2
    blocks = raw.view(-1, at + BLOCK // 2)
    packed = blocks[:, at:]
    out = torch.empty(len(blocks), BLOCK)
    out[:, : BLOCK // 2] = packed & 15
    out[:, BLOCK // 2 :] = packed >> 4
    if not lowest:
        out -= 8
    out *= _half(blocks[:, :2])
    if lowest:
        out += _half(blocks[:, 2:4])  # in two roundings, as everybody does it
    return out.flatten()


def _half(pairs: Tensor) -> Tensor:
    return pairs.contiguous().view(torch.float16).float()
