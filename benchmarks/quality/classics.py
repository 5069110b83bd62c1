"""Classic text classifiers on public data, beside published figures: what a network has to beat, in seconds of a CPU.

A bag of word and character n-grams under a linear SVM, with C chosen by cross-validation on the training part, the same
for every set; NB-SVM on sentence polarity, which is Wang and Manning's own. Scored on ``test`` where the folder has
one, else on ``valid``, else by cross-validation or on a fifth of the rows by hash; the table says which. Needs
CUTAWAY_DATA with the sets named below.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from cutaway import device, records
from cutaway.data.table import Labelled, LabelledSettings, read_labelled
from cutaway.evaluate.classification import accuracy, by_class, scope, scope_threshold
from cutaway.models.bag import Bag, BagConfig, fit_bag
from cutaway.models.classifier import predicted
from cutaway.models.features import CharGrams, WordGrams
from cutaway.models.linear import held_part
from cutaway.models.select import folds_of, select
from cutaway.records import Measurement, Stopwatch, wilson

SVM = BagConfig(features=(WordGrams(), CharGrams()))
NBSVM = BagConfig(classifier="nbsvm", features=(WordGrams(weight="binary"), CharGrams(weight="binary")))
GRIDS = {"svm": (0.1, 0.3, 1.0, 3.0), "nbsvm": (0.1, 1.0)}  # raw counts cost liblinear ten times what tf-idf does
FOLDS = 10


@dataclass(frozen=True)
class Task:
    """A data set, its columns, what is fitted, and the published figure it is held against (None: none)."""

    folder: str
    label: str = "label"
    config: BagConfig = SVM
    target: float | None = None
    by: str = ""
    measure: Callable[[Sequence[str], Sequence[str]], Measurement] = accuracy


def spam_f1(right: Sequence[str], given: Sequence[str]) -> Measurement:
    """F1 of the class spam alone."""
    return next(c.f1 for c in by_class(right, given) if c.label == "spam")


TASKS = {
    "sentence polarity": Task("sentence_polarity", config=NBSVM, target=0.79, by="NB-SVM, Wang & Manning 79.4"),
    "TREC, 6 classes": Task("trec", "coarse", by="CNN-rand, Kim 91.2 on the official test"),
    "TREC, 50 classes": Task("trec", "fine"),
    "BANKING77": Task("banking77", "category", target=0.88, by="bag and SVM 80 to 85"),
    "SMS spam": Task("sms_spam", measure=spam_f1),
    "SNIPS": Task("snips", "intent"),
}


def part(folder: Path, names: Sequence[str], label: str) -> Labelled | None:
    """The rows of the first of some files that is there."""
    for name in names:
        for ending in ("jsonl.gz", "csv.gz"):
            if (path := folder / f"{name}.{ending}").is_file():
                return rows_of(path, label)
    return None


def rows_of(path: Path, label: str) -> Labelled:
    """All rows of a file, those that cannot be used left out and said."""
    table = read_labelled(LabelledSettings(path=str(path), label=label, valid_share=0.0, test_share=0.0,
                                           bad_rows="skip"))
    if table.skipped.counts:
        print(f"  {path.name}: left out {table.skipped.counted}")
    return table.split("train")


def without_header(rows: Labelled) -> Labelled:
    """The rows less a header that stands among them (a class of one row)."""
    labels = list(rows.labels)
    keep = [i for i, name in enumerate(labels) if labels.count(name) > 1]
    if len(keep) < len(labels):
        print(f"  left out {len(labels) - len(keep)} rows whose label stands once")
    return picked(rows, keep)


def picked(rows: Labelled, keep: Sequence[int]) -> Labelled:
    """Some of the rows, in the order given."""
    return Labelled(tuple(rows.texts[i] for i in keep), tuple(str(rows.labels[i]) for i in keep),
                    tuple(rows.names[i] for i in keep))


def learn(rows: Labelled, config: BagConfig, folds: int) -> Bag:
    """C chosen on these rows alone, then a bag of all of them."""
    if folds:
        config = select(rows.texts, rows.labels, [config], grid=GRIDS[config.classifier], folds=folds).config
    return fit_bag(rows.texts, rows.labels, config)


def crossed(rows: Labelled, config: BagConfig, folds: int) -> list[str]:
    """Each row's label as a bag gives it that did not see the row's fold, C chosen on the other folds alone."""
    names = sorted(set(rows.labels))
    fold = folds_of(np.array([names.index(x) for x in rows.labels]), FOLDS, 0)
    config = config.model_copy(update={"calibration_share": 0.0})  # changes scores, never the best of them
    given = np.empty(len(rows), object)
    for held in range(FOLDS):
        bag = learn(picked(rows, np.flatnonzero(fold != held).tolist()), config, folds)
        asked = np.flatnonzero(fold == held)
        given[asked] = predicted(bag, [rows.texts[i] for i in asked])
    return list(given)


def score(task: Task, data: Path, quick: bool) -> dict[str, dict[str, object]]:
    """Figures of one task by what they were measured on."""
    folder, folds = data / task.folder, 0 if quick else 3
    train = part(folder, ("train",), task.label)
    if train is None:
        raise SystemExit(f"{folder} holds no train.jsonl.gz or train.csv.gz")
    train = without_header(train)
    held = {name: part(folder, files, task.label) for name, files in (("test", ("test",)), ("valid", ("valid", "val")))}
    out = {}
    for name, rows in held.items():
        if rows is not None:
            with Stopwatch() as watch:
                bag = learn(train, task.config, folds)
                found = task.measure(rows.labels, predicted(bag, rows.texts))
            out[name] = row_of(found, watch.seconds, bag.config.C)
    if task.config.classifier == "nbsvm" and not quick:
        with Stopwatch() as watch:
            found = task.measure(train.labels, crossed(train, task.config, 2))
        out["10-fold"] = row_of(found, watch.seconds)
    if not out:
        names = sorted(set(train.labels))
        split = held_part(np.array([names.index(x) for x in train.labels]), 0.2, 0)
        with Stopwatch() as watch:
            bag = learn(picked(train, np.flatnonzero(~split).tolist()), task.config, folds)
            asked = picked(train, np.flatnonzero(split).tolist())
            found = task.measure(asked.labels, predicted(bag, asked.texts))
        out["a fifth held out"] = row_of(found, watch.seconds, bag.config.C)
    return out


def row_of(found: Measurement, seconds: float, C: float | None = None) -> dict[str, object]:
    """One line of the table."""
    return {**found.to_dict(), "seconds": seconds, "C": C}


def clinc(data: Path, quick: bool) -> dict[str, dict[str, object]]:
    """150 intents, and what is none of them: refused below a confidence chosen on validation texts. Validation figures
    use a threshold of the other half of the validation texts, so that none is judged by itself."""
    folder = data / "clinc150"
    train, valid = (rows_of(folder / f"{n}.jsonl.gz", "label") for n in ("train", "val"))
    outside = texts_of(folder / "oos_val.jsonl.gz")
    with Stopwatch() as watch:
        bag = learn(train, SVM, 0 if quick else 3)
    out = {}
    test = part(folder, ("test",), "label")
    for rule in (False, True):
        shown = "balanced" if rule else "most right"
        if test is not None:
            found = judged(bag, (valid, outside), (test, texts_of(folder / "oos_test.jsonl.gz")), balanced=rule)
        else:
            halves = [(picked(valid, range(k, len(valid), 2)), outside[k::2]) for k in (0, 1)]
            found = pooled([judged(bag, halves[k], halves[1 - k], balanced=rule) for k in (0, 1)])
        for name, m in found.items():
            out[f"{'test' if test else 'valid'}, {shown}: {name}"] = row_of(m, watch.seconds, bag.config.C)
    rows = test or valid
    out[f"{'test' if test else 'valid'}, no threshold"] = row_of(
        accuracy(rows.labels, predicted(bag, rows.texts)), watch.seconds, bag.config.C)
    return out


def texts_of(path: Path) -> list[str]:
    """The texts of a file of one label."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


