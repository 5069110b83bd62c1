"""Every shape of example learns its toy task in seconds: gaps, spans, classes, pairs, targets beside sources."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cutaway.batch import Batch, Example
from cutaway.data.buckets import BucketLoader
from cutaway.data.examples import pair
from cutaway.data.loader import ExampleLoader
from cutaway.data.masking import Masked, Spans
from cutaway.models.convolution import ConvolutionConfig
from cutaway.models.heads import Vector
from cutaway.models.model import Model, build
from cutaway.models.text_classifier import TextClassifier, TextEmbedder
from cutaway.models.transformer import TransformerConfig
from cutaway.objectives.contrast import Contrast
from cutaway.objectives.likelihood import Likelihood
from cutaway.objectives.objective import Objective
from cutaway.text.tokenizer import CharSettings, Tokenizer, train
from cutaway.train.fit import FitSettings, fit_classifier, fit_seq2seq
from cutaway.train.loop import steps
from cutaway.train.optimizer import OptimizerSettings, build_optimizer
from cutaway.train.schedule import Schedule

LETTERS = train(CharSettings(masks=8), ())
ADAMW = OptimizerSettings(kind="adamw", learning_rate=1e-2)
MUON = OptimizerSettings(kind="muon", learning_rate=1e-2)


def config(shape: str, **other: Any) -> TransformerConfig:
    sizes: dict[str, Any] = {"vocab_size": LETTERS.vocab_size, "hidden_size": 32, "num_layers": 1, "num_heads": 2,
                             "num_kv_heads": 2, "intermediate_size": 64, "context_length": 48, "shape": shape}
    return TransformerConfig.model_validate(sizes | other)


def learn(model: Model, batches: Callable[[int], Batch], objective: Objective, total: int,
          optimizer: OptimizerSettings = ADAMW) -> float:
    done = [step.loss for step in steps(model, lambda n: [batches(n)], objective, build_optimizer(model, optimizer),
                                        schedule=Schedule(), total=total)]
    return float(np.mean(done[-10:]))


def ladders(count: int, length: int) -> list[Example]:
    """Rows that climb through 10 letters again and again: any of them tells all the others."""
    rows: NDArray[np.int64] = 97 + (np.random.default_rng(0).integers(0, 10, count)[:, None] + np.arange(length)) % 10
    return [Example(row, np.ones(length, np.float32)) for row in rows]


def test_a_masked_encoder_fills_what_its_neighbours_tell() -> None:
    source = ExampleLoader(ladders(500, 17), rows=32, length=16, pad_id=LETTERS.pad_id)
    masked = Masked(source, LETTERS, rows=32, share=0.3)
    assert learn(build(config("encoder")), masked.batch, Likelihood(), 80) < 0.6  # ln 10 = 2.3 without them


def test_span_corruption_is_learned_by_an_encoder_decoder() -> None:
    source = ExampleLoader(ladders(500, 17), rows=32, length=16, pad_id=LETTERS.pad_id)
    spans = Spans(source, LETTERS, rows=32, share=0.25, mean_length=2)
    assert learn(build(config("encoder-decoder")), spans.batch, Likelihood(), 120, MUON) < 0.7


WORDS = ["red", "blue", "green", "pink"]
PLACES = ["house", "tree", "boat", "road", "hill"]


def phrases(count: int, *, seed: int) -> list[tuple[str, str]]:
    draw = np.random.default_rng(seed)
    return [(f"a {PLACES[p]} so {WORDS[w]} by the {PLACES[q]}", WORDS[w])
            for w, p, q in zip(draw.integers(0, 4, count), draw.integers(0, 5, count), draw.integers(0, 5, count),
                               strict=True)]


CLASSIFIERS = {"encoder": config("encoder"), "decoder": config("decoder"), "encoder-decoder": config("encoder-decoder"),
               "convolution": ConvolutionConfig(shape="encoder", vocab_size=LETTERS.vocab_size, hidden_size=48,
                                                embedding_size=16, tie_embeddings=False)}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_architecture_learns_classes(name: str) -> None:
    settings = FitSettings(epochs=8, optimizer=MUON if name == "encoder-decoder" else ADAMW, patience=4)
    made = fit_classifier(CLASSIFIERS[name], LETTERS, phrases(300, seed=1), valid=phrases(60, seed=2),
                          settings=settings)
    assert made.best.figures["accuracy"] >= 0.95
    classifier = TextClassifier(made.model, LETTERS)
    tried = phrases(60, seed=3)
    scores = classifier.scores([text for text, _ in tried])
    assert np.mean([classifier.labels[i] == label for i, (_, label) in zip(scores.argmax(1), tried, strict=True)]) > 0.9


def test_several_labels_are_learned() -> None:
    draw = np.random.default_rng(0)
    holds = draw.integers(0, 2, (400, 4)).astype(bool)
    texts = [(" ".join(w for w, on in zip(WORDS, row, strict=True) if on) or "none",
              [w for w, on in zip(WORDS, row, strict=True) if on]) for row in holds]
    made = fit_classifier(CLASSIFIERS["convolution"], LETTERS, texts[:300], valid=texts[300:],
                          settings=FitSettings(epochs=10, optimizer=ADAMW))
    assert made.best.figures["accuracy"] > 0.97
    classifier = TextClassifier(made.model, LETTERS)
    assert classifier.multi_label and classifier.labels == tuple(sorted(WORDS))
    assert ((classifier.scores(["red green"]) > 0) == [[False, True, False, True]]).all()


def test_pairs_are_found_again() -> None:
    draw = np.random.default_rng(0)
    words = sorted({"".join(draw.choice(list("abcdefgh"), 4)) for _ in range(300)})
    pairs = [pair(w, w.upper(), LETTERS) for w in words]
    loader = BucketLoader(pairs, LETTERS.pad_id, rows=32)
    model = build(config("encoder"), head=Vector())
    loss = learn(model, loader.batch, Contrast(temperature=0.1), 150)
    embedder = TextEmbedder(model, LETTERS)
    near = embedder.vectors(words[:60]) @ embedder.vectors([w.upper() for w in words[:60]]).T
    assert (near.argmax(1) == np.arange(60)).mean() > 0.8, loss


@pytest.mark.parametrize("shape", ["encoder-decoder", "decoder"])
def test_targets_are_learned_beside_sources(shape: str) -> None:
    draw = np.random.default_rng(0)
    texts = ["".join(draw.choice(list("abc"), draw.integers(2, 6))) for _ in range(600)]
    pairs = [(t, t.upper()) for t in texts]
    made = fit_seq2seq(config(shape), LETTERS, pairs[:540], valid=pairs[540:],
                       settings=FitSettings(epochs=16, optimizer=MUON, average=3, label_smoothing=0.05))
    assert made.best.figures["nll"] < 0.6, made.best  # ln 3 = 1.1 without the source


def alike(a: Model, b: Model) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_fitting_is_deterministic_and_leaves_the_best_weights() -> None:
    settings = FitSettings(epochs=6, optimizer=ADAMW, patience=2, word_dropout=0.2, label_smoothing=0.1)

    def once(seed: int, tokenizer: Tokenizer = LETTERS) -> Any:
        return fit_classifier(CLASSIFIERS["convolution"], tokenizer, phrases(120, seed=1),
                              valid=phrases(40, seed=2), settings=settings, seed=seed)

    first, again, other = once(0), once(0), once(1)
    assert alike(first.model, again.model) and not alike(first.model, other.model)
    assert first.best == max(first.history, key=lambda look: look.rank)
    scores = TextClassifier(first.model, LETTERS).scores([text for text, _ in phrases(40, seed=2)])
    labels = sorted(WORDS)
    right = np.mean([labels[i] == label for i, (_, label) in zip(scores.argmax(1), phrases(40, seed=2), strict=True)])
    assert right == pytest.approx(first.best.figures["accuracy"])
