"""Cutaway's own contender in ``architectures.py``: the same loop and the same reading for every architecture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cutaway  # noqa: F401  (first, as a user has it: it sets how long waiting threads spin)

# isort: split
import torch
from shapes import CLASSES, labels, masked, pairs, sentences
from torch import Tensor
from worker import ADAMW, CLIP, Case, Turns, enter, infer

from cutaway.batch import Batch, Example, full, pack, whole
from cutaway.models.convolution import ConvolutionConfig
from cutaway.models.heads import Classes
from cutaway.models.light import for_reading
from cutaway.models.model import Model, build
from cutaway.models.recurrent import RecurrentConfig
from cutaway.models.transformer import TransformerConfig
from cutaway.objectives.classify import Classify
from cutaway.objectives.likelihood import Likelihood
from cutaway.train.loop import steps
from cutaway.train.optimizer import OptimizerSettings, build_optimizer
from cutaway.train.schedule import Schedule

PACKED = 256  # tokens of a row that several texts share


def configuration(case: Case) -> Any:
    """The architecture a case names."""
    if case.network == "lstm":
        return RecurrentConfig(vocab_size=case.vocab_size, hidden_size=case.hidden_size, num_layers=case.num_layers)
    if case.network == "cnn":
        return ConvolutionConfig(shape="encoder", vocab_size=case.vocab_size, hidden_size=case.hidden_size,
                                 embedding_size=case.inner, tie_embeddings=False, dropout=0.0)
    shape = "encoder-decoder" if case.work == "translate" else "encoder"
    return TransformerConfig(
        shape=shape, vocab_size=case.vocab_size, hidden_size=case.hidden_size, num_layers=case.num_layers,
        num_heads=case.num_heads, num_kv_heads=case.num_heads, intermediate_size=case.inner,
        context_length=max(case.context, PACKED), tie_embeddings=shape == "encoder")


def batches(case: Case) -> list[list[Batch]]:
    """What the loop trains on, laid beforehand as the peers' is."""
    if case.work == "masked":
        return [[Batch(t, targets=t, weights=m.float())] for t, m in masked(case)]
    if case.work == "train-classes":
        laid = [whole([t.numpy() for t in batch], pad_id=0) for batch in sentences(case)]
        return [[Batch(b.tokens, documents=b.documents, labels=labels(case))] for b in laid]
    if case.work == "translate":
        ones = torch.ones(PACKED)
        examples = [[Example(t.numpy(), ones[: len(t)].numpy(), s.numpy()) for s, t in zip(*both, strict=True)]
                    for both in pairs(case)]
        return [[pack(e, pad_id=0, length=PACKED, source_length=PACKED)] for e in examples]
    return [[Batch(tokens, targets)] for tokens, targets in case.batches()]


def train(case: Case, turns: Turns, model: Model) -> None:
    """``steps()`` as a user's loop has it."""
    adamw = OptimizerSettings(kind="adamw", learning_rate=ADAMW["lr"], betas=ADAMW["betas"], eps=ADAMW["eps"],
                              weight_decay=ADAMW["weight_decay"])
    objective = Classify() if case.work == "train-classes" else Likelihood()
    given, turn = batches(case), iter(turns)
    next(turn)  # waits until the race asks for the first step
    for step in steps(model, lambda number: given[number % len(given)], objective, build_optimizer(model, adamw),
                      schedule=Schedule(kind="constant", warmup=0.0), total=1 << 30, clip=CLIP):
        turns.note["loss"] = step.loss
        if next(turn, None) is None:
            break


def reader(model: Model) -> Callable[[list[Tensor]], Tensor]:
    """A batch of sentences to their scores, in the order given."""

    def answer(batch: list[Tensor]) -> Tensor:
        laid, order = full([t.numpy() for t in batch], pad_id=0, width=PACKED)
        scores = model(laid)
        out = torch.empty_like(scores)
        out[order] = scores
        return out

    return answer


if __name__ == "__main__":
    case, turns = enter()
    trained = case.work in ("masked", "translate", "language")
    head = "tokens" if trained else Classes(tuple("abcdefghijklmnop"[:CLASSES]))
    model = build(configuration(case), head=head, compute_dtype=getattr(torch, case.dtype))
    turns.note["parameters"] = sum(p.numel() for p in model.parameters())
    if trained or case.work == "train-classes":
        train(case, turns, model)
    else:
        light = for_reading(model).eval()
        infer(case, turns, reader(light), sentences(case))
