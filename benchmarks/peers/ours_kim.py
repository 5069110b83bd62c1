"""Cutaway's own contender among sentence classifiers: the shape of ``plain_kim.py``."""

from __future__ import annotations

import cutaway  # noqa: F401  (first, as a user has it: it sets how long waiting threads spin)

# isort: split
import torch.nn.functional as F
from plain_kim import CLASSES, WIDTHS
from trainer import train
from worker import enter

from cutaway.batch import Batch
from cutaway.models.convolution import ConvolutionConfig
from cutaway.models.heads import Classes
from cutaway.models.model import Model
from cutaway.objectives.objective import Loss


class Classified:
    """Sum of cross-entropies of a label that each row carries in its first target."""

    def weight(self, batch: Batch) -> float:
        """Rows."""
        return float(len(batch.tokens))

    def __call__(self, model: Model, batch: Batch) -> Loss:
        assert batch.targets is not None
        total = F.cross_entropy(model(batch), batch.targets[:, 0] % CLASSES, reduction="sum")
        return Loss(total, self.weight(batch))


if __name__ == "__main__":
    case, turns = enter()
    config = ConvolutionConfig(
        shape="encoder",
        vocab_size=case.vocab_size,
        hidden_size=case.hidden_size,
        kernel_sizes=WIDTHS,
        context_length=case.context,
    )
    train(case, turns, config, Classified(), head=Classes(tuple(map(str, range(CLASSES)))))
