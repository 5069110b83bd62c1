"""The report's tables, shared by the page and the Markdown, so that the two cannot disagree."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from cutaway.run.report_forms import (
    DASH,
    NONE,
    Table,
    cell,
    count,
    duration,
    number,
    points,
    shown,
    signed,
    size,
    words,
)
from cutaway.run.report_read import MODELS, NAMES, Evidence, Row, Stage


def splits(e: Evidence) -> Row:
    """Counts by split, as the shards' manifest gave them."""
    found: Row = (e.lineage.get("data") or {}).get("splits") or {}
    return found


def models_table(e: Evidence) -> Table:
    """Every model on the same held-out text and requests."""
    checks = list(dict.fromkeys(k for v in e.evaluations.values() for k in v.answers))
    checks = [c for c in checks if c != "satisfies"] + (["satisfies"] if "satisfies" in checks else [])
    named: list[tuple[str, Callable[[str], str]]] = [
        ("Bits per byte", lambda m: shown(e.measured(m, "bits_per_byte"))),
        *((words(c) if c != "satisfies" else "Satisfies the judge", _cell(e, c)) for c in checks),
        ("Change of that share, paired", lambda m: shown(e.measured(m, "change"), points)),
        ("Held-out answers, bits per byte", lambda m: shown(e.measured(m, "answer_bits"))),
        ("Change of that, paired", lambda m: shown(e.measured(m, "answer_gain"), signed)),
        ("Forgetting, bits per byte", lambda m: shown(e.measured(m, "forgetting"), signed)),
        ("Proxy reward", lambda m: shown(e.measured(m, "proxy_reward"))),
        ("KL to fine-tuned, nats an answer", lambda m: shown(e.measured(m, "kl"))),
    ]
    there = [m for m in MODELS if m in e.evaluations]
    rows = tuple((label, *(cell(m) for m in there)) for label, cell in named)
    kept = tuple(r for r in rows if any(c != NONE for c in r[1:]))
    return Table(
        "Every model on the same held-out text and requests, 95 % intervals",
        ("Measured", *(NAMES[m] for m in there)),
        kept,
        f"Verdicts are those of {e.stand_in}.",
    )


def _cell(e: Evidence, check: str) -> Callable[[str], str]:
    return lambda model: shown(e.measured(model, check))


def compression_table(e: Evidence) -> Table:
    """Compressors and models on the same bytes."""
    rows = [(k, f"{m.value:.3f}", DASH) for k, m in e.compression.items()]
    rows += [
        (
            NAMES[m],
            f"{b.value:.3f}",
            f"{b.low:.3f} to {b.high:.3f}" if b.low is not None and b.high is not None else DASH,
        )
        for m in MODELS
        if (b := e.measured(m, "bits_per_byte")) is not None
    ]
    return Table(
        "Bits per byte of the same held-out text", ("", "Bits per byte", "95 % interval"), tuple(rows)
    )


def cost_table(e: Evidence) -> Table:
    """What every stage cost, predicted beside measured."""
    rows = tuple(
        (
            s.name,
            duration(s.predicted_seconds),
            duration(s.calibrated_seconds),
            duration(s.seconds),
            off(s),
            count(s.steps),
            number(s.tokens),
            number(s.tokens_per_second),
            number(s.flops),
            DASH if s.share_of_peak is None else f"{100 * s.share_of_peak:.3g} %",
            size(s.peak_memory),
        )
        for s in e.stages
    )
    peak = "gemm_bf16_flops" if e.recipe.get("dtype") == "bfloat16" else "gemm_fp32_flops"
    note = (
        f"Peak is {e.machine[peak] / 1e9:,.0f} GFLOP/s, the fastest matrix product measured on this machine in "
        f"{e.recipe.get('dtype')}."
        if e.machine.get(peak)
        else ""
    )
    return Table(
        "What every stage cost",
        (
            "Stage",
            "Predicted",
            "Calibrated",
            "Measured",
            "Off by",
            "Steps",
            "Tokens",
            "Tokens/s",
            "FLOPs",
            "Of peak",
            "Peak memory",
        ),
        rows,
        note,
    )


def off(stage: Stage) -> str:
    """How far the prediction was off: percent, or a factor where it is more than two."""
    if not stage.predicted_seconds or not stage.seconds:
        return DASH
    ratio = stage.seconds / stage.predicted_seconds
    return f"{100 * (ratio - 1):+.0f} %".replace("-", "−") if 0.5 <= ratio <= 2 else f"× {ratio:.3g}"


def data_table(e: Evidence) -> Table:
    """Documents by split."""
    rows = tuple(
        (
            name,
            count(s.get("documents")),
            count(s.get("tokens")),
            size(s.get("bytes")),
            f"{s['bytes'] / s['tokens']:.2f}" if s.get("tokens") else DASH,
        )
        for name, s in splits(e).items()
    )
    return Table(
        "What was read, by split",
        ("Split", "Documents", "Tokens", "Bytes", "Bytes a token"),
        rows,
        "A document's split follows from a hash of its content, so it stays where it is when the corpus grows.",
    )


