"""Work: what all stages of a run share: folder, recipe, machine, ranks, screen, clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from cutaway.data.conversations import Conversation
from cutaway.device import Device, Machine, compute_dtype, peak_rss_bytes
from cutaway.errors import DataError
from cutaway.evaluate.held import HeldOut
from cutaway.models.adapted import open_model, open_tokenizer
from cutaway.models.model import Model
from cutaway.records import Bar, Screen
from cutaway.run.folder import Run
from cutaway.run.place import model_folder
from cutaway.run.recipe import FolderModel, Recipe, SecondsBudget
from cutaway.text.tokenizer import Tokenizer
from cutaway.text.tokenizer import load as load_tokenizer
from cutaway.train.judge import ProgramJudge, TextJudge, program_judge
from cutaway.train.parallel import Parallel
from cutaway.train.reward import prompt

TIMED = ("pretrain", "finetune", "preferences", "reward", "align")
EVALUATED_AFTER = ("pretrain", "finetune", "align")
LEAST = 0.4


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop and has saved; ``cutaway resume`` goes on from here."""


class Unseen:
    """Progress that nobody sees."""

    def advance(self, amount: float, text: str = "") -> None:
        """Shows nothing."""


def fitting(conversations: Sequence[Conversation], tokenizer: Tokenizer, room: int) -> tuple[list[str], int]:
    """The distinct requests of at most ``room`` tokens, and how many are longer. Raises DataError if all are."""
    requests = list(dict.fromkeys(c.request for c in conversations))
    kept = [r for r in requests if len(prompt(r, tokenizer)) <= room]
    if not kept:
        raise DataError(f"none of {len(requests):,} requests fits {room} tokens",
                        way_out="raise model.context_length or lower max_tokens")
    return kept, len(requests) - len(kept)


@dataclass(frozen=True)
class Text:
    """What a run reads of its corpus once and keeps in ``data/``: later changes of the files cannot change the run."""

    train: tuple[Conversation, ...]
    test: tuple[Conversation, ...]
    kind: str
    valid: HeldOut
    held: HeldOut

    @property
    def learned(self) -> Iterator[str]:
        """Every request and answer of the training split."""
        return (text for c in self.train for text in (c.request, c.answer))


@dataclass
class Work:
    """A session on a run. ``earlier`` is the seconds that former sessions took."""

    run: Run
    recipe: Recipe
    device: Device
    machine: Machine
    parallel: Parallel
    screen: Screen
    asked: Callable[[], bool]
    earlier: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    @property
    def elapsed(self) -> float:
        """Seconds of this run so far, all sessions together."""
        return self.earlier + time.perf_counter() - self.started

    @property
    def first(self) -> bool:
        """Whether this rank writes."""
        return self.parallel.rank == 0

    @property
    def dtype(self) -> torch.dtype:
        """What products are computed in."""
        return compute_dtype(self.recipe.dtype, self.device)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The run's tokenizer."""
        return load_tokenizer(self.run.folder / "tokenizer")

    @cached_property
    def text(self) -> Text:
        """The run's conversations and held-out text."""
        from cutaway.run.stage_text import read_text

        return read_text(self.run)

    @cached_property
    def judge(self) -> ProgramJudge | TextJudge:
        """The program that checks answers of this run's kind."""
        return program_judge(self.text.kind, self.text.learned)

    def place(self, name: str) -> Path:
        """Where a model of this run lies; ``base`` may be one that was there before."""
        model = self.recipe.model
        return model_folder(model.path) if name == "base" and isinstance(model, FolderModel) else self.run.model(name)

    def load(self, name: str) -> Model:
        """A finished model of this run, or the one it begins with, on this run's device; adapters stand beside."""
        model = open_model(self.place(name)).to(self.device.torch)
        model.compute_dtype = self.dtype
        return model

    def own_tokenizer(self) -> Tokenizer:
        """The tokenizer of the model that the run begins with."""
        return open_tokenizer(self.place("base"))

    def fitting(self, conversations: Sequence[Conversation], max_tokens: int) -> list[str]:
        """The distinct requests that leave room for an answer of ``max_tokens``; how many do not is noted."""
        context = self.recipe.model.context_length
        kept, left_out = fitting(conversations, self.tokenizer, context - max_tokens)
        if left_out:
            self.note(f"{left_out:,} of {len(kept) + left_out:,} requests are left out: with an answer of {max_tokens} "
                      f"tokens they do not fit the context of {context}")
        return kept

    def note(self, text: str) -> None:
        """One line for people, from the first rank."""
        if self.first:
            self.screen.note(text)

    def progress(self, name: str, *, total: float) -> AbstractContextManager[Bar]:
        """Progress in steps, shown by the first rank."""
        return self.screen.progress(name, total=total, unit="steps") if self.first else nullcontext(Unseen())

    def append(self, row: Mapping[str, Any]) -> None:
        """One row of the training log."""
        if self.first:
            self.run.log.append(row)

    def event(self, stage: str, event: str, facts: Mapping[str, Any] | None = None) -> None:
        """One row of stages.jsonl."""
        if self.first:
            self.run.stages.append({"stage": stage, "event": event, "elapsed": round(self.elapsed, 3),
                                    "peak_rss_bytes": peak_rss_bytes(), **(facts or {})})

    def shared(self, value: float) -> float:
        """The first rank's value, on every rank."""
        mine = torch.tensor(value if self.first else 0.0, dtype=torch.float64)
        return float(self.parallel.all_sum(mine))

    def summed(self, statistics: Mapping[str, tuple[float, float]]) -> dict[str, float]:
        """``name -> (sum, weight)`` of every rank as ratios of the totals."""
        flat = torch.tensor([x for pair in statistics.values() for x in pair], dtype=torch.float64)
        total = self.parallel.all_sum(flat).tolist()
        return {name: total[2 * i] / max(total[2 * i + 1], 1e-12) for i, name in enumerate(statistics)}

    def check(self) -> None:
        """Stop here if the run was asked to: on one rank alone, where nothing has to be saved first."""
        if self.asked():
            raise Interrupted(self.run.folder)

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Work of the first rank, for which the others wait."""
        yield self.first
        self.shared(1.0)

    def with_budget(self, stage: str, budget: Any) -> None:
        """Write down a stage's resolved length, so that the run's recipe repeats this very run."""
        self.recipe = self.recipe.with_budget(stage, budget)
        if self.first:
            self.run.write_recipe(self.recipe)

    def allowance(self, stage: str, seconds: float) -> float:
        """What a stage may take so that the whole keeps ``recipe.seconds``: its budget, or its part of what is left.

        The evaluations still to come are expected to take as long as the last one did. However late it is, a stage gets
        ``LEAST`` of its own budget: a model that learned nothing in time is worth nothing.
        """
        if self.recipe.seconds is None:
            return seconds
        later = TIMED[TIMED.index(stage):]
        planned = sum(b.seconds for s in later if (settings := getattr(self.recipe, s)) is not None
                      if isinstance(b := getattr(settings, "budget", None), SecondsBudget))
        took = [r["seconds"] for r in self.run.rows(self.run.stages)
                if r.get("event") == "done" and r["stage"].startswith("evaluate") and r["stage"] != "evaluate-proxy"]
        reserve = (took or [0.0])[-1] * sum(s in later and getattr(self.recipe, s) is not None for s in EVALUATED_AFTER)
        left = self.recipe.seconds - self.elapsed - reserve
        return self.shared(seconds * min(1.0, max(left / planned, LEAST)))
