"""The report of a comparison: report.html and report.md from its outcomes (one page, no network)."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

from cutaway.records import atomic_write
from cutaway.run import compare_words as words
from cutaway.run.compare import Compared, machine_of
from cutaway.run.compare_chart import Point, frontier_chart
from cutaway.run.compare_parts import Outcome
from cutaway.run.compare_verdict import side_of
from cutaway.run.report_charts import Frame, Interval, compact, intervals
from cutaway.run.report_figures import Picture
from cutaway.run.report_forms import Headline, Table, shown, size
from cutaway.run.report_html import render
from cutaway.run.report_markdown import table_lines
from cutaway.settings import to_toml

SECTIONS = (("numbers", "What came out"), ("frontier", "What it costs"), ("failures", "Where they fail"),
            ("data", "The data"), ("systems", "Systems"), ("limits", "When this is wrong"))
HALF = 520
COSTS = {"latency": ("Latency", "seconds of {item}"), "training": ("Training", "seconds of training"),
         "size": ("Size", "bytes on disk")}
TONES = {"best": "t3", "level": "t2", "apart": "t0"}


def write_report(c: Compared) -> None:
    """Write both files, each whole or not at all."""
    atomic_write(c.folder / "report.html", page(c))
    atomic_write(c.folder / "report.md", markdown(c))


def page(c: Compared) -> str:
    """The whole page."""
    facts: dict[str, Any] = {
        "name": c.comparison.name, "summary": f"{len(c.outcomes)} systems on {c.comparison.task.kind}, the same text "
        f"and split, {words.budget_words(c)}.", "finding": words.finding(c), "headlines": headlines(c),
        "pictures_list": [quality_picture(c)], "quality": words.quality_table(c),
        "making": words.making_table(c), "using": words.using_table(c),
        "frontiers": frontier_pictures(c), "failures": failures(c), "machine": machine_table(c),
        "recipe": to_toml(c.comparison), "limits": words.limits(c), "yardstick": c.yardstick,
        "data": c.data}
    return render("compare.html", facts, sections=SECTIONS)


def headlines(c: Compared) -> list[Headline]:
    """Four large numbers: the best, the simplest as good, the fastest, the smallest."""
    form = words.form_of(c)
    best, simplest = words.standing(c, c.verdict.best), words.standing(c, c.verdict.simplest)
    unit = c.yardstick.unit if c.yardstick.better == "lower" else ""
    fastest = min(c.outcomes, key=lambda o: median(o.latencies))
    smallest = min(c.outcomes, key=lambda o: o.disk_bytes)
    return [
        Headline(f"Best: {best.name}", form(best.quality.value), unit, shown(best.quality, form)),
        Headline(f"Simplest that cannot be told from it: {simplest.name}", form(simplest.quality.value), unit,
                 shown(simplest.quality, form)),
        Headline(f"Fastest: {fastest.name}", words.latency(fastest.latencies, 0.5), c.yardstick.item,
                 f"quality {form(words.standing(c, fastest.name).quality.value)}"),
        Headline(f"Smallest: {smallest.name}", size(smallest.disk_bytes), "on disk",
                 f"quality {form(words.standing(c, smallest.name).quality.value)}")]


def quality_picture(c: Compared) -> Picture:
    """Every system's quality and interval on one axis, from best to worst."""
    form = words.form_of(c)
    rows = [Interval(s.name, s.quality.value, s.quality.low, s.quality.high, form(s.quality.value),
                     TONES[side_of(c.verdict, s.name)]) for s in c.verdict.standings]
    values = [v for r in rows for v in (r.value, r.low, r.high) if v is not None]
    spread = max(values) - min(values) or abs(max(values)) or 1.0
    frame = Frame("quality", f"{c.yardstick.figure} of every system", "; ".join(f"{r.label} {r.note}" for r in rows),
                  f"{c.yardstick.unit}, {c.yardstick.better} is better")
    chart = intervals(frame, rows, low=max(0.0, min(values) - 0.1 * spread), high=max(values) + 0.1 * spread,
                      text=form, left=150)
    return Picture("Quality", chart, "A dot is a system, its line 95 % of resamples of items and seeds. Grey systems "
                   "can be told from the best.", None, wide=True)


def frontier_pictures(c: Compared) -> list[Picture]:
    """Quality against each cost."""
    return [_frontier(c, name) for name in COSTS]


def _frontier(c: Compared, cost: str) -> Picture:
    heading, axis = COSTS[cost]
    kept, form = c.verdict.frontier[cost], words.form_of(c)
    points = []
    for o in c.outcomes:
        q = words.standing(c, o.name).quality
        points.append(Point(o.name, _cost(o, cost), q.value, q.low, q.high, o.name in kept))
    text: Callable[[float], str] = _bytes if cost == "size" else _seconds
    frame = Frame(f"frontier-{cost}", f"Quality against {heading.lower()}", "; ".join(
        f"{p.name}: {text(p.x)}, {form(p.y)}" for p in points), axis.format(item=c.yardstick.item), width=HALF,
        height=340)
    reading = f"On the frontier: {', '.join(kept)}. Grey systems are beaten on both counts by another."
    return Picture(heading, frontier_chart(frame, points, x_format=text, y_format=form), reading, None)


def _bytes(value: float) -> str:
    return f"{compact(value)}B"


def _seconds(value: float) -> str:
    return f"{compact(1000 * value)} ms" if value < 1 else f"{compact(value)} s"


def _cost(o: Outcome, cost: str) -> float:
    if cost == "latency":
        return median(o.latencies)
    return sum(o.train_seconds) / len(o.train_seconds) if cost == "training" else float(o.disk_bytes)


def failures(c: Compared) -> list[dict[str, Any]]:
    """The worst items of every system, a click away."""
    form = words.form_of(c)
    out = []
    for s in c.verdict.standings:
        o = words.outcome(c, s.name)
        items = [{"head": _head(c, e, form), "text": str(e.get("text", "")) + (" …" if e.get("cut") else ""),
                  "wanted": e.get("wanted"), "got": e.get("got")} for e in o.examples]
        out.append({"name": s.name, "items": items, "sample": o.more.get("sample")})
    return out


def _head(c: Compared, example: dict[str, Any], form: Any) -> str:
    score = example.get("score")
    return f"item {example.get('item')}" + ("" if score is None else f": {form(float(score))} {c.yardstick.unit}")


def machine_table(c: Compared) -> Table:
    """Where the costs were measured."""
    m = machine_of(c.comparison)
    rows = (("processor", m.cpu), ("device", c.comparison.device), ("threads", str(c.comparison.threads)),
            ("arithmetic", c.comparison.dtype))
    return Table("Machine", ("", ""), rows, numeric=False)


def markdown(c: Compared) -> str:
    """The same in Markdown."""
    lines = [f"# {c.comparison.name}", "", words.finding(c), "", f"Given: {words.budget_words(c)}.", ""]
    for table in (words.quality_table(c), words.making_table(c), words.using_table(c)):
        lines += [*table_lines(table), ""]
    for name, kept in c.verdict.frontier.items():
        lines.append(f"- {COSTS[name][0]} frontier: {', '.join(kept)}")
    lines += ["", "## The data", "", *(f"- {note}" for note in c.data.notes)]
    if c.data.listed:
        lines += ["", "Left out:", "", *(f"- {line}" for line in c.data.listed)]
    lines += ["", "## When this is wrong", "", *(f"- {limit}" for limit in words.limits(c)), ""]
    return "\n".join(lines)


