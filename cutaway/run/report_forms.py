"""How a report writes numbers: shares, bits, seconds, bytes, measurements with their interval, and tables of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cutaway.records import Measurement
from cutaway.run.report_charts import compact

NONE = "not measured"
DASH = "–"


@dataclass(frozen=True, slots=True)
class Table:
    """Cells are text; the first column heads its row, the others are set right where ``numeric``."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    numeric: bool = True


@dataclass(frozen=True, slots=True)
class Headline:
    """One large number: what it is, the number, what stands beside it."""

    label: str
    number: str
    unit: str
    beside: str


def percent(value: float) -> str:
    """A share in whole percent; tenths below one percent and above 99."""
    return f"{100 * value:.0f} %" if 0.01 <= value <= 0.99 or value in (0.0, 1.0) else f"{100 * value:.1f} %"


def plain(value: float) -> str:
    """Two decimals, three significant figures below 0.1, thousands separated."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) >= 0.1 or value == 0 else f"{value:.3g}"


def signed(value: float) -> str:
    """With its sign, as changes are written."""
    return f"{value:+.3f}".replace("-", "−")


def points(value: float) -> str:
    """A change of a share in percentage points."""
    return f"{100 * value:+.0f} points".replace("-", "−")


def shown(m: Measurement | None, form: Callable[[float], str] | None = None, *, n: bool = True) -> str:
    """A measurement with its interval and n: ``67 % [61 %, 72 %], n = 250``."""
    if m is None:
        return NONE
    form = form or (percent if m.unit == "share" else plain)
    text = form(m.value)
    if m.low is not None and m.high is not None:
        text += f" [{form(m.low)}, {form(m.high)}]"
    return text + (f", n = {m.n:,}" if n and m.n is not None else "")


def beside_value(m: Measurement, form: Callable[[float], str] | None = None) -> str:
    """Interval and n alone, to stand beside the large number."""
    return (
        shown(m, form).removeprefix((form or (percent if m.unit == "share" else plain))(m.value)).lstrip(" ,")
    )


def duration(seconds: float | None) -> str:
    """Seconds as people say them."""
    if seconds is None:
        return DASH
    if seconds < 0.1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def size(count: float | None) -> str:
    """Bytes in binary units."""
    if count is None:
        return DASH
    for limit, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= limit:
            return f"{count / limit:.2f} {unit}"
    return f"{count:.0f} B"


def count(value: float | None) -> str:
    """A whole number, or a dash."""
    return DASH if value is None else f"{value:,.0f}"


def number(value: float | None) -> str:
    """A large number in few characters, or a dash."""
    return DASH if value is None else compact(value)


def words(key: str) -> str:
    """A key as words."""
    return key.replace("_", " ").capitalize()


def cell(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
