"""Bits per byte of held-out text: a loss that no tokenizer flatters (Shannon 1951; The Pile, arXiv 2101.00027).

The exact sum of nats over every token of every document, its end included, over the text's bytes. B rows, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cutaway.batch import Batch, Example, pad
from cutaway.data.examples import chat
from cutaway.errors import DataError
from cutaway.evaluate.held import HeldOut
from cutaway.models.model import LanguageModel, Model, Scorer
from cutaway.objectives.likelihood import token_logprobs
from cutaway.records import Measurement, bootstrap, digest
from cutaway.text.chat import Message
from cutaway.text.tokenizer import Tokenizer

ROWS, PLACES = 32, 1 << 15
Piece = tuple[int, Example]  # a document's number and a window of it


@dataclass(frozen=True)
class Scores:
    """What each held-out document cost: ``nats``, ``tokens`` and ``bytes``, each ``(N,)``."""

    nats: NDArray[np.float64]
    tokens: NDArray[np.int64]
    bytes: NDArray[np.int64]
    conditions: dict[str, Any]

    def measurement(self, name: str = "bits_per_byte") -> Measurement:
        """Bits per byte over all documents; the interval resamples documents, and one document has none."""
        low, high = interval(self.nats / math.log(2), self.bytes)
        value = float(self.nats.sum()) / math.log(2) / int(self.bytes.sum())
        return Measurement(name, value, "bits per byte", len(self.bytes), low, high, self.conditions)


def interval(values: NDArray[Any], weights: NDArray[Any]) -> tuple[float | None, float | None]:
    """The bootstrap interval of a ratio of sums over documents, none from a single document."""
    if len(values) < 2:
        return None, None
    return bootstrap(values.tolist(), weights.tolist())


def bits_per_byte(model: LanguageModel, tokenizer: Tokenizer, text: HeldOut, *,
                  overlap: int | None = None) -> Measurement:
    """``score(...).measurement()``: the figure alone, where documents need not be compared one by one."""
    return score(model, tokenizer, text, overlap=overlap).measurement()


def score(model: LanguageModel, tokenizer: Tokenizer, text: HeldOut, *, overlap: int | None = None,
          rows: int = ROWS, context: int | None = None) -> Scores:
    """Each document as ``bos, tokens…, eos``, every token after ``bos`` predicted exactly once, ``eos`` too.

    A document longer than the context (the model's own, or a shorter ``context``) is read in windows of it that overlap
    by ``overlap`` tokens (default: a quarter of the context), so that every token but the first window's has at least
    that many before it. More overlap flatters the figure a little and costs ``context / (context - overlap)`` times the
    work.
    """
    context = model.context_length if context is None else min(context, model.context_length)
    overlap = context // 4 if overlap is None else overlap
    if not 0 <= overlap < context:
        raise DataError(f"windows of {context} tokens cannot overlap by {overlap}",
                        way_out=f"choose 0 to {context - 1}")
    documents = [np.array([tokenizer.bos_id, *ids, tokenizer.eos_id], np.int64)
                 for ids in tokenizer.encode_documents(text.texts)]
    nats = np.zeros(len(documents))
    pieces = [(i, e) for i, d in enumerate(documents) for e in windows(d, context, overlap)]
    for owners, costs in window_nats(model, pieces, rows=rows, pad_id=tokenizer.pad_id):
        np.add.at(nats, owners, costs)
    conditions = {**text.conditions, "context": context, "overlap": overlap,
                  "tokens": sum(len(d) - 1 for d in documents), "tokenizer_sha256": tokenizer.digest[:16]}
    return Scores(nats, np.array([len(d) - 1 for d in documents]), np.array(text.bytes), conditions)


def window_nats(model: LanguageModel, pieces: Sequence[Piece], *, pad_id: int,
                rows: int = ROWS) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """(document of each window, its nats), both ``(B,)``, in batches as they are done; each window is read as a
    document of its own."""
    if isinstance(model, Scorer):
        yield direct_nats(model, pieces)
        return
    for owners, batch in _batches(pieces, rows=rows, pad_id=pad_id):
        with torch.inference_mode():
            costs = -logprobs(model, batch).double().sum(1).cpu().numpy()
        yield owners, costs


def direct_nats(model: Scorer, pieces: Sequence[Piece]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The same at once, by a model that gives the probabilities of whole documents."""
    if not pieces:
        return np.zeros(0, np.int64), np.zeros(0)
    starts = np.cumsum([0, *(len(e.tokens) for _, e in pieces)])
    logs = model.score(np.concatenate([e.tokens for _, e in pieces]), starts)
    logs = np.where(np.concatenate([e.weights for _, e in pieces]) > 0, logs, 0.0)
    logs[starts[:-1]] = 0.0  # nothing stands before a window's first token
    return np.array([i for i, _ in pieces]), -np.add.reduceat(logs, starts[:-1])


def score_answers(model: Model, tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]], *, rows: int = ROWS) -> Scores:
    """What each (request, answer) costs where the answer and the end of its turn are predicted and the request is read:
    how likely a model finds what was really answered. Raises DataError for none."""
    if not pairs:
        raise DataError("there is no answer to measure on", way_out="give more conversations to the held-out split")
    examples = [chat([Message("user", request), Message("assistant", answer)], tokenizer) for request, answer in pairs]
    order, nats = sorted(range(len(examples)), key=lambda i: -len(examples[i])), np.zeros(len(examples))
    for at in range(0, len(order), rows):
        part = order[at : at + rows]
        batch = pad([examples[i] for i in part], pad_id=tokenizer.pad_id).to(model.device)
        with torch.inference_mode():
            nats[part] = -token_logprobs(model, batch).double().sum(1).cpu().numpy()
    digests = digest("\0".join(text for pair in pairs for text in pair).encode())
    tokens = [int((e.weights > 0).sum()) for e in examples]
    return Scores(nats, np.array(tokens), np.array([len(answer.encode()) for _, answer in pairs]),
                  {"answers": len(pairs), "text_sha256": digests[:16], "tokenizer_sha256": tokenizer.digest[:16],
                   "context": model.context_length, "overlap": 0, "tokens": sum(tokens)})


