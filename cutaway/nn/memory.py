"""Activations cheaper to make again than to keep (selective recomputation, Korthikanti 2022, arXiv 2205.05198)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


def made_again(value: Tensor, make: Callable[[], Tensor]) -> AbstractContextManager[Any]:
    """Inside, ``value`` is not kept for the backward pass: ``make`` gives the same numbers when they are needed.

    Of nested contexts, and of other hooks on saved tensors outside, the innermost alone counts (as torch has it).
    Raises RuntimeError in the backward pass if what was kept has been changed in place since.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():  # a compiler decides this by itself
        return nullcontext()
    address, size = value.data_ptr(), value.numel()

    def pack(kept: Tensor) -> Any:
        same = kept.data_ptr() == address and kept.numel() == size and kept.is_contiguous()
        # detached: an operation that keeps its own output would otherwise hold itself alive
        return (make, kept.shape) if same else (kept.detach(), kept._version)

    def unpack(kept: Any) -> Tensor:
        what, how = kept
        if not isinstance(what, Tensor):
            out: Tensor = what().view(how)
            return out
        if what._version != how:
            raise RuntimeError("a tensor needed for the backward pass was changed in place after the forward pass")
        return what

    return saved_tensors_hooks(pack, unpack)
