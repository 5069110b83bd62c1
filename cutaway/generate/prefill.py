"""What sampling and searching begin with: requests are checked, and their sources and prompts read into one state."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cutaway.generate.request import Request
from cutaway.generate.rows import unique
from cutaway.models.model import LanguageModel, State

READ = 2**21  # query-key pairs of one pass over prompts: bounds the memory that attention scores take


def checked(model: LanguageModel, requests: Sequence[Request]) -> list[Request]:
    """The requests with their numbers. Raises RequestError for the first that ``model`` cannot serve."""
    many = len(requests) > 1
    return [r.checked(vocab_size=model.vocab_size, context_length=model.context_length,
                      reads_source=model.reads_source, name=f"request {i}" if many else "request")
            for i, r in enumerate(requests)]


def read(model: LanguageModel, requests: Sequence[Request], capacity: int) -> tuple[Tensor, State]:
    """Logits after each prompt ``(R, V)`` and the state of ``capacity`` tokens; equal (source, prompt) are read once,
    long prompts in pieces."""
    firsts, where = unique(requests)
    prompts = [requests[i].tokens for i in firsts]
    sources = [s for i in firsts if (s := requests[i].source) is not None]
    state = (model.new_state(len(firsts), capacity=capacity, sources=sources) if sources
             else model.new_state(len(firsts), capacity=capacity))
    logits = _prompts(model, prompts, state)
    if len(firsts) < len(requests):
        rows = torch.tensor(where, device=logits.device)
        logits, state = logits[rows], state.select(rows)
    return logits, state


def _prompts(model: LanguageModel, prompts: Sequence[tuple[int, ...]], state: State) -> Tensor:
    device = state.lengths.device
    lengths = torch.tensor([len(p) for p in prompts], device=device)
    width = max(len(p) for p in prompts)
    tokens = torch.zeros(len(prompts), width, dtype=torch.long)
    for row, p in zip(tokens, prompts, strict=True):
        row[: len(p)] = torch.tensor(p)
    tokens = tokens.to(device)
    piece = max(1, min(width, READ // (len(prompts) * width)))
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
