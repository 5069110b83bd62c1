"""Unigram vocabularies (Kudo 2018), by Viterbi training: deterministic, where the library's own trainer is not.

Start from frequent substrings, then repeat: segment every word the likeliest way, count the pieces, and drop those
whose absence costs least likelihood (their count times how much worse their best other spelling is).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

_LONGEST_PIECE = 16
_SEEDS = 8
_KEPT = 0.75


def learn_pieces(
    words: Mapping[str, int], letters: Sequence[str], wanted: int, *, min_frequency: int
) -> dict[str, float]:
    """Pieces with their log-probabilities, ``letters`` always among them; fewer than ``wanted`` if words lack them."""
    scores = _seed(words, letters, _SEEDS * wanted, min_frequency)
    while True:
        for _ in range(2):
            scores = _logs(_count(words, scores), scores)
        if len(scores) <= wanted:
            return scores
        size = max(wanted, int(len(scores) * _KEPT))
        losses = _losses(_count(words, scores), scores)
        pieces = sorted((p for p in scores if len(p) > 1), key=lambda p: (-losses[p], p))
        scores = {p: scores[p] for p in (*letters, *pieces[: size - len(letters)])}


def _seed(words: Mapping[str, int], letters: Sequence[str], size: int, min_frequency: int) -> dict[str, float]:
    """The substrings that cover most text (occurrences times length), as SentencePiece seeds its vocabulary."""
    counts: Counter[str] = Counter()
    for word, times in words.items():
        for start in range(len(word)):
            for stop in range(start + 1, min(len(word), start + _LONGEST_PIECE) + 1):
                counts[word[start:stop]] += times
    longer = (p for p, n in counts.items() if len(p) > 1 and n >= min_frequency)
    best = sorted(longer, key=lambda p: (-counts[p] * len(p), p))[: size - len(letters)]
    return _logs(counts, dict.fromkeys((*letters, *best), 0.0))


def _logs(counts: Mapping[str, int], pieces: Mapping[str, float]) -> dict[str, float]:
    """log p of each piece; one that was never used keeps half an occurrence, so that every text has a spelling."""
    total = math.log(sum(max(counts[p], 0.5) for p in pieces))
    return {p: math.log(max(counts[p], 0.5)) - total for p in pieces}


def _count(words: Mapping[str, int], scores: Mapping[str, float]) -> Counter[str]:
    from tokenizers import models

    model = models.Unigram(list(scores.items()), unk_id=None, byte_fallback=False)
    counts: Counter[str] = Counter()
    for word, times in words.items():
        for token in model.tokenize(word):
            counts[token.value] += times
    return counts


def _losses(counts: Mapping[str, int], scores: Mapping[str, float]) -> dict[str, float]:
    """For each piece: the log-likelihood that the corpus would lose without it."""
    return {p: counts[p] * (scores[p] - _other_spelling(p, scores)) for p in scores if len(p) > 1}


def _other_spelling(piece: str, scores: Mapping[str, float]) -> float:
    """The best score of a piece spelled with at least two others."""
    best = [0.0] + [-math.inf] * len(piece)
    for stop in range(1, len(piece) + 1):
        for start in range(stop):
            if stop - start < len(piece) and (score := scores.get(piece[start:stop])) is not None:
                best[stop] = max(best[stop], best[start] + score)
    return best[-1]
