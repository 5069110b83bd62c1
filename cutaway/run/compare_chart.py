"""Quality against a cost on a logarithmic axis, the frontier drawn: systems that another beats on both are greyed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from cutaway.run.report_charts import BOTTOM, LEFT, RIGHT, TOP, Format, Frame, scale, svg, ticks

GAP = 15  # pixels between two names


@dataclass(frozen=True, slots=True)
class Point:
    """A system: its cost, its quality with interval, and whether it lies on the frontier."""

    name: str
    x: float
    y: float
    low: float | None
    high: float | None
    kept: bool


def frontier_chart(frame: Frame, points: Sequence[Point], *, x_format: Format, y_format: Format) -> Markup:
    """A dot with its interval a system; the line joins the frontier from cheap to dear."""
    xs = [math.log10(max(p.x, 1e-12)) for p in points]
    ys = [v for p in points for v in (p.y, p.low, p.high) if v is not None]
    low, high = min(ys), max(ys)
    pad = (high - low) * 0.08 or 0.1
    margin = max((max(xs) - min(xs)) * 0.12, 0.15)
    x_of = scale(min(xs) - margin, max(xs) + 2.2 * margin, LEFT, frame.width - RIGHT)
    y_of = scale(low - pad, high + pad, frame.height - BOTTOM, TOP)
    places = [(x_of(x), y_of(p.y)) for x, p in zip(xs, points, strict=True)]
    parts = [_level(y_of(t), y_format(t), frame.width) for t in ticks(low - pad, high + pad)]
    parts += [_decade(x_of(d), x_format(10.0**d), frame.height) for d in _decades(min(xs) - margin, max(xs) + margin)]
    edge = sorted((place for place, p in zip(places, points, strict=True) if p.kept))
    path = "".join(f"{'L' if i else 'M'}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(edge))
    parts.append(Markup('<path class="line edge accent" d="{}"/>').format(path))
    for (x, y), p, at in zip(places, points, _spread([y for _, y in places]), strict=True):
        tone = "accent" if p.kept else "t0"
        if p.low is not None and p.high is not None:
            parts.append(Markup('<line class="whisker {0}" x1="{1:.1f}" x2="{1:.1f}" y1="{2:.1f}" '
                                'y2="{3:.1f}"/>').format(tone, x, y_of(p.low), y_of(p.high)))
        parts.append(Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="5"/><text class="name" x="{:.1f}" '
                            'y="{:.1f}">{}</text>').format(tone, x, y, x + 10, at + 5, p.name))
    parts.append(Markup('<text class="axis" x="{}" y="{}" text-anchor="end">{}</text>').format(
        frame.width - RIGHT, frame.height - 5, frame.x_label))
    return svg(frame, frame.height, parts)


def _decades(low: float, high: float) -> list[int]:
    every = max(1, math.ceil((high - low) / 6))
    return [d for d in range(math.floor(low), math.ceil(high) + 1) if low <= d <= high and d % every == 0]


def _spread(ys: Sequence[float]) -> list[float]:
    """Heights of the names: those of the dots, pushed apart where they would overlap."""
    order = sorted(range(len(ys)), key=lambda i: ys[i])
    out, last = list(ys), -math.inf
    for i in order:
        out[i] = last = max(ys[i], last + GAP)
    return out


def _level(y: float, text: str, width: int) -> Markup:
    return Markup('<line class="grid" x1="{0}" x2="{1}" y1="{2:.1f}" y2="{2:.1f}"/><text class="tick" x="{3}" '
                  'y="{4:.1f}" text-anchor="end">{5}</text>').format(LEFT, width - RIGHT, y, LEFT - 9, y + 4, text)


def _decade(x: float, text: str, height: int) -> Markup:
    return Markup('<line class="grid" x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}"/><text class="tick" x="{0:.1f}" '
                  'y="{3}" text-anchor="middle">{4}</text>').format(x, TOP, height - BOTTOM, height - BOTTOM + 17, text)
