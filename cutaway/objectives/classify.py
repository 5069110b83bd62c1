"""Learning classes: cross-entropy over those of which one holds, binary cross-entropy for each where several may.

B rows, C classes. The model's head names the classes and says which of the two it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cutaway.batch import Batch
from cutaway.errors import ModelError, SettingsError, TrainingError
from cutaway.models.heads import ClassHead
from cutaway.models.model import Model
from cutaway.objectives.objective import Loss


@dataclass(frozen=True, slots=True)
class Classify:
    """Sum over rows of ``-log p(class)`` in nats, or of the C binary cross-entropies.

    ``label_smoothing`` gives that share of each row's weight to all classes alike (Szegedy 2016, arXiv 1512.00567);
    with several labels it draws each 0 and 1 that far towards 1/2. ``accuracy`` is the share of rows whose likeliest
    class is right, or the share of all C x B answers.
    """

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise SettingsError(f"label_smoothing must be at least 0 and below 1, got {self.label_smoothing}")

    def weight(self, batch: Batch) -> float:
        """The number of rows."""
        return float(len(batch.tokens))

    def __call__(self, model: Model, batch: Batch) -> Loss:
        if not isinstance(model.head, ClassHead):
            raise ModelError("the model has no head of classes", way_out="give it one with with_head")
        labels = _labels(batch, model.head)
        logits: Tensor = model(batch)
        smooth = self.label_smoothing
        if model.head.classes.multi_label:
            goal = labels * (1 - smooth) + smooth / 2
            total = F.binary_cross_entropy_with_logits(logits, goal, reduction="sum")
            right = (logits > 0) == (labels > 0.5)
        else:
            total = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=smooth)
            right = logits.argmax(1) == labels
        return Loss(total, self.weight(batch), {"accuracy": (right.sum(dtype=torch.float32), float(right.numel()))})


def _labels(batch: Batch, head: ClassHead) -> Tensor:
    if batch.labels is None:
        raise TrainingError("a batch without labels has no classes to learn")
    count, several = len(head.classes.labels), head.classes.multi_label
    wanted = (len(batch.tokens), count) if several else (len(batch.tokens),)
    if batch.labels.shape != wanted or (not several and int(batch.labels.max()) >= count):
        raise TrainingError(f"labels of shape {tuple(batch.labels.shape)} up to {float(batch.labels.max()):g} do not "
                            f"go with {count} classes of which {'several' if several else 'one'} can hold")
    return batch.labels
