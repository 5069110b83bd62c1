"""Diff: what two runs were told, what they read, and what came of it, side by side with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cutaway.records import Measurement
from cutaway.run.folder import Run
from cutaway.run.stage_evaluate import figures


@dataclass(frozen=True)
class Difference:
    """``settings`` and ``data`` that differ, as path -> (first, second); ``figures`` of either."""

    settings: dict[str, tuple[Any, Any]]
    data: dict[str, tuple[Any, Any]]
    figures: dict[str, tuple[Measurement | None, Measurement | None]]


def difference(a: Run, b: Run) -> Difference:
    """Compare two runs."""
    settings = _differing(a.recipe.model_dump(mode="json"), b.recipe.model_dump(mode="json"))
    lineages = [run.read_json("lineage.json") or {} for run in (a, b)]
    one, two = ({k: row.get(k) for k in ("tokenizer", "data")} for row in lineages)
    first, second = figures(a), figures(b)
    names = dict.fromkeys((*first, *second))
    return Difference(settings, _differing(one, two), {n: (first.get(n), second.get(n)) for n in names})


def verdict(a: Measurement | None, b: Measurement | None) -> str:
    """What the two intervals say: apart, overlapping, or nothing."""
    if a is None or b is None or a.low is None or b.low is None or a.high is None or b.high is None:
        return ""
    if a.high < b.low:
        return "higher"
    return "lower" if b.high < a.low else "intervals overlap"


def _differing(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    out: dict[str, tuple[Any, Any]] = {}
    for key in dict.fromkeys((*a, *b)):
        one, two = a.get(key), b.get(key)
        if isinstance(one, Mapping) and isinstance(two, Mapping):
            out |= _differing(one, two, f"{prefix}{key}.")
        elif one != two:
            out[f"{prefix}{key}"] = (one, two)
    return out
