"""Contrastive learning of vectors: InfoNCE over a batch's own pairs (van den Oord 2018, arXiv 1807.03748; Henderson
2017, arXiv 1705.00652), at several widths at once (Matryoshka: Kusupati 2022, arXiv 2205.13147).

Every other pair of the batch is a negative, so two batches of 16 are not one of 32: a step of several micro-batches or
ranks is refused. ``chunk`` bounds the memory instead, exactly (as GradCache: Gao 2021, arXiv 2101.06983): what a chunk
of rows computes is forgotten and made again when its gradient is due. B pairs, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cutaway.batch import Batch
from cutaway.errors import ModelError, SettingsError, TrainingError
from cutaway.models.heads import VectorHead
from cutaway.models.model import Model
from cutaway.objectives.objective import Loss


@dataclass(frozen=True, slots=True)
class Contrast:
    """Sum over pairs of ``-log softmax(cosine / temperature)`` of a row's own partner among all of ``batch.pair``.

    ``symmetric`` takes the mean of both directions. ``widths`` adds the same loss of the first so many numbers of
    each vector, brought to length 1 again. ``accuracy`` is the share of rows whose nearest partner is their own.
    """

    temperature: float = 0.05
    symmetric: bool = True
    widths: tuple[int, ...] = ()
    chunk: int | None = None
    whole: ClassVar[bool] = True  # a step's rows must come in one batch

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise SettingsError(f"temperature must be above 0, got {self.temperature}")
        if self.chunk is not None and self.chunk < 1:
            raise SettingsError(f"chunk must be at least 1, got {self.chunk}")

    def weight(self, batch: Batch) -> float:
        """The number of pairs."""
        return float(len(batch.tokens))

    def __call__(self, model: Model, batch: Batch) -> Loss:
        first, second = self._vectors(model, batch), self._vectors(model, _partner(batch))
        if self.widths and not 0 < min(self.widths) <= max(self.widths) < first.shape[1]:
            raise SettingsError(f"widths {list(self.widths)} must lie between 0 and the vectors' {first.shape[1]}")
        scores = first @ second.T / self.temperature
        total = self._loss(scores)
        for width in self.widths:
            near = F.normalize(first[:, :width], dim=1) @ F.normalize(second[:, :width], dim=1).T
            total = total + self._loss(near / self.temperature)
        right = scores.argmax(1) == torch.arange(len(scores), device=scores.device)
        return Loss(total, self.weight(batch), {"accuracy": (right.sum(dtype=torch.float32), float(len(scores)))})

    def _vectors(self, model: Model, batch: Batch) -> Tensor:
        if not isinstance(model.head, VectorHead):
            raise ModelError("the model has no head of vectors", way_out="give it one with with_head")
        if self.chunk is None:
            whole: Tensor = model(batch)
            return whole
        parts = [batch.rows(i, i + self.chunk) for i in range(0, len(batch.tokens), self.chunk)]
        return torch.cat([checkpoint(model, part, use_reentrant=False) for part in parts])

    def _loss(self, scores: Tensor) -> Tensor:
        own = torch.arange(len(scores), device=scores.device)
        total = F.cross_entropy(scores, own, reduction="sum")
        return (total + F.cross_entropy(scores.T, own, reduction="sum")) / 2 if self.symmetric else total


def _partner(batch: Batch) -> Batch:
    if batch.pair is None or len(batch.pair.tokens) != len(batch.tokens):
        raise TrainingError("a contrastive batch needs a partner of each row in batch.pair")
    if len(batch.tokens) < 2:
        raise TrainingError("one pair alone has no other to be told from", way_out="give a step two pairs or more")
    return batch.pair
