"""Scores of texts against references: BLEU (Papineni 2002) and chrF (Popović 2015) by sacreBLEU with its signature,
ROUGE (Lin 2004), exact match, and fields of structured answers; every corpus figure with an interval over items.

Several references to an item are a list of texts: BLEU and chrF use them as sacreBLEU does, ROUGE and exact match take
the best one. N items.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cutaway.errors import DataError
from cutaway.evaluate.resample import Statistics, mean_of, ratio
from cutaway.records import Measurement, wilson

Floats = NDArray[np.float64]
References = Sequence[str] | Sequence[Sequence[str]]
Rouge = Literal["rouge1", "rouge2", "rougeL"]
Fields = Counter[tuple[str, str]]


def _checked(given: Sequence[str], references: References) -> list[list[str]]:
    """The references of each item as a list. Raises DataError for lists of unequal length, or an item without one."""
    if isinstance(given, str) or len(given) != len(references) or not given:
        raise DataError(f"{len(given):,} texts and references to {len(references):,} cannot be scored",
                        way_out="give one text an item, and an item or more")
    lists = [[r] if isinstance(r, str) else list(r) for r in references]
    if not all(lists):
        raise DataError("an item has no reference", where=f"item {lists.index([]) + 1}")
    return lists


def bleu_statistics(given: Sequence[str], references: References, *, tokenize: str = "13a",
                    lowercase: bool = False) -> Statistics:
    """BLEU, 0 to 100, as sums that can be resampled; ``tokenize`` is a name that sacreBLEU knows."""
    from sacrebleu.metrics.bleu import BLEU

    return _sacrebleu("bleu", BLEU(tokenize=tokenize, lowercase=lowercase), given, references)


def chrf_statistics(given: Sequence[str], references: References, *, word_order: int = 0) -> Statistics:
    """chrF, 0 to 100, as sums that can be resampled; ``word_order`` = 2 is chrF++."""
    from sacrebleu.metrics.chrf import CHRF

    return _sacrebleu("chrf++" if word_order == 2 else "chrf", CHRF(word_order=word_order), given, references)


def _sacrebleu(name: str, metric: Any, given: Sequence[str], references: References) -> Statistics:
    lists = _checked(given, references)
    # sacreBLEU reads references by stream: the first of every item, the second … ; None where an item has fewer.
    streams = [[row[k] if k < len(row) else None for row in lists] for k in range(max(map(len, lists)))]
    rows = np.array(metric._extract_corpus_statistics(list(given), streams), np.float64)

    def figure(sums: Floats) -> Floats:
        return np.array([metric._compute_score_from_stats([int(x) for x in row]).score for row in sums])

    return Statistics(name, "points", rows, figure, {"signature": str(metric.get_signature())})


def bleu(given: Sequence[str], references: References, *, tokenize: str = "13a", lowercase: bool = False,
         seed: int = 0) -> Measurement:
    """Corpus BLEU with its interval and sacreBLEU's signature."""
    return bleu_statistics(given, references, tokenize=tokenize, lowercase=lowercase).measure(seed=seed)


def chrf(given: Sequence[str], references: References, *, word_order: int = 0, seed: int = 0) -> Measurement:
    """Corpus chrF with its interval and sacreBLEU's signature."""
    return chrf_statistics(given, references, word_order=word_order).measure(seed=seed)


def rouge_statistics(given: Sequence[str], references: References, *, stem: bool = True) -> dict[Rouge, Statistics]:
    """ROUGE-1, ROUGE-2 and ROUGE-L: F of each item (the best reference's), meant over items; ``stem`` takes English
    endings off as the original script's -m does."""
    from rouge_score.rouge_scorer import RougeScorer

    kinds: tuple[Rouge, ...] = ("rouge1", "rouge2", "rougeL")
    scorer = RougeScorer(list(kinds), use_stemmer=stem)
    lists = _checked(given, references)
    found = [[scorer.score(r, text) for r in refs] for text, refs in zip(given, lists, strict=True)]
    return {kind: mean_of(kind, [max(s[kind].fmeasure for s in row) for row in found], conditions={"stem": stem})
            for kind in kinds}


def rouge(given: Sequence[str], references: References, *, stem: bool = True,
          seed: int = 0) -> dict[Rouge, Measurement]:
    """ROUGE-1, -2 and -L with their intervals."""
    return {kind: s.measure(seed=seed) for kind, s in rouge_statistics(given, references, stem=stem).items()}


def exact_match(given: Sequence[str], references: References, *, fold: bool = False) -> Measurement:
    """The share of texts equal to a reference, outer spaces aside; ``fold``: case and runs of spaces aside too."""
    def plain(text: str) -> str:
        return " ".join(text.casefold().split()) if fold else text.strip()

    hits = [plain(text) in map(plain, refs) for text, refs in zip(given, _checked(given, references), strict=True)]
    return Measurement("exact_match", sum(hits) / len(hits), "share", len(hits), *wilson(sum(hits), len(hits)),
                       {"fold": fold})


def fields_of(value: Any) -> Fields:
    """The fields of a JSON value: (dotted path, value as JSON), each as often as it stands. Items of a list share a
    path, so their order does not matter."""
    return Counter(_walked(value, ""))


def _walked(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _walked(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _walked(inner, path)
    else:
        yield path, json.dumps(value, ensure_ascii=False)


def field_statistics(given: Sequence[Any], right: Sequence[Any]) -> Statistics:
    """Micro F1 of fields, name and value both exact (as seqeval counts slots). Text is read as JSON; an answer that is
    not JSON has no fields, and ``not_json`` counts these. Raises DataError where a right answer is not JSON."""
    if len(given) != len(right) or not len(given):
        raise DataError(f"{len(given):,} answers to {len(right):,} items", way_out="give one answer an item")
    rows, broken = np.zeros((len(given), 3)), 0
    for i, (answer, truth) in enumerate(zip(given, right, strict=True)):
        said, wanted = _read(answer), _read(truth)
        if wanted is None:
            raise DataError("the right answer is not JSON", where=f"item {i + 1}")
        broken += said is None
        said = said or Counter()
        rows[i] = (said & wanted).total(), said.total(), wanted.total()
    return Statistics("field_f1", "share", rows, lambda s: ratio(2 * s[:, 0], s[:, 1] + s[:, 2]), {"not_json": broken})


def _read(value: Any) -> Fields | None:
    if not isinstance(value, str):
        return fields_of(value)
    try:
        return fields_of(json.loads(value))
    except (ValueError, RecursionError):
        return None


def field_f1(given: Sequence[Any], right: Sequence[Any], *, seed: int = 0) -> Measurement:
    """Micro F1 of fields with its interval (see ``field_statistics``)."""
    return field_statistics(given, right).measure(seed=seed)
