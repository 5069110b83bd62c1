"""Fitting: budgets, early stopping, averaged weights, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from cutaway.errors import DataError, RequestError, SettingsError, TokenizerError
from cutaway.models.convolution import ConvolutionConfig
from cutaway.models.heads import Classes
from cutaway.models.model import Model, build
from cutaway.objectives.classify import Classify
from cutaway.settings import decode
from cutaway.text.tokenizer import ByteSettings, train
from cutaway.train import fit as fitting
from cutaway.train.fit import FitSettings, Look, fit, fit_classifier, fit_seq2seq, label_names, source_prompt

BYTE = train(ByteSettings(), ())
SMALL = ConvolutionConfig(shape="encoder", vocab_size=BYTE.vocab_size, hidden_size=6, embedding_size=4,
                          tie_embeddings=False, context_length=30)
TEXTS = [(word * n, word) for n in range(1, 9) for word in ("a", "b")]


def classified(settings: dict[str, Any], **other: Any) -> fitting.Fitted:
    asked: dict[str, Any] = {"labelled": TEXTS, "valid": TEXTS[:4]} | other
    return fit_classifier(SMALL, BYTE, asked["labelled"], valid=asked["valid"],
                          settings=decode(FitSettings, {"rows": 4} | settings, where=""))


def test_a_budget_is_epochs_steps_or_seconds() -> None:
    assert [look.step for look in classified({"epochs": 3}).history] == [4, 8, 12]
    assert [look.step for look in classified({"steps": 10}).history] == [4, 8, 10]
    made = classified({"seconds": 1.0})
    assert made.history[-1].step >= 1 and made.seconds < 20
    for wrong in ({}, {"epochs": 1, "steps": 2}, {"epochs": 1, "tokens": 100}):
        with pytest.raises(ValueError, match="give exactly one of"):
            classified(wrong)


def test_training_stops_after_patience_and_keeps_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = [1.0, 3.0, 2.0, 2.5, 9.0]

    def scripted(model: Model, *_: Any, **__: Any) -> Iterator[Look]:
        for i, rank in enumerate(ranks):
            with torch.no_grad():
                model.head.weight.fill_(i)
            yield Look(i + 1, 0.0, {"rank": rank}, (rank,), 0.0)

    monkeypatch.setattr(fitting, "looks", scripted)

    def once(**settings: Any) -> fitting.Fitted:
        model = build(SMALL, head=Classes(("a", "b")))
        return fit(model, lambda _: pytest.fail("no batch is needed"), Classify(), lambda m: (
            {"rank": m.head.weight[0, 0].item()}, (m.head.weight[0, 0].item(),)), epoch_steps=1,
            settings=FitSettings(epochs=5, **settings))

    stopped = once(patience=2)
    assert len(stopped.history) == 4 and stopped.best.step == 2 and (stopped.model.head.weight == 1).all()
    assert once().best.step == 5
    ranks[:] = [0.5, 0.6, 0.7, 0.1, 0.2]
    averaged = once(average=3)
    assert (averaged.model.head.weight == 3).all() and averaged.best.figures == {"rank": 3.0}
    ranks[:] = [50.0, 1.0, 1.0]
    assert (once(average=3).model.head.weight == 0).all()


def test_what_is_too_long_is_counted() -> None:
    texts = [*TEXTS, ("a" * 40, "a")]
    with pytest.raises(DataError, match="1 of 17 examples do not fit 30 tokens"):
        classified({"epochs": 1}, labelled=texts)
    with pytest.raises(RequestError, match="longer than the context of 30"):
        classified({"epochs": 1}, valid=texts)
    cut = classified({"epochs": 1, "too_long": "cut"}, labelled=texts, valid=texts)
    assert (cut.left_out, cut.cut, cut.valid_cut) == ((), (16,), (16,))
    skip = classified({"epochs": 1, "too_long": "skip"}, labelled=texts, valid=texts)
    assert (skip.left_out, skip.cut, skip.valid_cut) == ((16,), (), (16,))


def test_a_model_goes_on_under_a_new_head() -> None:
    start = build(SMALL, seed=5, head=Classes(("x", "y", "z")))
    before = [p.clone() for p in start.parameters()]
    made = fit_classifier(start, BYTE, TEXTS, valid=TEXTS[:4], settings=FitSettings(steps=1, rows=4))
    assert made.model.head_spec == Classes(("a", "b"))
    assert all(torch.equal(a, b) for a, b in zip(before, start.parameters(), strict=True)), "the start was changed"
    near = zip(start.backbone.parameters(), made.model.backbone.parameters(), strict=True)
    assert max(float((a - b).detach().abs().max()) for a, b in near) < 0.05


def test_labels_are_of_one_kind() -> None:
    assert label_names([("t", "b"), ("u", "a"), ("v", "b")]) == ("a", "b")
    assert label_names([("t", ["b", "c"]), ("u", [])]) == ("b", "c")
    for wrong in ([], [("t", "b"), ("u", ["a"])]):
        with pytest.raises(DataError, match="labels of one kind"):
            label_names(wrong)
    with pytest.raises(DataError, match=r"no text of the validation part has labels that are learned.*'c'"):
        classified({"epochs": 1}, valid=[("t", "c")])
    with pytest.raises(DataError, match="no validation part"):
        classified({"epochs": 1}, valid=[])


def test_an_unseen_label_of_the_validation_part_counts_as_wrong() -> None:
    settings = {"epochs": 3}
    known = classified(settings)
    made = classified(settings, valid=[("ab", "c"), *TEXTS[:4]])
    assert known.valid_unseen == () and made.valid_unseen == (0,)
    for without, beside in zip(known.history, made.history, strict=True):
        assert beside.figures["accuracy"] == pytest.approx(without.figures["accuracy"] * 4 / 5)
        assert beside.figures["nll"] == pytest.approx(without.figures["nll"])
    several = [(text, [label]) for text, label in TEXTS]
    known = classified(settings, labelled=several, valid=several[:4])
    made = classified(settings, labelled=several, valid=[*several[:4], ("ab", ["a", "c"])])
    assert made.valid_unseen == (4,)
    assert made.best.figures["accuracy"] == pytest.approx(known.best.figures["accuracy"] * 4 / 5)
    assert made.best.figures["nll"] == pytest.approx(known.best.figures["nll"])


@pytest.mark.parametrize("name", ["seconds", "clip", "label_smoothing", "word_dropout"])
def test_no_setting_is_infinite(name: str) -> None:
    with pytest.raises(SettingsError, match=rf"{name} should be a finite number, got inf"):
        decode(FitSettings, {"steps": 1, name: float("inf")}, where="x")


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(TokenizerError, match=r"no <\|mask\|>"):
        classified({"epochs": 1, "word_dropout": 0.1})
    with pytest.raises(DataError, match="word_dropout hides tokens of texts that are judged"):
        fit_seq2seq(SMALL, BYTE, [("a", "b")], valid=[("a", "b")], settings=FitSettings(epochs=1, word_dropout=0.1))
    assert BYTE.decode(source_prompt("abc", BYTE)) == "abc"
    assert np.array(source_prompt("abc", BYTE))[[0, -1]].tolist() == [BYTE.bos_id, BYTE.eos_id]
