"""Preferences as versioned JSON lines: a request, its answers, the judge's scores, and the pairs they give."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cutaway.data.rows import has_rows
from cutaway.errors import DataError, RunError
from cutaway.records import atomic_write, digest, read_journal
from cutaway.run.folder import Run
from cutaway.run.recipe import FilePreferences, Recipe
from cutaway.train.reward import Answer

VERSION = 1
Pair = tuple[int, int]


@dataclass(frozen=True)
class Preference:
    """``pairs`` are (chosen, rejected) as indices of ``answers``; ``held_out`` requests only test the reward model."""

    request: str
    answers: tuple[Answer, ...]
    scores: tuple[float, ...]
    pairs: tuple[Pair, ...]
    held_out: bool = False

    def to_row(self, judge: str, stand_in: bool) -> dict[str, Any]:
        """The line of the file; ``chosen`` is the best answer, none where all are equal."""
        best = self.pairs[0][0] if self.pairs else None
        return {"version": VERSION, "judge": judge, "stand_in": stand_in, "request": self.request,
                "answers": [asdict(a) for a in self.answers], "scores": self.scores, "chosen": best,
                "pairs": self.pairs, "held_out": self.held_out}


def pairs_from(scores: Sequence[float], most: int) -> tuple[tuple[Pair, ...], int]:
    """Best against worst, second against last but one, and so on, at most ``most``; and how many of these were ties.

    An answer stands in one pair only, so that the pairs of a request are independent.

    >>> pairs_from([0.1, 0.9, 0.5, 0.5], 3)
    (((1, 0),), 1)
    """
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    found = [(order[k], order[-1 - k]) for k in range(min(most, len(order) // 2))]
    kept = tuple((a, b) for a, b in found if scores[a] > scores[b])
    return kept, len(found) - len(kept)


def hold_out(preferences: Sequence[Preference], share: float, seed: int) -> list[Preference]:
    """``share`` of the requests that gave pairs only test: those of smallest hash, at least one, never all."""
    giving = sorted((p.request for p in preferences if p.pairs), key=lambda r: digest(f"{seed} {r}".encode()))
    held = set(giving[: max(1, min(round(share * len(giving)), len(giving) - 1))])
    return [replace(p, held_out=p.request in held) for p in preferences]


def check_preferences(recipe: Recipe) -> None:
    """Raises DataError where the recipe names a file of preferences that cannot be read as one."""
    if isinstance(recipe.preferences, FilePreferences):
        path = Path(recipe.preferences.path)
        if not path.is_file() or not has_rows(path.name):
            raise DataError("is no jsonl, csv or parquet file", where=path, way_out="check preferences.path")


def write_preferences(run: Run, preferences: Sequence[Preference], *, judge: str, stand_in: bool) -> None:
    """preferences.jsonl, whole or not at all."""
    rows = (json.dumps(p.to_row(judge, stand_in), ensure_ascii=False) for p in preferences)
    atomic_write(run.folder / "preferences.jsonl", "".join(f"{row}\n" for row in rows))


def answer_of(row: dict[str, Any]) -> Answer:
    """The inverse of ``asdict``."""
    return Answer(row["text"], tuple(row["tokens"]), row["finished"])


def read_preferences(run: Run) -> list[Preference]:
    """What ``write_preferences`` kept. Raises RunError for another version or a damaged file."""
    path = run.folder / "preferences.jsonl"
    try:
        rows = read_journal(path)
        for row in rows:
            if row["version"] != VERSION:
                raise RunError(f"preferences of version {row['version']}, this is version {VERSION}", where=path,
                               way_out="begin the run again")
        return [Preference(r["request"], tuple(answer_of(a) for a in r["answers"]), tuple(r["scores"]),
                           tuple((a, b) for a, b in r["pairs"]), r["held_out"]) for r in rows]
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, RunError):
            raise
        raise RunError(f"damaged ({error})", where=path, way_out="begin the run again") from None
