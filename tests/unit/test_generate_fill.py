"""Blanks filled: one pass is the model's own distribution, the most certain goes first, a row is filled as if alone."""

from __future__ import annotations

import pytest
import torch
from tables import Table, row

from cutaway.batch import Batch
from cutaway.errors import ModelError, RequestError
from cutaway.generate.engine import Engine
from cutaway.generate.fill import fill, fill_spans, guess
from cutaway.models.model import Model, build
from cutaway.models.transformer import TransformerConfig

MASK, VOCABULARY = 19, 20
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "num_kv_heads": 2,
         "intermediate_size": 24, "context_length": 16}
ROWS = [(1, MASK, 3), (MASK, 5, MASK, 7, 8, MASK, 2, MASK), (4, 4, 4, 4, MASK), (MASK,) * 9]


@pytest.fixture(scope="module")
def model() -> Model:
    made = build(TransformerConfig(**SIZES, shape="encoder"), seed=2)
    with torch.no_grad():
        for p in made.parameters():
            p.mul_(4 if p.ndim > 1 else 1)
    return made.eval()


def logs(model: Model, tokens: tuple[int, ...] | list[int]) -> torch.Tensor:
    with torch.no_grad():
        return torch.log_softmax(model(Batch(torch.tensor([tokens])))[0], -1)


@pytest.mark.parametrize("max_rows", [64, 2])
def test_a_guess_is_the_distribution_of_one_pass(model: Model, max_rows: int) -> None:
    for tokens, blanks in zip(ROWS, guess(model, ROWS, mask_id=MASK, best=4, max_rows=max_rows), strict=True):
        assert [b.position for b in blanks] == [i for i, t in enumerate(tokens) if t == MASK]
        expected = logs(model, tokens)
        for blank in blanks:
            values, ids = expected[blank.position].topk(4)
            assert [a.token for a in blank.best] == ids.tolist()
            assert [a.logprob for a in blank.best] == pytest.approx(values.tolist(), abs=1e-4)


def one_by_one(model: Model, tokens: tuple[int, ...], never: set[int]) -> tuple[list[int], dict[int, float]]:
    """The most certain first, written plainly."""
    line, put = list(tokens), {}
    while MASK in line:
        now = logs(model, line)
        now[:, [MASK, *never]] = -torch.inf
        value, place = max((float(now[i].max()), -i) for i, t in enumerate(line) if t == MASK)
        line[-place], put[-place] = int(now[-place].argmax()), value
    return line, put


@pytest.mark.parametrize("max_rows", [64, 2])
def test_the_most_certain_is_filled_first(model: Model, max_rows: int) -> None:
    for tokens, done in zip(ROWS, fill(model, ROWS, mask_id=MASK, never={0, 1}, max_rows=max_rows), strict=True):
        line, put = one_by_one(model, tokens, {0, 1})
        places = sorted(put)
        assert list(done.tokens) == line
        assert done.blanks == tuple((line[i],) for i in places)
        assert done.logprobs == pytest.approx([put[i] for i in places], abs=1e-4)


def test_one_pass_takes_every_argmax_and_more_passes_look_again(model: Model) -> None:
    for tokens, done in zip(ROWS, fill(model, ROWS, mask_id=MASK, passes=1), strict=True):
        expected = logs(model, tokens)
        expected[:, MASK] = -torch.inf
        assert done.tokens == tuple(int(expected[i].argmax()) if t == MASK else t for i, t in enumerate(tokens))
    alone = [fill(model, [r], mask_id=MASK, passes=3)[0] for r in ROWS]
    together = fill(model, ROWS, mask_id=MASK, passes=3)
    assert [d.tokens for d in together] == [a.tokens for a in alone]
    assert [d.tokens for d in fill(model, ROWS, mask_id=MASK, passes=99)] == [
        d.tokens for d in fill(model, ROWS, mask_id=MASK)]


def test_what_cannot_be_filled_is_refused(model: Model) -> None:
    with pytest.raises(RequestError, match="row 1: has no blank"):
        fill(model, [(MASK,), (1, 2)], mask_id=MASK)
    with pytest.raises(RequestError, match=r"17 tokens .* context of 16"):
        guess(model, [(MASK,) * 17], mask_id=MASK)
    with pytest.raises(RequestError, match="outside the vocabulary of 20"):
        guess(model, [(MASK, 20)], mask_id=MASK)
    with pytest.raises(RequestError, match="passes must be at least 1"):
        fill(model, [(MASK,)], mask_id=MASK, passes=0)
    with pytest.raises(RequestError, match="not part of a vocabulary"):
        fill(model, [(MASK,)], mask_id=MASK, never={20})
    with pytest.raises(ModelError, match="fills no masks"):
        guess(build(TransformerConfig(**SIZES)), [(MASK,)], mask_id=MASK)


SPANS, BOS, EOS = (10, 11, 12), 8, 9


def test_gaps_are_filled_between_their_sentinels() -> None:
    sources = [(1, 10, 2, 3, 11, EOS), (10, EOS), (4, 10, 11, 12)]
    done = fill_spans(Engine(Table(reads_source=True)), sources, span_ids=SPANS, bos_id=BOS, eos_id=EOS, max_tokens=3)
    for source, found in zip(sources, done, strict=True):
        tape, expected, whole = [BOS], [], list(source)
        for number in range(sum(t in SPANS for t in source)):
            tape.append(SPANS[number])
            said: list[int] = []
            while len(said) < 3 and (token := int(row(tape, source).argmax())) not in (*SPANS, EOS):
                said.append(token)
                tape.append(token)
            expected.append(tuple(said))
            at = whole.index(SPANS[number])
            whole[at : at + 1] = said
        assert found.blanks == tuple(expected) and found.tokens == tuple(whole)
        assert len(found.logprobs) == len(expected) and all(n < 0 for n in found.logprobs)


@pytest.mark.parametrize("source", [(1, 2), (11, 3), (10, 10), (10, 12)])
def test_gaps_out_of_order_are_refused(source: tuple[int, ...]) -> None:
    with pytest.raises(RequestError, match=r"row 1: the source marks the gaps"):
        fill_spans(Engine(Table(reads_source=True)), [(10, 1), source], span_ids=SPANS, bos_id=BOS, eos_id=EOS,
                   max_tokens=3)
