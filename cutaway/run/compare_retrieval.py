"""Retrieval in a comparison: each held-out query among all held-out documents, by the rank of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cutaway.data.buckets import BucketLoader
from cutaway.data.examples import pair
from cutaway.evaluate.retrieval import retrieval, top_of
from cutaway.models.bm25 import fit_bm25
from cutaway.models.folder import save_model
from cutaway.models.heads import Vector
from cutaway.models.light import for_reading
from cutaway.models.model import Model, with_head
from cutaway.models.text_classifier import TextEmbedder
from cutaway.objectives.contrast import Contrast
from cutaway.records import Stopwatch
from cutaway.run.compare_nearest import save_words, tfidf
from cutaway.run.compare_parts import Judged, Timing, Trained, Yardstick, bytes_in, rate, timed
from cutaway.run.compare_recipe import AnySystem, Comparison, NearestSystem, NeuralSystem
from cutaway.run.compare_tables import cut_note, fresh, read_split, settings_of
from cutaway.text.tokenizer import Tokenizer
from cutaway.text.tokenizer import load as load_tokenizer
from cutaway.train.fit import fit

EXAMPLES, SHOWN = 12, 800
TextPairs = list[tuple[str, str]]


class Searcher(Protocol):
    """Scores of every document for each query ``(Q, D)``."""

    def scores(self, queries: Sequence[str]) -> NDArray[np.float64]: ...


@dataclass(frozen=True)
class Vectors:
    """Cosines of a network's vectors with those of documents that were read once."""

    embedder: TextEmbedder
    documents: NDArray[np.float64]

    def scores(self, queries: Sequence[str]) -> NDArray[np.float64]:
        """``(Q, D)``."""
        return self.embedder.vectors(queries) @ self.documents.T


def open_bench(comparison: Comparison, folder: Path) -> RetrievalBench:
    """What was prepared."""
    train, valid, test = ([(a, str(b)) for a, b in read_split(folder, name)] for name in ("train", "valid", "test"))
    return RetrievalBench(comparison, load_tokenizer(folder / "tokenizer"), train, valid, test)


@dataclass(frozen=True)
class RetrievalBench:
    """The same pairs of query and document for every system."""

    comparison: Comparison
    tokenizer: Tokenizer
    learn: TextPairs
    valid: TextPairs
    test: TextPairs

    @property
    def yardstick(self) -> Yardstick:
        """The mean reciprocal rank of a query's own document."""
        return Yardstick("mrr", "share", "higher", "one query", "queries")

    def train(self, system: AnySystem, seed: int, folder: Path) -> Trained:
        """Index the held-out documents, by words or by a network that learned from the training pairs."""
        documents = [document for _, document in self.test]
        if isinstance(system, NeuralSystem):
            return self._network(system, seed, folder, documents)
        assert isinstance(system, NearestSystem)
        with Stopwatch() as watch:
            words: Any = fit_bm25(documents) if system.by == "bm25" else tfidf(documents)
        size = save_words(folder, words)
        return Trained(words, watch.seconds, None, None, size // 8, bytes_in(folder), size, folder)

    def _network(self, system: NeuralSystem, seed: int, folder: Path, documents: Sequence[str]) -> Trained:
        model = with_head(fresh(self.comparison, system, self.tokenizer, seed), Vector(), seed=seed)
        loader = BucketLoader([pair(a, b, self.tokenizer) for a, b in self.learn], self.tokenizer.pad_id,
                              rows=system.rows, seed=seed, limit=model.context_length, too_long="cut")
        with Stopwatch() as watch:
            made = fit(model, loader.batch, Contrast(), self._look, epoch_steps=loader.epoch_steps, seed=seed,
                       settings=settings_of(self.comparison, system))
        save_model(folder, made.model, self.tokenizer)
        embedder = TextEmbedder(for_reading(made.model), self.tokenizer, too_long="cut")
        vectors = embedder.vectors(documents)
        count = sum(p.numel() for p in made.model.parameters())
        notes = (f"{len(loader.cut):,} training pairs were longer than the context of {model.context_length} tokens "
                 f"and were cut",) if loader.cut else ()
        queries = [query for query, _ in self.test]
        held = [note for what, texts in (("queries", queries), ("documents", documents)) for note in
                cut_note(len(embedder.too_long_of(texts)), len(texts), what, model.context_length)]
        return Trained(Vectors(embedder, vectors), watch.seconds, made.history[-1].step, None, count, bytes_in(folder),
                       4 * count + vectors.nbytes, folder, (*notes, *held))

    def _look(self, model: Model) -> tuple[dict[str, float], tuple[float, ...]]:
        embedder = TextEmbedder(model, self.tokenizer, too_long="cut")
        queries, documents = zip(*self.valid, strict=True)
        ranks = own_ranks(embedder.vectors(queries) @ embedder.vectors(documents).T)
        found = float((1 / ranks).mean())
        return {"mrr": found}, (found,)

    def judge(self, trained: Trained) -> Judged:
        """The reciprocal rank of every query's own document; the worst queries are the examples."""
        queries, documents = zip(*self.test, strict=True)
        scores = trained.model.scores(queries)
        ranks = own_ranks(scores)
        first = top_of(scores, 1)[:, 0]
        more = {k: m.to_dict() for k, m in retrieval(
            top_of(scores, min(10, len(documents))), [[i] for i in range(len(queries))],
            at=tuple(k for k in (1, 10) if k <= len(documents))).items()}
        examples = [{"item": int(i), "score": float(1 / ranks[i]), "text": queries[i][:SHOWN],
                     "cut": len(queries[i]) > SHOWN, "wanted": documents[i][:SHOWN], "got": documents[first[i]][:SHOWN]}
                    for i in np.argsort(-ranks, kind="stable")[:EXAMPLES]]
        return Judged((1 / ranks).tolist(), [1.0] * len(ranks), more, examples)

    def time(self, trained: Trained) -> Timing:
        """One query after another against all documents, and all of them together."""
        queries, model = [query for query, _ in self.test], trained.model
        return Timing(timed([partial(model.scores, [q]) for q in queries]),
                      rate(partial(model.scores, queries), len(queries)))


def own_ranks(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rank ``(N,)`` of document i for query i, from 1; half of the documents of an equal score stand before it."""
    own = np.diagonal(scores)[:, None]
    return np.asarray(1 + (scores > own).sum(1) + ((scores == own).sum(1) - 1) / 2)
