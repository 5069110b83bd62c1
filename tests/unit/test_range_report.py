"""The table of ``probe range`` says what was measured: winners only where intervals part, borders where they are."""

from __future__ import annotations

from typing import Any

from cutaway.probe.range import Contender, Range
from cutaway.records import Measurement, wilson
from cutaway.run.range_charts import Border, Curve, doubling_chart, standalone
from cutaway.run.range_table import memory, speed, table_of, winners
from cutaway.run.report_charts import Frame

CNN = Contender("convolution", "CNN", 1000, {}, 16, 60, 0)
TRANSFORMER = Contender("transformer", "transformer", 1000, {}, None, 0, 8)


def share(name: str, architecture: str, right: int, **conditions: Any) -> Measurement:
    return Measurement(name, right / 100, "share", 100, *wilson(right, 100),
                       {"architecture": architecture, "seed": 0, "right": right, **conditions})


def timed(name: str, architecture: str, length: int, value: float) -> Measurement:
    return Measurement(name, value, "s", 5, 0.9 * value, 1.1 * value, {"architecture": architecture, "length": length})


def carried(architecture: str, length: int, value: float) -> Measurement:
    return Measurement("state_bytes", value, "bytes", 1, conditions={"architecture": architecture, "length": length})


def found(*measured: Measurement) -> Range:
    return Range((CNN, TRANSFORMER), measured, (), (), 1.0, {})


def test_a_winner_is_named_only_where_intervals_part() -> None:
    near = found(share("recall_by_distance", "CNN", 90, distance=8), share("recall_by_distance", "transformer", 95,
                                                                        distance=8))
    assert winners(near) == {}
    apart = found(share("recall_by_distance", "CNN", 20, distance=8), share("recall_by_distance", "transformer", 95,
                                                                         distance=8))
    assert winners(apart) == {"transformer": ["best recall from far away"]}
    assert winners(found(timed("train_seconds_per_token", "CNN", 8, 1.0), timed("train_seconds_per_token",
                                                                            "transformer", 8, 1.05))) == {}
    assert winners(found(carried("CNN", 8, 60.0), carried("transformer", 8, 64.0))) == {
        "CNN": ["smallest memory behind a long text"]}


def test_cells_are_numbers_that_were_measured() -> None:
    rows = [timed("decode_seconds_per_token", "CNN", n, 1e-5) for n in (8, 64)]
    rows += [carried("CNN", n, 240.0) for n in (8, 64)] + [carried("transformer", n, 32.0 * n) for n in (8, 64)]
    rows += [share("recall_by_distance", "CNN", right, distance=d)
             for d, right in ((8, 99), (12, 97), (16, 4), (32, 2))]
    result = found(*rows)
    assert speed(result, CNN) == "writes a token in 10 µs at length 64, 1 × that at 8"
    assert speed(result, TRANSFORMER) == "–"
    assert memory(result, CNN) == "carries 240 B, whatever was read"
    assert memory(result, TRANSFORMER) == "carries 32 B more for each token: 2.00 KiB behind 64"
    best = dict(zip(("CNN", "transformer"), (r[3] for r in table_of(result)), strict=True))
    assert "97 % [92 %, 99 %], n = 100 at 12 tokens, inside its receptive field of 16, and 4 %" in best["CNN"]
    assert best["transformer"] == "nothing was measured"


def test_a_chart_draws_points_intervals_and_borders() -> None:
    points = [share("recall_by_distance", "CNN", right, distance=d) for d, right in ((8, 99), (32, 2))]
    frame = Frame("k", "Title <b>", "said", "tokens", y_low=0.0, y_high=1.0)
    chart = str(doubling_chart(frame, [Curve("CNN", [8, 32], points), Curve("CNN", [8, 32], points, faint=True)],
                               [Border(16, "field of 16")]))
    assert chart.count('class="mark t2"') == 2 + 1  # and one beside the name
    assert chart.count('class="bar t2"') == 2 and chart.count("faint") == 1
    assert "field of 16" in chart and "Title &lt;b&gt;" in chart
    alone = standalone(doubling_chart(frame, [Curve("CNN", [8, 32], points)]))
    assert alone.startswith('<svg xmlns="http://www.w3.org/2000/svg"') and "prefers-color-scheme: dark" in alone
