"""The report's numbers as Markdown, for places where no page can be shown; the same words and tables as the page."""

from __future__ import annotations

import re
from collections.abc import Iterator

from cutaway.run import report_tables as tables
from cutaway.run import report_words as words
from cutaway.run.report_forms import Table
from cutaway.run.report_page import samples
from cutaway.run.report_read import Evidence


def markdown(e: Evidence) -> str:
    """The whole report."""
    return "\n".join(_lines(e)).rstrip() + "\n"


def _lines(e: Evidence) -> Iterator[str]:
    yield from (f"# {escape(e.name)}", "", escape(words.summary(e)), "")
    yield from ("## What came out", "")
    for h in words.headlines(e):
        beside = f" ({escape(h.beside)})" if h.beside else ""
        yield f"- **{escape(h.label)}:** {h.number} {h.unit}".rstrip() + beside
    yield ""
    yield from table_lines(tables.models_table(e))
    yield from table_lines(tables.compression_table(e))
    yield from _asked(e)
    yield from ("## How it learned", "")
    for stage in e.stages:
        rows = [r for r in e.log.get(stage.key, ()) if r.get("loss") is not None]
        if rows:
            yield (
                f"- {stage.name}: {len(rows):,} steps, loss {rows[0]['loss']:.3f} → {rows[-1]['loss']:.3f}"
                + (f", {stage.skipped} skipped" if stage.skipped else "")
            )
    yield ""
    if e.has("align"):
        found = words.over_optimised(e.log.get("align", ())) if e.has("reward") else ""
        yield from ("## What alignment did", "", escape(found or words.no_alignment(e)), "")
    yield from ("## What it cost", "", escape(words.cost_words(e)), "")
    yield from table_lines(tables.cost_table(e))
    yield from ("## What it read", "", escape(f"{words.source_sentence(e)} {words.data_note(e)}".strip()), "")
    yield from table_lines(tables.data_table(e))
    yield from table_lines(tables.left_out_table(e))
    if e.has("preferences"):
        yield from ("## Who preferred what", "", f"Ranked by {escape(tables.judge_of(e))}.", "")
        yield from table_lines(tables.preferences_table(e))
    yield from ("## Where it came from", "")
    yield from table_lines(tables.lineage_table(e))
    yield from table_lines(tables.machine_table(e))
    yield from ("## When this is wrong", "")
    for limit in words.limits(e):
        yield f"- {escape(limit)}"


def _asked(e: Evidence) -> Iterator[str]:
    yield from ("## The same requests, stage by stage", "", f"Marks are the verdicts of {e.stand_in}.", "")
    for s in samples(e):
        yield from (_quoted(s["request"]), "")
        for a in s["answers"]:
            marks = " ".join(f"{'✓' if met else '✗'} {mark}" for mark, met in a["marks"])
            yield from (f"**{a['model']}** {escape(marks)}".rstrip(), "", *_fenced(a["text"]), "")


def table_lines(t: Table) -> Iterator[str]:
    """A table as lines of Markdown, its caption before it and its note behind."""
    if not t.rows:
        return
    head = t.head if any(t.head) else ("",) * len(t.rows[0])
    align = "---:" if t.numeric else "---"
    yield from (
        f"**{escape(t.caption)}**",
        "",
        _row(head),
        _row(("---", *(align for _ in head[1:])), raw=True),
    )
    for row in t.rows:
        yield _row(row)
    yield ""
    if t.note:
        yield from (escape(t.note), "")


def _row(cells: tuple[str, ...], *, raw: bool = False) -> str:
    return "| " + " | ".join(c if raw else escape(c) for c in cells) + " |"


def escape(text: str) -> str:
    """Text as text: nothing in it is Markdown or HTML, and it stays on one line."""
    return re.sub(r"([\\`*_\[\]<>|#&~])", r"\\\1", " ".join(text.split()))


def _quoted(text: str) -> str:
    return "\n".join(f"> {escape(line)}" for line in text.splitlines() or [""])


def _fenced(text: str) -> list[str]:
    """A fence longer than any run of backticks inside."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return [f"{fence}text", text, fence]
