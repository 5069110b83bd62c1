"""What stands on the page of a run's report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cutaway.run import report_figures as figures
from cutaway.run import report_tables as tables
from cutaway.run import report_words as words
from cutaway.run.report_forms import words as spelt
from cutaway.run.report_html import render
from cutaway.run.report_read import MODELS, NAMES, Evidence, Row

SECTIONS = (
    ("numbers", "What came out"),
    ("answers", "The same requests"),
    ("learning", "How it learned"),
    ("alignment", "What alignment did"),
    ("cost", "Cost"),
    ("data", "Data"),
    ("preferences", "Preferences"),
    ("lineage", "Lineage"),
    ("limits", "When this is wrong"),
)


def page(e: Evidence) -> str:
    """The whole page."""
    stages = {"alignment": "align", "preferences": "preferences"}
    sections = tuple(s for s in SECTIONS if s[0] not in stages or e.has(stages[s[0]]))
    return render("report.html", _facts(e) | {"shown": [key for key, _ in sections]}, sections=sections)


def _facts(e: Evidence) -> dict[str, Any]:
    return {
        "name": e.name,
        "summary": words.summary(e),
        "headlines": words.headlines(e),
        "stand_in": e.stand_in,
        "headline_pictures": figures.headline_pictures(e),
        "samples": samples(e),
        "learning": figures.learning_pictures(e),
        "alignment": figures.alignment_pictures(e),
        "verdict": words.over_optimised(e.log.get("align", ())) if e.has("reward") else "",
        "no_alignment": words.no_alignment(e),
        "trained_on": words.trained_on(e),
        "cost": tables.cost_table(e),
        "cost_words": words.cost_words(e),
        "source": words.source_sentence(e),
        "data_note": words.data_note(e),
        "data": tables.data_table(e),
        "left_out": tables.left_out_table(e),
        "judge": tables.judge_of(e),
        "preferences": tables.preferences_table(e),
        "pair": pair(e),
        "lineage": tables.lineage_table(e),
        "machine": tables.machine_table(e),
        "recipe": (e.folder / "recipe.toml").read_text("utf-8"),
        "limits": words.limits(e),
    }


def samples(e: Evidence) -> list[dict[str, Any]]:
    """Each request that every evaluated model answered, with the answers side by side."""
    found = {m: {str(s["request"]): s for s in v.samples} for m, v in e.evaluations.items()}
    if not found:
        return []
    first = next(iter(found.values()))
    shared = [r for r in first if all(r in answers for answers in found.values())]
    return [
        {"request": r, "answers": [_answer(m, found[m][r]) for m in MODELS if m in found]} for r in shared
    ]


def _answer(model: str, row: Row) -> dict[str, Any]:
    verdict = row.get("verdict")
    known: Mapping[str, Any] = verdict if isinstance(verdict, Mapping) else {}
    marks = [(spelt(k).lower(), v) for k, v in known.items() if isinstance(v, bool) and k != "satisfies"]
    return {
        "model": NAMES[model],
        "tone": figures.TONES[model],
        "text": str(row.get("answer", "")),
        "marks": marks,
        "satisfies": known.get("satisfies"),
    }


def pair(e: Evidence) -> dict[str, str] | None:
    """The first pair of preferences.jsonl."""
    for p in e.preferences:
        for better, worse in p.get("pairs") or ():
            text = [str(a["text"]) for a in p["answers"]]
            return {"request": str(p["request"]), "better": text[better], "worse": text[worse]}
    return None
