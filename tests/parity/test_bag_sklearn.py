"""A bag's margins are those of the plain scikit-learn pipeline of the same settings, from features to classifier."""

from __future__ import annotations

import numpy as np
import pytest
from bag_texts import labelled
from hypothesis import given
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.svm import LinearSVC

from cutaway.models.bag import BagConfig, fit_bag
from cutaway.models.features import CharGrams, WordGrams, fit_block, vectorizer_of

EVERY = r"(?u)\w+|[^\w\s]"
TEXTS, LABELS = labelled(240)
ASKED, _ = labelled(60, seed=1)
ODD = ["", "  ", "unknown", "I I I", "Größe – straße", "a\tb\n\nc", "x" * 300, "don't re-do it!?", "日本語 テスト",
       "\x00\x1f"]
FEATURES = [
    (WordGrams(weight="tfidf", tokens="words"), TfidfVectorizer(ngram_range=(1, 2))),
    (WordGrams(low=1, high=3, min_count=2), TfidfVectorizer(
        ngram_range=(1, 3), sublinear_tf=True, min_df=2, token_pattern=EVERY)),
    (CharGrams(), TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)),
    (CharGrams(low=1, high=3, weight="count", lowercase=False, most=50), CountVectorizer(
        analyzer="char_wb", ngram_range=(1, 3), lowercase=False, max_features=50)),
    (WordGrams(weight="binary", tokens="spaces"), CountVectorizer(
        binary=True, ngram_range=(1, 2), token_pattern=r"\S+")),
]


@pytest.mark.parametrize(("feature", "theirs"), FEATURES, ids=range(5))
def test_features_are_equal(feature, theirs) -> None:  # type: ignore[no-untyped-def]
    block, fitted = fit_block(feature, TEXTS)
    assert (abs(fitted - theirs.fit_transform(TEXTS))).max() < 1e-12
    assert list(block.terms) == list(theirs.get_feature_names_out())  # type: ignore[union-attr]
    for texts in (TEXTS, ASKED, ODD):
        assert abs(block.matrix(texts) - theirs.transform(texts)).max() < 1e-12


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize(("name", "estimator"), [
    ("svm", LinearSVC(C=0.5, random_state=3)), ("logistic", LogisticRegression(C=0.5, max_iter=1000))])
def test_margins_are_equal(classes: int, name, estimator) -> None:  # type: ignore[no-untyped-def]
    texts, labels = labelled(200, classes=classes)
    bag = fit_bag(texts, labels, BagConfig(classifier=name, C=0.5), seed=3)
    union = FeatureUnion([("w", TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=EVERY)),
                          ("c", TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True))])
    theirs = make_pipeline(union, estimator).fit(texts, labels)
    margins = theirs.decision_function(ASKED)
    np.testing.assert_allclose(bag.decisions(ASKED).squeeze(), margins, atol=1e-9)
    if name == "logistic":
        np.testing.assert_allclose(bag.scores(ASKED), theirs.predict_log_proba(ASKED), atol=1e-9)


@given(st.text(max_size=40))
def test_any_text_has_the_features_that_sklearn_finds(text: str) -> None:
    for feature in (CharGrams(low=1, high=4, weight="count"), WordGrams(weight="count")):
        theirs = vectorizer_of(feature)
        both = [text, "another text with words"]
        block, _ = fit_block(feature, both)
        assert abs(block.matrix([text.upper(), text]) - theirs.fit(both).transform([text.upper(), text])).sum() == 0
