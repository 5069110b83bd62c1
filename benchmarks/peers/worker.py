"""A contender's side of a training race: what it is to build, and turns given to it through pipes.

One process a contender, so that memory is its own; the race tells it how many steps to run, all others wait
meanwhile. Only torch and the standard library are needed here, so that it runs in a peer's environment too.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

CLIP = 1.0
ADAMW: dict[str, Any] = {"lr": 3e-4, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


@dataclass(frozen=True)
class Case:
    """One shape in one dtype on one device; ``inner`` is the width of a gated feed-forward of about 8/3 the width."""

    num_layers: int
    hidden_size: int
    num_heads: int
    context: int
    batch: int
    vocab_size: int
    inner: int
    dtype: str
    device: str
    threads: int
    compiled: bool = False
    cell: str = "lstm"  # of a recurrent model

    def autocast(self) -> AbstractContextManager[Any]:
        """bf16 autocast as the peers use it, or nothing in fp32."""
        if self.dtype == "float32":
            return nullcontext()
        return torch.autocast(self.device, dtype=torch.bfloat16)

    def batches(self, count: int = 8) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Random tokens and what follows them, ``(batch, context)`` each: what they are makes no step faster."""
        draw = torch.Generator().manual_seed(1)
        rows = [
            torch.randint(self.vocab_size, (self.batch, self.context + 1), generator=draw)
            for _ in range(count)
        ]
        return [(r[:, :-1].contiguous().to(self.device), r[:, 1:].contiguous().to(self.device)) for r in rows]


class Turns:
    """Steps a contender may take: ``for _ in turns: step()``. Before each step that was not asked for it waits."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.left, self.began, self.asked = 0, 0.0, 0
        self.note: dict[str, Any] = {}
        self.out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what libraries print goes to the log, not into the conversation

    def __iter__(self) -> Iterator[int]:
        number = 0
        while True:
            if self.left == 0 and not self._wait():
                return
            self.left -= 1
            yield number
            number += 1

    def _wait(self) -> bool:
        self._sync()
        if self.asked:
            self._say(
                {
                    "steps": self.asked,
                    "seconds": time.perf_counter() - self.began,
                    "memory": peak_memory(self.case.device),
                    **self.note,
                }
            )
        line = sys.stdin.readline()
        self.asked = self.left = int(line) if line.strip() else 0
        self._sync()
        self.began = time.perf_counter()
        return self.left > 0

    def _sync(self) -> None:
        if self.case.device == "cuda":
            torch.cuda.synchronize()

    def _say(self, row: dict[str, Any]) -> None:
        self.out.write(json.dumps(row) + "\n")
        self.out.flush()


def enter() -> tuple[Case, Turns]:
    """The case this process was started for (JSON in its first argument) and its turns."""
    case = Case(**json.loads(sys.argv[1]))
    turns = Turns(case)
    torch.set_num_threads(case.threads)
    torch.manual_seed(0)
    if case.device == "cuda":
        torch.set_float32_matmul_precision("high")
    return case, turns


def peak_memory(device: str) -> int:
    """Largest resident memory of this process, or largest memory allocated on the accelerator, in bytes."""
    if device == "cuda":
        return int(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status")
    if status.exists():
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(peak.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def race(case: Case, turns: Turns, model: torch.nn.Module, loss_of: Any) -> None:
    """The plain loop: forward under autocast, backward, clip, fused AdamW. ``loss_of(model, tokens, targets)``."""
    batches = case.batches()
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], fused=True, **ADAMW)
    turns.note["parameters"] = sum(p.numel() for p in model.parameters())
    if case.compiled:
        model = torch.compile(model)  # type: ignore[assignment]
    for number in turns:
        tokens, targets = batches[number % len(batches)]
        with case.autocast():
            loss = loss_of(model, tokens, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        turns.note["loss"] = loss.item()
