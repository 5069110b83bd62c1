"""Filling blanks: masked tokens by an encoder, the most certain first (after Mask-Predict: Ghazvininejad et al. 2019,
arXiv 1904.09324), and gaps of any length by an encoder-decoder that was trained on them (Raffel et al. 2020, arXiv
1910.10683).

B rows, T tokens, M masks in all, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from cutaway.batch import Batch
from cutaway.errors import ModelError, RequestError
from cutaway.generate.engine import Engine
from cutaway.generate.request import Alternative, Request, Sampling
from cutaway.models.heads import TokenHead
from cutaway.models.model import Model


@dataclass(frozen=True, slots=True)
class Blank:
    """A masked place and the likeliest tokens for it, the likeliest first."""

    position: int
    best: tuple[Alternative, ...]


@dataclass(frozen=True, slots=True)
class Filled:
    """A row without blanks. ``logprobs`` has, for each blank from left to right, that of the tokens put there, at the
    moment they were chosen; ``blanks`` are those tokens."""

    tokens: tuple[int, ...]
    blanks: tuple[tuple[int, ...], ...]
    logprobs: tuple[float, ...]


@torch.inference_mode()
def guess(model: Model, rows: Sequence[Sequence[int]], *, mask_id: int, best: int = 5,
          max_rows: int = 64) -> list[tuple[Blank, ...]]:
    """What may stand at each ``mask_id`` of each row, all read in one pass, each blank as if alone; from left to right.

    Raises ModelError for a model that fills no blanks, RequestError for a row without one or that does not fit.
    """
    _check(model, rows, mask_id)
    if not 1 <= best <= model.vocab_size:
        raise RequestError(f"best must lie between 1 and the vocabulary's {model.vocab_size}, got {best}")
    out: dict[int, tuple[Blank, ...]] = {}
    for indices in _groups(rows, max_rows):
        tokens, real = _laid([rows[i] for i in indices])
        at = (tokens == mask_id) & real
        values, ids = _logs(model, tokens, real, at).topk(best, dim=1)
        found = [(column, tuple(Alternative(*pair) for pair in zip(*both, strict=True)))
                 for column, *both in zip(at.nonzero()[:, 1].tolist(), ids.tolist(), values.tolist(), strict=True)]
        for i, count in zip(indices, at.sum(1).tolist(), strict=True):
            out[i], found = tuple(Blank(*f) for f in found[:count]), found[count:]
    return [out[i] for i in range(len(rows))]


@torch.inference_mode()
def fill(model: Model, rows: Sequence[Sequence[int]], *, mask_id: int, passes: int | None = None,
         never: Collection[int] = (), max_rows: int = 64) -> list[Filled]:
    """Each row with every ``mask_id`` replaced by the likeliest token that is not in ``never`` (nor the mask itself).

    With ``passes`` the masks of a row are filled in so many passes, each the most certain of those left and in equal
    parts; without it one at a time, so that every choice sees the ones before it. A row does not depend on the others.
    """
    _check(model, rows, mask_id)
    if passes is not None and passes < 1:
        raise RequestError(f"passes must be at least 1, got {passes}")
    banned = torch.tensor(sorted({mask_id, *never}), device=model.device)
    if int(banned[0]) < 0 or int(banned[-1]) >= model.vocab_size or len(banned) >= model.vocab_size:
        raise RequestError(f"the ids never to be put in are not part of a vocabulary of {model.vocab_size}")
    out: dict[int, Filled] = {}
    for indices in _groups(rows, max_rows):
        tokens, logprobs = _filled(model, [rows[i] for i in indices], mask_id, passes, banned)
        for i, line, logs in zip(indices, tokens.tolist(), logprobs.tolist(), strict=True):
            at = [p for p, token in enumerate(rows[i]) if token == mask_id]
            out[i] = Filled(tuple(line[: len(rows[i])]), tuple((line[p],) for p in at), tuple(logs[p] for p in at))
    return [out[i] for i in range(len(rows))]


def _filled(model: Model, rows: Sequence[Sequence[int]], mask_id: int, passes: int | None,
            banned: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens and the log-probabilities of those put in, ``(B, T)``."""
    tokens, real = (t.to(model.device) for t in _laid(rows))
    logprobs, total = torch.zeros(tokens.shape, device=tokens.device), ((tokens == mask_id) & real).sum(1)
    for done in range(int(total.max()) if passes is None else passes):
        open_ = (tokens == mask_id) & real
        left = open_.sum(1)
        if not bool(left.any()):
            break
        busy = left.nonzero().squeeze(1)
        logs = _logs(model, tokens[busy], real[busy], open_[busy])
        sure, ids = logs.index_fill(1, banned, -torch.inf).max(1)
        quota = torch.ones_like(left) if passes is None else -(-left // (passes - done))
        certain = torch.full(tokens.shape, -torch.inf, device=tokens.device).masked_scatter(open_, sure)
        rank = certain.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        now = open_ & (rank < quota[:, None])
        tokens = torch.where(now, torch.zeros_like(tokens).masked_scatter(open_, ids), tokens)
        logprobs = torch.where(now, certain, logprobs)
    return tokens, logprobs


def _logs(model: Model, tokens: Tensor, real: Tensor, at: Tensor) -> Tensor:
    """Log-probabilities ``(M, V)`` at the places ``at (B, T)``; the head sees those alone."""
    documents = None if bool(real.all()) else torch.where(real, 0, -1).to(torch.int32)
    batch = Batch(tokens, documents=documents).to(model.device)
    hidden = model.hidden(batch)[at.to(model.device)]
    return torch.log_softmax(model.head(hidden), 1)


def fill_spans(engine: Engine, sources: Sequence[Sequence[int]], *, span_ids: Sequence[int], bos_id: int, eos_id: int,
               max_tokens: int, sampling: Sampling | None = None, seed: int = 0) -> list[Filled]:
    """Each source with its gaps filled by an encoder-decoder: gap i is marked by ``span_ids[i]``, and what it writes
    between that sentinel and the next stands there, at most ``max_tokens`` of it; the likeliest without ``sampling``.

    The sentinels are given to the model one after another, so every gap is answered; a gap may turn out empty. A
    source's own ``eos_id`` at its end is part of it and stays.
    """
    gaps = [_gaps(source, span_ids, i) for i, source in enumerate(sources)]
    written: list[list[int]] = [[bos_id] for _ in sources]
    said: list[list[tuple[int, ...]]] = [[] for _ in sources]
    logs: list[list[float]] = [[] for _ in sources]
    stops = tuple(dict.fromkeys((*span_ids, eos_id)))
    for number in range(max((len(g) for g in gaps), default=0)):
        rows = [i for i, g in enumerate(gaps) if len(g) > number]
        ask = Request((), max_tokens, sampling or Sampling(temperature=0), stop_ids=stops, logprobs=0)
        requests = [replace(ask, tokens=(*written[i], span_ids[number]), seed=(seed + i) % 2**64,
                            source=tuple(sources[i])) for i in rows]
        for i, done in zip(rows, engine.generate(requests), strict=True):
            tokens = done.tokens[:-1] if done.finish_reason == "stop" else done.tokens
            written[i] += [span_ids[number], *tokens]
            said[i].append(tokens)
            logs[i].append(sum(done.logprobs))
    return [Filled(_joined(source, g, s), tuple(s), tuple(n))
            for source, g, s, n in zip(sources, gaps, said, logs, strict=True)]


def _gaps(source: Sequence[int], span_ids: Sequence[int], row: int) -> list[int]:
    """Where the gaps of a source are."""
    at = [p for p, token in enumerate(source) if token in set(span_ids)]
    if not at or [source[p] for p in at] != list(span_ids[: len(at)]):
        raise RequestError(f"the source marks the gaps {[source[p] for p in at]}, not {list(span_ids[: len(at) or 1])}",
                           where=f"row {row}", way_out="mark the gaps with the sentinels in their order, each once")
    return at


def _joined(source: Sequence[int], gaps: Sequence[int], said: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    out = list(source[: gaps[0]])
    for (start, stop), tokens in zip(pairwise([*gaps, len(source)]), said, strict=True):
        out += [*tokens, *source[start + 1 : stop]]
    return tuple(out)


def _check(model: Model, rows: Sequence[Sequence[int]], mask_id: int) -> None:
    if model.config.traits.generates or not isinstance(model.head, TokenHead):
        raise ModelError("fills no masks: that takes an encoder with a head of tokens",
                         way_out="let a decoder go on with the text, or an encoder-decoder fill marked gaps")
    for i, row in enumerate(rows):
        if mask_id not in row:
            raise RequestError(f"has no blank: the mask {mask_id} is not in it", where=f"row {i}")
        if len(row) > model.context_length:
            raise RequestError(f"a row of {len(row)} tokens does not fit a context of {model.context_length}",
                               where=f"row {i}", way_out=f"shorten it to {model.context_length} tokens at most")
        if not 0 <= min(row) <= max(row) < model.vocab_size:
            raise RequestError(f"a token is outside the vocabulary of {model.vocab_size}", where=f"row {i}",
                               way_out="encode the text with the model's own tokenizer")


def _groups(rows: Sequence[Sequence[int]], most: int) -> list[list[int]]:
    """Neighbours in length, so that little is padded."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    return [order[i : i + most] for i in range(0, len(order), most)]


def _laid(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Tokens padded on the right, and which of them are real, ``(B, T)``."""
    width = max(map(len, rows))
    tokens, real = np.zeros((len(rows), width), np.int64), np.zeros((len(rows), width), np.bool_)
    for line, mine, row in zip(tokens, real, rows, strict=True):
        line[: len(row)], mine[: len(row)] = row, True
    return torch.from_numpy(tokens), torch.from_numpy(real)
