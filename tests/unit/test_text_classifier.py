"""Networks as classifiers and embedders of texts: order kept, batched = alone, long texts as asked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from cutaway.errors import ModelError, RequestError
from cutaway.models.classifier import Classifier, predicted
from cutaway.models.convolution import ConvolutionConfig
from cutaway.models.heads import Classes, Head, Vector
from cutaway.models.model import Model, build
from cutaway.models.text_classifier import TextClassifier, TextEmbedder
from cutaway.models.transformer import TransformerConfig
from cutaway.text.tokenizer import ByteSettings, train

BYTE = train(ByteSettings(), ())
SIZES: dict[str, Any] = {"vocab_size": BYTE.vocab_size, "hidden_size": 16, "num_layers": 1, "num_heads": 2,
                         "num_kv_heads": 2, "intermediate_size": 24, "context_length": 20}
CONFIGS = {**{shape: TransformerConfig(**SIZES, shape=shape) for shape in ("encoder", "decoder", "encoder-decoder")},
           "convolution": ConvolutionConfig(shape="encoder", vocab_size=BYTE.vocab_size, hidden_size=18,
                                            tie_embeddings=False, embedding_size=8, context_length=20)}
TEXTS = ["", "a", "some words", "the longest of all", "b", "more", "é 漢"] + [f"text {i}" for i in range(70)]


def made(name: str, head: Head) -> Model:
    model = build(CONFIGS[name], head=head, seed=1)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(2))
    return model


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("several", [False, True])
def test_scores_keep_the_order_and_batched_is_alone(name: str, several: bool) -> None:
    classifier = TextClassifier(made(name, Classes(("a", "b", "c"), multi_label=several)), BYTE)
    assert isinstance(classifier, Classifier)
    assert classifier.labels == ("a", "b", "c") and classifier.multi_label == several
    scores = classifier.scores(TEXTS)
    alone = np.concatenate([classifier.scores([text]) for text in TEXTS])
    np.testing.assert_allclose(scores, alone, atol=1e-5)
    assert np.ptp(scores, axis=0).min() > 1e-3, "every text gets the same score"
    if not several:
        np.testing.assert_allclose(np.exp(scores).sum(1), 1, atol=1e-12)
    assert len(predicted(classifier, TEXTS)) == len(TEXTS) and classifier.scores([]).shape == (0, 3)
    np.testing.assert_allclose(classifier.scores(TEXTS[::-1]), scores[::-1], atol=1e-5)


def test_reading_changes_nothing_even_with_dropout() -> None:
    model = made("convolution", Classes(("a", "b")))
    assert model.config.dropout > 0
    model.train()
    classifier = TextClassifier(model, BYTE)
    np.testing.assert_array_equal(classifier.scores(TEXTS), classifier.scores(TEXTS))


@pytest.mark.parametrize("name", CONFIGS)
def test_vectors_have_length_one(name: str) -> None:
    embedder = TextEmbedder(made(name, Vector()), BYTE)
    vectors = embedder.vectors(TEXTS)
    assert vectors.shape == (len(TEXTS), embedder.width) and embedder.vectors([]).shape == (0, embedder.width)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(vectors[5:6], embedder.vectors(TEXTS[5:6]), atol=1e-5)


def test_long_texts_are_refused_cut_or_read_in_windows() -> None:
    model = made("encoder", Classes(("a", "b")))
    long = "x" * 12 + "y" * 23  # 18 bytes and a frame fit
    with pytest.raises(RequestError, match="1 of 3 texts are longer than the context of 20 tokens, the longest has 37"):
        TextClassifier(model, BYTE).scores(["a", long, "b"])
    cut, windows = (TextClassifier(model, BYTE, too_long=how) for how in ("cut", "windows"))
    assert cut.too_long_of(["a", long, "b"]) == [1]
    np.testing.assert_allclose(cut.scores([long]), cut.scores([long[:18]]), atol=1e-6)
    both = windows.scores(["a", long, "b"])
    halves = windows.scores([long[:18], long[18:]])
    logits = halves @ np.array([[1.0], [-1.0]])
    mean = (logits * [[20], [19]]).sum() / 39
    assert (both[1] @ [1.0, -1.0]) == pytest.approx(mean, abs=1e-5)
    np.testing.assert_allclose(both[[0, 2]], cut.scores(["a", "b"]), atol=1e-5)
    embedder = TextEmbedder(made("encoder", Vector()), BYTE, too_long="windows")
    assert np.linalg.norm(embedder.vectors([long])) == pytest.approx(1)


def test_a_model_or_tokenizer_that_does_not_serve_is_refused() -> None:
    for make in (TextClassifier, TextEmbedder):
        with pytest.raises(ModelError, match="the model has no head of"):
            make(made("encoder", "tokens"), BYTE)
    masked = train(ByteSettings(masks=3), ())
    with pytest.raises(ModelError, match="the model knows 263 tokens and the tokenizer has 267"):
        TextClassifier(made("encoder", Classes(("a", "b"))), masked)
