"""Optimizers: AdamW (arXiv 1711.05101) for every parameter, or Muon (Jordan et al. 2024) for the matrices in blocks.

``torch.optim`` does the arithmetic; here is who gets which rate, and the state as named tensors without pickle.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from cutaway.errors import CheckpointError
from cutaway.models.heads import TokenHead
from cutaway.settings import Settings


class OptimizerSettings(Settings):
    """Rates are per kind of parameter: ``learning_rate`` for AdamW's, ``matrix_learning_rate`` for Muon's."""

    kind: Literal["adamw", "muon"] = "muon"
    learning_rate: float = Field(default=3e-3, gt=0)
    matrix_learning_rate: float = Field(default=2e-2, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(default=1e-10, gt=0)
    momentum: float = Field(default=0.95, ge=0, lt=1)

    @field_validator("betas")
    @classmethod
    def _below_one(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in value):
            raise ValueError(f"each must be at least 0 and below 1, got {list(value)}")
        return value


class Optimizer:
    """One or two torch optimizers stepped together; ``step`` scales every rate by the schedule's factor."""

    def __init__(self, model: nn.Module, parts: list[torch.optim.Optimizer]) -> None:
        self.parts = parts
        self.rates = [[float(g["lr"]) for g in part.param_groups] for part in parts]
        names = {id(p): n for n, p in model.named_parameters()}
        self.names = {names[id(p)]: (part, p) for part in parts for g in part.param_groups for p in g["params"]}

    def step(self, factor: float, *, shrink: float = 1.0) -> None:
        """One update with every learning rate multiplied by ``factor`` and every gradient by ``shrink``."""
        for part, rates in zip(self.parts, self.rates, strict=True):
            for group, rate in zip(part.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            _scale(part, shrink)
            part.step()

    @property
    def learning_rate(self) -> float:
        """The first group's rate at the last step."""
        return float(self.parts[0].param_groups[0]["lr"])

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def parameters(self) -> list[Tensor]:
        """Every parameter that is learned."""
        return [p for _, p in self.names.values()]

    def tensors(self) -> dict[str, Tensor]:
        """The state as ``"parameter|slot" -> tensor``; empty before the first step."""
        return {f"{name}|{slot}": value if isinstance(value, Tensor) else torch.tensor(float(value))
                for name, (part, p) in self.names.items() for slot, value in part.state.get(p, {}).items()}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restore what ``tensors`` gave; a name that is not learned here is refused."""
        for key, value in tensors.items():
            name, _, slot = key.partition("|")
            if name not in self.names:
                raise CheckpointError(f"optimizer state for {name!r}, which this model does not have",
                                      way_out="resume with the recipe the checkpoint was made by")
            part, p = self.names[name]
            # AdamW keeps its step counter on the CPU; the moments lie beside the parameter
            part.state[p][slot] = value.clone() if slot == "step" else value.to(p.device).clone()


def _scale(part: torch.optim.Optimizer, shrink: float) -> None:
    """Multiply the gradients; a fused optimizer does it in the pass that reads them, as for torch's GradScaler."""
    if part.defaults.get("fused"):
        part.grad_scale = None if shrink == 1 else torch.tensor(1 / shrink)  # type: ignore[attr-defined]
        return
    if shrink == 1:
        return
    gradients = [p.grad for group in part.param_groups for p in group["params"] if p.grad is not None]
    torch._foreach_mul_(gradients, shrink)


def build_optimizer(model: nn.Module, settings: OptimizerSettings) -> Optimizer:
    """Weight decay falls on matrices only; Muon takes the matrices inside blocks, AdamW the rest.

    A head's weight that is scaled down (T5's tied one) moves as much faster, and so its logits as those of others do:
    T5 has this from Adafactor, whose steps are relative to a weight's size (Shazeer 2018, arXiv 1804.04235). At the
    rate of all others it learned next to nothing: 7.1 nats a token where an untied head had 4.8.
    """
    learned = {n: p for n, p in model.named_parameters() if p.requires_grad}
    inside = [p for n, p in learned.items() if p.ndim == 2 and ".blocks." in n]
    other = [p for n, p in learned.items() if p.ndim == 2 and ".blocks." not in n]
    vectors = [p for p in learned.values() if p.ndim != 2]
    scale, scaled = _scaled_head(model)
    decayed = [p for p in (other if settings.kind == "muon" else inside + other) if p is not scaled]
    fused = all(p.device.type in ("cpu", "cuda") for p in learned.values())
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    if any(p is scaled for p in other):  # decay is rate times weight_decay: no larger than that of others
        groups.append({"params": [scaled], "lr": settings.learning_rate / scale,
                       "weight_decay": settings.weight_decay * scale})
    parts: list[torch.optim.Optimizer] = [
        torch.optim.AdamW([g for g in groups if g["params"]], lr=settings.learning_rate, betas=settings.betas,
                          eps=settings.eps, fused=fused)]
    if settings.kind == "muon" and inside:
        parts.append(torch.optim.Muon(inside, lr=settings.matrix_learning_rate, weight_decay=settings.weight_decay,
                                      momentum=settings.momentum))
    return Optimizer(model, parts)


def _scaled_head(model: nn.Module) -> tuple[float, Tensor | None]:
    """What a head of tokens multiplies its input with, and its weight, where that is not 1."""
    head = getattr(model, "head", None)
    if not isinstance(head, TokenHead) or head.scale == 1.0:
        return 1.0, None
    return head.scale, head.weight
