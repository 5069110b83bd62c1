"""What ``serve.py`` asks of everybody: prompts of ids, and how long the first token and all of them take.

Black boxes, so that nobody is asked for an account of his own: the same number of fresh prompts is answered twice, with
one token and with all; what the second takes longer is writing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from worker import Case, Turns

Rows = list[list[int]]
Write = Callable[[Rows, int], Rows]  # prompts, how many new tokens each -> those, greedy, whatever they are


def given(case: Case) -> dict[str, Any]:
    """Where each form of the weights lies, and texts whose answers repeat them."""
    found: dict[str, Any] = json.loads(Path(case.network).read_text())
    return found


def prompts(case: Case, number: int, asked: dict[str, Any]) -> Rows:
    """Ids ``batch`` rows of ``context``: random and others at each call, so that nothing was read before; or, where
    the work is "repeat", the texts in turn."""
    import torch

    if case.work == "repeat":
        texts: Rows = asked["repeat"]
        return [texts[(number * case.batch + i) % len(texts)] for i in range(case.batch)]
    draw = torch.Generator().manual_seed(number)  # control tokens have the lowest ids
    found: Rows = torch.randint(1000, case.vocab_size, (case.batch, case.context), generator=draw).tolist()
    return found


def go(turns: Turns, build: Callable[[Case, dict[str, Any]], Write]) -> None:
    """Load, then as many steps as are asked for: each answers prompts with one token, and others with all."""
    case = turns.case
    asked = given(case)
    began = time.perf_counter()
    write = build(case, asked)
    turns.note |= {"load_seconds": time.perf_counter() - began, "parameters": 0, "loss": 0.0}
    for number in turns:
        seconds = []
        for count in dict.fromkeys((1, case.inner)):
            rows = prompts(case, len(dict.fromkeys((1, case.inner))) * number + (count > 1), asked)
            began = time.perf_counter()
            out = write(rows, count)
            seconds.append(time.perf_counter() - began)
            made = [len(row) for row in out]
            assert case.work == "repeat" or made == [count] * case.batch, f"asked for {count} tokens each, got {made}"
        turns.note |= {"read_seconds": seconds[0], "whole_seconds": seconds[-1], "written": sum(made),
                       "loss": float(sum(map(sum, out)))}
