"""Proxy reward and distance from the reference: the two axes beside the judge's score on which over-optimisation shows
(Gao et al. 2022, arXiv 2210.10760)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from cutaway.batch import Batch, pad
from cutaway.evaluate.answers import Answered
from cutaway.evaluate.bits import interval
from cutaway.models.model import Model
from cutaway.objectives.likelihood import token_logprobs
from cutaway.records import Measurement
from cutaway.text.tokenizer import Tokenizer
from cutaway.train.reward import Reward, example

ROWS = 32


def proxy_reward(reward: Reward, answered: Answered) -> Measurement:
    """Mean reward of the answers, in the reward's own units, with a bootstrap interval over requests."""
    values = np.array(reward([a.request for a in answered.items], [a.answer for a in answered.items]))
    low, high = interval(values, np.ones(len(values)))
    return Measurement("proxy_reward", float(values.mean()), "reward", len(values), low, high, answered.conditions)


def kl(policy: Model, reference: Model, answered: Answered, tokenizer: Tokenizer, *,
       temperature: float = 1.0) -> dict[str, Measurement]:
    """KL(policy ‖ reference) in nats, ``per_answer`` and ``per_token``: the mean of log π/π_ref over answers that
    the policy sampled at ``temperature`` without top-k, top-p or penalties (an unbiased estimator only then).

    An answer counts its turn's end, if it came: whether to stop is a choice the two models may differ in.
    """
    ratios, tokens = np.zeros(len(answered.items)), np.zeros(len(answered.items))
    examples = [example(a.request, a.answer, tokenizer) for a in answered.items]
    order = np.argsort([len(e) for e in examples])
    for at in range(0, len(order), ROWS):
        part = order[at:at + ROWS]
        batch = pad([examples[i] for i in part], pad_id=tokenizer.pad_id)
        assert batch.weights is not None
        ratios[part] = _sums(policy, batch, temperature) - _sums(reference, batch, temperature)
        tokens[part] = batch.weights.sum(1).double().numpy()
    conditions = {**answered.conditions, "kl_temperature": temperature, "estimator": "mean log π/π_ref on π's samples"}
    out = {}
    for name, below in (("per_answer", np.ones(len(ratios))), ("per_token", tokens)):
        low, high = interval(ratios, below)
        value = float(ratios.sum() / below.sum())
        out[name] = Measurement(f"kl_{name}", value, "nats", len(ratios), low, high, conditions)
    return out


def _sums(model: Model, batch: Batch, temperature: float) -> NDArray[np.float64]:
    with torch.inference_mode():
        found = token_logprobs(model, batch.to(model.device), temperature=temperature)
    return np.asarray(found.double().sum(1).cpu().numpy())
