"""Bags: scores are log-probabilities, alone as in a batch, loaded as saved, taken apart by feature."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from bag_texts import labelled, several
from safetensors.numpy import load, save

from cutaway.errors import DataError, ModelError, RequestError, SettingsError
from cutaway.models.bag import Bag, BagConfig, fit_bag
from cutaway.models.bag_folder import load_bag, save_bag
from cutaway.models.classifier import Classifier, predicted
from cutaway.models.features import HAND, CharGrams, HandMade, WordGrams, fit_block
from cutaway.models.linear import held_part, log_count_ratio
from cutaway.models.select import folds_of, select
from cutaway.records import digest
from cutaway.settings import decode

TEXTS, LABELS = labelled(240)
ASKED, RIGHT = labelled(90, seed=1)
BINARY = (WordGrams(weight="binary"),)
CONFIGS = {
    "svm": BagConfig(),
    "logistic": BagConfig(classifier="logistic", C=10.0, features=(WordGrams(), HandMade())),
    "nbsvm": BagConfig(classifier="nbsvm", features=BINARY),
    "balanced": BagConfig(class_weight="balanced", features=(WordGrams(weight="count"), HandMade(names=("digits",)))),
}


@pytest.fixture(scope="module", params=[(name, classes) for name in CONFIGS for classes in (2, 3)],
                ids=lambda p: f"{p[0]}-{p[1]}")
def bag(request: pytest.FixtureRequest) -> Bag:
    name, classes = request.param
    return fit_bag(*labelled(240, classes=classes), CONFIGS[name])


def test_scores_are_log_probabilities_and_learned(bag: Bag) -> None:
    assert isinstance(bag, Classifier) and not bag.multi_label
    asked, right = labelled(90, seed=1, classes=len(bag.labels))
    scores = bag.scores(asked)
    assert scores.shape == (90, len(bag.labels)) and scores.dtype == np.float64
    np.testing.assert_allclose(np.exp(scores).sum(1), 1.0)
    assert np.mean(np.array(predicted(bag, asked)) == np.array(right)) > 0.85
    assert bag.scores([]).shape == (0, len(bag.labels)) and predicted(bag, []) == ()


def test_batched_is_alone(bag: Bag) -> None:
    together = bag.scores([*ASKED[:9], ""])
    alone = np.concatenate([bag.scores([t]) for t in [*ASKED[:9], ""]])
    assert np.array_equal(together, alone)


def test_saved_is_loaded_bit_for_bit(bag: Bag, tmp_path: Path) -> None:
    save_bag(tmp_path / "m", bag)
    again = load_bag(tmp_path / "m")
    assert np.array_equal(bag.scores(ASKED), again.scores(ASKED))
    assert (again.config, again.labels, again.notes) == (bag.config, bag.labels, bag.notes)
    first = {p.name: p.read_bytes() for p in (tmp_path / "m").iterdir()}
    save_bag(tmp_path / "m", again)
    assert {p.name: p.read_bytes() for p in (tmp_path / "m").iterdir()} == first and len(first) == 3


def test_what_features_added_sums_to_the_decision(bag: Bag) -> None:
    for label in bag.labels:
        moved = bag.explain(ASKED[0], label, top=10_000)
        total = sum(m.added for m in moved)
        decision = bag.decisions([ASKED[0]])[0]
        column = bag.labels.index(label)
        wanted = decision[column] - bag.intercept[column] if len(decision) > 1 else (
            (1 if column else -1) * (decision[0] - bag.intercept[0]))
        assert total == pytest.approx(wanted)
        assert all(m.added == m.value * m.weight for m in moved)
    assert len(bag.explain(ASKED[0], bag.labels[0], top=3)) == 3
    with pytest.raises(RequestError, match="no label 'other'"):
        bag.explain("x", "other")


def test_the_same_seed_gives_the_same_bag() -> None:
    one, two = (fit_bag(TEXTS, LABELS, BagConfig(), seed=5) for _ in range(2))
    assert np.array_equal(one.scores(ASKED), two.scores(ASKED)) and one.slope == two.slope != 1.0


def test_calibration_makes_likelier_scores_and_changes_no_order() -> None:
    plain = fit_bag(TEXTS, LABELS, BagConfig(calibration_share=0.0))
    fitted = fit_bag(TEXTS, LABELS, BagConfig())
    assert predicted(plain, ASKED) == predicted(fitted, ASKED)
    place = [plain.labels.index(r) for r in RIGHT]
    rows = np.arange(len(RIGHT))
    assert fitted.scores(ASKED)[rows, place].mean() > plain.scores(ASKED)[rows, place].mean()
    assert plain.notes == ("not calibrated: margins stand for log-odds",) and "calibrated on" in fitted.notes[0]


@pytest.mark.parametrize("config", [BagConfig(), CONFIGS["nbsvm"], CONFIGS["logistic"]], ids=lambda c: c.classifier)
def test_several_labels_a_text(config: BagConfig, tmp_path: Path) -> None:
    texts, labels = several(300)
    bag = fit_bag(texts, labels, config)
    asked, right = several(100, seed=1)
    assert bag.multi_label and np.mean([a == b for a, b in zip(predicted(bag, asked), right, strict=True)]) > 0.75
    save_bag(tmp_path / "m", bag)
    assert np.array_equal(load_bag(tmp_path / "m").scores(asked), bag.scores(asked))
    assert len(bag.explain(asked[0], "food")) > 0


def test_nbsvm_is_the_formula() -> None:
    from sklearn.svm import LinearSVC

    texts, labels = labelled(120, classes=2)
    bag = fit_bag(texts, labels, BagConfig(classifier="nbsvm", features=BINARY, beta=0.25, C=1.0))
    _, x = fit_block(BINARY[0], texts)
    y = np.array([label == bag.labels[1] for label in labels])
    dense = x.toarray()
    p, q = 1 + dense[y].sum(0), 1 + dense[~y].sum(0)
    r = np.log((p / p.sum()) / (q / q.sum()))
    np.testing.assert_allclose(log_count_ratio(x, y.astype(int)), r)
    w = LinearSVC(C=1.0, random_state=0).fit(x.multiply(r).tocsr(), y).coef_[0]
    np.testing.assert_allclose(bag.weights[:, 0], r * (0.75 * np.abs(w).mean() + 0.25 * w), atol=1e-9)


def test_hand_made_features_say_what_they_count() -> None:
    text = "What?! Pay £20 at www.x.com (now) - 'OK', 1:2."
    words = ["What", "Pay", "20", "at", "www", "x", "com", "now", "OK", "1", "2"]
    raw = {name: HAND[name](text, words) for name in HAND}
    counts = {n: round(float(np.expm1(v))) for n, v in raw.items()}
    assert {n: counts[n] for n in ("characters", "words", "digits", "full_stops", "commas", "colons", "questions",
                                   "exclamations", "quotes", "brackets", "dashes", "currency", "links")} == {
        "characters": len(text), "words": 11, "digits": 4, "full_stops": 3, "commas": 1, "colons": 1, "questions": 1,
        "exclamations": 1, "quotes": 2, "brackets": 2, "dashes": 1, "currency": 1, "links": 1}
    assert raw["question_word"] == 1.0 and raw["diversity"] == 1.0
    assert all(np.isfinite(HAND[n]("", [])) for n in HAND)
    block, matrix = fit_block(HandMade(), TEXTS)
    dense = matrix.toarray()
    np.testing.assert_allclose(dense.mean(0), 0, atol=1e-9)
    assert set(np.round(dense.std(0), 9)) <= {0.0, 1.0} and len(block.names) == len(HAND)


@pytest.mark.parametrize(("texts", "labels", "words"), [
    (["a"], ["x", "y"], "1 texts and 2 labels"), (["a", "b"], ["x", "x"], "1 label is no choice"),
    ([], [], "no labels"), (["a", "b"], ["x", ("x",)], "some a tuple"), (["", " "], ["x", "y"], "no n-gram of words"),
    (["a", "b"], [("x",), ("x", "y")], "every text has the label 'x'")])
def test_what_cannot_be_learned_is_an_error(texts, labels, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError, match=words):
        fit_bag(texts, labels)


def test_settings_that_mean_nothing_are_refused() -> None:
    low = {"features": [{"kind": "words", "low": 3}]}
    for tree, words in (({"classifier": "nbsvm"}, "binary"), (low, "above high"), ({"C": 0}, "greater"),
                        ({"features": []}, "at least 1"), ({"c": 1.0}, "unknown setting c")):
        with pytest.raises(SettingsError, match=words):
            decode(BagConfig, tree, where="here")
    with pytest.raises(RequestError, match="one text"):
        fit_bag(TEXTS, LABELS).scores("a text")


def test_every_class_is_learned_though_some_are_held_out() -> None:
    truth = np.array([0] * 10 + [1] * 3 + [2])
    held = held_part(truth, 0.2, 0)
    assert [int(held[truth == c].sum()) for c in range(3)] == [2, 0, 0]
    folds = folds_of(truth, 5, 0)
    assert all(np.ptp(np.bincount(folds[truth == c], minlength=5)) <= 1 for c in range(3))
    assert np.array_equal(folds, folds_of(truth, 5, 0))


def damage(folder: Path, **changes: object) -> None:
    """Tensors replaced (None: taken away), with a digest that agrees, so that only the bounds can notice."""
    arrays = load((folder / "model.safetensors").read_bytes())
    arrays = {**arrays, **changes}
    data = save({k: v for k, v in arrays.items() if v is not None})  # type: ignore[misc]
    (folder / "model.safetensors").write_bytes(data)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "weights_sha256": digest(data)}))


def test_damage_is_noticed(tmp_path: Path) -> None:
    bag = fit_bag(TEXTS, LABELS, BagConfig(features=(WordGrams(), HandMade())))
    folder = tmp_path / "m"
    nan = bag.intercept.copy()
    nan[0] = np.nan
    for changes, words in (
            ({"weights": bag.weights[1:].copy()}, r"weights is float64 .* must be finite float64"),
            ({"intercept": nan}, "intercept"), ({"idf.0": None}, "lacks the tensor idf.0"),
            ({"idf.0": -bag.blocks[0].idf}, "idf is not above 0"),  # type: ignore[union-attr,operator]
            ({"more": np.zeros(1)}, "holds the tensor more"), ({"scale": np.array([-1.0, 0.0])}, "turns scores round"),
            ({"deviations.1": np.zeros(len(HAND))}, "standard deviation"),
            ({"weights": bag.weights.astype(np.float32)}, "float32")):
        save_bag(folder, bag)
        damage(folder, **changes)
        with pytest.raises(ModelError, match=words):
            load_bag(folder)
    for file in ("config.json", "vocabulary.json", "model.safetensors"):
        save_bag(folder, bag)
        whole = (folder / file).read_bytes()
        (folder / file).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ModelError, match="damaged"):
            load_bag(folder)
        (folder / file).unlink()
        with pytest.raises(ModelError, match="no such file"):
            load_bag(folder)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ModelError, match=r"holds notes.txt"):
        save_bag(folder, bag)


def test_choices_are_made_by_cross_validation_and_reported() -> None:
    configs = [BagConfig(features=(WordGrams(high=1),)), BagConfig(features=(CharGrams(high=3),))]
    found = select(TEXTS, LABELS, configs, grid=(0.001, 1.0), folds=3)
    assert len(found.tried) == 4 and found == select(TEXTS, LABELS, configs, grid=(0.001, 1.0), folds=3)
    best = max(t.right.value for t in found.tried)
    chosen = next(t for t in found.tried if t.config == found.config)
    assert chosen.right.value == best and chosen.right.n == 240 and chosen.right.low < best < chosen.right.high
    assert str(found).count("\n") == 3 and str(found).count("* C") == 1
    texts, labels = several(90)
    assert select(texts, labels, grid=(1.0,), folds=3).tried[0].right.value > 0.5
    with pytest.raises(DataError, match="stands once"):
        select([*TEXTS, "x"], [*LABELS, "rare"])
    with pytest.raises(DataError, match="nothing to choose"):
        select(TEXTS, LABELS, grid=())
