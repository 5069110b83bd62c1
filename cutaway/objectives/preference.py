"""Learning from pairs: the Bradley-Terry reward model (Ouyang et al. 2022, arXiv 2203.02155), DPO (Rafailov et al.
2023, arXiv 2305.18290) and IPO (Azar et al. 2023, arXiv 2310.12036).

A batch holds the chosen side, ``batch.pair`` the rejected one, row against row. The same batch serves every
objective of this file. B pairs, T targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cutaway.batch import Batch, Example, pad
from cutaway.errors import DataError, SettingsError, TrainingError
from cutaway.models.learning import Beginning, undropped
from cutaway.models.model import Model
from cutaway.objectives.likelihood import token_logprobs
from cutaway.objectives.objective import Loss


def pairs(chosen: Sequence[Example], rejected: Sequence[Example], *, pad_id: int) -> Batch:
    """The batch of ``chosen[i]`` preferred to ``rejected[i]``, one pair a row, each side padded by itself."""
    if len(chosen) != len(rejected):
        raise DataError(f"{len(chosen)} chosen and {len(rejected)} rejected answers do not make pairs")
    return replace(pad(chosen, pad_id=pad_id), pair=pad(rejected, pad_id=pad_id))


def with_reference(reference: Model | Beginning, batch: Batch) -> Batch:
    """The batch with ``reference_logprob`` on both sides, computed once, before training: of a model of its own, or of
    what the model that learns was at its beginning. Nothing is dropped for it, whatever training drops."""
    with torch.no_grad(), reference() if isinstance(reference, Beginning) else nullcontext(reference) as model, \
            undropped(model):
        return _referred(model, batch)


def _referred(model: Model, batch: Batch) -> Batch:
    pair = None if batch.pair is None else _referred(model, batch.pair)
    return replace(batch, reference_logprob=token_logprobs(model, batch), pair=pair)


def rewards(model: Model, batch: Batch) -> Tensor:
    """The scalar head's value at the last real token of each row, ``(B,)`` float32, differentiable.

    A batch with targets is read whole: the last target (an answer's ``<|end|>``) is part of what is judged, so a row
    of T targets is a sequence of T + 1 tokens and must fit the context. Raises DataError for packed or empty rows.
    """
    batch = _whole(batch)
    last = batch.lengths() - 1
    if bool((last < 0).any()):
        raise DataError("a row of padding alone has no last token to read a reward at")
    values: Tensor = model(batch)
    return values.gather(1, last[:, None]).squeeze(1)


@dataclass(frozen=True, slots=True)
class Reward:
    """Bradley-Terry: ``-log sigmoid(r_chosen - r_rejected)``, summed over pairs.

    ``centring`` adds ``centring * (r_chosen + r_rejected)^2`` (Eisenstein et al. 2023, arXiv 2312.09244): only
    differences are identified, and this fixes the free constant near 0. A tie counts half in ``accuracy``.
    """

    centring: float = 0.01

    def weight(self, batch: Batch) -> float:
        """The number of pairs."""
        return float(len(batch.tokens))

    def __call__(self, model: Model, batch: Batch) -> Loss:
        chosen, rejected = rewards(model, batch), rewards(model, _rejected(batch))
        margin = chosen - rejected
        total = (F.softplus(-margin) + self.centring * (chosen + rejected).square()).sum()
        return Loss(total, self.weight(batch), _pair_metrics(margin, chosen, rejected))


@dataclass(frozen=True, slots=True)
class DPO:
    """Direct preference optimisation; with ``h`` the chosen minus the rejected log-ratio of policy to reference:

    - ``dpo``: ``-log sigmoid(beta h)``. Its optimum is the policy of the KL-regularised problem whose reward
      difference is ``beta h``.
    - ``ipo``: ``(h - 1 / (2 beta))^2``, which stays finite where a preference is deterministic.

    A log-ratio is a sum over the targets, each times its weight, never a mean per token (as in both papers).
    ``label_smoothing`` is the share of labels believed wrong: the loss is its expectation over such flips
    (Mitchell 2023, "conservative DPO"). ``reference_logprob`` must stand in the batch on both sides.
    """

    beta: float = 0.1
    label_smoothing: float = 0.0
    kind: Literal["dpo", "ipo"] = "dpo"

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise SettingsError(f"beta must be above 0, got {self.beta}")
        if not 0 <= self.label_smoothing < 0.5:
            raise SettingsError(f"label_smoothing must be at least 0 and below 0.5, got {self.label_smoothing}")

    def weight(self, batch: Batch) -> float:
        """The number of pairs."""
        return float(len(batch.tokens))

    def __call__(self, model: Model, batch: Batch) -> Loss:
        chosen, rejected = _log_ratio(model, batch), _log_ratio(model, _rejected(batch))
        h, flip = chosen - rejected, self.label_smoothing
        total = ((1 - flip) * self._each(h) + flip * self._each(-h)).sum()
        return Loss(total, self.weight(batch), _pair_metrics(self.beta * h, self.beta * chosen, self.beta * rejected))

    def _each(self, h: Tensor) -> Tensor:
        return F.softplus(-self.beta * h) if self.kind == "dpo" else (h - 1 / (2 * self.beta)).square()


def _log_ratio(model: Model, batch: Batch) -> Tensor:
    if batch.reference_logprob is None:
        raise TrainingError("the batch lacks reference_logprob", way_out="pass it through with_reference first")
    _one_a_row(batch)
    ratio = token_logprobs(model, batch) - batch.reference_logprob
    return (ratio if batch.weights is None else ratio * batch.weights).sum(1)


def _pair_metrics(margin: Tensor, chosen: Tensor, rejected: Tensor) -> dict[str, tuple[Tensor | float, float]]:
    won = (margin > 0).float() + 0.5 * (margin == 0).float()
    named = {"accuracy": won, "margin": margin, "chosen_reward": chosen, "rejected_reward": rejected}
    return {name: (value.detach().sum(), float(len(value))) for name, value in named.items()}


def _rejected(batch: Batch) -> Batch:
    if batch.pair is None:
        raise TrainingError("a preference batch needs a rejected side in batch.pair")
    if len(batch.pair.tokens) != len(batch.tokens):
        raise TrainingError(f"{len(batch.tokens)} chosen rows stand against {len(batch.pair.tokens)} rejected ones")
    return batch.pair


def _one_a_row(batch: Batch) -> None:
    if batch.documents is not None and bool((batch.documents > 0).any()):
        raise DataError("packed rows cannot be compared", way_out="lay one answer a row with pad()")


def _whole(batch: Batch) -> Batch:
    """Tokens and the last target behind them: ``(B, T + 1)`` without targets."""
    _one_a_row(batch)
    if batch.targets is None:
        return batch
    tokens = torch.cat([batch.tokens[:, :1], batch.targets], 1)
    at = torch.arange(tokens.shape[1], device=tokens.device)
    inside = at < batch.lengths()[:, None] + 1
    return Batch(tokens, documents=torch.where(inside, 0, -1).int(), positions=at.where(inside, 0), source=batch.source,
                 source_documents=batch.source_documents)
