"""What a reader of a comparison's scores has to know of its data: notes, and the rows that were left out and why."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cutaway.data.documents import Skipped
from cutaway.errors import RunError
from cutaway.records import atomic_write

FILE = "data/notes.json"


@dataclass(frozen=True)
class DataNotes:
    """``notes`` in words; ``skipped`` as ``Skipped.to_dict`` gives it: counts, the list, how many are not listed."""

    notes: tuple[str, ...] = ()
    skipped: dict[str, Any] = field(default_factory=lambda: Skipped().to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {**asdict(self), "notes": list(self.notes)}

    @property
    def listed(self) -> list[str]:
        """A line for each row that was left out and is known by name, and one for those that are not."""
        lines = [f"{r['name']}: {r['reason']}" + (f" ({r['detail']})" if r["detail"] else "")
                 for r in self.skipped["listed"]]
        more = self.skipped["not_listed"]
        return [*lines, f"and {more:,} more that are counted and not listed"] if more else lines


def write_notes(folder: Path, notes: Iterable[str], skipped: Skipped) -> None:
    """Keep them beside the data, for every report that is written later."""
    kept = DataNotes(tuple(notes), skipped.to_dict())
    atomic_write(folder / FILE, json.dumps(kept.to_dict(), indent=1, ensure_ascii=False))


def read_notes(folder: Path) -> DataNotes:
    """What was kept. Raises RunError where the file is damaged."""
    path = folder / FILE
    try:
        row = json.loads(path.read_text("utf-8"))
        return DataNotes(tuple(map(str, row["notes"])), {k: row["skipped"][k] for k in Skipped().to_dict()})
    except FileNotFoundError:
        # a comparison that was prepared before notes were kept
        return DataNotes(("what was left out of the data was not kept when this comparison was prepared",))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"damaged or unreadable ({error})", where=path,
                       way_out="delete it to do without the notes, or begin the comparison again") from None
