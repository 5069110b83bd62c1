"""Initial weights (GPT-2's scheme: normal, residual branches shrunk by depth), the same on every device for a seed."""

from __future__ import annotations

import math

import torch
from torch import nn


def embedding(entries: int, width: int) -> nn.Embedding:
    """One that says nothing yet: torch's own would be drawn, which a weight that is about to be read from a file does
    not need, and for a sketch without memory takes a second of imports."""
    return nn.Embedding(entries, width, _weight=torch.empty(entries, width))


def initialise(module: nn.Module, *, seed: int, num_layers: int, width: int) -> None:
    """Fill every parameter in place, drawn on the CPU in the order of names.

    Matrices have deviation 1/sqrt(inputs), those that write to the residual stream 1/sqrt(2 L inputs) so that its
    variance does not grow with depth; embeddings 1/sqrt(width), so that a tied head starts near the uniform line.
    Biases are 0. A module that wants it otherwise has ``adjust_initial``, which is called behind that.
    """
    draw = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(dict(module.named_parameters()).items()):
        if parameter.ndim < 2:
            nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 1.0)
            continue
        deviation = 1 / math.sqrt(parameter.shape[1])
        if "embedding" in name:
            deviation = 0.5 / math.sqrt(width)
        if name.endswith(("out.weight", "down.weight")):
            deviation /= math.sqrt(2 * num_layers)
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * deviation)
    for part in module.modules():
        adjust = getattr(part, "adjust_initial", None)
        if adjust is not None:
            adjust()
