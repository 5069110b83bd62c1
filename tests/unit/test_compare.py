"""What a comparison concludes: known answers, paired resampling, frontiers, and settings that are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutaway.errors import SettingsError
from cutaway.models.bag import BagConfig
from cutaway.models.features import CharGrams, HandMade, WordGrams
from cutaway.run.compare_parts import Outcome, Yardstick, bytes_in, timed
from cutaway.run.compare_recipe import BagSystem, Comparison, NeuralSystem, load
from cutaway.run.compare_verdict import frontier, qualities, side_of, verdict
from cutaway.run.compare_worker import described
from cutaway.settings import decode

LOW = Yardstick("bits_per_byte", "bits per byte", "lower", "a token", "tokens scored")
HIGH = Yardstick("accuracy", "share", "higher", "a text", "texts")


def outcome(name: str, scores: list[list[float]], *, rank: int = 1, seconds: float = 1.0, latency: float = 0.01,
            disk: int = 100) -> Outcome:
    """A system with these scores of items of weight 1, a row a seed."""
    return Outcome(name, "neural", rank, name, tuple(range(len(scores))), tuple(map(tuple, scores)),
                   (1.0,) * len(scores[0]), (seconds,) * len(scores), (None,) * len(scores), (None,) * len(scores), 10,
                   disk, 10, 10, (latency,), 1.0, {}, ())


def test_a_constant_distance_has_no_width_however_items_vary() -> None:
    items = np.random.default_rng(0).normal(5, 2, 200)
    found = verdict([outcome("a", [items.tolist()]), outcome("b", [(items + 0.1).tolist()])], LOW)
    behind = found.standings[1].behind
    assert found.best == "a" and behind is not None and found.standings[1].apart
    assert (behind.value, behind.low, behind.high) == pytest.approx((0.1, 0.1, 0.1))
    quality = found.standings[0].quality
    assert quality.low is not None and quality.high is not None and quality.high - quality.low > 0.3  # items do vary


def test_noise_is_not_told_apart_and_the_simplest_is_named() -> None:
    draw = np.random.default_rng(1)
    common = draw.normal(0, 1, 300)
    simple, middle, best = ([(common + draw.normal(0, 1, 300)).tolist() for _ in range(3)] for _ in range(3))
    far = [(common - 1).tolist()] * 3
    found = verdict([outcome("best", best, rank=5), outcome("simple", simple, rank=1),
                     outcome("middle", middle, rank=3), outcome("far", far, rank=0)], HIGH)
    assert side_of(found, "far") == "apart"
    assert found.simplest == "simple"
    assert {side_of(found, n) for n in ("best", "simple", "middle")} == {"best", "level"}


def test_seeds_that_disagree_widen_the_interval() -> None:
    items = np.full(100, 1.0)
    steady, shaky = [items.tolist()] * 3, [(items * f).tolist() for f in (0.5, 1.0, 1.5)]
    found = verdict([outcome("steady", steady), outcome("shaky", shaky)], LOW)
    width = {s.name: (s.quality.high or 0) - (s.quality.low or 0) for s in found.standings}
    assert width["steady"] == pytest.approx(0)
    assert width["shaky"] > 0.5


def test_higher_is_better_turns_the_order_round() -> None:
    systems = [outcome("a", [[1.0] * 20]), outcome("b", [[0.0] * 20])]
    assert verdict(systems, HIGH).best == "a" and verdict(systems, LOW).best == "b"


def test_the_figure_is_a_ratio_of_sums() -> None:
    uneven = Outcome.from_dict({**outcome("a", [[2.0, 9.0]]).to_dict(), "weights": [1.0, 3.0]})
    values, _ = qualities([uneven, outcome("b", [[1.0, 1.0]])])
    assert values[0] == pytest.approx(11 / 4)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=8))
def test_the_frontier_holds_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    names = [str(i) for i in range(len(points))]
    kept = frontier(names, [p[0] for p in points], [p[1] for p in points])
    for name, (cost, loss) in zip(names, points, strict=True):
        beaten = any(c <= cost and q <= loss and (c, q) != (cost, loss) for c, q in points)
        assert (name in kept) == (not beaten)
    assert [points[int(n)][0] for n in kept] == sorted(points[int(n)][0] for n in kept)


def test_an_outcome_survives_json() -> None:
    before = outcome("a", [[1.0, 2.0], [3.0, 4.0]])
    assert Outcome.from_dict(json.loads(json.dumps(before.to_dict()))) == before


def test_timing_calls_everything_and_ends() -> None:
    seen: list[int] = []
    took = timed([lambda i=i: seen.append(i) for i in range(5)])  # type: ignore[misc]
    assert len(took) == 200 and set(seen) == set(range(5)) and min(took) >= 0


def test_bytes_are_those_of_every_file(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_bytes(b"12345")
    (tmp_path / "d").write_bytes(b"678")
    assert bytes_in(tmp_path) == 8


@pytest.mark.parametrize(("settings", "word"), [
    (["systems.transformer.architecture.hidden_sise=3"], "hidden_size"),
    (["systems.transformer.architecture.vocab_size=300"], "tokenizer"),
    (["systems.transformer.architecture.kind=transfomer"], "transformer"),
    (["systems.transformer.kind=bagg"], "systems.transformer"),
    (["seeds=[]"], "seeds"), (["seeds=[1,1]"], "seeds"), (["budget.seconds=0"], "budget.seconds"),
    (["task.kind=languag"], "task"), (["price.per_hour=-1"], "price.per_hour"),
    (["systems.5-gramm=false"], "did you mean '5-gram'"), (["systems.transfomer.rows=4"], "did you mean 'transformer'"),
    (["systems.zzz=false"], "there are unigram"),
    (['systems./tmp/h1/evil={kind="ngram"}'], "cannot be a name"), (['systems.a/b={kind="ngram"}'], "cannot be a name"),
    (['systems. a={kind="ngram"}'], "cannot be a name"), (['systems.-a={kind="ngram"}'], "cannot be a name"),
    ([f'systems.{"a" * 101}={{kind="ngram"}}'], "cannot be a name"),
    (["budget.tokens=4"], "the settings here are kind, seconds; or did you mean"),
    (["systems.transformer.word_dropout=0.3"], "means nothing for language; it is for classification"),
    (["systems.transformer.label_smoothing=0.1"], "it is for classification and transformation"),
])
def test_what_is_wrong_is_named(settings: list[str], word: str) -> None:
    with pytest.raises(SettingsError, match=word):
        load("language", settings)


@pytest.mark.parametrize(("system", "more"), [("lstm", 1), ("encoder-decoder", 1), ("decoder", 3)])
def test_an_answer_fits_the_context_of_whoever_writes_it(system: str, more: int) -> None:
    setting = f"systems.{system}.architecture.context_length="
    with pytest.raises(SettingsError, match=f"a context of {47 + more} holds answers of 47 tokens at most"):
        load("transformation", [setting + str(47 + more)])
    assert load("transformation", [setting + str(48 + more)]).task.kind == "transformation"


def test_a_length_is_for_language() -> None:
    with pytest.raises(SettingsError, match=r"length = 30 means nothing for retrieval; it is for language"):
        load("retrieval", ["systems.lstm.length=30"])


def test_an_unknown_comparison_names_the_nearest() -> None:
    with pytest.raises(SettingsError, match="did you mean 'language'"):
        load("langage")


def test_a_system_can_be_left_out_and_one_alone_is_no_comparison() -> None:
    names = list(load("language").systems)
    assert list(load("language", [f"systems.{names[0]}=false"]).systems) == names[1:]
    with pytest.raises(SettingsError, match="needs two systems"):
        load("language", [f"systems.{n}=false" for n in names[1:]])


def test_a_new_system_may_have_a_name_of_words() -> None:
    assert "words and 2_grams-a" in load("language", ['systems.words and 2_grams-a={kind="ngram"}']).systems


@pytest.mark.parametrize("name", [".", "..", ".training-x", "a/../../b", "a\n", "a ", ""])
def test_a_name_that_is_no_folder_is_refused(name: str) -> None:
    tree = load("language").model_dump(mode="json")
    tree["systems"][name] = {"kind": "ngram"}
    with pytest.raises(SettingsError, match="cannot be a name"):
        decode(Comparison, tree, where="here")


def test_a_file_that_extends_another_may_leave_out_its_systems_only(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('extends = "language"\n[systems]\ntransformer = false\n[systems.gru]\nrows = 3\n')
    assert "transformer" not in load(str(path)).systems
    for wrong in ("transfomer = false", "transfomer = { rows = 3 }"):
        path.write_text(f'extends = "language"\n[systems]\n{wrong}\n')
        with pytest.raises(SettingsError, match="did you mean 'transformer'"):
            load(str(path))


def test_a_system_is_described_in_words() -> None:
    bag = BagSystem(bag=BagConfig(features=(WordGrams(high=1), CharGrams(low=2, high=4), HandMade()),
                                  classifier="logistic"))
    assert described(bag) == "single words, runs of 2 to 4 characters, hand-made features; logistic regression"
    network = NeuralSystem(architecture={"kind": "recurrent", "hidden_size": 8, "context_length": 4})
    assert described(network) == "recurrent, hidden size 8"
