"""The report of ``probe range``: one HTML page without network, light and dark, and the same numbers as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cutaway.probe.range import Range
from cutaway.probe.recall import pooled
from cutaway.records import Measurement
from cutaway.run.range_charts import Border, Curve, doubling_chart
from cutaway.run.range_table import main_table, micro, numbers_table
from cutaway.run.report_charts import Frame
from cutaway.run.report_figures import HALF, Picture
from cutaway.run.report_forms import Table, percent, plain, size
from cutaway.run.report_html import render

SECTIONS = (("numbers", "The table"), ("recall", "Recall"), ("context", "Context on real text"),
            ("cost", "Speed and memory"), ("courses", "How they learned"), ("limits", "When this is wrong"))
LIMITS = (
    "The tasks are made up: they ask for exact recall, which real text seldom needs alone. A low score here is no "
    "verdict on a model that was trained on other things.",
    "All models are small and were trained for minutes. More training, or another learning rate, can move every curve "
    "but the receptive field: what a network cannot see it cannot recall.",
    "Times are of this machine, this build and one process; at these sizes the work around each operation weighs more "
    "than the arithmetic, so ratios between lengths say more than the values.",
    "Questions of one seed are independent rows, but the seeds are few: the intervals are about questions, not about "
    "what other seeds would learn. Every seed is drawn.",
    "Copying asks for several symbols of a row, which are not independent: its intervals are too narrow.",
)


def recall_pictures(found: Range) -> list[Picture]:
    """Recall and copying over distance, and recall over the number of pairs."""
    fields = [Border(c.receptive_field, f"receptive field of the {c.name}: {c.receptive_field}")
              for c in found.contenders if c.receptive_field is not None]
    state = "; ".join(f"{c.name} {c.state_values:,} numbers" if not c.kv_values else
                      f"{c.name} {c.kv_values:,} numbers for each token" for c in found.contenders)
    out = []
    for name, key, heading, reading, x_label in (
            ("recall_by_distance", "distance", "Recall against distance",
             "Share of keys whose value is recalled, over tokens between them. Faint lines are single seeds.",
             "tokens from the key to the query"),
            ("recall_by_pairs", "pairs", "Recall against the number of pairs",
             f"How much has to be kept in mind at once. What there is to keep it in: {state}.", "pairs in a row"),
            ("copy_by_distance", "distance", "Copy memory against distance",
             "Share of symbols repeated rightly after so many tokens, most of them blanks.",
             "tokens from a symbol to its copy")):
        rows = found.named(name)
        if not rows:
            continue
        drawn = _seeds(found, name, key)
        marks = [*fields] if key == "distance" else []
        if key == "distance":
            far = max(m.conditions["trained"] for m in rows)
            marks.append(Border(far, f"trained up to {far}"))
        frame = Frame(name, heading, _told(drawn), x_label, width=1080 if name == "recall_by_distance" else HALF,
                      height=320, y_low=0.0, y_high=1.0, y_format=lambda v: f"{100 * v:.0f} %")
        every = [m for c in drawn if not c.faint for m in c.points]
        out.append(Picture(heading, doubling_chart(frame, drawn, marks), reading,
                           numbers_table(every, key, heading, percent), wide=name == "recall_by_distance"))
    return out


def _seeds(found: Range, name: str, key: str) -> list[Curve]:
    """A curve of all seeds for each architecture, above a faint one for each seed."""
    faint, whole = [], []
    for c in found.contenders:
        rows = found.named(name, architecture=c.name)
        seeds = list(dict.fromkeys(m.conditions["seed"] for m in rows))
        for seed in seeds if len(seeds) > 1 else []:
            own = sorted((m for m in rows if m.conditions["seed"] == seed), key=lambda m: float(m.conditions[key]))
            faint.append(Curve(c.name, [m.conditions[key] for m in own], own, faint=True))
        together = sorted(pooled(rows, key).items())
        whole.append(Curve(c.name, [k for k, _ in together], [m for _, m in together]))
    return [*faint, *whole]


def context_pictures(found: Range) -> list[Picture]:
    """Loss over the context a model may see."""
    rows = found.named("loss_by_context")
    if not rows:
        return []
    curves = _by(rows, "context")
    frame = Frame("context", "Loss against visible context", _told(curves), "tokens that may be seen", height=320,
                  y_format=lambda v: f"{v:.2f}")
    return [Picture("Loss against visible context, bits per byte",
                    doubling_chart(frame, curves, _fields(found)),
                    "The same held-out tokens at every point, lower is better; where a curve is flat, what stands "
                    "further away is not used. Intervals resample documents.",
                    numbers_table(rows, "context", "Bits per byte", plain), wide=True)]


def _fields(found: Range) -> list[Border]:
    return [Border(c.receptive_field, f"receptive field of the {c.name}: {c.receptive_field}")
            for c in found.contenders if c.receptive_field is not None]


def cost_pictures(found: Range) -> list[Picture]:
    """Time and memory over length."""
    out = []
    for name, heading, reading, form in (
            ("train_seconds_per_token", "Training, time a token",
             "Forward, backward and update; as many tokens a step at every length.", micro),
            ("prefill_seconds_per_token", "Reading a prompt, time a token", "One row, from nothing.", micro),
            ("decode_seconds_per_token", "Writing, time for the next token", "One row, behind so many tokens.", micro),
            ("state_bytes", "Memory carried", "Counted in the state; equal to what the configuration predicts unless "
             "the table says otherwise.", size)):
        rows = found.named(name)
        if not rows:
            continue
        curves = _by(rows, "length")
        frame = Frame(name, heading, _told(curves), "tokens", width=HALF, height=280, y_format=form)
        out.append(Picture(heading, doubling_chart(frame, curves, log_y=True), reading,
                           numbers_table(rows, "length", heading, form)))
    return out


def _by(rows: Sequence[Measurement], key: str) -> list[Curve]:
    names = list(dict.fromkeys(str(m.conditions["architecture"]) for m in rows))
    out = []
    for name in names:
        own = sorted((m for m in rows if m.conditions["architecture"] == name), key=lambda m: float(m.conditions[key]))
        out.append(Curve(name, [m.conditions[key] for m in own], own))
    return out


def _told(curves: Sequence[Curve]) -> str:
    return "; ".join(f"{c.name} from {c.points[0].value:.3g} to {c.points[-1].value:.3g}" for c in curves
                     if not c.faint and c.points)


def courses_table(found: Range) -> Table:
    """Every model that was trained."""
    return Table("Courses", ("Task", "Architecture", "Seed", "Steps", "Tokens", "Seconds", "Loss at the end"), tuple(
        (str(c["task"]), str(c["architecture"]), str(c["seed"]), f"{c['steps']:,}"
         + ("" if c["steps"] == c["wanted_steps"] else f" of {c['wanted_steps']:,}"), f"{c['tokens']:,}",
         f"{c['seconds']:.0f}", f"{c['loss']:.3f}") for c in found.courses))


def sizes_table(found: Range) -> Table:
    """What was compared."""
    return Table("Equal size", ("Architecture", "Parameters", "Sees", "Carries"), tuple(
        (c.name, f"{c.parameters:,}", "all it has read" if c.receptive_field is None else
         f"its last {c.receptive_field} tokens", f"{c.kv_values:,} numbers a token" if c.kv_values else
         f"{c.state_values:,} numbers") for c in found.contenders),
        note="Parameters outside embedding and head.", numeric=False)


def summary(value: Mapping[str, Any]) -> str:
    """The first sentence."""
    found = Range.from_dict(value)
    names = ", ".join(f"{c.name} ({c.parameters:,} parameters)" for c in found.contenders)
    seeds, threads = len(value["settings"]["seeds"]), value["threads"]
    return (f"{names}: the same tasks, batches and text, {seeds} seed{'s' if seeds > 1 else ''}, measured in "
            f"{found.seconds:.0f} s with {threads} thread{'s' if threads > 1 else ''} of {value['cpu']}.")


def _about(found: Range) -> str:
    t = found.text
    return (f"Text: {t['train_bytes']:,} bytes to learn from in {t['train_documents']:,} documents, "
            f"{t['test_bytes']:,} held out, of {t['available_bytes']:,}; {t['vocab_size']:,} tokens of BPE. "
            f"Left out: {t['left_out']}.")


def page(value: Mapping[str, Any]) -> str:
    """The whole page, from what probe.json holds."""
    found = Range.from_dict(value)
    facts = {"name": value["name"], "summary": summary(value), "main": main_table(found), "sizes": sizes_table(found),
             "recall": recall_pictures(found), "context": context_pictures(found), "about": _about(found),
             "cost": cost_pictures(found), "courses": courses_table(found), "notes": found.notes, "limits": LIMITS}
    return render("range.html", facts, sections=SECTIONS)


def markdown(value: Mapping[str, Any]) -> str:
    """The same numbers as Markdown."""
    found = Range.from_dict(value)
    pictures = [*recall_pictures(found), *context_pictures(found), *cost_pictures(found)]
    lines = [f"# {value['name']}", "", summary(value), ""]
    for table in (main_table(found), sizes_table(found), *(p.table for p in pictures if p.table), courses_table(found)):
        lines += [f"## {table.caption}", "", f"| {' | '.join(table.head)} |", "|---" * len(table.head) + "|",
                  *(f"| {' | '.join(c.replace('|', '/') for c in row)} |" for row in table.rows), ""]
        lines += [table.note, ""] if table.note else []
    lines += ["## Notes", "", _about(found), "", *(f"- {n}" for n in found.notes), "", "## When this is wrong", ""]
    return "\n".join([*lines, *(f"- {limit}" for limit in LIMITS)]) + "\n"
