"""The memory tasks: an answer stands where its distance says and nowhere else; accuracy counts what was asked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from cutaway.errors import DataError
from cutaway.models.model import Model, build
from cutaway.models.transformer import TransformerConfig
from cutaway.probe.recall import (
    Alphabet,
    Asked,
    CopySettings,
    RecallSettings,
    Stage,
    accuracy,
    copy_rows,
    pooled,
    recall_rows,
)
from cutaway.records import wilson

SMALL = Alphabet(keys=12, values=9, noise=5)


def answered(asked: Asked) -> None:
    """Each query's key stands once before it, exactly its distance away, and its value right behind that."""
    for tokens, targets, distances in zip(asked.tokens, asked.targets, asked.distances, strict=True):
        for at in np.nonzero(distances)[0]:
            place = at - distances[at]
            queried = {int(q) for q in np.nonzero(tokens == tokens[at])[0]}
            assert {q for q in queried if q <= place} == {int(place)}
            assert tokens[place + 1] == targets[at]
            # every other occurrence is a query itself: what follows it is no value
            assert not any(SMALL.first_value <= tokens[q + 1] < SMALL.first_noise for q in queried - {int(place)}
                           if q + 1 < len(tokens))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.lists(st.integers(1, 8), min_size=1, max_size=6), st.integers(32, 60),
       st.floats(0, 1))
def test_every_key_is_asked_from_where_it_stands(seed: int, pairs: list[int], length: int, density: float) -> None:
    asked = recall_rows(np.random.default_rng(seed), SMALL, length=length, pairs=pairs, density=density)
    answered(asked)
    values = (asked.tokens >= SMALL.first_value) & (asked.tokens < SMALL.first_noise)
    assert values.sum(1).tolist() == pairs  # the values shown are those of the pairs: no answer leaks
    assert ((asked.targets > 0) == (asked.distances > 0)).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 8), st.integers(2, 31))
def test_a_distance_is_exact_and_one_question_a_row(seed: int, pairs: int, distance: int) -> None:
    asked = recall_rows(np.random.default_rng(seed), SMALL, length=32, pairs=[pairs] * 5, distance=distance)
    answered(asked)
    assert (asked.distances > 0).sum(1).tolist() == [1] * 5
    assert set(asked.distances[asked.distances > 0]) == {distance}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 5), st.data())
def test_symbols_are_repeated_from_exactly_the_distance(seed: int, symbols: int, data: st.DataObject) -> None:
    distances = data.draw(st.lists(st.integers(symbols, 24 - symbols), min_size=1, max_size=6))
    asked = copy_rows(np.random.default_rng(seed), SMALL, length=24, symbols=symbols, distances=distances)
    for tokens, targets, far, distance in zip(asked.tokens, asked.targets, asked.distances, distances, strict=True):
        (places,) = np.nonzero(far)
        assert far[places].tolist() == [distance] * symbols
        assert (tokens[places - distance] == targets[places]).all()
        assert (tokens >= SMALL.first_value).sum() == symbols
        assert (tokens == 1).sum() == 1 and tokens[places[0]] == 1


def test_what_does_not_fit_is_refused() -> None:
    draw = np.random.default_rng(0)
    for wrong in ({"pairs": [9]}, {"pairs": []}, {"pairs": [0]}, {"pairs": [1], "distance": 1},
                  {"pairs": [1], "distance": 32}):
        with pytest.raises(DataError, match=r"fit|stand"):
            recall_rows(draw, SMALL, length=32, **wrong)  # type: ignore[arg-type]
    for distances in ([], [3], [21]):
        with pytest.raises(DataError, match="repeated"):
            copy_rows(draw, SMALL, length=24, symbols=4, distances=distances)
    for tree in ({"distances": (1,)}, {"distances": (128,)}, {"pairs": (33,)},
                 {"stages": (Stage(share=0.5, length=64, pairs=(2,)),)},
                 {"stages": (Stage(share=1.0, length=64, pairs=(40,)),)}):
        with pytest.raises(ValidationError):
            RecallSettings.model_validate(tree)
    with pytest.raises(ValidationError):
        CopySettings(distances=(121,))


@pytest.mark.parametrize("task", [RecallSettings(), CopySettings()], ids=["recall", "copy"])
def test_a_batch_is_a_function_of_seed_and_step(task: RecallSettings | CopySettings) -> None:
    once, again = task.batch(7, total=100, seed=3), task.batch(7, total=100, seed=3)
    other = task.batch(8, total=100, seed=3)
    assert torch.equal(once.tokens, again.tokens) and not torch.equal(once.tokens, other.tokens)
    lengths = [task.batch(n, total=50, seed=0).tokens.shape[1] for n in range(50)]
    assert lengths == sorted(lengths) and lengths[-1] == task.length


def oracle(wrong: int) -> Model:
    """Says value 20 behind every token, or 19 where ``wrong``."""
    model = build(TransformerConfig(vocab_size=32, hidden_size=8, num_layers=1, num_heads=1, num_kv_heads=1,
                                    intermediate_size=8, context_length=32))
    model.forward = lambda batch: torch.nn.functional.one_hot(  # type: ignore[method-assign]
        torch.where(torch.arange(len(batch.tokens))[:, None] < wrong, 19, 20).expand(batch.tokens.shape), 32).float()
    return model


def test_accuracy_counts_what_was_asked_and_nothing_else() -> None:
    distances = np.zeros((10, 6), np.int64)
    distances[:, 4] = 3
    asked = Asked(np.ones((10, 6), np.int64), np.full((10, 6), 20), distances)
    m = accuracy(oracle(3), asked, name="recall", conditions={"seed": 0, "distance": 3})
    assert (m.value, m.n, m.conditions["right"]) == (0.7, 10, 7)
    assert (m.low, m.high) == wilson(7, 10)
    more = accuracy(oracle(0), asked, name="recall", conditions={"seed": 1, "distance": 3})
    assert pooled([m, more], "distance")[3].value == 0.85
    assert pooled([m, more], "distance")[3].n == 20
