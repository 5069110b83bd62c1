"""What ``inference.py`` asks of everybody: the file that its case names, and steps of reading or writing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from worker import Case, Turns

Step = Callable[[int], float]  # the number of a step -> something that depends on all that it made


def given(case: Case) -> dict[str, Any]:
    """Models, texts and prompts."""
    found: dict[str, Any] = json.loads(Path(case.network).read_text())
    return found


def texts(case: Case, asked: dict[str, Any]) -> list[list[str]]:
    """Batches of sentences."""
    rows: list[str] = asked[case.work]
    return [rows[i : i + case.batch] for i in range(0, len(rows), case.batch)]


def prompts(case: Case, number: int) -> torch.Tensor:
    """Random tokens ``(batch, context)``: other ones at each step, so that nothing was read before."""
    draw = torch.Generator().manual_seed(number)
    return torch.randint(1000, case.vocab_size, (case.batch, case.context), generator=draw)


def go(turns: Turns, build: Callable[[], Step]) -> None:
    """Build, then as many steps as are asked for."""
    began = time.perf_counter()
    step = build()
    turns.note |= {"load_seconds": time.perf_counter() - began, "loss": 0.0, "parameters": 0}
    with torch.inference_mode():
        for number in turns:
            began = time.perf_counter()
            turns.note["loss"] = step(number)
            turns.note.setdefault("first_seconds", time.perf_counter() - began)
