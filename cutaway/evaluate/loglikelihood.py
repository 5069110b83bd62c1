"""Log-probabilities of continuations, and of whole texts in rolling windows: what lm-evaluation-harness's
``loglikelihood`` and ``loglikelihood_rolling`` compute, to the same tokens, for anything that is a LanguageModel.

A context is read once, however many continuations follow it, and the head runs where one of them is predicted.
B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cutaway.batch import Example
from cutaway.errors import DataError, ModelError
from cutaway.evaluate.bits import direct_nats
from cutaway.generate.prefill import Ids, append, begun
from cutaway.models.model import LanguageModel, Scorer, State
from cutaway.text.tokenizer import Tokenizer

PLACES = 1024  # tokens of contexts read at once: more is no faster on a CPU, and pads more
ENOUGH, ALIKE = 192, 0.7  # tokens that keep a processor busy; a length that shares rows with 1 without much padding
LOGITS = 1 << 25  # numbers of logits that exist at once: 128 MiB
PART = 4096  # tokens of continuations read at once, however few logits each has: it bounds what the layers keep


class Pair(NamedTuple):
    """A context and what follows it, as ids; how many ids were cut off the context's beginning."""

    context: Ids
    continuation: Ids
    cut: int = 0


@dataclass(frozen=True, slots=True)
class Likely:
    """``log p`` of a continuation in nats, over ``tokens``; ``greedy``: whether each was the likeliest (None where
    that was not asked)."""

    logprob: float
    tokens: int
    greedy: bool | None


def pair(tokenizer: Tokenizer, context: str, continuation: str) -> Pair:
    """A text split as lm-evaluation-harness does: spaces at the context's end go to the continuation, the whole is
    encoded, and what is longer than the context's own ids is the continuation. Behind an empty context stands bos.

    Raises DataError where nothing of the continuation is left: its text was drawn into the context's last token.
    """
    if not context:
        ids = tuple(tokenizer.encode(continuation))
        if len(ids) > 1 and ids[0] == tokenizer.bos_id:
            return Pair(ids[:1], ids[1:])
        return _filled((tokenizer.bos_id,), ids, continuation)
    bare = context.rstrip()
    whole = (*tokenizer.begin_ids, *tokenizer.encode(context + continuation))
    length = len(tokenizer.begin_ids) + len(tokenizer.encode(bare))
    if not length:  # white space alone
        return _filled((tokenizer.bos_id,), whole, continuation)
    return _filled(whole[:length], whole[length:], continuation)


def _filled(context: Ids, continuation: Ids, text: str) -> Pair:
    if not continuation:
        raise DataError(f"the answer {text[:40]!r} has no token of its own behind its prompt",
                        way_out="set delimiter to a space, or leave the item out")
    return Pair(context, continuation)


def fitted(given: Pair, context_length: int) -> Pair:
    """The pair with as much of its context as a model of ``context_length`` can read: the last token is predicted and
    not read. Raises DataError where the continuation alone is longer."""
    spare = len(given.context) + len(given.continuation) - 1 - context_length
    if spare <= 0:
        return given
    if len(given.continuation) > context_length:
        raise DataError(f"an answer of {len(given.continuation)} tokens does not fit a context of {context_length}",
                        way_out="set too_long=leave_out")
    return Pair(given.context[spare:], given.continuation, spare)


def loglikelihoods(model: LanguageModel, pairs: Sequence[Pair], *, greedy: bool = True
                   ) -> Iterator[list[tuple[int, Likely]]]:
    """(number of the pair, its log-probability) in batches as they are done, every pair once, from long to short.

    Up to rounding, no pair's figure depends on the others. Raises ModelError for an encoder-decoder, or where the
    model gives no number.
    """
    if model.reads_source:
        raise ModelError("an encoder-decoder writes beside a source and scores no continuation of a prompt",
                         way_out="name a decoder, a recurrent network, a convolution or an n-gram model")
    if isinstance(model, Scorer) and not greedy:
        yield _direct(model, pairs)
        return
    groups: dict[Ids, list[int]] = {}
    for i, one in enumerate(pairs):
        groups.setdefault(one.context, []).append(i)
    for contexts in _batches(sorted(groups, key=lambda c: (-len(c), c))):
        yield from _read(model, contexts, groups, pairs)


def _checked(found: Likely) -> Likely:
    if np.isnan(found.logprob):
        raise ModelError("gives no number for a text", way_out="its weights may be damaged: fetch or train it again")
    return found


def _direct(model: Scorer, pairs: Sequence[Pair]) -> list[tuple[int, Likely]]:
    """By a model that gives the probabilities of whole documents: each pair is one, and its continuation counts."""
    pieces = [(i, Example(np.array(p.context + p.continuation, np.int64),
                          np.repeat(np.array([0, 1], np.float32), (len(p.context), len(p.continuation)))))
              for i, p in enumerate(pairs)]
    owners, costs = direct_nats(model, pieces)
    return [(i, _checked(Likely(-cost, len(pairs[i].continuation), None)))
            for i, cost in zip(owners.tolist(), costs.tolist(), strict=True)]


def _batches(contexts: Sequence[Ids]) -> Iterator[list[Ids]]:
    batch: list[Ids] = []
    for context in contexts:
        if batch and (len(batch) + 1) * len(batch[0]) > PLACES:
            yield batch
            batch = []
        batch.append(context)
    if batch:
        yield batch


