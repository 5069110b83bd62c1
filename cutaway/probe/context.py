"""Loss against how much context a model may see, on real text (Khandelwal 2018, arXiv 1805.04623, for LSTMs).

The same tokens are predicted again and again, each time from exactly their last c tokens and nothing before them, so
the curves are paired: where one falls no further, what stands further away is not used. N tokens, C most context.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cutaway.errors import DataError
from cutaway.models.model import LanguageModel
from cutaway.records import Measurement, bootstrap

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
TOKENS = 1 << 14  # tokens read at once


@dataclass(frozen=True)
class Windows:
    """Tokens to predict, each behind its context: ``rows (N, C + 1)``, the last of each row is predicted;
    ``bytes (N,)`` of its text, ``documents (N,)`` it stands in. ``short`` documents had no such token."""

    rows: Ints
    bytes: Ints
    documents: Ints
    short: int

    @property
    def context(self) -> int:
        """Tokens before each predicted one."""
        return int(self.rows.shape[1]) - 1


def windows(documents: Sequence[NDArray[Any]], sizes: NDArray[Any], *, context: int, count: int,
            seed: int = 0) -> Windows:
    """At most ``count`` tokens, drawn without repeats from all that have ``context`` tokens before them in their own
    document; ``sizes (V,)`` are the bytes of each token's text. Raises DataError where no document is long enough."""
    ends = np.array([max(0, len(d) - context) for d in documents], np.int64)
    total = int(ends.sum())
    if context < 1 or not total:
        raise DataError(f"no document has a token with {context} before it",
                        way_out="give longer documents, or look at less context")
    picked = np.sort(np.random.default_rng(seed).choice(total, min(count, total), replace=False))
    owner = np.searchsorted(ends.cumsum(), picked, side="right")
    first = picked - (ends.cumsum() - ends)[owner]
    rows = np.stack([np.asarray(documents[d][at:at + context + 1], np.int64)
                     for d, at in zip(owner.tolist(), first.tolist(), strict=True)])
    return Windows(rows, np.asarray(sizes, np.int64)[rows[:, -1]], owner.astype(np.int64), int((ends == 0).sum()))


def nats_seeing(model: LanguageModel, text: Windows, seen: int) -> Floats:
    """``-log p`` of every token of ``text`` from its last ``seen`` tokens alone, ``(N,)`` nats."""
    if not 1 <= seen <= min(text.context, model.context_length):
        raise DataError(f"{seen} tokens of context are not 1 to {min(text.context, model.context_length)}")
    rows, out = torch.from_numpy(text.rows), []
    for part in rows.split(max(1, TOKENS // seen)):
        with torch.inference_mode():
            state = model.new_state(len(part), capacity=seen)
            logits = model.logits(part[:, -seen - 1:-1], state).float()
            out.append(-logits.log_softmax(-1).gather(-1, part[:, -1:])[:, 0].double().numpy())
    return np.concatenate(out)


def loss_by_context(model: LanguageModel, text: Windows, seen: Sequence[int], *, name: str = "",
                    units: str = "bits per byte") -> list[Measurement]:
    """The loss from each number of tokens in ``seen``, in "bits per byte" or "nats per token".

    Intervals resample documents. From the second on, ``conditions`` say how much was gained on the same tokens since
    the one before, and inside which interval.
    """
    if units not in ("bits per byte", "nats per token"):
        raise DataError(f"loss is not measured in {units!r}", way_out="choose bits per byte or nats per token")
    bits = units == "bits per byte"
    weights = _by_document(text, text.bytes if bits else np.ones(len(text.rows)))
    out: list[Measurement] = []
    before: Floats | None = None
    for c in seen:
        sums = _by_document(text, nats_seeing(model, text, c) / (math.log(2) if bits else 1.0))
        low, high = _interval(sums, weights)
        conditions: dict[str, Any] = {"architecture": name, "context": c, "documents": len(weights)}
        if before is not None:
            gained = before - sums
            conditions["gain"] = float(gained.sum() / weights.sum())
            conditions["gain_low"], conditions["gain_high"] = _interval(gained, weights)
        out.append(Measurement("loss_by_context", float(sums.sum() / weights.sum()), units, len(text.rows), low, high,
                               conditions))
        before = sums
    return out


def context_used(losses: Sequence[Measurement]) -> int:
    """The most context that still helped: the furthest step of a curve whose paired gain is above zero for sure."""
    helped = [m.conditions["context"] for m in losses if (m.conditions.get("gain_low") or 0.0) > 0]
    return int(max(helped, default=losses[0].conditions["context"]))


def _by_document(text: Windows, values: NDArray[Any]) -> Floats:
    """Sums over the tokens of each document that has any."""
    _, place = np.unique(text.documents, return_inverse=True)
    return np.bincount(place, weights=values).astype(np.float64)


def _interval(values: Floats, weights: Floats) -> tuple[float | None, float | None]:
    if len(values) < 2:
        return None, None
    return bootstrap(values.tolist(), weights.tolist())
