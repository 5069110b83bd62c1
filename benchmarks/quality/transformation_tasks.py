"""What quality/transformation.py asks for: four public tables of texts and what each is to become, and their scores.

Held out is test.* where the folder has one, else valid.* or dev.*. What chooses the weights is never what is scored: it
is valid.* or dev.* beside a test.*, else a share of train by the hash of the source.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cutaway.data.documents import split_of
from cutaway.data.order import shuffled
from cutaway.data.table import PairsSettings, read_pairs
from cutaway.evaluate.resample import Statistics, mean_of
from cutaway.evaluate.text import (
    bleu_statistics,
    chrf_statistics,
    exact_match,
    field_statistics,
    rouge_statistics,
)
from cutaway.records import Measurement, wilson

Pair = tuple[str, str]
References = list[list[str]]
Scores = dict[str, Statistics]
ENDINGS = (".tsv.gz", ".jsonl.gz")
CHOOSING = 0.05  # of train, at most
CHOSEN_BY = 1_000  # pairs are enough
WORDINGS = ({"category": "{}", "servings": "serves {}", "time": "takes {}", "difficulty": "difficulty {} of 5"},
            {"time": "ready in {}", "difficulty": "level {}", "servings": "for {}", "category": "one of {}"})


@dataclass(frozen=True)
class Parts:
    """Pairs that are learned and that choose the weights; sources held out, the references of each, and the file of
    them; how many pairs of train were left out because their source is held out too."""

    learn: list[Pair]
    valid: list[Pair]
    sources: list[str]
    references: References
    where: str
    left_out: int


@dataclass(frozen=True)
class Task:
    """A table: how its files are read, its scores (the first decides), the most tokens of a source and an answer, the
    seconds of a network on two cores, how copying is done, and the published figure, if there is one, with what differs
    from it."""

    folder: str
    rows: Callable[[Path], Iterator[Pair]]
    score: Callable[[Sequence[str], References], Scores]
    context: int
    longest: int
    seconds: float
    dropout: float  # more where there are fewer pairs
    copied: Callable[[str], str] = str
    asked: Callable[[str], str] = str  # what of a source makes it another one: a pair of train that agrees is left out
    published: float | None = None
    by: str = "no published figure at this size: the best of copying and of the nearest training pair is wanted"


def tatoeba(path: Path) -> Iterator[Pair]:
    """English and French."""
    yield from _table(PairsSettings(path=str(path), source="1", target="2", header=False, quotes=False, valid_share=0.0,
                                    test_share=0.0))


def wikisql(path: Path) -> Iterator[Pair]:
    """A question, its values after their names var0, var1 …, and its query: a value of several words is quoted there,
    which a name alone does not say."""
    for row in _json_rows(path):
        yield with_values(row["text"], row["variables"]), plain_query(row["sql"])


def with_values(text: str, values: dict[str, str]) -> str:
    """Every name in the text followed by its value in ⟨⟩; a word like var14 that names none stays alone."""
    return re.sub(r"\bvar\d+\b", lambda found: f"{found[0]} ⟨{values[found[0]]}⟩" if found[0] in values else found[0],
                  text)


def without_values(source: str) -> str:
    """The question alone: with other values it is the same one."""
    return re.sub(" ⟨[^⟩]*⟩", "", source)


def plain_query(sql: str) -> str:
    """WikiSQL's own wording: columns as the question has them, not ``TABLEalias0.AWAY_TEAM_SCORE_FIELD``. No two of the
    22,000 queries become equal by it, so what matches exactly here matches exactly there."""
    short = sql.replace("FROM TABLE AS TABLEalias0 ", "").removesuffix(" ;")
    return re.sub(r"(?:TABLEalias0\.)?(\S+)_FIELD", lambda found: found[1].replace("_", " ").lower(), short)


def _table(settings: PairsSettings) -> Iterator[Pair]:
    part = read_pairs(settings).split("train")
    yield from zip(part.sources, part.targets, strict=True)


def scitldr(path: Path) -> Iterator[Pair]:
    """An abstract and a sentence, once for every sentence there is."""
    for row in _json_rows(path):
        yield from ((" ".join(row["source"].split()), " ".join(target.split())) for target in row["targets"])


def recipes(path: Path) -> Iterator[Pair]:
    """A recipe's card as text and as a record; what the record lacks is not in the text either."""
    for row in _json_rows(path):
        yield card(row)


