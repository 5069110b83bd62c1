"""Activations cheaper to make again than to keep (selective recomputation, Korthikanti 2022, arXiv 2205.05198)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


def made_again(value: Tensor, make: Callable[[], Tensor]) -> AbstractContextManager[Any]:
    """Inside, ``value`` is not kept for the backward pass: ``make`` gives the same numbers when they are needed."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():  # a compiler decides this by itself
        return nullcontext()
    address, size = value.data_ptr(), value.numel()

    def pack(kept: Tensor) -> Any:
        same = kept.data_ptr() == address and kept.numel() == size and kept.is_contiguous()
        return (make, kept.shape) if same else kept

    def unpack(kept: Any) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        again, shape = kept
        out: Tensor = again().view(shape)
        return out

    return saved_tensors_hooks(pack, unpack)
