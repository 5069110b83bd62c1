"""Charts as inline SVG, drawn here so that a report needs neither network nor plotting library (after Tufte's small
multiples: raw data, direct labels, no smoothing). Colours come from the page's style sheet through classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

LEFT, RIGHT, TOP, BOTTOM, ROW = 52, 20, 14, 40, 38
DENSE = 1000  # points a line may have before its pixel columns are drawn by their extremes
Format = Callable[[float], str]


@dataclass(frozen=True, slots=True)
class Series:
    """Points in order; ``tone`` is a class of the style sheet. Values that are not finite break the line."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    tone: str = "accent"
    dots: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """A level to compare with, drawn across and named."""

    y: float
    label: str


@dataclass(frozen=True, slots=True)
class Frame:
    """What a chart is about. ``title`` and ``description`` are what a screen reader says."""

    key: str  # unique in the page: ids are made of it
    title: str
    description: str
    x_label: str
    y_label: str = ""
    width: int = 1080
    height: int = 260
    y_low: float | None = None
    y_high: float | None = None
    y_format: Format | None = None


@dataclass(frozen=True, slots=True)
class Interval:
    """One row of an interval chart: a value, its interval, and what stands beside it."""

    label: str
    value: float
    low: float | None
    high: float | None
    note: str
    tone: str = "accent"


def compact(value: float) -> str:
    """A number in few characters: 1,234 becomes 1.2k, 0.00123 stays readable."""
    size = abs(value)
    for limit, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}" if size else "0"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values that cover ``low``..``high``: steps of 1, 2 or 5 times a power of ten."""
    span = high - low
    if not span > 0:
        return [low]
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def curves(frame: Frame, series: Sequence[Series], rules: Sequence[Rule] = ()) -> Markup:
    """Lines and dots over a common axis that starts at zero; every point is drawn, none is smoothed."""
    xs = [v for s in series for v in s.x if math.isfinite(v)] or [0.0, 1.0]
    ys = [v for s in series for v in s.y if math.isfinite(v)] + [r.y for r in rules] or [0.0, 1.0]
    low = min(ys) if frame.y_low is None else frame.y_low
    high = max(ys) if frame.y_high is None else frame.y_high
    pad = (high - low) * 0.06 or max(abs(high), 1e-9) * 0.1
    low, high = (low - pad if frame.y_low is None else low), (high + pad if frame.y_high is None else high)
    x_of = scale(0.0, max([*xs, 1e-12]), LEFT, frame.width - RIGHT)
    y_of = scale(low, high, frame.height - BOTTOM, TOP)
    y_format = frame.y_format or compact
    parts = [_grid(frame, t, y_of(t), y_format) for t in ticks(low, high)]
    parts += [_x_tick(t, x_of(t), frame.height) for t in ticks(0.0, max(xs), 6)]
    parts += [
        Markup(
            '<line class="rule" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/><text class="rule-label" x="{}" y="{:.1f}" '
            'text-anchor="end">{}</text>'
        ).format(LEFT, frame.width - RIGHT, y_of(r.y), y_of(r.y), frame.width - RIGHT, y_of(r.y) - 5, r.label)
        for r in rules
    ]
    for s in series:
        points = [(x_of(a), y_of(b)) for a, b in zip(s.x, s.y, strict=True)]
        parts.append(_dots(points, s.tone) if s.dots else _line(points, s.tone))
    parts.append(_axis_names(frame))
    return svg(frame, frame.height, parts)


def intervals(
    frame: Frame,
    rows: Sequence[Interval],
    *,
    low: float = 0.0,
    high: float | None = None,
    text: Format = compact,
    left: int = 92,
) -> Markup:
    """A dot and its interval a row on one axis: overlap or its absence is seen at once. Names take ``left`` pixels."""
    right = frame.width - 76
    height = TOP + ROW * len(rows) + BOTTOM
    largest = max(r.value if r.high is None else r.high for r in rows)
    top = high if high is not None else largest + 0.06 * (largest - low)
    x_of = scale(low, top, left, right)
    parts = [
        Markup(
            '<line class="grid" x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}"/>'
            '<text class="tick" x="{0:.1f}" y="{3}" text-anchor="middle">{4}</text>'
        ).format(x_of(t), TOP, height - BOTTOM, height - BOTTOM + 17, text(t))
        for t in ticks(low, top)
    ]
    parts += [_row(r, TOP + ROW * (i + 0.5), x_of, left, right) for i, r in enumerate(rows)]
    parts.append(
        Markup('<text class="axis" x="{}" y="{}" text-anchor="end">{}</text>').format(
            right, height - 5, frame.x_label
        )
    )
    return svg(frame, height, parts)


