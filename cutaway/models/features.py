"""Features of texts: n-grams of words and characters weighted as scikit-learn does (tf-idf: Salton & Buckley 1988), and
counts that people thought of.

scikit-learn finds the vocabulary; what it found is applied here without it, several times faster, because the
character n-grams of a word are looked up once for all texts that the word stands in. N texts, F features.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from cutaway.errors import DataError
from cutaway.settings import Settings

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

Tokens = Literal["words", "all", "spaces"]
# What a token is: words of two letters or more (scikit-learn's own), words and marks one by one, or what spaces part.
PATTERNS: dict[Tokens, str] = {"words": r"(?u)\b\w\w+\b", "all": r"(?u)\w+|[^\w\s]", "spaces": r"\S+"}
_CACHED_WORDS = 1 << 16
_CACHED_LENGTH = 64


class _Grams(Settings):
    """``weight``: tf-idf, the same of 1 + ln tf (sublinear), counts, or presence. Rows of the first two have length 1.
    ``min_count``: texts an n-gram must stand in; ``most``: so many of the most frequent are kept."""

    low: int = Field(default=1, ge=1, le=10)
    high: int = Field(default=2, ge=1, le=10)
    weight: Literal["tfidf", "sublinear", "count", "binary"] = "sublinear"
    lowercase: bool = True
    min_count: int = Field(default=1, ge=1)
    most: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        return self


class WordGrams(_Grams):
    """Runs of ``low`` to ``high`` tokens."""

    kind: Literal["words"] = "words"
    tokens: Tokens = "all"


class CharGrams(_Grams):
    """Runs of ``low`` to ``high`` characters inside a word and the space on both sides of it."""

    kind: Literal["chars"] = "chars"
    low: int = Field(default=2, ge=1, le=10)
    high: int = Field(default=5, ge=1, le=10)


HandName = Literal[
    "characters", "words", "digits", "full_stops", "commas", "colons", "exclamations", "questions", "quotes",
    "brackets", "dashes", "currency", "links", "upper_share", "question_word", "word_length", "diversity"]
_QUESTION = re.compile(r"who|whom|whose|what|which|when|where|why|how|is|are|was|were|do|does|did|can|could|will|would|"
                       r"should|has|have|had|may", re.IGNORECASE)


def _marks(marks: str) -> Callable[[str, list[str]], float]:
    return lambda text, words: float(np.log1p(sum(map(text.count, marks))))


# Counts are ln(1 + count): a text ten times as long is not ten times as much of anything.
HAND: dict[HandName, Callable[[str, list[str]], float]] = {
    "characters": lambda text, words: float(np.log1p(len(text))),
    "words": lambda text, words: float(np.log1p(len(words))),
    "digits": lambda text, words: float(np.log1p(sum(map(str.isdigit, text)))),
    "full_stops": _marks(".…"),
    "commas": _marks(","),
    "colons": _marks(":;"),
    "exclamations": _marks("!"),
    "questions": _marks("?"),
    "quotes": _marks("\"'“”‘’«»"),
    "brackets": _marks("()[]{}<>"),
    "dashes": _marks("-–—"),
    "currency": _marks("$£€¥"),
    "links": lambda text, words: float(np.log1p(len(re.findall(r"https?://|www\.|\w@\w", text)))),
    "upper_share": lambda text, words: sum(map(str.isupper, text)) / max(1, sum(map(str.isalpha, text))),
    "question_word": lambda text, words: float(bool(words) and _QUESTION.fullmatch(words[0]) is not None),
    "word_length": lambda text, words: sum(map(len, words)) / max(1, len(words)),
    "diversity": lambda text, words: len({w.lower() for w in words}) / max(1, len(words)),
}


class HandMade(Settings):
    """Features by name, each less its mean and divided by its standard deviation over the training texts."""

    kind: Literal["hand"] = "hand"
    names: tuple[HandName, ...] = Field(default=tuple(HAND), min_length=1)


Feature = Annotated[WordGrams | CharGrams | HandMade, Field(discriminator="kind")]


@dataclass(frozen=True)
class Grams:
    """A fitted vocabulary: ``terms`` in the order of columns, ``idf (F,)`` where the weight has one."""

    config: WordGrams | CharGrams
    terms: tuple[str, ...]
    idf: Floats | None
    _index: dict[str, int] = field(init=False, repr=False)
    _cache: dict[str, list[int]] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_index", {term: i for i, term in enumerate(self.terms)})

    @property
    def names(self) -> list[str]:
        """What each column is, as a person reads it."""
        return [f"{self.config.kind}:{term}" for term in self.terms]

    def matrix(self, texts: Sequence[str]) -> csr_matrix:
        """``(N, F)``; each row depends on its own text alone."""
        ids: list[int] = []
        lengths = np.empty(len(texts), np.int64)
        add = self._words if isinstance(self.config, WordGrams) else self._chars
        for i, text in enumerate(texts):
            before = len(ids)
            add(text.lower() if self.config.lowercase else text, ids)
            lengths[i] = len(ids) - before
        found = np.array(ids, np.int64)
        rows = np.repeat(np.arange(len(texts)), lengths)
        known = found >= 0
        keys, counts = np.unique(rows[known] * len(self.terms) + found[known], return_counts=True)
        return self._weighted(keys // len(self.terms), keys % len(self.terms), counts, len(texts))

    def _weighted(self, rows: Ints, columns: Ints, counts: Ints, n: int) -> csr_matrix:
        from scipy.sparse import csr_matrix

        values = np.ones(len(counts)) if self.config.weight == "binary" else counts.astype(np.float64)
        if self.config.weight == "sublinear":
            values = np.log(values) + 1
        if self.idf is not None:
            values *= self.idf[columns]
            lengths = np.sqrt(np.bincount(rows, values * values, n))
            values /= lengths[rows]
        starts = np.searchsorted(rows, np.arange(n + 1))
        return csr_matrix((values, columns, starts), (n, len(self.terms)))

    def _words(self, text: str, ids: list[int]) -> None:
        tokens, at = _token_finder(self.config.tokens)(text), self._index.get  # type: ignore[union-attr]
        for n in range(self.config.low, self.config.high + 1):
            shifted = (tokens[i:] for i in range(n))
            runs: Iterable[str] = tokens if n == 1 else map(" ".join, zip(*shifted, strict=False))
            ids.extend([at(run, -1) for run in runs])

    def _chars(self, text: str, ids: list[int]) -> None:
        cache = self._cache
        for word in text.split():
            found = cache.get(word)
            if found is None:
                found = [i for gram in char_grams(word, self.config.low, self.config.high)
                         if (i := self._index.get(gram)) is not None]
                if len(word) <= _CACHED_LENGTH:
                    if len(cache) >= _CACHED_WORDS:
                        cache.clear()
                    cache[word] = found
            ids.extend(found)


def _token_finder(tokens: Tokens) -> Callable[[str], list[str]]:
    return re.compile(PATTERNS[tokens]).findall


def char_grams(word: str, low: int, high: int) -> list[str]:
    """The n-grams of a word between spaces, shortest first; one that is no longer than n stands once, whole."""
    padded = f" {word} "
    out: list[str] = []
    for n in range(low, high + 1):
        if n >= len(padded):
            out.append(padded)
            break
        out += [padded[i:i + n] for i in range(len(padded) - n + 1)]
    return out


@dataclass(frozen=True)
class Hand:
    """Hand-made features with the means and standard deviations ``(F,)`` that they are made comparable by."""

    config: HandMade
    means: Floats
    deviations: Floats

    @property
    def names(self) -> list[str]:
        """What each column is, as a person reads it."""
        return [f"hand:{name}" for name in self.config.names]

    def matrix(self, texts: Sequence[str]) -> csr_matrix:
        """``(N, F)``."""
        from scipy.sparse import csr_matrix

        return csr_matrix((_raw(self.config, texts) - self.means) / self.deviations)


Block = Grams | Hand


def _raw(config: HandMade, texts: Sequence[str]) -> Floats:
    split = _token_finder("all")
    rows = [[HAND[name](text, words) for name in config.names]
            for text in texts for words in ([t for t in split(text) if t[0].isalnum()],)]
    return np.array(rows, np.float64).reshape(len(texts), len(config.names))


def fit_block(config: WordGrams | CharGrams | HandMade, texts: Sequence[str]) -> tuple[Block, csr_matrix]:
    """The block that ``texts`` give, and their own matrix. Raises DataError where no n-gram is left."""
    if isinstance(config, HandMade):
        raw = _raw(config, texts)
        spread = raw.std(0)
        hand = Hand(config, raw.mean(0), np.where(spread > 0, spread, 1.0))
        return hand, hand.matrix(texts)
    vectorizer = vectorizer_of(config)
    try:
        matrix = vectorizer.fit_transform(texts)
    except ValueError as error:
        raise DataError(f"no n-gram of {config.kind} is left ({str(error).split(';')[0]})",
                        way_out="give more text or lower min_count") from None
    terms = sorted(vectorizer.vocabulary_, key=vectorizer.vocabulary_.__getitem__)
    idf = getattr(vectorizer, "idf_", None)
    return Grams(config, tuple(terms), None if idf is None else np.array(idf, np.float64)), matrix.tocsr()


def vectorizer_of(config: WordGrams | CharGrams) -> Any:
    """scikit-learn's vectorizer of the same meaning."""
    from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

    shared = {"ngram_range": (config.low, config.high), "lowercase": config.lowercase, "min_df": config.min_count,
              "max_features": config.most, "dtype": np.float64}
    if isinstance(config, WordGrams):
        shared |= {"token_pattern": PATTERNS[config.tokens]}
    else:
        shared |= {"analyzer": "char_wb"}
    if config.weight in ("count", "binary"):
        return CountVectorizer(**shared, binary=config.weight == "binary")
    return TfidfVectorizer(**shared, sublinear_tf=config.weight == "sublinear")