def left_out_table(e: Evidence) -> Table:
    """What was left out, with the reasons."""
    reasons = (e.lineage.get("data") or {}).get("skipped") or {}
    rows = [(f"Documents: {reason}", count(n)) for reason, n in reasons.items()]
    for side, name in (
        ("train_left_out", "Conversations to learn from"),
        ("test_left_out", "Held-out conversations"),
    ):
        rows += [(f"{name}: {reason}", count(n)) for reason, n in (e.text.get(side) or {}).items()]
    return Table(
        "What was left out, and why", ("Reason", "Count"), tuple(rows) or (("Nothing was left out", "0"),)
    )


def preferences_table(e: Evidence) -> Table:
    """Pairs, ties and who ranked them."""
    facts = next((s.facts for s in e.stages if s.key == "preferences"), {})
    pairs, held = (
        sum(len(p.get("pairs") or ()) for p in e.preferences if not k or p.get("held_out"))
        for k in (False, True)
    )
    rows = [
        ("Requests", count(len(e.preferences))),
        ("Answers", count(sum(len(p.get("answers") or ()) for p in e.preferences))),
        ("Pairs, better and worse", count(pairs)),
        ("of these held out for the reward model's test", count(held)),
        ("Ties left out", count(facts.get("ties"))),
        ("Ranked by", judge_of(e)),
    ]
    return Table("Preferences", ("", ""), tuple(rows))


def judge_of(e: Evidence) -> str:
    """The judge of the preferences as their own file names it."""
    named = {str(p["judge"]) for p in e.preferences if p.get("judge")}
    return ", ".join(sorted(named)) or e.judge


def lineage_table(e: Evidence) -> Table:
    """Hashes: what each thing came from."""
    tokenizer, data = e.lineage.get("tokenizer") or {}, splits(e)
    rows = [("Recipe", str(e.lineage.get("recipe_sha256") or DASH), "")]
    rows += [
        (f"Text, {name}", str(s.get("sha256") or DASH), f"{count(s.get('documents'))} documents")
        for name, s in data.items()
    ]
    if tokenizer:
        rows.append(
            (
                "Tokenizer",
                str(tokenizer.get("sha256") or DASH),
                f"{tokenizer.get('kind')}, {count(tokenizer.get('vocab_size'))} entries",
            )
        )
    rows += [
        (
            f"Model, {NAMES.get(name, name).lower()}",
            str(m.get("sha256")),
            f"{count(m.get('steps'))} steps from {m.get('parent')}",
        )
        for name, m in (e.lineage.get("models") or {}).items()
    ]
    return Table(
        "SHA-256 of everything this run read and made",
        ("What", "SHA-256", "From"),
        tuple(rows),
        numeric=False,
    )


def machine_table(e: Evidence) -> Table:
    """The machine and the versions."""
    m = e.machine
    rows = (
        [
            ("Processor", str(m["cpu"])),
            ("Cores", count(m.get("cores"))),
            ("Memory", size(m.get("memory_bytes"))),
        ]
        if m.get("cpu")
        else []
    )
    if m.get("accelerator"):
        rows.append(("Accelerator", f"{m['accelerator']}, {size(m.get('accelerator_memory_bytes'))}"))
    rows += [
        (label, f"{m[key] / 1e9:,.0f} {unit}")
        for key, label, unit in (
            ("gemm_fp32_flops", "Matrix products, fp32", "GFLOP/s"),
            ("gemm_bf16_flops", "Matrix products, bf16", "GFLOP/s"),
            ("read_bytes_per_s", "Memory, read", "GB/s"),
            ("copy_bytes_per_s", "Memory, copy", "GB/s"),
        )
        if m.get(key)
    ]
    rows += [(k, str(v)) for k, v in e.versions.items()]
    return Table("Machine and versions", ("", ""), tuple(rows), numeric=False)


def learning_table(rows: Sequence[Row], columns: Mapping[str, str], most: int = 16) -> Table:
    """At most ``most`` evenly spaced rows of a log; how many there are is said."""
    kept = rows if len(rows) <= most else [rows[round(i * (len(rows) - 1) / (most - 1))] for i in range(most)]
    there = {k: v for k, v in columns.items() if any(k in r for r in rows)}
    cells = tuple(tuple(cell(r.get(k)) for k in there) for r in kept)
    note = (
        f"{len(kept)} of {len(rows):,} steps, evenly spaced; all of them are in log.jsonl."
        if len(kept) < len(rows)
        else ""
    )
    return Table("Numbers behind the picture", tuple(there.values()), cells, note)