def windows(tokens: NDArray[np.int64], context: int, overlap: int) -> Iterator[Example]:
    """Pieces of ``context`` predictions; a later piece reads ``overlap`` predicted tokens again, with weight 0."""
    start = done = 0  # ``done`` targets, at 1..done, have been predicted
    while done < len(tokens) - 1:
        start = max(0, done - overlap)
        piece = tokens[start:start + context + 1]
        weights = np.ones(len(piece), np.float32)
        weights[: done - start + 1] = 0.0
        yield Example(piece, weights)
        done = start + len(piece) - 1


def _batches(pieces: Sequence[Piece], *, rows: int, pad_id: int) -> Iterator[tuple[NDArray[np.int64], Batch]]:
    """(document of each row, batch), rows of like length together so that little is computed on padding; at most
    ``rows`` of them and ``PLACES`` tokens."""
    ordered = sorted(pieces, key=lambda p: -len(p[1]))
    at = 0
    while at < len(ordered):
        part = ordered[at:at + max(1, min(rows, PLACES // len(ordered[at][1])))]
        at += len(part)
        yield np.array([i for i, _ in part]), pad([e for _, e in part], pad_id=pad_id)


def logprobs(model: LanguageModel, batch: Batch) -> Tensor:
    """``log p(target)``, ``(B, T)``, 0 where the weight is 0, by the way training takes or, for any other
    LanguageModel, by its own ``logits``."""
    if isinstance(model, Model):
        return token_logprobs(model, batch.to(model.device))
    assert batch.targets is not None and batch.weights is not None
    state = model.new_state(len(batch.tokens), capacity=batch.tokens.shape[1])
    logits = model.logits(batch.tokens, state, counts=batch.lengths(), every=True).float()
    chosen = logits.log_softmax(-1).gather(-1, batch.targets.to(logits.device)[..., None])[..., 0]
    return chosen.masked_fill(batch.weights.to(chosen.device) == 0, 0.0)
