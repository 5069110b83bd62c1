"""What a comparison says in words: who is best, which simplest system is as good, and what every claim rests on."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

from cutaway.run.compare import Compared
from cutaway.run.compare_parts import Outcome
from cutaway.run.compare_recipe import FlopsBudget
from cutaway.run.compare_verdict import Standing, side_of
from cutaway.run.recipe import SecondsBudget
from cutaway.run.report_forms import DASH, Table, duration, number, shown, size

SIDES = {"best": "the best", "level": "cannot be told from it", "apart": "worse"}


def form_of(c: Compared) -> Callable[[float], str]:
    """How the figure of quality is written."""
    return (lambda v: f"{v:.3f}") if c.yardstick.better == "lower" else _tenths


def _tenths(value: float) -> str:
    return f"{100 * value:.1f} %"


def standing(c: Compared, name: str) -> Standing:
    """Where a system stands."""
    return next(s for s in c.verdict.standings if s.name == name)


def outcome(c: Compared, name: str) -> Outcome:
    """What a system came to."""
    return next(o for o in c.outcomes if o.name == name)


def finding(c: Compared) -> str:
    """The sentence that the comparison is made for."""
    v, form = c.verdict, form_of(c)
    best = standing(c, v.best).quality
    figure = f"{form(best.value)}{'' if c.yardstick.better == 'higher' else ' ' + best.unit}"
    if v.simplest == v.best:
        own = outcome(c, v.best)
        simpler = any((o.rank, o.parameters) < (own.rank, own.parameters) for o in c.outcomes)
        return f"{v.best} is best with {figure}, " + (
            f"and every simpler system can be told from it on these {best.n:,} {_items(c)}." if simpler else
            "and no system here is simpler.")
    behind = standing(c, v.simplest).behind
    assert behind is not None and behind.low is not None and behind.high is not None
    return (f"{v.best} is best with {figure}. The simplest system that cannot be told from it is {v.simplest}: it is "
            f"behind by {form(behind.value)}, and on these {behind.n:,} {_items(c)} by {form(behind.low)} to "
            f"{form(behind.high)}.")


def _items(c: Compared) -> str:
    return {"language": "held-out documents", "classification": "held-out texts"}.get(c.comparison.task.kind,
                                                                                       "held-out items")


def budget_words(c: Compared) -> str:
    """What every system was given."""
    b = c.comparison.budget
    given = (f"{b.seconds:g} s of training" if isinstance(b, SecondsBudget) else
             f"{number(b.flops)} FLOPs" if isinstance(b, FlopsBudget) else f"{b.steps:,} steps")
    return f"{given} for every system that is trained in steps, seeds {', '.join(map(str, c.comparison.seeds))}"


def money(c: Compared, seconds: float) -> str:
    """What so many seconds of this machine cost at the stated price."""
    amount = seconds / 3600 * c.comparison.price.per_hour
    return f"{amount:.2g} {c.comparison.price.currency}"


def quality_table(c: Compared) -> Table:
    """From best to worst, with the distance from the best."""
    form, rows = form_of(c), []
    for s in c.verdict.standings:
        o = outcome(c, s.name)
        behind = DASH if s.behind is None else shown(s.behind, form, n=False)
        rows.append((s.name, shown(s.quality, form, n=False), behind, SIDES[side_of(c.verdict, s.name)],
                     str(len(o.seeds)), o.words))
    n = c.verdict.standings[0].quality.n
    return Table(f"{c.yardstick.figure.replace('_', ' ').capitalize()}, {c.yardstick.better} is better, n = {n:,}",
                 ("system", c.yardstick.unit, "behind the best", "verdict", "seeds", "what it is"), tuple(rows),
                 "Intervals hold 95 % of resamples of items and seeds; they are not widened for the number of "
                 "comparisons.", numeric=False)


def making_table(c: Compared) -> Table:
    """What each system costs to make."""
    rows = []
    for s in c.verdict.standings:
        o = outcome(c, s.name)
        seconds = sum(o.train_seconds) / len(o.train_seconds)
        steps = [n for n in o.steps if n is not None]
        rows.append((s.name, duration(seconds), money(c, seconds), number(sum(steps) / len(steps)) if steps else DASH,
                     number(o.parameters), size(o.disk_bytes), size(o.peak_bytes)))
    return Table(f"To make, at {c.comparison.price.per_hour:g} {c.comparison.price.currency} an hour",
                 ("system", "training", "costs", "steps", "parameters", "on disk", "peak memory"), tuple(rows),
                 "Means over seeds. Peak memory is that of the whole process that trained and measured.")


def using_table(c: Compared) -> Table:
    """What each system costs to use."""
    rows = []
    for s in c.verdict.standings:
        o = outcome(c, s.name)
        rows.append((s.name, latency(o.latencies, 0.5), latency(o.latencies, 0.95), f"{o.throughput:,.0f}/s",
                     money(c, 1e6 / o.throughput), size(o.serving_bytes)))
    per = c.yardstick.flow.split()[0]
    return Table("To use", ("system", "p50", "p95", c.yardstick.flow, f"a million {per}", "memory"), tuple(rows),
                 f"p50 and p95 are of {c.yardstick.item} at batch 1; memory is that of weights and state.")


def latency(latencies: tuple[float, ...], share: float) -> str:
    """A percentile of the single items."""
    if not latencies:
        return DASH
    ordered = sorted(latencies)
    value = median(ordered) if share == 0.5 else ordered[min(len(ordered) - 1, int(share * len(ordered)))]
    return f"{1000 * value:.2f} ms" if value < 0.1 else duration(value)


def _own(c: Compared) -> str:
    """How a person's own data is named."""
    kinds = {"language": "", "classification": "data.kind=labelled "}
    return f"{kinds.get(c.comparison.task.kind, 'data.kind=pairs ')}data.path=FILE"


def limits(c: Compared) -> list[str]:
    """When this is wrong."""
    seeds = len(c.comparison.seeds)
    out = [f"It is {budget_words(c)}: with more, systems that learn slowly gain on those that learn fast.",
           f"The order holds for this text and these sizes. Another may turn it round: give your own with {_own(c)}.",
           f"{seeds} seeds say little about the spread between trainings." if seeds < 5 else
           f"{seeds} seeds stand for the spread between trainings.",
           "A system that cannot be told from the best is not shown to be as good: the interval says how far behind it "
           "might be.",
           "Latency is that of this program on this machine with nothing else running; other programs are faster or "
           "slower at the same model."]
    if c.failed:
        out.append("These systems came to no result and are missing from every table: "
                   + "; ".join(f"{name} ({why})" for name, why in c.failed.items()) + ".")
    return out + [f"{o.name}: {note}." for o in c.outcomes for note in o.notes]
