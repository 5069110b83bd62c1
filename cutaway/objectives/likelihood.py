"""Maximum likelihood of the weighted targets: next-token prediction, fine-tuning on answers, log-probabilities.

The head and its cross-entropy run over chunks of positions and form their gradient in the same pass (as in Cut
Cross-Entropy, arXiv 2411.09009, and Liger), so the logits of a whole batch never exist.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cutaway.batch import Batch
from cutaway.errors import ModelError, SettingsError, TrainingError
from cutaway.models.heads import TokenHead
from cutaway.models.model import Model
from cutaway.nn import ops
from cutaway.objectives.objective import Loss

CHUNK = 1024  # positions whose logits exist at once; 256 to 1,024 measured equally fast, more is slower


def _learned(batch: Batch) -> tuple[Tensor, Tensor]:
    if batch.targets is None:
        raise TrainingError("a batch without targets has nothing to learn")
    weights = batch.weights
    if weights is None:
        weights = torch.ones(batch.targets.shape, dtype=torch.float32, device=batch.targets.device)
    return batch.targets, weights


def _token_head(model: Model) -> TokenHead:
    if not isinstance(model.head, TokenHead):
        raise ModelError("the model gives scores, not text, so it has no likelihood",
                         way_out="name a model with a token head, such as base")
    return model.head


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Sum over positions of ``-weight * log p(target)`` in nats. ``label_smoothing`` lays that share of each weight on
    all words alike; the loss is then no longer a likelihood, and held-out text is measured without it."""

    chunk: int = CHUNK
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise SettingsError(f"label_smoothing must be at least 0 and below 1, got {self.label_smoothing}")

    def weight(self, batch: Batch) -> float:
        """Sum of the target weights."""
        return batch.total_weight()

    def __call__(self, model: Model, batch: Batch) -> Loss:
        targets, weights = _learned(batch)
        head = _token_head(model)
        hidden, targets, weights = ops.learned(model.hidden(batch), targets, weights)
        total = ops.linear_cross_entropy(*head.factors(hidden), targets, weights, chunk=self.chunk,
                                         smoothing=self.label_smoothing)
        return Loss(total, batch.total_weight())


def token_logprobs(model: Model, batch: Batch, *, temperature: float = 1.0, chunk: int = CHUNK) -> Tensor:
    """``log p(target)`` at every position, ``(B, T)`` float32, differentiable; 0 where the weight is 0."""
    targets, weights = _learned(batch)
    head = _token_head(model)
    if head.packed is not None:
        return _packed_logprobs(head, model.hidden(batch), targets, weights != 0, temperature=temperature, chunk=chunk)
    return ops.linear_logprobs(*head.factors(model.hidden(batch)), targets, weights != 0, temperature=temperature,
                               chunk=chunk)


def _packed_logprobs(head: TokenHead, hidden: Tensor, targets: Tensor, kept: Tensor, *, temperature: float,
                     chunk: int) -> Tensor:
    """The same by a head that is laid out for reading."""
    out = torch.zeros(targets.shape, dtype=torch.float32)
    at = kept.nonzero(as_tuple=True)
    for rows in torch.arange(len(at[0])).split(chunk):
        where = at[0][rows], at[1][rows]
        logits = head(hidden[where]) / temperature
        out[where] = logits.gather(1, targets[where][:, None]).squeeze(1) - torch.logsumexp(logits, -1)
    return out
