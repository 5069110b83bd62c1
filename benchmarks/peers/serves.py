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


def prompts(case: Case, number: int) -> Rows:
    """Random ids, ``batch`` rows of ``context``: others at each call, so that nothing was read before."""
    import torch

    draw = torch.Generator().manual_seed(number)  # control tokens have the lowest ids
    found: Rows = torch.randint(1000, case.vocab_size, (case.batch, case.context), generator=draw).tolist()
    return found


def go(turns: Turns, build: Callable[[Case, dict[str, Any]], Write]) -> None:
    """Load, then as many steps as are asked for: each answers prompts with one token, and others with all. A step of
    "repeat" or "ordinary" answers every text, one after another. Seconds are summed over a turn."""
    case = turns.case
    asked = given(case)
    began = time.perf_counter()
    write = build(case, asked)
    turns.note |= {"load_seconds": time.perf_counter() - began, "parameters": 0, "loss": 0.0}
    counts = list(dict.fromkeys((1, case.inner)))
    for number in turns:
        if turns.left == turns.asked - 1:  # the first of a turn
            turns.note |= {"read_seconds": 0.0, "whole_seconds": 0.0, "written": 0}
        if case.work in asked:
            for text in asked[case.work]:
                seconds, out = timed(write, [text], case.inner)
                turns.note["whole_seconds"] += seconds
                turns.note["written"] += len(out[0])
            continue
        for place, count in enumerate(counts):
            seconds, out = timed(write, prompts(case, len(counts) * number + place), count)
            made = [len(row) for row in out]
            assert made == [count] * case.batch, f"asked for {count} tokens each, got {made}"
            turns.note["read_seconds"] += seconds * (count == 1)
            turns.note["whole_seconds"] += seconds * (count == case.inner)
        turns.note["written"] += sum(made)


def timed(write: Write, rows: Rows, count: int) -> tuple[float, Rows]:
    """How long an answer takes, and what it is."""
    began = time.perf_counter()
    out = write(rows, count)
    return time.perf_counter() - began, out
