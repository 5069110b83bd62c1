"""Scores of labels, texts, searches and clusters: equal to the reference libraries', to the bootstrap, and by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutaway.errors import DataError
from cutaway.evaluate.answers import mcnemar
from cutaway.evaluate.classification import (
    accuracy,
    by_class,
    calibration_error,
    classes_of,
    compare,
    confusions,
    f1,
    f1_statistics,
    scope,
    scope_threshold,
)
from cutaway.evaluate.clustering import adjusted_rand, agreement, clusters, v_measure
from cutaway.evaluate.resample import Statistics, mean_of, ratio
from cutaway.evaluate.retrieval import retrieval, search, top_of
from cutaway.evaluate.text import (
    bleu,
    bleu_statistics,
    chrf,
    chrf_statistics,
    exact_match,
    field_f1,
    fields_of,
    rouge,
    rouge_statistics,
)
from cutaway.models.bm25 import fit_bm25
from cutaway.records import bootstrap, wilson

DRAW = np.random.default_rng(0)
RIGHT = [str(x) for x in DRAW.integers(0, 4, 300)]
GIVEN = [r if DRAW.random() < 0.7 else str(DRAW.integers(0, 5)) for r in RIGHT]
SEVERAL = [tuple(c for c in "abc" if DRAW.random() < 0.4) for _ in range(200)]
SAID = [tuple(c for c in "abc" if (c in row) != (DRAW.random() < 0.2)) for row in SEVERAL]
TEXTS = ["the cat sat on the mat", "a dog barked at night in the yard", "rain fell on the old roof"] * 4
SAYS = ["the cat sat on a mat", "a dog was barking at night", "the rain fell on a roof"] * 4


def test_the_interval_is_the_bootstrap_s() -> None:
    values = list(DRAW.random(50))
    found = mean_of("mean", values).measure(seed=3)
    assert (found.low, found.high) == pytest.approx(bootstrap(values, seed=3)) and found.value == np.mean(values)
    with pytest.raises(DataError, match="no item to measure mean"):
        mean_of("mean", [])


def test_undefined_draws_are_counted() -> None:
    rows = np.array([[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    found = Statistics("x", "", rows, lambda s: ratio(s[:, 0], s[:, 1])).measure()
    assert found.value == 1.0 and 200 < found.conditions["undefined_resamples"] < 400


def test_accuracy_and_f1_are_sklearn_s() -> None:
    from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support
    from sklearn.preprocessing import MultiLabelBinarizer

    found = accuracy(RIGHT, GIVEN)
    hits = round(found.value * 300)
    assert found.value == accuracy_score(RIGHT, GIVEN) and (found.low, found.high) == wilson(hits, 300)
    for average in ("macro", "micro"):
        ours = f1(RIGHT, GIVEN, average=average)  # type: ignore[arg-type]
        assert ours.value == pytest.approx(f1_score(RIGHT, GIVEN, average=average, zero_division=0.0))
        assert ours.low < ours.value < ours.high and ours.n == 300  # type: ignore[operator]
        binary = MultiLabelBinarizer(classes=list("abc"))
        theirs = f1_score(binary.fit_transform(SEVERAL), binary.transform(SAID), average=average)
        assert f1(SEVERAL, SAID, average=average).value == pytest.approx(theirs)  # type: ignore[arg-type]
    rows = by_class(RIGHT, GIVEN, resamples=100)
    p, r, f, n = precision_recall_fscore_support(RIGHT, GIVEN, labels=[c.label for c in rows], zero_division=np.nan)
    np.testing.assert_allclose([c.precision.value for c in rows], p)
    np.testing.assert_allclose([c.recall.value for c in rows], r)
    assert [c.n for c in rows] == list(n) and rows[0].f1.value == pytest.approx(f[0])


def test_a_label_nobody_learned_counts_as_missed() -> None:
    assert accuracy(["a", "new"], ["a", "a"]).value == 0.5
    assert f1(["a", "new"], ["a", "a"]).value == pytest.approx((2 / 3 + 0) / 2)
    assert confusions(["a", "b", "b", "c"], ["b", "a", "a", "c"]) == [("b", "a", 2), ("a", "b", 1)]
    assert classes_of(["b"], ["a"]) == ("a", "b")
    with pytest.raises(DataError, match="2 items and 1 answers"):
        accuracy(["a", "b"], ["a"])
    with pytest.raises(DataError, match="0 items"):
        f1([], [])


def test_two_systems_are_compared_on_the_same_items() -> None:
    better = [r if DRAW.random() < 0.5 else g for r, g in zip(RIGHT, GIVEN, strict=True)]
    found = compare(RIGHT, GIVEN, better)
    change = found["accuracy"]
    assert change.value == pytest.approx(accuracy(RIGHT, better).value - accuracy(RIGHT, GIVEN).value)
    assert change.conditions["mcnemar_p"] == mcnemar(change.conditions["won"], change.conditions["lost"])
    assert change.conditions["lost"] == 0 and found["macro_f1"].conditions["bootstrap_p"] < 0.01
    assert found["macro_f1"].low > 0  # type: ignore[operator]
    same = compare(RIGHT, GIVEN, GIVEN)
    assert same["accuracy"].conditions["mcnemar_p"] == 1.0 == same["macro_f1"].conditions["bootstrap_p"]
    with pytest.raises(DataError, match="not paired"):
        f1_statistics(RIGHT, GIVEN).change(f1_statistics(RIGHT[:9], GIVEN[:9]))


def test_calibration_error_has_a_floor() -> None:
    draw = np.random.default_rng(1)
    p = draw.uniform(0.5, 1, 2000)
    scores = np.log(np.stack([p, 1 - p], 1))
    right = ["a" if draw.random() < x else "b" for x in p]
    good = calibration_error(scores, right, ["a", "b"])
    assert good.value < good.conditions["noise_high"] < 0.06
    bad = calibration_error(np.log(np.tile([0.99, 0.01], (2000, 1))), right, ["a", "b"])
    assert bad.value == pytest.approx(0.99 - np.mean([r == "a" for r in right])) and bad.value > bad.conditions[
        "noise_high"]


def test_the_threshold_for_what_is_out_of_scope() -> None:
    sure, hit, outside = np.array([0.9, 0.8, 0.7, 0.2]), [True, True, False, True], np.array([0.6, 0.1, 0.75])
    threshold = scope_threshold(sure, hit, outside)
    assert 0.75 < threshold < 0.8
    found = scope(sure, hit, outside, threshold)
    assert found["in_scope_accuracy"].value == 0.5 and found["out_of_scope_recall"].value == 1.0
    assert scope(sure, hit, outside, 0.0)["out_of_scope_recall"].value == 0.0
    # one text out of scope among many: the rule of most texts lets it go, the balanced one does not
    many = np.linspace(0.5, 1, 100)
    assert scope_threshold(many, [True] * 100, np.array([0.6])) < 0.6
    assert scope_threshold(many, [True] * 100, np.array([0.6]), balanced=True) > 0.6
    with pytest.raises(DataError, match="in scope and out of scope"):
        scope_threshold(sure, hit, np.zeros(0))


def test_bleu_and_chrf_are_sacrebleu_s() -> None:
    import sacrebleu

    several = [[t, t.upper()] if i % 2 else [t] for i, t in enumerate(TEXTS)]
    streams = [[r[0] for r in several], [r[1] if len(r) > 1 else None for r in several]]
    for refs, theirs in ((TEXTS, [TEXTS]), (several, streams)):
        assert bleu(SAYS, refs).value == pytest.approx(sacrebleu.corpus_bleu(SAYS, theirs).score)
        assert chrf(SAYS, refs).value == pytest.approx(sacrebleu.corpus_chrf(SAYS, theirs).score)
    found = bleu(SAYS, TEXTS, seed=1)
    assert "tok:13a" in found.conditions["signature"] and found.low <= found.value <= found.high  # type: ignore[operator]
    picked = np.random.default_rng(1).integers(0, 12, 12)
    resampled = sacrebleu.corpus_bleu([SAYS[i] for i in picked], [[TEXTS[i] for i in picked]]).score
    assert bleu_statistics(SAYS, TEXTS).drawn(seed=1, resamples=1)[0] == pytest.approx(resampled)
    better = chrf_statistics(SAYS, TEXTS).change(chrf_statistics(TEXTS, TEXTS))
    assert better.value > 0 and better.conditions["bootstrap_p"] < 0.01


def test_rouge_takes_the_best_reference() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
    alone = np.mean([scorer.score(t, s)["rougeL"].fmeasure for t, s in zip(TEXTS, SAYS, strict=True)])
    assert rouge(SAYS, TEXTS)["rougeL"].value == pytest.approx(alone)
    assert rouge(SAYS, [[t, s] for t, s in zip(TEXTS, SAYS, strict=True)])["rouge2"].value == 1.0
    assert rouge_statistics(SAYS, TEXTS)["rouge1"].change(rouge_statistics(TEXTS, TEXTS)["rouge1"]).value > 0


@pytest.mark.parametrize("score", [bleu, chrf, rouge, exact_match])
def test_lists_that_do_not_fit_are_refused(score) -> None:  # type: ignore[no-untyped-def]
    for given_, refs, words in ((["a"], [], "references to 0"), ([], [], "0 texts"), (["a"], [[]], "no reference"),
                                ("ab", ["a", "b"], "2 texts")):
        with pytest.raises(DataError, match=words):
            score(given_, refs)


def test_exact_match_and_fields() -> None:
    assert exact_match([" A  b", "c"], [["x", "a b"], ["c"]]).value == 0.5
    assert exact_match([" A  b", "c"], [["x", "a b"], ["c"]], fold=True).value == 1.0
    assert fields_of({"a": {"b": [1, 1, "x"]}, "c": None}) == {("a.b", "1"): 2, ("a.b", '"x"'): 1, ("c", "null"): 1}
    right = [{"city": "Rome", "day": 1}, {"city": "Oslo"}, {"city": "Bern"}]
    given_ = [json.dumps({"city": "Rome", "day": 2}), "no json", {"city": "Bern", "more": 1}]
    found = field_f1(given_, right)
    assert found.value == pytest.approx(2 * 2 / (4 + 4)) and found.conditions["not_json"] == 1
    with pytest.raises(DataError, match="item 1: the right answer is not JSON"):
        field_f1(["{}"], ["{"])


def test_search_is_exact_and_scores_are_by_hand() -> None:
    draw = np.random.default_rng(0)
    queries, documents = draw.normal(size=(20, 8)), draw.normal(size=(50, 8))
    cosine = queries @ documents.T / np.linalg.norm(queries, axis=1)[:, None] / np.linalg.norm(documents, axis=1)
    assert np.array_equal(search(queries, documents, count=50), np.argsort(-cosine, 1))
    assert np.array_equal(search(queries, documents, count=7), np.argsort(-cosine, 1)[:, :7])
    found = np.array([[3, 1, 2], [0, 1, 2]])
    scores = retrieval(found, [{1: 2.0, 3: 1.0}, {9: 1.0}], at=(1, 3))
    assert scores["recall@1"].value == 0.25 and scores["recall@3"].value == 0.5 and scores["mrr"].value == 0.5
    best = (1 + 2 / math.log2(3)) / (2 + 1 / math.log2(3))
    assert scores["ndcg@3"].value == pytest.approx(best / 2) and scores["ndcg@1"].value == pytest.approx(0.25)
    for words, act in (("no relevant", lambda: retrieval(found, [[1], []])),
                       ("have no recall@100", lambda: retrieval(found, [[1], [2]])),
                       ("not finite", lambda: search(queries * np.nan, documents)),
                       ("has no direction", lambda: search(queries * 0, documents)),
                       ("cannot be compared", lambda: search(queries[:, :3], documents))):
        with pytest.raises(DataError, match=words):
            act()


@given(st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=1, max_size=4), st.integers(1, 8))
def test_the_first_of_equals_is_found_first(rows: list[list[int]], count: int) -> None:
    scores = np.array(rows, np.float64)
    assert np.array_equal(top_of(scores, count), np.argsort(-scores, 1, kind="stable")[:, :count])


def test_bm25_is_the_formula() -> None:
    documents = ["cats and dogs", "dogs dogs dogs", "birds sing in trees", ""]
    index = fit_bm25(documents)
    scores = index.scores(["dogs birds", "unknown"])
    length = np.array([3, 3, 4, 0])
    idf = math.log(1 + (4 - 2 + 0.5) / 2.5)
    tf = np.array([1, 3, 0, 0])
    dogs = idf * tf * 2.5 / (tf + 1.5 * (0.25 + 0.75 * length / length.mean()))
    np.testing.assert_allclose(scores[0, :2], dogs[:2])
    assert scores[0, 2] > 0 and not scores[1].any()


def test_clusters_and_their_agreement_with_labels() -> None:
    from sklearn.metrics import adjusted_rand_score, v_measure_score

    draw = np.random.default_rng(0)
    labels = [str(i % 3) for i in range(90)]
    found = clusters(np.eye(3)[np.arange(90) % 3] + draw.normal(0, 0.05, (90, 3)), 3)
    assert agreement(labels, found, resamples=50)["v_measure"].value == pytest.approx(1.0)
    noisy = np.where(draw.random(90) < 0.4, draw.integers(0, 4, 90), found)
    scores = agreement(labels, noisy, resamples=100)
    assert scores["v_measure"].value == pytest.approx(v_measure_score(labels, noisy))
    assert scores["adjusted_rand"].value == pytest.approx(adjusted_rand_score(labels, noisy))
    assert v_measure(np.array([[3.0]])) == 1.0 == adjusted_rand(np.array([[3.0]]))
    for words, act in (("into 5 clusters", lambda: clusters(np.zeros((3, 2)), 5)),
                       ("not finite", lambda: clusters(np.full((3, 2), np.inf), 2)),
                       ("2 labels and 1", lambda: agreement(["a", "b"], np.array([0])))):
        with pytest.raises(DataError, match=words):
            act()
