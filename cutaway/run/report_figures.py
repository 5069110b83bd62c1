"""The report's pictures, each with the table of numbers that stands behind it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from cutaway.run.report_charts import Frame, Interval, Rule, Series, curves, intervals
from cutaway.run.report_forms import Table, percent, plain
from cutaway.run.report_read import MODELS, NAMES, Evidence, Row
from cutaway.run.report_tables import compression_table, learning_table, models_table

HALF = 520
TONES = {"random": "t0", "base": "t1", "finetuned": "t2", "aligned": "t3"}


@dataclass(frozen=True, slots=True)
class Picture:
    """A chart, its heading, a sentence on how to read it, and its numbers."""

    heading: str
    chart: Markup
    reading: str
    table: Table | None
    wide: bool = False


def headline_pictures(e: Evidence) -> list[Picture]:
    """Answers that satisfy the judge at each stage, and bits per byte beside two compressors."""
    out: list[Picture] = []
    met = [(m, found) for m in MODELS if (found := e.measured(m, "satisfies")) is not None]
    if met:
        rows = [Interval(NAMES[m], f.value, f.low, f.high, percent(f.value), TONES[m]) for m, f in met]
        asked = " and ".join(sorted({f"n = {f.n:,}" for _, f in met if f.n is not None})) or "n unknown"
        frame = Frame(
            "satisfies",
            "Share of answers that satisfy the judge, by model",
            "; ".join(f"{r.label} {r.note}" for r in rows),
            "share of held-out requests",
            width=HALF,
        )
        out.append(
            Picture(
                "Answers that satisfy the judge",
                intervals(frame, rows, high=1.0, text=lambda v: f"{100 * v:.0f} %"),
                f"95 % Wilson intervals, {asked}. The judge: {e.stand_in}.",
                models_table(e),
            )
        )
    return [*out, *_bits(e)]


def _bits(e: Evidence) -> list[Picture]:
    """Models and compressors on the same text; a model that knows nothing lies far outside and is only named."""
    marks = [
        Interval(k, m.value, None, None, f"{m.value:.3f}", "t0")
        for k, m in e.compression.items()
        if k in ("gzip -9", "xz -9")
    ]
    found = {m: b for m in MODELS if (b := e.measured(m, "bits_per_byte")) is not None}
    rows = marks + [
        Interval(NAMES[m], b.value, b.low, b.high, f"{b.value:.3f}", TONES[m])
        for m, b in found.items()
        if m != "random" or len(found) == 1
    ]
    if not found:
        return []
    told = "; ".join(f"{r.label} {r.note}" for r in rows)
    frame = Frame(
        "bits", "Bits per byte of held-out text", told, "bits per byte, lower is better", width=HALF
    )
    outside = (
        f" Random, {found['random'].value:.2f}, lies outside." if "random" in found and len(found) > 1 else ""
    )
    low = 0.9 * min(r.value if r.low is None else r.low for r in rows)
    return [
        Picture(
            "The same held-out text, bits per byte",
            intervals(frame, rows, low=low, text=lambda v: f"{v:g}"),
            f"Models beside two compressors.{outside}",
            compression_table(e),
        )
    ]


LOG = {
    "step": "Step",
    "tokens": "Tokens",
    "loss": "Loss",
    "valid_bits_per_byte": "Valid bits per byte",
    "held_out_accuracy": "Held-out accuracy",
    "accuracy": "Accuracy",
    "grad_norm": "Gradient norm",
    "learning_rate": "Learning rate",
}


def learning_pictures(e: Evidence) -> list[Picture]:
    """Raw loss of every step over tokens, with the level that knowing nothing would give."""
    uniform = (
        []
        if e.vocab_size is None
        else [
            Rule(
                math.log(e.vocab_size),
                f"uniform over {e.vocab_size:,} tokens: ln V = {math.log(e.vocab_size):.2f}",
            )
        ]
    )
    coin = [Rule(math.log(2), "a coin: ln 2 = 0.69")]
    level = {"pretrain": uniform, "finetune": uniform, "reward": coin}
    if (e.recipe.get("align") or {}).get("kind") == "dpo":
        level["align"] = coin
    out = []
    for stage in e.stages:
        rows = [r for r in e.log.get(stage.key, ()) if r.get("loss") is not None]
        if stage.key not in level or not rows:
            continue
        wide = stage.key == "pretrain"
        frame = Frame(
            f"loss-{stage.key}",
            f"Loss during {stage.name.lower()}",
            f"{len(rows):,} steps, from {rows[0]['loss']:.3f} to {rows[-1]['loss']:.3f} nats",
            "tokens read",
            width=1080 if wide else HALF,
            height=300 if wide else 240,
            y_low=0.0,
        )
        line = Series("loss", [r["tokens"] for r in rows], [r["loss"] for r in rows])
        unit = "nats a pair" if level[stage.key] is coin else "nats a learned token"
        out.append(
            Picture(
                f"{stage.name}, {unit}",
                curves(frame, [line], level[stage.key]),
                _ended(rows, stage.skipped),
                learning_table(rows, LOG),
                wide,
            )
        )
    return [*out, *_valid(e)]


def _ended(rows: Sequence[Row], skipped: int) -> str:
    text = f"{len(rows):,} steps, each as it was; first {rows[0]['loss']:.3f}, last {rows[-1]['loss']:.3f}."
    return text + (
        f" {skipped} steps were skipped because their loss or gradient was not finite." if skipped else ""
    )


def _valid(e: Evidence) -> list[Picture]:
    """Bits per byte of the validation text while training."""
    looks = {k: [r for r in e.log.get(k, ()) if "valid_bits_per_byte" in r] for k in ("pretrain", "finetune")}
    before = max((r["tokens"] for r in e.log.get("pretrain", ())), default=0)
    series = [
        Series(
            k,
            [r["tokens"] + (before if k == "finetune" else 0) for r in rows],
            [r["valid_bits_per_byte"] for r in rows],
            tone,
            dots,
        )
        for k, tone in (("pretrain", "t1"), ("finetune", "t3"))
        for dots in (False, True)
        if (rows := looks[k])
    ]
    if not series:
        return []
    rows = [r for k in looks for r in looks[k]]
    frame = Frame(
        "valid",
        "Bits per byte of validation text while training",
        "; ".join(f"{r['tokens']:,} tokens: {r['valid_bits_per_byte']:.3f}" for r in rows),
        "tokens read, fine-tuning behind pre-training",
        width=HALF,
        height=240,
        y_format=plain,
    )
    return [
        Picture(
            "Validation text, bits per byte",
            curves(frame, series),
            "Pre-training, then (full colour) fine-tuning, on the valid split.",
            learning_table(rows, {"stage": "Stage", **LOG}),
        )
    ]


ALIGN = {
    "step": "Step",
    "tokens": "Tokens",
    "reward": "Proxy reward",
    "judge": "Judge's score",
    "kl": "KL",
    "answer_tokens": "Answer tokens",
    "finished": "Finished",
    "entropy": "Entropy",
    "equal_groups": "Groups without a difference",
}


def alignment_pictures(e: Evidence) -> list[Picture]:
    """What is rewarded, what is wanted, and how far the model has moved, on one axis; then one against the other."""
    rows = list(e.log.get("align", ()))
    table = learning_table(rows, ALIGN) if rows else None
    proxy = ("Proxy reward", "what the reward model gives, in spreads of the fine-tuned model", "t1")
    if not e.has("reward"):
        proxy = ("Reward", "the judge's own score of 0 to 1, demands met and grades between", "t1")
    wanted: Mapping[str, tuple[str, str, str]] = {
        "reward": proxy,
        "judge": ("Judge's score", f"share that satisfies the judge, {e.stand_in}", "t3"),
        "kl": ("KL to the fine-tuned model", "nats a token, of the answers learned from", "t2"),
    }
    out: list[Picture] = []
    for key, (heading, reading, tone) in wanted.items():
        there = [r for r in rows if r.get(key) is not None]
        if not there:
            continue
        values = [float(r[key]) for r in there]
        frame = Frame(
            f"align-{key}",
            f"{heading} during alignment",
            f"{len(there)} steps, from {values[0]:.3f} to {values[-1]:.3f}",
            "tokens read",
            width=HALF,
            height=220,
            y_low=0.0 if min(values) >= 0 else None,
            y_high=1.0 if key == "judge" else None,
            y_format=(lambda v: f"{100 * v:.0f} %") if key == "judge" else None,
        )
        out.append(
            Picture(
                heading,
                curves(frame, [Series(key, [r["tokens"] for r in there], values, tone)]),
                reading,
                table if not out else None,
            )
        )
    return [*out, *_against(rows)]


def _against(rows: Sequence[Row]) -> list[Picture]:
    """Judge's score over KL: where the cloud bends down, more distance no longer buys what is wanted."""
    both = [r for r in rows if r.get("kl") is not None and r.get("judge") is not None]
    if not both:
        return []
    frame = Frame(
        "against",
        "Judge's score against KL",
        f"{len(both)} steps",
        "KL to the fine-tuned model, nats a token",
        width=HALF,
        height=220,
        y_low=0.0,
        y_high=1.0,
        y_format=lambda v: f"{100 * v:.0f} %",
    )
    points = Series("judge", [max(0.0, r["kl"]) for r in both], [r["judge"] for r in both], "t3", dots=True)
    return [
        Picture(
            "Judge's score against KL",
            curves(frame, [points]),
            "A dot a step; where the cloud bends down, distance no longer pays.",
            None,
        )
    ]
