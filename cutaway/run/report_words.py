"""The report's sentences: the run in one, its headline numbers, what alignment did, and when all this is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev

from cutaway.run.report_forms import NONE, Headline, beside_value, duration, percent, plain, signed, size
from cutaway.run.report_read import MODELS, NAMES, Evidence, Row
from cutaway.run.report_tables import splits


def source(e: Evidence) -> str:
    """What text this run learned from."""
    data = e.recipe.get("data") or {}
    kind = data.get("kind")
    if kind == "python-reference":
        return "the Python language reference on this machine"
    if kind == "python-stdlib":
        return "the Python standard library's source on this machine"
    return (
        f"the text at {data['path']}"
        if data.get("path")
        else "text from standard input"
        if kind == "stdin"
        else "text"
    )


def summary(e: Evidence) -> str:
    """The run in one sentence."""
    trained = (splits(e).get("train") or {}).get("bytes")
    text = f"{trained / 1e6:.1f} MB of {source(e)}" if trained else source(e)
    done = {s.key for s in e.stages if s.done}
    later = [word for key, word in (("finetune", "fine-tuned"), ("align", "aligned")) if key in done]
    took = f", in {duration(e.seconds)}" if e.seconds else ""
    if e.began is not None:
        told = f"was {' and '.join(later)} on conversations from {text}" if later else "has not been trained yet"
        return f"{e.began}, a model that was there before, {told}{_learned(e)}{took if later else ''}."
    if "pretrain" not in done:
        return f"A run on {text}; the model has not been trained yet."
    parts = [f"learned from {text}", *([f"was {' and '.join(later)}"] if later else [])]
    of = f" of {_many(e.parameters)} parameters" if e.parameters else ""
    return f"A language model{of} that {', then '.join(parts)}{took}."


def _many(count: float) -> str:
    return f"{count / 1e6:,.1f} million" if count >= 1e6 else f"{count:,.0f}"


def _learned(e: Evidence) -> str:
    """How many of its parameters learned."""
    facts = next((s.facts for s in reversed(e.stages) if s.facts.get("learned_parameters")), None)
    if facts is None:
        return ""
    return f", {_many(facts['learned_parameters'])} of {_many(facts['parameters'])} parameters learning"


def headlines(e: Evidence) -> list[Headline]:
    """The numbers at the top."""
    last = next((m for m in reversed(MODELS) if e.measured(m, "satisfies")), e.models[-1])
    met, bits = e.measured(last, "satisfies"), e.measured("base", "bits_per_byte")
    before = " → ".join(percent(found.value) for m in MODELS if (found := e.measured(m, "satisfies")))
    beside = ", ".join(f"{k} {m.value:.2f}" for k, m in e.compression.items() if k in ("gzip -9", "xz -9"))
    when = "before anything was learned" if e.began is not None else "after pre-training"
    out = [
        Headline(
            f"Held-out text {when}",
            f"{bits.value:.2f}" if bits else NONE,
            "bits per byte" if bits else "",
            f"{beside} on the same text" if beside else "",
        ),
        Headline(
            f"Answers that satisfy the judge, {NAMES[last].lower()}",
            percent(met.value) if met else NONE,
            "",
            f"{beside_value(met)}; by model {before}" if met else "",
        ),
    ]
    if e.has("reward"):
        right = e.reward_accuracy
        out.append(
            Headline(
                "Reward model on held-out pairs",
                percent(right.value) if right else NONE,
                "",
                beside_value(right) if right else "",
            )
        )
    return [*out, _forgetting(e)]


def _forgetting(e: Evidence) -> Headline:
    stage = "alignment" if e.has("align") else "fine-tuning"
    forgot = e.measured("aligned" if e.has("align") else "finetuned", "forgetting")
    return Headline(
        f"Forgetting after {stage}",
        signed(forgot.value) if forgot else NONE,
        "bits per byte" if forgot else "",
        beside_value(forgot, signed) if forgot else "",
    )


def over_optimised(rows: Sequence[Row]) -> str:
    """Whether the judge's score fell while the proxy rose: first, best and last fifth of the alignment's steps.

    A difference is called one where it is more than three standard errors of the two fifths' steps.
    """
    both = [r for r in rows if "reward" in r and "judge" in r]
    part = len(both) // 5
    if part < 2:
        return ""
    fifths = [both[i * len(both) // 5 : (i + 1) * len(both) // 5] for i in range(5)]
    judge, proxy = ([[float(r[k]) for r in f] for f in fifths] for k in ("judge", "reward"))
    best = max(range(5), key=lambda i: fmean(judge[i]))
    rose = _differ(proxy[best], proxy[4]) > 0 if best < 4 else _differ(proxy[0], proxy[4]) > 0
    told = (
        f"Judge's score by fifths of the stage: {', '.join(percent(fmean(j)) for j in judge)}. "
        f"Proxy reward: {', '.join(plain(fmean(p)) for p in proxy)}. "
    )
    if best < 4 and _differ(judge[4], judge[best]) > 0:
        more = "while the proxy rose: it was over-optimised" if rose else "and the proxy did not rise either"
        return (
            f"{told}The judge's score fell after its best, fifth {best + 1}, {more}. "
            "An earlier checkpoint may be the better model."
        )
    if _differ(proxy[0], proxy[4]) > 0 and _differ(judge[0], judge[4]) <= 0:
        if fmean(judge[4]) > fmean(judge[0]):
            return f"{told}Both rose, the judge's score by less than three standard errors of these few steps."
        return f"{told}The proxy rose and the judge's score did not: what was gained is the proxy's alone."
    return f"{told}The judge's score did not measurably fall after its best: no over-optimisation is seen here."


def _differ(before: Sequence[float], after: Sequence[float]) -> int:
    """Sign of ``after`` less ``before`` where it is beyond three standard errors, else 0 (the best is a pick)."""
    error = (stdev(before) ** 2 / len(before) + stdev(after) ** 2 / len(after)) ** 0.5
    change = fmean(after) - fmean(before)
    return 0 if abs(change) <= 3 * error else (1 if change > 0 else -1)


def no_alignment(e: Evidence) -> str:
    """What stands where there is nothing to say about over-optimisation."""
    if not e.has("align"):
        return "This run has no alignment."
    rows = e.log.get("align", ())
    if not rows:
        return "The run has not come to alignment yet."
    if (e.recipe.get("align") or {}).get("kind") == "dpo":
        return "DPO samples no answers while it trains, so there is no curve of proxy against judge."
    if (e.recipe.get("align") or {}).get("reward") == "judge":
        return "The reward was the judge's own score: there is no proxy to part from it."
    return "Too few steps to tell whether the proxy was over-optimised."


def trained_on(e: Evidence) -> str:
    """What alignment rewarded, and what is wanted."""
    align = e.recipe.get("align") or {}
    if align.get("kind") == "dpo":
        return "The model learns from pairs of answers, better and worse, how far it may go from what it began as."
    if align.get("reward") == "judge":
        return (
            "What is rewarded is the judge's own score, which a program computes: demands met, with grades between. "
            "What is counted is whether all of them are."
        )
    return (
        "The model is trained on the proxy, a reward model; what is wanted is the judge's score. They part where the "
        "proxy is over-optimised."
    )


def cost_words(e: Evidence) -> str:
    """The whole in one sentence."""
    parts = [f"{duration(e.seconds)} in all"] if e.seconds else []
    parts += [f"at most {size(e.memory)} of memory"] if e.memory else []
    told = ", ".join(parts)
    return (
        (told[0].upper() + told[1:] + ". " if told else "")
        + "Predicted is what the configuration and the measured machine promise, calibrated what a few timed steps "
        "promised; measured are the steps alone."
    )


def source_sentence(e: Evidence) -> str:
    """Where the text came from, with the settings that chose it."""
    text = source(e)
    settings = {k: v for k, v in (e.recipe.get("data") or {}).items() if k not in ("kind", "path")}
    chosen = ", ".join(
        f"{k.replace('_', ' ')} {v}"
        for k, v in settings.items()
        if isinstance(v, str | int | float) and not isinstance(v, bool)
    )
    return text[0].upper() + text[1:] + (f" ({chosen})." if chosen else ".")


def data_note(e: Evidence) -> str:
    """What the reader of the corpus had to say, with a full stop."""
    note = str((e.lineage.get("data") or {}).get("note") or "").strip()
    return note if not note or note.endswith(".") else note + "."


LIMITS = (
    "Intervals cover the draw of held-out requests and documents, not the luck of one training run. Another seed can "
    "differ by more than they are wide: repeat the run with other seeds before believing a small difference.",
    "Share of peak counts matrix products and attention only, against the fastest product measured on this machine. "
    "Whatever else ran at the same time makes both look worse.",
)


SAME_CORPUS = (
    "Bits per byte depend on the text. Held-out documents come from the same corpus; only exact duplicates are kept "
    "out of training, so near copies make the model look better. gzip and xz read the held-out text as one stream "
    "and start from nothing; the model starts every document afresh and has seen other text of its kind."
)
OTHER_TEXT = (
    "Bits per byte, and with them forgetting, are measured on another text than what was learned from, and depend on "
    "it: on a third text a model may have forgotten more or less. It may have read this one before the run."
)
REWARD = (
    "The reward model is tested on answers of the fine-tuned model. Alignment moves away from those, and the "
    "further it moves (KL), the less that accuracy says."
)


def limits(e: Evidence) -> list[str]:
    """When the report is wrong: always, and for this run in particular."""
    own = []
    few = [
        m
        for v in e.evaluations.values()
        if (m := v.answers.get("satisfies")) is not None and m.n is not None and m.n < 200
    ]
    if few:
        own.append(
            f"Only {min(m.n or 0 for m in few):,} held-out requests were asked; below 200 the intervals are too wide "
            "for anything but large differences."
        )
    if missing := [NAMES[m].lower() for m in e.models if m not in e.evaluations]:
        own.append(f"Not evaluated: {', '.join(missing)}.")
    if unfinished := [s.name for s in e.stages if not s.done]:
        own.append(f"Begun and not finished: {', '.join(unfinished)}.")
    if skipped := sum(s.skipped for s in e.stages):
        own.append(f"{skipped} steps were skipped because their loss or gradient was not finite.")
    own += [f"{note}." for note in e.notes]
    text = OTHER_TEXT if (e.recipe.get("evaluate") or {}).get("text") else SAME_CORPUS
    return [*own, _about_the_judge(e), LIMITS[0], text, *([REWARD] if e.has("reward") else []), *LIMITS[1:]]


def _about_the_judge(e: Evidence) -> str:
    person = not all(p.get("stand_in", True) for p in e.preferences)
    who = (
        "Preferences are a person's, but the verdicts counted here are a program's"
        if person
        else "The judge is a program standing in for people"
    )
    example = (
        " A function that returns its arguments can satisfy it." if e.text.get("kind") == "functions" else ""
    )
    return (
        f"{who}. It checks an answer's form, never whether it does what was asked.{example} A model trained towards "
        "it learns the form."
    )
