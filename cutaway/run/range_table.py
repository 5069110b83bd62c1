"""The text's own table, Speed, Memory, Best for, each cell a number that was measured here."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from cutaway.probe.context import context_used
from cutaway.probe.range import Contender, Range
from cutaway.probe.recall import pooled
from cutaway.records import Measurement
from cutaway.run.report_forms import DASH, Table, percent, shown, size

HEAD = ("architecture", "speed", "memory", "best for")
Picked = dict[str, float]


def table_of(found: Range) -> list[tuple[str, str, str, str]]:
    """One row an architecture, in the order they were given."""
    best = winners(found)
    return [(c.name, speed(found, c), memory(found, c), best_for(found, c, best.get(c.name, ()))) for c in
            found.contenders]


def micro(seconds: float) -> str:
    """Seconds as micro- or milliseconds."""
    return f"{1e6 * seconds:.3g} µs" if seconds < 1e-3 else f"{1e3 * seconds:.3g} ms"


def at_ends(found: Range, name: str, architecture: str) -> tuple[Measurement, Measurement] | None:
    """A measurement at the shortest and at the longest length."""
    rows = sorted(found.named(name, architecture=architecture), key=lambda m: int(m.conditions["length"]))
    return (rows[0], rows[-1]) if rows else None


def speed(found: Range, c: Contender) -> str:
    """Time a token at the longest length, and how it grew since the shortest."""
    parts = []
    for name, verb in (("train_seconds_per_token", "learns"), ("prefill_seconds_per_token", "reads"),
                       ("decode_seconds_per_token", "writes")):
        ends = at_ends(found, name, c.name)
        if ends is not None:
            first, last = ends
            near, far = first.conditions["length"], last.conditions["length"]
            grown = f", {last.value / first.value:.2g} × that at {near:,}" if near < far else ""
            parts.append(f"{verb} a token in {micro(last.value)} at length {far:,}{grown}")
    return "; ".join(parts) or DASH


def memory(found: Range, c: Contender) -> str:
    """Bytes carried, measured, and how they grow."""
    ends = at_ends(found, "state_bytes", c.name)
    if ends is None:
        return DASH
    first, last = ends
    if first.value == last.value:
        return f"carries {size(last.value)}, whatever was read"
    span = last.conditions["length"] - first.conditions["length"]
    return (f"carries {size((last.value - first.value) / span)} more for each token: {size(last.value)} behind "
            f"{last.conditions['length']:,}")


def best_for(found: Range, c: Contender, won: Iterable[str]) -> str:
    """What it did best of all, and what it can recall from how far."""
    parts = list(won)
    by_distance = pooled(found.named("recall_by_distance", architecture=c.name), "distance")
    if by_distance:
        parts.append(f"recalls {reach(by_distance, c)}")
    losses = found.named("loss_by_context", architecture=c.name)
    if losses:
        used = context_used(losses)
        parts.append(f"uses {used} token{'' if used == 1 else 's'} of context on this text")
    return "; ".join(parts) or "nothing was measured"


def reach(by_distance: dict[int, Measurement], c: Contender) -> str:
    """Recall near and far, split where the receptive field ends."""
    near, far = min(by_distance), max(by_distance)
    field = c.receptive_field
    if field is not None and near < field <= far:
        inside = max(d for d in by_distance if d < field)
        beyond = min(d for d in by_distance if d >= field)
        return (f"{shown(by_distance[inside], percent)} at {inside} tokens, inside its receptive field of {field}, and "
                f"{shown(by_distance[beyond], percent)} at {beyond}, beyond it")
    return f"{shown(by_distance[near], percent)} at {near} tokens and {shown(by_distance[far], percent)} at {far}"


def winners(found: Range) -> dict[str, list[str]]:
    """For each criterion whoever is best by more than both intervals; nobody where they overlap."""
    out: dict[str, list[str]] = {}
    for words, picked, low_is_good in _criteria(found):
        ranked = sorted(picked.items(), key=lambda p: p[1].value if low_is_good else -p[1].value)
        if len(ranked) > 1 and _apart(ranked[0][1], ranked[1][1]):
            out.setdefault(ranked[0][0], []).append(words)
    return out


def _apart(a: Measurement, b: Measurement) -> bool:
    """Whether two intervals do not touch; bytes are exact and have none, and nothing else is named without one."""
    if a.unit == b.unit == "bytes":
        return a.value != b.value
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return False
    return a.high < b.low or b.high < a.low


def _criteria(found: Range) -> Iterable[tuple[str, dict[str, Measurement], bool]]:
    names = [c.name for c in found.contenders]
    for name, words in (("train_seconds_per_token", "fastest to train on long rows"),
                        ("prefill_seconds_per_token", "fastest to read a long prompt"),
                        ("decode_seconds_per_token", "fastest to write behind a long text"),
                        ("state_bytes", "smallest memory behind a long text")):
        yield words, {n: e[1] for n in names if (e := at_ends(found, name, n)) is not None}, True
    for name, key, words in (("recall_by_distance", "distance", "best recall from far away"),
                             ("recall_by_pairs", "pairs", "best recall of many things"),
                             ("copy_by_distance", "distance", "best copying from far away")):
        far = {n: p[max(p)] for n in names if (p := pooled(found.named(name, architecture=n), key))}
        yield words, far, False
    last = {n: rows[-1] for n in names if (rows := found.named("loss_by_context", architecture=n))}
    yield "lowest loss on this text", last, True


def main_table(found: Range) -> Table:
    """The table as the report shows it."""
    return Table("Speed, memory, best for", tuple(h.capitalize() for h in HEAD), tuple(table_of(found)), numeric=False,
                 note="Best for: named only where the intervals of the two best do not touch.")


def numbers_table(rows: list[Measurement], key: str, caption: str, form: Callable[[float], str]) -> Table:
    """Measurements as a table, one row a value of the condition ``key``, one column an architecture."""
    names = list(dict.fromkeys(str(m.conditions["architecture"]) for m in rows))
    values = sorted({m.conditions[key] for m in rows})
    cells = {(m.conditions[key], m.conditions["architecture"]): shown(m, form) for m in rows}
    return Table(caption, (key.capitalize(), *names),
                 tuple((f"{v:,}", *(cells.get((v, n), DASH) for n in names)) for v in values))