def _row(r: Interval, y: float, x_of: Callable[[float], float], left: float, right: float) -> Markup:
    drawn = Markup("")
    if r.low is not None and r.high is not None:
        drawn = Markup('<line class="whisker {}" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>').format(
            r.tone, x_of(r.low), x_of(r.high), y, y
        )
    return drawn + Markup(
        '<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="5.5"/>'
        '<text class="name" x="{}" y="{:.1f}" text-anchor="end">{}'
        '</text><text class="value" x="{}" y="{:.1f}">{}</text>'
    ).format(r.tone, x_of(r.value), y, left - 16, y + 5, r.label, right + 18, y + 5, r.note)


def scale(low: float, high: float, start: float, stop: float) -> Callable[[float], float]:
    """The place between ``start`` and ``stop`` of a value between ``low`` and ``high``."""
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (stop - start)


def _line(points: Sequence[tuple[float, float]], tone: str) -> Markup:
    """A path through the points. Where points are denser than pixels each pixel column keeps its first, lowest,
    highest and last, which draws the very same line."""
    path, pen = [], "M"
    for x, y in _columns(points):
        if not math.isfinite(x + y):
            pen = "M"
            continue
        path.append(f"{pen}{x:.1f} {y:.1f}")
        pen = "L"
    return Markup('<path class="line {}" d="{}"/>').format(tone, "".join(path))


def _columns(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    if len(points) <= DENSE or not all(math.isfinite(x + y) for x, y in points):
        return list(points)
    kept: list[tuple[float, float]] = []
    column: list[tuple[float, float]] = []
    for point in [*points, (math.inf, 0.0)]:
        if column and (point[0] == math.inf or int(point[0]) != int(column[0][0])):
            extremes = {
                column.index(min(column, key=lambda p: p[1])),
                column.index(max(column, key=lambda p: p[1])),
            }
            kept += [column[i] for i in sorted({0, len(column) - 1} | extremes)]
            column = []
        column.append(point)
    return kept


def _dots(points: Sequence[tuple[float, float]], tone: str) -> Markup:
    return Markup("").join(
        Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="3"/>').format(tone, x, y)
        for x, y in points
        if math.isfinite(x + y)
    )


def _grid(frame: Frame, value: float, y: float, text: Format) -> Markup:
    return Markup(
        '<line class="grid" x1="{0}" x2="{1}" y1="{2:.1f}" y2="{2:.1f}"/><text class="tick" x="{3}" y="{4:.1f}" '
        'text-anchor="end">{5}</text>'
    ).format(LEFT, frame.width - RIGHT, y, LEFT - 9, y + 4, text(value))


def _x_tick(value: float, x: float, height: int) -> Markup:
    return Markup('<text class="tick" x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
        x, height - BOTTOM + 17, compact(value)
    )


def _axis_names(frame: Frame) -> Markup:
    return Markup('<text class="axis" x="{}" y="{}" text-anchor="end">{}</text>').format(
        frame.width - RIGHT, frame.height - 5, frame.x_label
    )


def svg(frame: Frame, height: int, parts: Sequence[Markup]) -> Markup:
    """The parts as one picture with its title and description."""
    return Markup(
        '<svg class="chart" viewBox="0 0 {0} {1}" role="img" aria-labelledby="{2}-t {2}-d"><title id="{2}-t">{3}'
        '</title><desc id="{2}-d">{4}</desc>{5}</svg>'
    ).format(frame.width, height, escape(frame.key), frame.title, frame.description, Markup("").join(parts))
