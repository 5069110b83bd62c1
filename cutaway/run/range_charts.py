"""Curves with intervals over distances and lengths, on axes that double; drawn like the other charts of a report.

Architectures differ in shade, dash and the shape of their points, so that no chart needs colour to be read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files

from markupsafe import Markup, escape

from cutaway.records import Measurement
from cutaway.run.report_charts import BOTTOM, LEFT, RIGHT, Format, Frame, compact, ticks

TOP = 40
TONES = {"transformer": ("t3", "s0"), "CNN": ("t2", "s1"), "RNN": ("t1", "s2"), "n-gram": ("t0", "s1")}


@dataclass(frozen=True, slots=True)
class Curve:
    """Measurements in order of ``x``; ``faint`` is one seed beside the curve of all."""

    name: str
    x: Sequence[float]
    points: Sequence[Measurement]
    faint: bool = False


@dataclass(frozen=True, slots=True)
class Border:
    """An upright line: where a receptive field ends, where training ended."""

    x: float
    label: str


def doubling_chart(frame: Frame, curves: Sequence[Curve], borders: Sequence[Border] = (), *,
                   log_y: bool = False) -> Markup:
    """Curves over a doubling x axis, each point with its interval, a name for each curve above."""
    xs = sorted({x for c in curves for x in c.x} | {b.x for b in borders})
    ends = [v for c in curves for m in c.points for v in (m.value, m.low, m.high) if v is not None]
    low = min(ends) if frame.y_low is None else frame.y_low
    high = max(ends) if frame.y_high is None else frame.y_high
    x_of = _axis(math.log2(xs[0]), math.log2(xs[-1]), LEFT + 14, frame.width - RIGHT)
    by_value = _axis(math.log10(low), math.log10(high), frame.height - BOTTOM, TOP) if log_y else \
        _axis(low, high, frame.height - BOTTOM, TOP)

    def _y(value: float) -> float:
        return by_value(math.log10(value) if log_y else value)

    text = frame.y_format or compact
    steps = _decades(low, high) if log_y else ticks(low, high)
    parts = [_level(frame, v, _y(v), text) for v in steps]
    parts += [_below(x, x_of(math.log2(x)), frame) for x in _spread(sorted({x for c in curves for x in c.x}))]
    parts += [_border(b, x_of(math.log2(b.x)), frame, i) for i, b in enumerate(borders)]
    for curve in curves:
        parts.append(_curve(curve, [x_of(math.log2(x)) for x in curve.x], _y))
    parts += _names(list(dict.fromkeys(c.name for c in curves)))
    parts.append(Markup('<text class="axis" x="{}" y="{}" text-anchor="end">{}</text>').format(
        frame.width - RIGHT, frame.height - 5, frame.x_label))
    return Markup('<svg class="chart" viewBox="0 0 {0} {1}" role="img" aria-labelledby="{2}-t {2}-d"><title '
                  'id="{2}-t">{3}</title><desc id="{2}-d">{4}</desc>{5}</svg>').format(
        frame.width, frame.height, escape(frame.key), frame.title, frame.description, Markup("").join(parts))


def _axis(low: float, high: float, start: float, stop: float) -> Callable[[float], float]:
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (stop - start)


def _decades(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten between two values; the powers alone where those are many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    fine = [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high]
    return fine if len(fine) <= 7 else [v for v in fine if round(math.log10(v), 6).is_integer()]


def _spread(values: Sequence[float]) -> list[float]:
    """Values far enough apart to be written beside each other."""
    kept: list[float] = []
    for value in values:
        if not kept or math.log2(value / kept[-1]) > 0.4:
            kept.append(value)
    return kept


def _level(frame: Frame, value: float, y: float, text: Format) -> Markup:
    return Markup('<line class="grid" x1="{0}" x2="{1}" y1="{2:.1f}" y2="{2:.1f}"/><text class="tick" x="{3}" '
                  'y="{4:.1f}" text-anchor="end">{5}</text>').format(LEFT, frame.width - RIGHT, y, LEFT - 6, y + 4,
                                                                     text(value))


def _below(value: float, x: float, frame: Frame) -> Markup:
    return Markup('<text class="tick" x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
        x, frame.height - BOTTOM + 17, f"{value:,.0f}")


def _border(border: Border, x: float, frame: Frame, order: int) -> Markup:
    end = x > frame.width * 0.6
    return Markup('<line class="rule" x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}"/><text class="rule-label" '
                  'x="{3:.1f}" y="{4}" text-anchor="{5}">{6}</text>').format(
        x, TOP, frame.height - BOTTOM, x + (-6 if end else 6), TOP + 34 + 15 * order, "end" if end else "start",
        border.label)


def _curve(curve: Curve, xs: Sequence[float], y_of: Callable[[float], float]) -> Markup:
    tone, dash = TONES.get(curve.name, ("t0", "s2"))
    path = "".join(f"{'L' if i else 'M'}{x:.1f} {y_of(m.value):.1f}" for i, (x, m) in
                   enumerate(zip(xs, curve.points, strict=True)))
    drawn = Markup('<path class="line {} {}{}" d="{}"/>').format(tone, dash, " faint" if curve.faint else "", path)
    if curve.faint:
        return drawn
    for x, m in zip(xs, curve.points, strict=True):
        if m.low is not None and m.high is not None:
            drawn += Markup('<line class="bar {0}" x1="{1:.1f}" x2="{1:.1f}" y1="{2:.1f}" y2="{3:.1f}"/>').format(
                tone, x, y_of(m.low), y_of(m.high))
        drawn += _mark(curve.name, tone, x, y_of(m.value))
    return drawn


def _mark(name: str, tone: str, x: float, y: float) -> Markup:
    if name == "CNN":
        return Markup('<rect class="mark {}" x="{:.1f}" y="{:.1f}" width="7" height="7"/>').format(
            tone, x - 3.5, y - 3.5)
    if name == "RNN":
        return Markup('<path class="mark {}" d="M{:.1f} {:.1f}l5 8.5h-10z"/>').format(tone, x, y - 5)
    return Markup('<circle class="mark {}" cx="{:.1f}" cy="{:.1f}" r="4"/>').format(tone, x, y)


def _names(names: Sequence[str]) -> list[Markup]:
    out = []
    for i, name in enumerate(names):
        tone, dash = TONES.get(name, ("t0", "s2"))
        x = LEFT + 130 * i
        line = Markup('<path class="line {} {}" d="M{} 14h30"/>').format(tone, dash, x)
        out.append(line + _mark(name, tone, x + 15, 14) + Markup('<text class="key" x="{}" y="18">{}</text>').format(
            x + 38, name))
    return out


def standalone(chart: Markup) -> str:
    """The chart as an SVG file of its own, light and dark, with the rules that the page has for charts."""
    colours = ("svg { --ink: #1f1e1b; --soft: #66635b; --line: #e2dfd6; --paper: #fbfaf6; --accent: #b0431b; "
               "--sans: system-ui, sans-serif; background: var(--paper); }\n@media (prefers-color-scheme: dark) { "
               "svg { --ink: #eceae3; --soft: #a5a197; --line: #35332d; --paper: #171613; --accent: #f08c5f; } }")
    page = (files("cutaway.run") / "report.css").read_text("utf-8").splitlines()
    rules = [line for line in page if line.startswith((".chart ", ".accent", ".t0", ".t1", ".t2"))]
    opened = str(chart).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    head, _, rest = opened.partition(">")
    return f"{head}><style>" + "\n".join([colours, *rules]) + f"</style>{rest}\n"