Side = tuple[Labelled, list[str]]


def judged(bag: Bag, chosen_on: Side, asked: Side, *, balanced: bool) -> dict[str, Measurement]:
    """In-scope accuracy and out-of-scope recall of ``asked`` at the threshold of ``chosen_on``."""
    (sure, hit, far), (sure2, hit2, far2) = (confidences(bag, side) for side in (chosen_on, asked))
    return scope(sure2, hit2, far2, scope_threshold(sure, hit, far, balanced=balanced))


def confidences(bag: Bag, side: Side) -> tuple[np.ndarray, list[bool], np.ndarray]:
    """The best label's log-probability of texts in scope, whether it is right, and that of texts out of scope."""
    scores = bag.scores(side[0].texts)
    hit = [bag.labels[i] == y for i, y in zip(scores.argmax(1), side[0].labels, strict=True)]
    return scores.max(1), hit, bag.scores(side[1]).max(1)


def pooled(parts: list[dict[str, Measurement]]) -> dict[str, Measurement]:
    """Shares of two halves together."""
    out = {}
    for name in parts[0]:
        n = sum(p[name].n or 0 for p in parts)
        hits = round(sum(p[name].value * (p[name].n or 0) for p in parts))
        out[name] = Measurement(name, hits / n, "share", n, *wilson(hits, n))
    return out


