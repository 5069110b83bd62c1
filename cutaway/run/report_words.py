"""The report's numbers in words and tables, shared by the page and the Markdown, so that the two cannot disagree."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from cutaway.records import Measurement
from cutaway.run.report_charts import compact
from cutaway.run.report_read import MODELS, NAMES, Evidence, Row, Stage

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


def duration(seconds: float | None) -> str:
    """Seconds as people say them."""
    if seconds is None:
        return DASH
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


def source(e: Evidence) -> str:
    """What text this run learned from."""
    data = e.recipe.get("data") or {}
    kind = data.get("kind")
    if kind == "python-stdlib":
        return "the Python standard library's source on this machine"
    return f"the text at {data['path']}" if data.get("path") else "text from standard input" if kind == "stdin" else "text"


def splits(e: Evidence) -> Row:
    """Counts by split, as the shards' manifest gave them."""
    found: Row = (e.lineage.get("data") or {}).get("splits") or {}
    return found


def summary(e: Evidence) -> str:
    """The run in one sentence."""
    trained = (splits(e).get("train") or {}).get("bytes")
    text = f"{trained / 1e6:.1f} MB of {source(e)}" if trained else source(e)
    done = {s.key for s in e.stages if s.done}
    verbs = [word for key, word in (("pretrain", "learned"), ("finetune", "was fine-tuned"), ("align", "was aligned"))
             if key in done]
    if not verbs:
        return f"A run on {text}; no stage has been finished yet."
    took = f" in {duration(e.seconds)}" if e.seconds else ""
    told = verbs[0] if len(verbs) == 1 else ", ".join(verbs[:-1]) + " and " + verbs[-1]
    return f"A language model that {told} on {text}{took}."


def headlines(e: Evidence) -> list[Headline]:
    """The four numbers at the top."""
    bits, forgot = e.measured("base", "bits_per_byte"), e.measured("aligned", "forgetting")
    last = next((m for m in reversed(MODELS) if e.measured(m, "satisfies")), "aligned")
    met, right = e.measured(last, "satisfies"), e.reward_accuracy
    before = " → ".join(percent(found.value) for m in MODELS if (found := e.measured(m, "satisfies")))
    beside = ", ".join(f"{k} {m.value:.2f}" for k, m in e.compression.items() if k in ("gzip -9", "xz -9"))
    return [
        Headline("Held-out text after pre-training", f"{bits.value:.2f}" if bits else NONE, "bits per byte" if bits else "",
                 f"{beside} on the same text" if beside else ""),
        Headline(f"Answers that satisfy the judge, {NAMES[last].lower()}", percent(met.value) if met else NONE, "",
                 f"{shown(met)}; {before}" if met else ""),
        Headline("Reward model on held-out pairs", percent(right.value) if right else NONE, "" , shown(right) if right else ""),
        Headline("Forgetting after alignment", signed(forgot.value) if forgot else NONE, "bits per byte" if forgot else "",
                 shown(forgot, signed) if forgot else ""),
    ]


def models_table(e: Evidence) -> Table:
    """Every model on the same held-out text and requests."""
    checks = list(dict.fromkeys(k for v in e.evaluations.values() for k in v.answers))
    checks = [c for c in checks if c != "satisfies"] + (["satisfies"] if "satisfies" in checks else [])
    named: list[tuple[str, Callable[[str], str]]] = [
        ("Bits per byte", lambda m: shown(e.measured(m, "bits_per_byte"))),
        *((words(c) if c != "satisfies" else "Satisfies the judge", _cell(e, c)) for c in checks),
        ("Change of that share, paired", lambda m: shown(e.measured(m, "change"), points)),
        ("Forgetting, bits per byte", lambda m: shown(e.measured(m, "forgetting"), signed)),
        ("Proxy reward", lambda m: shown(e.measured(m, "proxy_reward"))),
        ("KL to fine-tuned, nats an answer", lambda m: shown(e.measured(m, "kl"))),
    ]
    there = [m for m in MODELS if m in e.evaluations]
    rows = tuple((label, *(cell(m) for m in there)) for label, cell in named)
    kept = tuple(r for r in rows if any(c != NONE for c in r[1:]))
    return Table("Every model on the same held-out text and requests, 95 % intervals",
                 ("Measured", *(NAMES[m] for m in there)), kept, f"Verdicts are those of {e.stand_in}.")


