"""Cutaway's own contender in ``inference.py``."""

from __future__ import annotations

from typing import Any

import cutaway  # noqa: F401  (first, as a user has it: it sets how long waiting threads spin)

# isort: split
import torch
from reads import Step, given, go, prompts, texts
from worker import Case, enter

from cutaway.batch import Batch
from cutaway.generate.engine import Engine
from cutaway.generate.request import Request, Sampling
from cutaway.models.folder import load_model
from cutaway.models.open import open_embedder, open_language_model


def embedding(case: Case, asked: dict[str, Any]) -> Step:
    """A batch of sentences to vectors."""
    embedder = open_embedder(asked["encoder"], precision=case.dtype, too_long="cut")  # type: ignore[arg-type]
    batches = texts(case, asked)
    return lambda number: float(embedder.vectors(batches[number % len(batches)]).sum())


def writing(case: Case, asked: dict[str, Any]) -> Step:
    """``inner`` greedy tokens behind each prompt; of reading alone, the first."""
    model = open_language_model(asked["decoder"], precision=case.dtype)  # type: ignore[arg-type]

    def step(number: int) -> float:
        rows = [Request(tuple(row), case.inner, Sampling(temperature=0)) for row in prompts(case, number).tolist()]
        return float(sum(sum(answer.tokens) for answer in Engine(model).generate(rows)))

    return step


def loading(asked: dict[str, Any]) -> Step:
    """Open a model in float32 and read three tokens with it."""
    return lambda number: float(load_model(asked["decoder"]).eval()(Batch(torch.tensor([[1, 2, 3]]))).sum())


if __name__ == "__main__":
    case, turns = enter()
    asked = given(case)
    if case.work == "load":
        go(turns, lambda: loading(asked))
    else:
        go(turns, lambda: (embedding if case.work.startswith("sentences") else writing)(case, asked))
