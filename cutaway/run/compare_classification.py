"""Classification in a comparison: the share of held-out texts that get their label, from guessing to transformers."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cutaway.errors import DataError
from cutaway.evaluate.classification import confusions, f1
from cutaway.models.bag import fit_bag
from cutaway.models.bag_folder import save_bag
from cutaway.models.classifier import Classifier, predicted
from cutaway.models.folder import save_model
from cutaway.models.light import for_reading
from cutaway.models.text_classifier import TextClassifier
from cutaway.records import Stopwatch, atomic_write
from cutaway.run.compare_parts import Judged, Timing, Trained, Yardstick, bytes_in, rate, timed
from cutaway.run.compare_recipe import AnySystem, BagSystem, Comparison, ConstantSystem, NeuralSystem
from cutaway.run.compare_tables import Rows, cut_note, fresh, read_split, settings_of
from cutaway.text.tokenizer import Tokenizer
from cutaway.text.tokenizer import load as load_tokenizer
from cutaway.train.fit import fit_classifier

EXAMPLES, SHOWN = 20, 1_000


@dataclass(frozen=True)
class Prior:
    """A classifier that knows how often each label stood in training, and nothing of the text."""

    labels: tuple[str, ...]
    logs: tuple[float, ...]
    multi_label: bool

    def scores(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """The same row for every text."""
        return np.tile(np.array(self.logs), (len(texts), 1))


def fit_prior(labels: Sequence[str | tuple[str, ...]]) -> Prior:
    """The shares of the labels, half a text added to each so that none is impossible."""
    multi = not isinstance(labels[0], str)
    counts = Counter(one for label in labels for one in ([label] if isinstance(label, str) else label))
    names = tuple(sorted(counts))
    if multi:
        shares = [(counts[n] + 0.5) / (len(labels) + 1) for n in names]
        return Prior(names, tuple(math.log(p / (1 - p)) for p in shares), True)
    total = len(labels) + len(names) / 2
    return Prior(names, tuple(math.log((counts[n] + 0.5) / total) for n in names), False)


def open_bench(comparison: Comparison, folder: Path) -> ClassificationBench:
    """What was prepared."""
    train, valid, test = (read_split(folder, name) for name in ("train", "valid", "test"))
    return ClassificationBench(comparison, load_tokenizer(folder / "tokenizer"), train, valid, test)


@dataclass(frozen=True)
class ClassificationBench:
    """The same rows for every system; what has nothing to choose learns from the training and the valid part alike."""

    comparison: Comparison
    tokenizer: Tokenizer
    learn: Rows
    valid: Rows
    test: Rows

    @property
    def yardstick(self) -> Yardstick:
        """Accuracy; with several labels a text, all of them must be right."""
        return Yardstick("accuracy", "share", "higher", "one text", "texts")

    def train(self, system: AnySystem, seed: int, folder: Path) -> Trained:
        """Fit one classifier and save it."""
        if isinstance(system, NeuralSystem):
            return self._network(system, seed, folder)
        texts, labels = zip(*self.learn, strict=True)
        with Stopwatch() as watch:
            model, size, parameters, notes = self._fitted(system, texts, labels, seed, folder)
        return Trained(model, watch.seconds, None, None, parameters, bytes_in(folder), size, folder, notes)

    def _fitted(self, system: AnySystem, texts: Sequence[str], labels: Sequence[Any], seed: int,
                folder: Path) -> tuple[Classifier, int, int, tuple[str, ...]]:
        if isinstance(system, ConstantSystem):
            prior = fit_prior(labels)
            folder.mkdir()
            atomic_write(folder / "prior.json", json.dumps({"labels": prior.labels, "logs": prior.logs}))
            return prior, 8 * len(prior.logs), len(prior.logs), ()
        assert isinstance(system, BagSystem)
        bag = fit_bag(texts, labels, system.bag, seed=seed)
        save_bag(folder, bag)
        return bag, bag.weights.nbytes, bag.weights.size + bag.intercept.size, bag.notes

    def _network(self, system: NeuralSystem, seed: int, folder: Path) -> Trained:
        start = fresh(self.comparison, system, self.tokenizer, seed)
        with Stopwatch() as watch:
            made = fit_classifier(start, self.tokenizer, self.learn, valid=self.valid, seed=seed,
                                  settings=settings_of(self.comparison, system))
        save_model(folder, made.model, self.tokenizer)
        count = sum(p.numel() for p in made.model.parameters())
        cut = len(made.cut) + len(made.valid_cut)
        context = made.model.context_length
        notes = (f"{cut:,} training and valid texts were longer than {context} tokens and were cut",) if cut else ()
        classifier = TextClassifier(for_reading(made.model), self.tokenizer, too_long="cut")
        held = len(classifier.too_long_of([text for text, _ in self.test]))
        return Trained(classifier, watch.seconds, made.history[-1].step, None, count, bytes_in(folder), 4 * count,
                       folder, (*notes, *cut_note(held, len(self.test), "texts", context)))

    def judge(self, trained: Trained) -> Judged:
        """Whether each held-out text got its label; the surest mistakes are the examples."""
        texts, wanted = [text for text, _ in self.test], [label for _, label in self.test]
        model: Classifier = trained.model
        given: Sequence[Any] = predicted(model, texts)
        hits = [float(a == b) for a, b in zip(wanted, given, strict=True)]
        sure = model.scores(texts).max(1)
        wrong = [i for i in np.argsort(-sure) if not hits[i]][:EXAMPLES]
        examples = [{"item": int(i), "score": None, "text": texts[i][:SHOWN], "cut": len(texts[i]) > SHOWN,
                     "wanted": _named(wanted[i]), "got": _named(given[i])} for i in wrong]
        more: dict[str, Any] = {"macro_f1": f1(wanted, given).to_dict()}  # type: ignore[arg-type]
        if not model.multi_label:
            more["confused"] = confusions([str(w) for w in wanted], [str(g) for g in given])
        return Judged(hits, [1.0] * len(hits), more, examples)

    def time(self, trained: Trained) -> Timing:
        """One text after another, and all of them together."""
        texts, model = [text for text, _ in self.test], trained.model
        if not texts:
            raise DataError("there is no held-out text to time")
        return Timing(timed([partial(model.scores, [t]) for t in texts]),
                      rate(partial(model.scores, texts), len(texts)))


def _named(label: str | tuple[str, ...]) -> str:
    return label if isinstance(label, str) else ", ".join(label) or "(none)"