def _cell(e: Evidence, check: str) -> Callable[[str], str]:
    return lambda model: shown(e.measured(model, check))


def words(key: str) -> str:
    """A key as words."""
    return key.replace("_", " ").capitalize()


def compression_table(e: Evidence) -> Table:
    """Compressors and models on the same bytes."""
    rows = [(k, f"{m.value:.3f}", DASH) for k, m in e.compression.items()]
    rows += [(NAMES[m], f"{b.value:.3f}", f"{b.low:.3f} to {b.high:.3f}" if b.low is not None and b.high is not None else DASH)
             for m in MODELS if (b := e.measured(m, "bits_per_byte")) is not None]
    return Table("Bits per byte of the same held-out text", ("", "Bits per byte", "95 % interval"), tuple(rows))


def cost_table(e: Evidence) -> Table:
    """What every stage cost, predicted beside measured."""
    rows = tuple((s.name, duration(s.predicted_seconds), duration(s.seconds), off(s), count(s.steps), tokens(s.tokens),
                  tokens(s.tokens_per_second), tokens(s.flops), DASH if s.share_of_peak is None else f"{100 * s.share_of_peak:.1f} %",
                  size(s.peak_memory)) for s in e.stages)
    peak = "gemm_bf16_flops" if e.recipe.get("dtype") == "bfloat16" else "gemm_fp32_flops"
    note = (f"Peak is {e.machine[peak] / 1e9:,.0f} GFLOP/s, the fastest matrix product measured on this machine in "
            f"{e.recipe.get('dtype')}." if e.machine.get(peak) else "")
    return Table("What every stage cost", ("Stage", "Predicted", "Measured", "Off by", "Steps", "Tokens", "Tokens/s", "FLOPs",
                                           "Of peak", "Peak memory"), rows, note)


def off(stage: Stage) -> str:
    """How far the prediction was off."""
    if not stage.predicted_seconds or not stage.seconds:
        return DASH
    return f"{100 * (stage.seconds / stage.predicted_seconds - 1):+.0f} %".replace("-", "−")


def count(value: float | None) -> str:
    """A whole number, or a dash."""
    return DASH if value is None else f"{value:,.0f}"


def tokens(value: float | None) -> str:
    """A large number in few characters, or a dash."""
    return DASH if value is None else compact(value)


def data_table(e: Evidence) -> Table:
    """Documents by split."""
    rows = tuple((name, count(s.get("documents")), count(s.get("tokens")), size(s.get("bytes")),
                  f"{s['bytes'] / s['tokens']:.2f}" if s.get("tokens") else DASH) for name, s in splits(e).items())
    return Table("What was read, by split", ("Split", "Documents", "Tokens", "Bytes", "Bytes a token"), rows,
                 "A document's split follows from a hash of its content, so it stays where it is when the corpus grows.")


def left_out_table(e: Evidence) -> Table:
    """What was left out, with the reasons."""
    reasons = (e.lineage.get("data") or {}).get("skipped") or {}
    rows = [(f"Documents: {reason}", count(n)) for reason, n in reasons.items()]
    for side, name in (("train_left_out", "Conversations to learn from"), ("test_left_out", "Held-out conversations")):
        rows += [(f"{name}: {reason}", count(n)) for reason, n in (e.text.get(side) or {}).items()]
    return Table("What was left out, and why", ("Reason", "Count"), tuple(rows) or (("Nothing was left out", "0"),))


def preferences_table(e: Evidence) -> Table:
    """Pairs, ties and who ranked them."""
    facts = next((s.facts for s in e.stages if s.key == "preferences"), {})
    pairs, held = (sum(len(p.get("pairs") or ()) for p in e.preferences if not k or p.get("held_out")) for k in (False, True))
    rows = [("Requests", count(len(e.preferences))), ("Answers", count(sum(len(p.get("answers") or ()) for p in e.preferences))),
            ("Pairs, better and worse", count(pairs)), ("of these held out for the reward model's test", count(held)),
            ("Ties left out", count(facts.get("ties"))), ("Ranked by", judge_of(e))]
    return Table("Preferences", ("", ""), tuple(rows))


