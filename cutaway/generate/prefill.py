"""What a search begins with: requests are checked, and their sources and prompts read into one state."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from cutaway.generate.request import Request
from cutaway.models.model import LanguageModel, Model, State

Ids = tuple[int, ...]
READ = 2**21  # query-key pairs of one pass over prompts: bounds the memory that attention scores take
SHARED = 32  # tokens that all prompts must begin with to be read once for all: fewer cost less than the copy


def checked(model: LanguageModel, requests: Sequence[Request]) -> list[Request]:
    """The requests with their numbers. Raises RequestError for the first that ``model`` cannot serve."""
    many, adapters = len(requests) > 1, adapters_of(model)
    return [r.checked(vocab_size=model.vocab_size, context_length=model.context_length, adapters=adapters,
                      reads_source=model.reads_source, name=f"request {i}" if many else "request")
            for i, r in enumerate(requests)]


def adapters_of(model: LanguageModel) -> tuple[str, ...]:
    """The names of the adapters that its rows may have."""
    return model.adapters if isinstance(model, Model) else ()


def numbers(adapters: Sequence[str]) -> dict[str | None, int]:
    """What the names of adapters are to a batch's rows; None has none, -1."""
    return {None: -1} | {name: number for number, name in enumerate(adapters)}


def under(model: LanguageModel, adapters: Sequence[int]) -> AbstractContextManager[None]:
    """``model`` reads rows with these adapters meanwhile, by number, -1: none."""
    return model.rows.of(adapters) if isinstance(model, Model) else nullcontext()


def waves(requests: Sequence[Request], rows: int) -> list[list[int]]:
    """Which requests run together: at most ``rows``, neighbours in the lengths of source and prompt, so that little is
    padded."""
    sizes = [(len(r.source or ()), len(r.tokens)) for r in requests]
    order = sorted(range(len(sizes)), key=lambda i: sizes[i])
    return [order[i : i + rows] for i in range(0, len(order), rows)]


def unique(requests: Sequence[Request]) -> tuple[list[int], list[int]]:
    """Places of the first request with each (source, prompt), and which of those each row begins as: a group of answers
    reads its source and its prompt once."""
    place: dict[tuple[Ids | None, Ids], int] = {}
    where = [place.setdefault((r.source, r.tokens), len(place)) for r in requests]
    firsts = dict(zip(reversed(where), reversed(range(len(where))), strict=True))
    return [firsts[i] for i in range(len(place))], where


def read(model: LanguageModel, requests: Sequence[Request], capacity: int) -> tuple[Tensor, State]:
    """Logits after each prompt ``(R, V)`` and the state of ``capacity`` tokens; equal (source, prompt) are read once,
    what all prompts begin with too, long prompts in pieces."""
    firsts, where = unique(requests)
    prompts = [requests[i].tokens for i in firsts]
    sources = [s for i in firsts if (s := requests[i].source) is not None]
    if sources:
        state, rest = model.new_state(len(firsts), capacity=capacity, sources=sources), prompts
    else:
        state, rest = begun(model, prompts, capacity)
    logits = append(model, rest, state)
    if len(firsts) < len(requests):
        rows = torch.tensor(where, device=logits.device)
        logits, state = logits[rows], state.select(rows)
    return logits, state


def begun(model: LanguageModel, prompts: Sequence[Ids], capacity: int) -> tuple[State, list[Ids]]:
    """A state with a row for each prompt, behind what all of them begin with if that is long (the solved items of a
    few-shot prompt), and the rest of each, at least a token."""
    low, high = min(prompts), max(prompts)
    most = min(map(len, prompts)) - 1
    shared = next((i for i in range(most) if low[i] != high[i]), most)  # between the two lie all others
    if len(prompts) == 1 or shared < SHARED:
        return model.new_state(len(prompts), capacity=capacity), list(prompts)
    state = model.new_state(1, capacity=capacity)
    append(model, [low[:shared]], state)
    rows = torch.zeros(len(prompts), dtype=torch.long, device=state.lengths.device)
    return state.select(rows), [p[shared:] for p in prompts]


def append(model: LanguageModel, rows: Sequence[Ids], state: State) -> Tensor:
    """Let the model read rows of ids behind ``state``, in pieces; logits after the last one of each ``(R, V)``."""
    device = state.lengths.device
    lengths = torch.tensor([len(p) for p in rows], device=device)
    width = max(len(p) for p in rows)
    tokens = torch.zeros(len(rows), width, dtype=torch.long)
    for row, p in zip(tokens, rows, strict=True):
        row[: len(p)] = torch.tensor(p)
    tokens = tokens.to(device)
    piece = max(1, min(width, READ // (len(rows) * (int(state.lengths.max()) + width))))
    logits: Tensor | None = None
    for start in range(0, width, piece):
        part = tokens[:, start : start + piece]
        counts = (lengths - start).clamp(0, part.shape[1])
        even = bool((counts == part.shape[1]).all())
        out = model.logits(part, state, counts=None if even else counts)
        ends = (counts > 0)[:, None]
        logits = out if logits is None else torch.where(ends, out, logits)
    assert logits is not None
    return logits