CLINC_TARGETS = {"no threshold": 0.912, "out_of_scope_recall": 0.309}


def main() -> None:
    """Every task, a table, one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="C = 1, no cross-validation")
    parser.add_argument("--only", default="", help="tasks whose name holds this")
    options = parser.parse_args()
    data = Path(os.environ.get("CUTAWAY_DATA", ""))
    if not os.environ.get("CUTAWAY_DATA") or not (data / "trec").is_dir():
        raise SystemExit("set CUTAWAY_DATA to the folder that holds trec, clinc150 and the others")
    figures: dict[str, dict[str, object]] = {}
    targets: dict[str, float] = {}
    print(f"{'':<56}{'figure':>8}{'95 %':>16}{'wanted':>8}{'n':>7}{'C':>6}{'seconds':>9}")
    for name, task in TASKS.items():
        if options.only.lower() in name.lower():
            for on, row in score(task, data, options.quick).items():
                show(f"{name} ({on}, {row['name']})", row, task.target, figures, targets)
    if options.only.lower() in "clinc150":
        for on, row in clinc(data, options.quick).items():
            target = next((t for end, t in CLINC_TARGETS.items() if on.endswith(end)), None)
            show(f"CLINC150 ({on})", row, target, figures, targets)
    ratios = {name: float(figures[name]["value"]) / target for name, target in targets.items()}  # type: ignore[arg-type]
    print(json.dumps({
        "name": "quality/classics", "figures": figures, "ratios": ratios, "targets": dict.fromkeys(ratios, 1.0),
        "better": "higher", "published": {n: t.by for n, t in TASKS.items() if t.by},
        "ok": all(r >= 1 for r in ratios.values()), "machine": asdict(device.known(device.pick("cpu"))),
        "versions": records.environment()["versions"]}))


def show(name: str, row: dict[str, object], target: float | None, figures: dict[str, dict[str, object]],
         targets: dict[str, float]) -> None:
    """Print and keep one figure."""
    figures[name] = row
    if target is not None:
        targets[name] = target
    value, low, high = (100 * float(row[k]) for k in ("value", "low", "high"))  # type: ignore[arg-type]
    wanted = f"{100 * target:.1f}" if target is not None else ""
    c = "" if row["C"] is None else f"{row['C']:g}"
    print(f"{name:<56}{value:>8.2f}{f'{low:.1f} to {high:.1f}':>16}{wanted:>8}{row['n']:>7}{c:>6}"
          f"{row['seconds']:>9.1f}", flush=True)


if __name__ == "__main__":
    main()