def judge_of(e: Evidence) -> str:
    """The judge of the preferences as their own file names it."""
    named = {str(p["judge"]) for p in e.preferences if p.get("judge")}
    return ", ".join(sorted(named)) or e.judge


def lineage_table(e: Evidence) -> Table:
    """Hashes: what each thing came from."""
    tokenizer, data = e.lineage.get("tokenizer") or {}, splits(e)
    rows = [("Recipe", str(e.lineage.get("recipe_sha256") or DASH), "")]
    rows += [(f"Text, {name}", str(s.get("sha256") or DASH), f"{count(s.get('documents'))} documents") for name, s in data.items()]
    if tokenizer:
        rows.append(("Tokenizer", str(tokenizer.get("sha256") or DASH),
                     f"{tokenizer.get('kind')}, {count(tokenizer.get('vocab_size'))} entries"))
    rows += [(f"Model, {NAMES.get(name, name).lower()}", str(m.get("sha256")), f"{count(m.get('steps'))} steps from {m.get('parent')}")
             for name, m in (e.lineage.get("models") or {}).items()]
    return Table("SHA-256 of everything this run read and made", ("What", "SHA-256", "From"), tuple(rows), numeric=False)


def machine_table(e: Evidence) -> Table:
    """The machine and the versions."""
    m = e.machine
    rows = [("Processor", str(m["cpu"])), ("Cores", count(m.get("cores"))), ("Memory", size(m.get("memory_bytes")))] if m.get("cpu") else []
    if m.get("accelerator"):
        rows.append(("Accelerator", f"{m['accelerator']}, {size(m.get('accelerator_memory_bytes'))}"))
    rows += [(label, f"{m[key] / 1e9:,.0f} {unit}") for key, label, unit in (
        ("gemm_fp32_flops", "Matrix products, fp32", "GFLOP/s"), ("gemm_bf16_flops", "Matrix products, bf16", "GFLOP/s"),
        ("read_bytes_per_s", "Memory, read", "GB/s"), ("copy_bytes_per_s", "Memory, copy", "GB/s")) if m.get(key)]
    rows += [(k, str(v)) for k, v in e.versions.items()]
    return Table("Machine and versions", ("", ""), tuple(rows), numeric=False)


def learning_table(rows: Sequence[Row], columns: Mapping[str, str], most: int = 16) -> Table:
    """At most ``most`` evenly spaced rows of a log; how many there are is said."""
    kept = rows if len(rows) <= most else [rows[round(i * (len(rows) - 1) / (most - 1))] for i in range(most)]
    there = {k: v for k, v in columns.items() if any(k in r for r in rows)}
    cells = tuple(tuple(_log_cell(r.get(k)) for k in there) for r in kept)
    note = f"{len(kept)} of {len(rows):,} steps, evenly spaced; all of them are in log.jsonl." if len(kept) < len(rows) else ""
    return Table("Numbers behind the picture", tuple(there.values()), cells, note)