def card(row: dict[str, Any]) -> Pair:
    """The text is written here, in one of two wordings by the title's hash: the data has no prose of these fields."""
    record = {name: row[name] for name in ("title", "category", "servings", "time", "difficulty") if row.get(name)}
    record["ingredients"] = row["ingredients"]
    wording = WORDINGS[_hash(row["title"])[0] % len(WORDINGS)]
    phrases = ", ".join(how.format(record[name]) for name, how in wording.items() if name in record)
    needed = "; ".join(record["ingredients"])
    text = f"{record['title']}{f' ({phrases})' if phrases else ''}. You need {needed}."
    return text, json.dumps(record, ensure_ascii=False)


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def lead(text: str) -> str:
    """The first sentence."""
    return re.split(r"(?<=[.!?])\s+", text.strip(), maxsplit=1)[0]


def translation(given: Sequence[str], references: References) -> Scores:
    """BLEU and chrF, several references an item where there are several."""
    return {"bleu": bleu_statistics(given, references), "chrf": chrf_statistics(given, references)}


def equality(given: Sequence[str], references: References) -> Scores:
    """The share of texts equal to a reference, outer spaces aside."""
    hits = [exact_match([text], [wanted]).value for text, wanted in zip(given, references, strict=True)]
    return {"exact_match": mean_of("exact_match", hits)}


def record(given: Sequence[str], references: References) -> Scores:
    """F1 of fields against the first reference, and equality."""
    return {"field_f1": field_statistics(given, [wanted[0] for wanted in references]), **equality(given, references)}


def summary(given: Sequence[str], references: References) -> Scores:
    """ROUGE, the best reference of each item."""
    found = rouge_statistics(given, references)
    return {"rougeL": found["rougeL"], "rouge1": found["rouge1"], "rouge2": found["rouge2"]}


def measure(score: Statistics) -> Measurement:
    """The figure with its interval: Wilson's for a share of items, resampled items' for the others."""
    if score.name != "exact_match":
        return score.measure()
    hits, n = score.rows[:, 0].sum(), len(score.rows)
    return Measurement(score.name, float(hits / n), score.unit, n, *wilson(float(hits), n))


TASKS = {
    "tatoeba": Task("tatoeba_en_fr", tatoeba, translation, 128, 64, 600.0, 0.1),
    "wikisql": Task("wikisql", wikisql, equality, 192, 160, 500.0, 0.2, asked=without_values, published=0.234,
                    by="Zhong 2017's attentional sequence-to-sequence model, logical form on the official test: 56,355 "
                       "questions, values to be copied, the table's columns given; here 20,000, named, not given"),
    "recipes": Task("recipes", recipes, record, 512, 448, 500.0, 0.3,
                    by="no published figure; a rule that knows the two wordings of the text makes no error"),
    "scitldr": Task("scitldr", scitldr, summary, 512, 64, 200.0, 0.3, copied=lead,
                    by="no published figure for models that were never pre-trained: the first sentence is wanted"),
}


def read(root: Path, task: Task, *, items: int | None = None, pairs: int | None = None) -> Parts:
    """The parts of a task; at most ``items`` held out and ``pairs`` of train, drawn in an order that never changes."""
    folder = root / task.folder
    train = _file(folder, "train")
    test, other = _file(folder, "test"), _file(folder, "valid") or _file(folder, "dev")
    held_file = test or other
    if train is None or held_file is None:
        raise SystemExit(f"{folder} lacks train or what is held out ({', '.join(ENDINGS)}): set CUTAWAY_DATA to the "
                         "folder that holds it")
    held: dict[str, list[str]] = {}
    for source, target in task.rows(held_file):
        held.setdefault(source, []).append(target)
    asked = _drawn(list(held), items)
    learned, same = list(task.rows(train)), {task.asked(source) for source in held}
    kept = _drawn([pair for pair in learned if task.asked(pair[0]) not in same], pairs)
    left_out = sum(task.asked(pair[0]) in same for pair in learned)
    if test and other:
        chosen_by = [pair for pair in task.rows(other) if task.asked(pair[0]) not in same]
    else:
        share = min(CHOOSING, CHOSEN_BY / len(kept))
        chosen_by = [p for p in kept if _side(p[0], share) == "valid"] or kept[:1]
        kept = [p for p in kept if _side(p[0], share) != "valid"]
    return Parts(kept, chosen_by, asked, [held[source] for source in asked], held_file.name, left_out)


def _file(folder: Path, name: str) -> Path | None:
    return next((path for end in ENDINGS if (path := folder / f"{name}{end}").is_file()), None)


def _side(source: str, share: float) -> str:
    return split_of(hashlib.sha256(source.encode()).hexdigest(), share, 0.0)


def _drawn(rows: list[Any], count: int | None) -> list[Any]:
    """All of them, or the first so many of a fixed order: files are sorted by length."""
    if count is None or count >= len(rows):
        return rows
    return [rows[i] for i in np.argsort(shuffled(np.arange(len(rows)), len(rows), seed=7), kind="stable")[:count]]
