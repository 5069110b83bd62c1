"""A small corpus of documented functions, and a recipe that goes through every stage on it in seconds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

VERBS = ("add", "join", "scale", "count", "shift", "clip", "merge", "split", "trim", "swap")
NOUNS = ("row", "word", "list", "table", "node", "path", "item", "page", "list_of_names", "value")

TINY = [
    "tokenizer.vocab_size=300", "model.hidden_size=16", "model.num_layers=1", "model.intermediate_size=32",
    "model.context_length=128", "pretrain.rows=4", "pretrain.budget.steps=8", "finetune.rows=8",
    "finetune.budget.steps=8", "preferences.budget.requests=48", "preferences.max_tokens=16", "reward.budget.steps=6",
    "reward.rows=4", "align.budget.steps=4", "align.rollouts.prompts=2", "align.rollouts.samples=2",
    "align.rollouts.max_tokens=8", "evaluate.bytes=4000", "evaluate.requests=8", "evaluate.max_tokens=8",
    "checkpoint.steps=3", "dtype=float32", "threads=1",
]


def write_corpus(folder: Path) -> Path:
    """A hundred modules, each with one documented function and a little more text."""
    folder.mkdir(parents=True)
    for verb in VERBS:
        for noun in NOUNS:
            name = f"{verb}_{noun}"
            text = (f'"""Module {name}."""\n\n\ndef {name}(a, b):\n    """{verb.title()} a {noun} to b."""\n'
                    f"    return a + b + {len(name)}\n\n\n{name.upper()} = {name}(1, {len(noun)})\n")
            (folder / f"{name}.py").write_text(text)
    return folder


def tiny(corpus: Path, *more: str) -> list[str]:
    """Words behind ``cutaway run debug``."""
    return [f"data.path={corpus}", *TINY, *more]


def cutaway(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Type a command line."""
    return subprocess.run([sys.executable, "-m", "cutaway", *words], cwd=cwd, capture_output=True, text=True,
                          timeout=240, check=False, env={**os.environ, "PYTHONWARNINGS": "error"})


def last_json(text: str) -> dict[str, object]:
    """The last line of stdout as JSON."""
    found = json.loads(text.strip().split("\n")[-1])
    assert isinstance(found, dict)
    return found


class Crash(Exception):
    """The process dies here: nothing more is saved."""


@dataclass
class Trap:
    """A screen that stops the run at one step of one stage."""

    stage: str = ""
    step: int = 0
    how: str = ""
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        self.notes.append(text)

    @contextmanager
    def progress(self, name: str, *, total: float, unit: str) -> Iterator[Trap]:
        self.name, self.left = name, self.step
        yield self

    def advance(self, amount: float, text: str = "") -> None:
        self.left -= 1
        if self.name == self.stage and self.left == 0:
            if self.how == "crash":
                raise Crash
            os.kill(os.getpid(), getattr(signal, self.how))