def _log_cell(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def over_optimised(rows: Sequence[Row]) -> str:
    """Whether the judge's score fell while the proxy rose: first, best and last fifth of the alignment's steps.

    A difference is called one where it is more than two standard errors of the two fifths' steps.
    """
    both = [r for r in rows if "reward" in r and "judge" in r]
    part = len(both) // 5
    if part < 2:
        return ""
    fifths = [both[i * len(both) // 5 : (i + 1) * len(both) // 5] for i in range(5)]
    judge, proxy = ([[float(r[k]) for r in f] for f in fifths] for k in ("judge", "reward"))
    best = max(range(5), key=lambda i: fmean(judge[i]))
    rose = _differ(proxy[best], proxy[4]) > 0 if best < 4 else _differ(proxy[0], proxy[4]) > 0
    told = (f"Judge's score by fifths of the stage: {', '.join(percent(fmean(j)) for j in judge)}. "
            f"Proxy reward: {', '.join(plain(fmean(p)) for p in proxy)}. ")
    if best < 4 and _differ(judge[4], judge[best]) > 0:
        more = "while the proxy rose: it was over-optimised" if rose else "and the proxy did not rise either"
        return told + f"The judge's score fell after its best, fifth {best + 1}, {more}. An earlier checkpoint may be the better model."
    return told + "The judge's score did not measurably fall after its best, so no over-optimisation is seen within this length."


def _differ(before: Sequence[float], after: Sequence[float]) -> int:
    """Sign of ``after`` less ``before`` where it is beyond two standard errors, else 0."""
    error = (stdev(before) ** 2 / len(before) + stdev(after) ** 2 / len(after)) ** 0.5
    change = fmean(after) - fmean(before)
    return 0 if abs(change) <= 2 * error else (1 if change > 0 else -1)


def no_alignment(e: Evidence) -> str:
    """What stands where there is nothing to say about over-optimisation."""
    rows = e.log.get("align", ())
    if not rows:
        return "The run has not come to alignment yet."
    if (e.recipe.get("align") or {}).get("kind") == "dpo":
        return "Direct preference optimisation samples nothing while it trains, so there is no curve of proxy against judge."
    return "Too few steps to tell whether the proxy was over-optimised."


def cost_words(e: Evidence) -> str:
    """The whole in one sentence."""
    parts = [f"{duration(e.seconds)} in all"] if e.seconds else []
    parts += [f"at most {size(e.memory)} of memory"] if e.memory else []
    told = ", ".join(parts)
    return ((told[0].upper() + told[1:] + ". " if told else "") + "Predicted before each stage, measured after it; "
            "seconds of training stages are those of their steps alone.")


def source_sentence(e: Evidence) -> str:
    """Where the text came from, with the settings that chose it."""
    text = source(e)
    settings = {k: v for k, v in (e.recipe.get("data") or {}).items() if k not in ("kind", "path")}
    chosen = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in settings.items() if isinstance(v, str | int | float))
    return text[0].upper() + text[1:] + (f" ({chosen})." if chosen else ".")


def data_note(e: Evidence) -> str:
    """What the reader of the corpus had to say, with a full stop."""
    note = str((e.lineage.get("data") or {}).get("note") or "").strip()
    return note if not note or note.endswith(".") else note + "."


LIMITS = (
    "The judge is a program standing in for people. It checks the form of an answer, never whether it does what was asked: "
    "a function that returns its arguments can satisfy it. A model trained towards it learns the form.",
    "Intervals cover the draw of held-out requests and documents, not the luck of one training run. Another seed can differ "
    "by more than they are wide: repeat the run with other seeds before believing a small difference.",
    "Bits per byte depend on the text. Held-out documents come from the same corpus; only exact duplicates are kept out of "
    "training, so near copies make the model look better. gzip and xz read the held-out text as one stream and start from "
    "nothing; the model starts every document afresh and has seen other text of its kind.",
    "The reward model is tested on answers of the fine-tuned model. Alignment moves away from those, and the further it moves "
    "(KL), the less that accuracy says.",
    "Share of peak counts matrix products and attention only, against the fastest product measured on this machine. Whatever "
    "else ran at the same time makes both look worse.",
)


def limits(e: Evidence) -> list[str]:
    """When the report is wrong: always, and for this run in particular."""
    own = []
    few = [m for v in e.evaluations.values() if (m := v.answers.get("satisfies")) is not None and m.n is not None and m.n < 200]
    if few:
        own.append(f"Only {min(m.n or 0 for m in few):,} held-out requests were asked; below 200 the intervals are too wide for "
                   "anything but large differences.")
    if missing := [NAMES[m].lower() for m in MODELS if m not in e.evaluations]:
        own.append(f"Not evaluated: {', '.join(missing)}.")
    if unfinished := [s.name for s in e.stages if not s.done]:
        own.append(f"Begun and not finished: {', '.join(unfinished)}.")
    if skipped := sum(s.skipped for s in e.stages):
        own.append(f"{skipped} steps were skipped because their loss or gradient was not finite.")
    own += [f"{note}." for note in e.notes]
    return [*own, *LIMITS]
