"""Figures of a task from what a model answered: accuracies with Wilson's interval, perplexities and bits per byte as
ratios of sums with a bootstrap over items; the names are lm-evaluation-harness's."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cutaway.errors import DataError
from cutaway.evaluate.items import Item, Items
from cutaway.evaluate.outcome import Outcome
from cutaway.evaluate.resample import Floats, Statistics
from cutaway.evaluate.task import (
    AnyTask,
    Asked,
    Continuation,
    Extract,
    Generation,
    MultipleChoice,
    Perplexity,
)
from cutaway.records import Measurement, digest, wilson


@dataclass(frozen=True)
class Scored:
    """A task's outcomes in the items' order, what each item adds to each figure, and the figures."""

    outcomes: tuple[Outcome, ...]
    marks: tuple[Mapping[str, Any], ...]
    figures: Mapping[str, Measurement]

    def notes(self) -> Iterator[str]:
        """What a reader of the figures has to know about items that did not fit."""
        cut = [o.cut for o in self.outcomes if o.cut]
        if cut:
            yield (f"the prompts of {len(cut):,} of {len(self.outcomes):,} items lost their beginning to fit the "
                   f"context, up to {max(cut):,} tokens")
        gone = [o.left_out for o in self.outcomes if o.left_out]
        if gone:
            yield f"{len(gone):,} of {len(self.outcomes):,} items are left out: too long (the first: {gone[0]})"

    def rows(self, items: Items) -> Iterator[dict[str, Any]]:
        """Every item with its outcome, plain JSON."""
        for outcome, marks in zip(self.outcomes, self.marks, strict=True):
            item = asdict(items.items[outcome.item])
            yield {**item, **{k: v for k, v in asdict(outcome).items() if k != "item"}, "marks": dict(marks)}


def scored(task: AnyTask, items: Items, outcomes: Sequence[Outcome], *, context: int, tokenizer_sha256: str,
           dtype: str | None = None) -> Scored:
    """The figures of a task; ``dtype`` is the arithmetic of the model's products, where it has some. Raises DataError
    where no item has an answer."""
    ordered = sorted(outcomes, key=lambda o: o.item)
    marks = [{} if o.left_out else _marks(task, items.items[o.item], o) for o in ordered]
    answered = [m for m in marks if m]
    if not answered:
        raise DataError(f"none of the {len(items.items):,} items fits the context of {context} tokens",
                        where=f"task {task.name}", way_out="set too_long=cut")
    conditions = {
        "task": task.name, "version": task.version, "task_sha256": _digest(task), "data_sha256": items.sha256[:16],
        "items": len(items.items), "available": items.available, "context": context,
        "cut": sum(o.cut > 0 for o in ordered), "left_out": len(marks) - len(answered),
        "skipped": items.skipped.counts.total(), "tokenizer_sha256": tokenizer_sha256[:16], "dtype": dtype}
    if isinstance(task, Asked):
        conditions["fewshot"] = task.fewshot.count
    if items.shots_sha256 is not None:
        conditions |= {"fewshot_sha256": items.shots_sha256[:16], "fewshot_skipped": items.shots_skipped.counts.total()}
    return Scored(tuple(ordered), tuple(marks), _figures(task, answered, conditions))


def _digest(task: AnyTask) -> str:
    """What a task asks, wherever its data lie and however many items of them are taken."""
    elsewhere: dict[str, bool | set[str]] = {**dict.fromkeys(("path", "limit", "pick", "about", "context"), True),
                                             "fewshot": {"path"}}
    return digest(task.model_dump_json(exclude=elsewhere).encode())[:16]


def _marks(task: AnyTask, item: Item, outcome: Outcome) -> dict[str, Any]:
    """What one item adds to each figure."""
    match task:
        case MultipleChoice():
            logs = np.array(outcome.logprobs)
            sizes = {"acc": 1, "acc_norm": [len(a) for a in item.answers],
                     "acc_bytes": [len(a.encode()) for a in item.answers]}
            # of equally likely choices the first is taken, as lm-evaluation-harness's argmax does
            return {name: bool(np.argmax(logs / np.array(size)) == item.gold) for name, size in sizes.items()}
        case Continuation():
            return {"acc": bool(outcome.greedy), "nats": -outcome.logprobs[0]}
        case Perplexity():
            text = item.answers[0]
            return {"nats": -outcome.logprobs[0], "words": len(re.split(r"\s+", text)), "bytes": len(text.encode())}
        case Generation():
            said = outcome.text or ""
            if not task.extract:
                return {"exact_match": _same(task, said, item.answers[0])}
            return {f"exact_match,{rule.name}": _same(task, extracted(rule, said), item.answers[0])
                    for rule in task.extract}


def extracted(rule: Extract, text: str) -> str:
    """The part of an answer that is compared."""
    found = re.findall(rule.pattern, text)
    if not -len(found) <= rule.match < len(found):
        return rule.fallback
    match = found[rule.match]
    if isinstance(match, tuple):
        match = next((group for group in match if group), rule.fallback)
    return str(match).strip()


def _same(task: Generation, said: str, wanted: str) -> bool:
    for pattern in task.ignore:
        said, wanted = re.sub(pattern, "", said), re.sub(pattern, "", wanted)
    return said.lower() == wanted.lower() if task.ignore_case else said == wanted


def _figures(task: AnyTask, marks: Sequence[Mapping[str, Any]], conditions: Mapping[str, Any]
             ) -> dict[str, Measurement]:
    if isinstance(task, Perplexity):
        return _of_texts(marks, conditions)
    out = {}
    for name in marks[0]:
        values = [m[name] for m in marks]
        out["perplexity" if name == "nats" else name] = (
            _ratio("perplexity", "", np.array([[v, 1.0] for v in values]), _exp, conditions) if name == "nats" else
            Measurement(name, sum(values) / len(values), "share", len(values), *wilson(sum(values), len(values)),
                        conditions))
    return out


def _of_texts(marks: Sequence[Mapping[str, Any]], conditions: Mapping[str, Any]) -> dict[str, Measurement]:
    nats, words, size = (np.array([float(m[k]) for m in marks]) for k in ("nats", "words", "bytes"))
    conditions = {**conditions, "words": int(words.sum()), "bytes": int(size.sum())}
    found = [_ratio("word_perplexity", "", np.stack([nats, words], 1), _exp, conditions),
             _ratio("byte_perplexity", "", np.stack([nats, size], 1), _exp, conditions),
             _ratio("bits_per_byte", "bits per byte", np.stack([nats, size], 1), _bits, conditions)]
    return {m.name: m for m in found}


def _exp(sums: Floats) -> Floats:
    with np.errstate(over="ignore"):  # a text of a million letters and no space is one word
        return np.asarray(np.exp(sums[:, 0] / sums[:, 1]))


def _bits(sums: Floats) -> Floats:
    return np.asarray(sums[:, 0] / sums[:, 1] / math.log(2))


def _ratio(name: str, unit: str, rows: Floats, figure: Any, conditions: Mapping[str, Any]) -> Measurement:
    """A figure of sums; one item has no interval."""
    statistics = Statistics(name, unit, rows, figure, conditions)
    if len(rows) > 1:
        return statistics.measure()
    return Measurement(name, statistics.value, unit, 1, None, None, conditions)
