"""A world small enough to enumerate: every answer, its exact probability, and a policy that is a table."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cutaway.batch import Batch, Example, pad
from cutaway.models.heads import TokenHead
from cutaway.models.model import build
from cutaway.models.transformer import TransformerConfig

END = 0
REQUEST = 1


def every_answer(vocab: int, most: int) -> list[tuple[int, ...]]:
    """Every answer of at most ``most`` tokens: it ends at END, or is cut off unfinished."""
    out = []
    for answer in itertools.product(range(vocab), repeat=most):
        cut = answer[: answer.index(END) + 1] if END in answer else answer
        if cut not in out:
            out.append(cut)
    return out


def batch_of(answers: list[tuple[int, ...]], advantage: Any = None, **fields: Tensor) -> Batch:
    """One answer a row behind the request; ``advantage (B,)`` is laid on every token of its answer."""
    examples = [Example(np.array([REQUEST, *a]), np.array([0.0] + [1.0] * len(a), np.float32)) for a in answers]
    batch = pad(examples, pad_id=END)
    if advantage is not None:
        fields["advantage"] = torch.as_tensor(advantage, dtype=torch.float32)[:, None].expand(batch.tokens.shape)
    return replace(batch, **fields)


class Table(nn.Module):
    """Logits of the next token looked up by the whole prefix: any distribution over answers, exactly."""

    def __init__(self, vocab: int, most: int, *, seed: int) -> None:
        super().__init__()
        self.vocab = vocab
        prefixes = sum(vocab ** (t + 1) for t in range(most))
        draw = torch.Generator().manual_seed(seed)
        self.head = TokenHead(nn.Parameter(torch.randn(vocab, prefixes, generator=draw)))
        self.device = torch.device("cpu")

    def hidden(self, batch: Batch) -> Tensor:
        index, before, out = torch.zeros(len(batch.tokens), dtype=torch.long), 0, []
        for t in range(batch.tokens.shape[1]):
            index = index * self.vocab + batch.tokens[:, t]
            out.append(before + index)
            before += self.vocab ** (t + 1)
        return nn.functional.one_hot(torch.stack(out, 1), self.head.weight.shape[1]).float()


def policy(kind: str, vocab: int, most: int, *, seed: int) -> Any:
    """A ``table`` or a real ``transformer`` with logits far from uniform."""
    if kind == "table":
        return Table(vocab, most, seed=seed)
    config = TransformerConfig(vocab_size=vocab, hidden_size=8, num_layers=1, num_heads=2, num_kv_heads=1,
                               intermediate_size=16, context_length=8, tie_embeddings=False)
    model = build(config, seed=seed)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.4 * torch.randn(p.shape, generator=draw))
    return model


def logprobs(model: Any, answers: list[tuple[int, ...]]) -> Tensor:
    """Exact ``log p(answer)``, with gradient, from plain log-softmax: nothing shared with the objectives."""
    batch = batch_of(answers)
    logits = nn.functional.linear(model.hidden(batch).double(), model.head.weight.double())
    each = logits.log_softmax(-1).gather(2, batch.targets[..., None]).squeeze(2)
    return (each * batch.weights).sum(1)


def gradient(model: Any, value: Tensor) -> Tensor:
    """The gradient of a scalar with respect to every parameter, as one vector."""
    parts = torch.autograd.grad(value, list(model.parameters()), allow_unused=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten().double()
                      for g, p in zip(parts, model.parameters(), strict=True)])
