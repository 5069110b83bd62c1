"""Transformation in a comparison: a text written for a text (a summary, a translation, a query), scored by ROUGE-L."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cutaway.evaluate.text import bleu, chrf, exact_match, rouge_statistics
from cutaway.generate.beam import Beam, search
from cutaway.generate.engine import Engine
from cutaway.generate.request import Request, Sampling
from cutaway.models.bm25 import BM25, fit_bm25
from cutaway.models.folder import save_model
from cutaway.models.light import for_sampling
from cutaway.models.model import Model
from cutaway.records import Stopwatch
from cutaway.run.compare_nearest import save_words, tfidf
from cutaway.run.compare_parts import Judged, Timing, Trained, Yardstick, bytes_in, rate, timed
from cutaway.run.compare_recipe import AnySystem, Comparison, NearestSystem, NeuralSystem, TransformationTask
from cutaway.run.compare_tables import cut_note, fresh, read_split, settings_of
from cutaway.text.tokenizer import Tokenizer
from cutaway.text.tokenizer import load as load_tokenizer
from cutaway.train.fit import fit_seq2seq, source_prompt

EXAMPLES, SHOWN = 12, 1_200
TextPairs = list[tuple[str, str]]


class Rewriter(Protocol):
    """Texts in, texts out."""

    def rewrite(self, texts: Sequence[str]) -> list[str]: ...


class Words(Protocol):
    """Scores of every indexed text for each query ``(Q, D)``."""

    def scores(self, queries: Sequence[str]) -> Any: ...


@dataclass(frozen=True)
class Nearest:
    """Gives the target of the training source that shares the most telling words."""

    words: Words
    targets: tuple[str, ...]

    def rewrite(self, texts: Sequence[str]) -> list[str]:
        """Of equals the earlier one."""
        return [self.targets[int(i)] for i in np.asarray(self.words.scores(texts)).argmax(1)]


@dataclass(frozen=True)
class Network:
    """An encoder-decoder beside the source, or a decoder behind it; greedy, or the best of ``beam`` hypotheses."""

    model: Model
    tokenizer: Tokenizer
    beam: int
    max_tokens: int

    def rewrite(self, texts: Sequence[str]) -> list[str]:
        """A source longer than the context is cut at its end; ``cut_of`` says how many are."""
        requests = [self._request(text) for text in texts]
        if self.beam > 1:
            found = [r[0].tokens for r in search(self.model, requests, Beam(width=self.beam))]
        else:
            found = [r.tokens for r in Engine(self.model).generate(requests)]
        end = self.tokenizer.eos_id
        return [self.tokenizer.decode([t for t in tokens if t != end]) for tokens in found]

    def cut_of(self, texts: Sequence[str]) -> int:
        """How many sources the context does not hold whole, beside what is to be written."""
        t, room = self.tokenizer, self.model.context_length
        if self.model.reads_source:
            return sum(len(t.encode(text)) > room - 1 for text in texts)
        return sum(len(source_prompt(text, t)) + self.max_tokens > room for text in texts)

    def _request(self, text: str) -> Request:
        t, room = self.tokenizer, self.model.context_length
        how = {"max_tokens": self.max_tokens, "sampling": Sampling(temperature=0), "stop_ids": (t.eos_id,)}
        if self.model.reads_source:
            source = [*t.encode(text)[: room - 1], t.eos_id]
            return Request(tokens=(t.bos_id,), source=tuple(source), **how)  # type: ignore[arg-type]
        prompt = source_prompt(text, t)
        kept = prompt if len(prompt) + self.max_tokens <= room else [*prompt[: room - self.max_tokens - 1], t.eos_id]
        return Request(tokens=tuple(kept), **how)  # type: ignore[arg-type]


def open_bench(comparison: Comparison, folder: Path) -> TransformationBench:
    """What was prepared; the first held-out pairs."""
    task = comparison.task
    assert isinstance(task, TransformationTask)
    train, valid, test = ([(a, str(b)) for a, b in read_split(folder, name)] for name in ("train", "valid", "test"))
    return TransformationBench(comparison, task, load_tokenizer(folder / "tokenizer"), train, valid, test[: task.items])


@dataclass(frozen=True)
class TransformationBench:
    """The same pairs for every system."""

    comparison: Comparison
    task: TransformationTask
    tokenizer: Tokenizer
    learn: TextPairs
    valid: TextPairs
    test: TextPairs

    @property
    def yardstick(self) -> Yardstick:
        """ROUGE-L of each text, meant."""
        return Yardstick("rouge_l", "share", "higher", "one text", "texts")

    def train(self, system: AnySystem, seed: int, folder: Path) -> Trained:
        """Train one system and save it."""
        if isinstance(system, NeuralSystem):
            return self._network(system, seed, folder)
        assert isinstance(system, NearestSystem)
        sources, targets = zip(*self.learn, strict=True)
        with Stopwatch() as watch:
            words: BM25 | Words = fit_bm25(sources) if system.by == "bm25" else tfidf(sources)
        size = save_words(folder, words, targets)
        return Trained(Nearest(words, targets), watch.seconds, None, None, size // 8, bytes_in(folder), size, folder)

    def _network(self, system: NeuralSystem, seed: int, folder: Path) -> Trained:
        start = fresh(self.comparison, system, self.tokenizer, seed)
        with Stopwatch() as watch:
            made = fit_seq2seq(start, self.tokenizer, self.learn, valid=self.valid, seed=seed,
                               settings=settings_of(self.comparison, system))
        save_model(folder, made.model, self.tokenizer)
        count = sum(p.numel() for p in made.model.parameters())
        notes = [f"{len(made.cut) + len(made.valid_cut):,} pairs were longer than the context of "
                 f"{made.model.context_length} tokens and were cut"] if made.cut or made.valid_cut else []
        if left_out := len(made.left_out) + len(made.valid_left_out):
            notes.append(f"{left_out:,} pairs were left out: the source alone fills the context")
        network = Network(for_sampling(made.model), self.tokenizer, self.task.beam, self.task.max_tokens)
        held = cut_note(network.cut_of([source for source, _ in self.test]), len(self.test), "sources",
                        made.model.context_length)
        state = start.config.cost().state_bytes(self.task.max_tokens)
        return Trained(network, watch.seconds, made.history[-1].step, None, count, bytes_in(folder),
                       int(4 * count + state), folder, (*notes, *held))

    def judge(self, trained: Trained) -> Judged:
        """ROUGE-L of every held-out pair; the worst are the examples."""
        sources, wanted = zip(*self.test, strict=True)
        model: Rewriter = trained.model
        given = model.rewrite(sources)
        scores = np.asarray(rouge_statistics(given, wanted)["rougeL"].rows)[:, 0]
        examples = [{"item": int(i), "score": float(scores[i]), "text": sources[i][:SHOWN],
                     "cut": len(sources[i]) > SHOWN, "wanted": wanted[i], "got": given[i]}
                    for i in np.argsort(scores, kind="stable")[:EXAMPLES]]
        more = {m.name: m.to_dict() for m in (bleu(given, wanted), chrf(given, wanted), exact_match(given, wanted))}
        best = int(np.argmax(scores))
        return Judged(scores.tolist(), [1.0] * len(scores), {**more, "sample": f"{wanted[best]}\n→ {given[best]}"},
                      examples)

    def time(self, trained: Trained) -> Timing:
        """One text after another, and some of them together."""
        some, model = [source for source, _ in self.test[:64]], trained.model
        return Timing(timed([partial(model.rewrite, [t]) for t in some]),
                      rate(partial(model.rewrite, some), len(some), rounds=2))
