"""Cutaway's own contender in ``serve.py``."""

from __future__ import annotations

from typing import Any

import cutaway  # noqa: F401  (first, as a user has it: it sets how long waiting threads spin)

# isort: split
from serves import Rows, Write, go
from worker import Case, enter

from cutaway.generate.engine import Engine
from cutaway.generate.request import Request, Sampling
from cutaway.generate.speculate import PromptLookup
from cutaway.models.open import open_language_model


def writing(case: Case, asked: dict[str, Any]) -> Write:
    """One engine, as a server keeps it; ``attention`` "lookup" lets it propose what stood there before."""
    if case.work == "translate":
        path = asked["t5"]
    else:
        path = asked["cutaway"] if case.dtype in ("int4", "int8") else asked["folder"]
    model = open_language_model(path, precision=case.dtype)  # type: ignore[arg-type]
    engine = Engine(model, guess=PromptLookup if case.attention == "lookup" else None)
    stops = tuple(asked["stop_ids"] if case.work in ("repeat", "ordinary") else ())

    def write(rows: Rows, count: int) -> Rows:
        greedy = Sampling(temperature=0)
        if case.work == "translate":
            requests = [Request((0,), count, greedy, source=tuple(row)) for row in rows]
        else:
            requests = [Request(tuple(row), count, greedy, stop_ids=stops) for row in rows]
        return [list(answer.tokens) for answer in engine.generate(requests)]

    return write


if __name__ == "__main__":
    case, turns = enter()
    go(turns, writing)