def _read(model: LanguageModel, contexts: Sequence[Ids], groups: dict[Ids, list[int]], pairs: Sequence[Pair]
          ) -> Iterator[list[tuple[int, Likely]]]:
    """Read a batch of contexts, then part by part what follows them, neighbours in length together."""
    owners = [(row, i) for row, context in enumerate(contexts) for i in groups[context]]
    owners.sort(key=lambda o: -len(pairs[o[1]].continuation))
    longest = max(len(pairs[i].context) + len(pairs[i].continuation) - 1 for _, i in owners)
    with torch.inference_mode():
        state, rest = begun(model, contexts, longest)
        first = append(model, rest, state)
    for some in _alike(owners, pairs, model.vocab_size):
        with torch.inference_mode():  # which is not to reach whoever asks for the next part
            part = [(i, _checked(found)) for i, found in _scored(model, first, state, some, pairs)]
        yield part


def _alike(owners: Sequence[tuple[int, int]], pairs: Sequence[Pair], vocab_size: int
           ) -> Iterator[list[tuple[int, int]]]:
    """Continuations, which come from long to short, in parts: no more logits and tokens than there may be, and a part
    that is large enough for the processor ends where they become much shorter than its first."""
    part: list[tuple[int, int]] = []
    steps = 0
    for owner in owners:
        length = len(pairs[owner[1]].continuation)
        full = (len(part) + 1) * steps > min(PART, LOGITS // vocab_size)
        if part and (full or (len(part) * steps >= ENOUGH and length <= ALIKE * steps)):
            yield part
            part = []
        steps = length if not part else steps
        part.append(owner)
    if part:
        yield part


def _scored(model: LanguageModel, first: Tensor, state: State, some: Sequence[tuple[int, int]],
            pairs: Sequence[Pair]) -> Iterator[tuple[int, Likely]]:
    """Continuations from long to short, behind the logits and the state of their contexts."""
    rows = torch.tensor([row for row, _ in some], device=first.device)
    ids = [pairs[i].continuation for _, i in some]
    logs, best = _measured(first[rows][:, None], [c[:1] for c in ids])
    several = [c for c in ids if len(c) > 1]  # the first of them, as they are sorted
    if several:
        more, likeliest = _followed(model, several, state.select(rows[:len(several)]))
        for i in range(len(several)):
            logs[i], best[i] = logs[i] + more[i], best[i] and likeliest[i]
    for (_, i), log, top in zip(some, logs, best, strict=True):
        yield i, Likely(log, len(pairs[i].continuation), top)


def _followed(model: LanguageModel, rows: Sequence[Ids], state: State) -> tuple[list[float], list[bool]]:
    """The same of every token but each row's first, which is read and not predicted here; a very long one in pieces,
    so that only so many logits exist."""
    logs, best = [0.0] * len(rows), [True] * len(rows)
    piece = max(1, LOGITS // (len(rows) * model.vocab_size))
    for start in range(0, len(rows[0]) - 1, piece):
        parts = [row[start : start + piece + 1] for row in rows]
        width = max(len(part) for part in parts) - 1
        tokens = torch.zeros(len(rows), width, dtype=torch.long)
        for i, part in enumerate(parts):
            tokens[i, : max(0, len(part) - 1)] = torch.tensor(part[:-1], dtype=torch.long)
        counts = torch.tensor([max(0, len(part) - 1) for part in parts])
        even, device = bool((counts == width).all()), state.lengths.device
        logits = model.logits(tokens.to(device), state, counts=None if even else counts.to(device), every=True)
        more, likeliest = _measured(logits, [part[1:] for part in parts])
        logs = [a + b for a, b in zip(logs, more, strict=True)]
        best = [a and b for a, b in zip(best, likeliest, strict=True)]
    return logs, best


def _measured(logits: Tensor, targets: Sequence[Ids]) -> tuple[list[float], list[bool]]:
    """The sum of ``log p`` of each row's targets under ``logits (B, T, V)``, in float64, and whether each is the
    largest."""
    width = logits.shape[1]
    wanted = torch.zeros(len(targets), width, dtype=torch.long)
    real = torch.zeros(len(targets), width, dtype=torch.bool)
    for i, row in enumerate(targets):
        wanted[i, :len(row)], real[i, :len(row)] = torch.tensor(row, dtype=torch.long), True
    wanted, real = wanted.to(logits.device), real.to(logits.device)
    logits = logits.float()
    chosen = logits.gather(-1, wanted[..., None])[..., 0] - logits.logsumexp(-1)
    sums = chosen.double().masked_fill(~real, 0.0).sum(1)
    best = ((logits.argmax(-1) == wanted) | ~real).all(1)
    return sums.tolist(), best.tolist()


def rolling(tokens: NDArray[np.int64], context: int) -> Iterator[Example]:
    """Windows in which every token but the first (what stands before a text) is predicted once: as many as the context
    holds behind one token, and the last window filled up on its left with what was predicted before."""
    last, done = len(tokens) - 1, 0
    while done < last:
        end = min(done + context, last)
        start = max(0, end - context)
        weights = np.ones(end - start + 1, np.float32)
        weights[: done - start + 1] = 0.0
        yield Example(tokens[start:end + 1], weights)
        done = end
