"""Recurrent models: the bill, rows that read nothing, what a state refuses, folders, an encoder and a source."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from cutaway.batch import Batch, Example, pack, pad
from cutaway.errors import ModelError, RequestError, SettingsError
from cutaway.models.cost import cost
from cutaway.models.folder import load_model, save_model
from cutaway.models.heads import Classes, Head, Vector, pooled
from cutaway.models.model import Model, build
from cutaway.models.recurrent import RecurrentConfig
from cutaway.models.transformer import Shape
from cutaway.nn.recurrence import Cell
from cutaway.objectives.likelihood import Likelihood
from cutaway.settings import decode
from cutaway.text.tokenizer import ByteSettings, train

CELLS: tuple[Cell, ...] = ("vanilla", "gru", "lstm")
SHAPES: tuple[Shape, ...] = ("decoder", "encoder", "encoder-decoder")


def _config(cell: Cell = "lstm", shape: Shape = "decoder", *, tied: bool = True, layers: int = 2,
            vocabulary: int = 30) -> RecurrentConfig:
    return RecurrentConfig(vocab_size=vocabulary, hidden_size=20, num_layers=layers, cell=cell, shape=shape,
                           tie_embeddings=tied)


def _rough(config: RecurrentConfig, head: Head = "tokens") -> Model:
    model, draw = build(config, head=head), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=draw))
    return model.eval()


def _ids(rows: int, length: int) -> torch.Tensor:
    return torch.randint(0, 30, (rows, length), generator=torch.Generator().manual_seed(length))


@pytest.mark.parametrize(("cell", "shape", "tied"), list(product(CELLS, SHAPES, (True, False))))
def test_the_bill_counts_every_parameter(cell: Cell, shape: Shape, tied: bool) -> None:
    config = _config(cell, shape, tied=tied, layers=3)
    bill = cost(config)
    assert bill.parameters == sum(p.numel() for p in build(config).parameters())
    if config.traits.generates:  # state whose size does not grow
        assert bill.state_bytes(10) == bill.state_bytes(1000) == 4 * 3 * 20 * (1 if cell == "vanilla" else 2)


@pytest.mark.parametrize("cell", CELLS)
def test_a_row_that_reads_nothing_stays_where_it_was(cell: Cell) -> None:
    model, tokens = _rough(_config(cell)), _ids(3, 6)
    with torch.inference_mode():
        state = model.new_state(3, capacity=20)
        model.logits(tokens, state)
        model.logits(_ids(3, 4), state, counts=torch.tensor([4, 0, 2]))
        out = model.logits(torch.full((3, 1), 7), state)
        seven = torch.tensor([7])
        for row, count in enumerate((4, 0, 2)):
            alone = model(Batch(torch.cat((tokens[row], _ids(3, 4)[row, :count], seven))[None]))[0, -1]
            assert (alone - out[row]).abs().max() < 2e-5
    assert state.lengths.tolist() == [11, 7, 9]


@pytest.mark.parametrize("cell", CELLS)
def test_with_and_without_gradients_a_state_gives_the_same(cell: Cell) -> None:
    model, tokens = _rough(_config(cell)), _ids(2, 5)
    state, other = (model.new_state(2, capacity=8) for _ in range(2))
    learned = model.logits(tokens, state)
    with torch.no_grad():
        assert (model.logits(tokens, other) - learned).abs().max() < 1e-5
    learned.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_state_refuses_what_does_not_fit() -> None:
    model = _rough(_config())
    state = model.new_state(2, capacity=6)
    with torch.inference_mode():
        model.logits(_ids(2, 5), state, counts=torch.tensor([5, 2]))
        with pytest.raises(RequestError, match="7 tokens do not fit a state of 6"):
            model.logits(_ids(2, 2), state)
        model.logits(_ids(2, 4), state, counts=torch.tensor([1, 4]))
        assert state.lengths.tolist() == [6, 6]
        with pytest.raises(RequestError, match="do not fit"):
            model.logits(_ids(2, 1), state)
    with pytest.raises(RequestError, match="cannot be truncated"):
        state.truncate(torch.tensor([5, 6]))
    state.truncate(torch.tensor([6, 6]))


@pytest.mark.parametrize(("cell", "shape"), list(product(CELLS, SHAPES)))
def test_packed_is_padded(cell: Cell, shape: Shape) -> None:
    """Of an encoder too, which reads from both ends of every document; and beside sources of every length."""
    model, draw = _rough(_config(cell, shape)), np.random.default_rng(1)

    def example(length: int) -> Example:
        source = draw.integers(0, 30, length + 3) if shape == "encoder-decoder" else None
        return Example(draw.integers(0, 30, length), np.ones(length, np.float32), source)

    examples = [example(n) for n in (3, 9, 5, 2, 12, 7)]
    sizes = {"source_length": 30} if shape == "encoder-decoder" else {}
    with torch.no_grad():
        one, other = (Likelihood()(model, made(examples, pad_id=0, length=14, **sizes)) for made in (pack, pad))
        totals = [Likelihood()(model, pad([e], pad_id=0)).total for e in examples]
    assert one.weight == other.weight
    assert float(one.total) == pytest.approx(float(other.total), rel=1e-5)
    assert float(one.total) == pytest.approx(float(sum(totals)), rel=1e-5)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("head", [Classes(("a", "b", "c")), Vector()], ids=["classes", "vector"])
def test_padding_changes_no_label_and_no_vector(cell: Cell, head: Head) -> None:
    model, tokens = _rough(_config(cell, "encoder"), head), _ids(2, 9)
    documents = torch.tensor([[0] * 9, [0] * 4 + [-1] * 5], dtype=torch.int32)
    with torch.no_grad():
        together = model(Batch(tokens, documents=documents))
        assert (together[0] - model(Batch(tokens[:1]))[0]).abs().max() < 1e-5
        assert (together[1] - model(Batch(tokens[1:, :4]))[0]).abs().max() < 1e-5


def test_an_encoder_sees_both_sides_and_writes_nothing() -> None:
    model, tokens = _rough(_config("gru", "encoder", layers=1)), _ids(1, 8)
    changed = tokens.clone()
    changed[0, 4] = (changed[0, 4] + 1) % 30
    with torch.no_grad():
        moved = (model.hidden(Batch(tokens)) - model.hidden(Batch(changed))).abs().amax(2)[0]
    assert (moved > 0).all()
    with pytest.raises(ModelError, match="does not write"):
        model.new_state(1, capacity=4)
    assert pooled(model.hidden(Batch(tokens)), None, model.config.traits.pooling).shape == (1, 20)


@pytest.mark.parametrize("cell", CELLS)
def test_an_encoder_decoder_writes_the_same_step_by_step(cell: Cell) -> None:
    model, target = _rough(_config(cell, "encoder-decoder")), _ids(2, 7)
    sources = [_ids(1, 5)[0].tolist(), _ids(1, 3)[0].tolist()]
    with torch.no_grad():
        state = model.new_state(2, capacity=9, sources=sources)
        first = model.logits(target[:, :4], state, every=True)
        state = state.copy().select(torch.tensor([1, 0]))
        rest = model.logits(target[[1, 0], 4:], state, every=True)[[1, 0]]
        for row, source in enumerate(sources):
            batch = Batch(target[row : row + 1], source=torch.tensor([source]),
                          source_documents=torch.zeros(1, len(source), dtype=torch.int32))
            assert (model(batch)[0] - torch.cat((first[row], rest[row]))).abs().max() < 2e-5
    with pytest.raises(RequestError, match="needs a source"):
        model.new_state(2, capacity=4, sources=None)
    with pytest.raises(ModelError, match="the batch has none"):
        model(Batch(target))


@pytest.mark.parametrize(("cell", "shape"), list(product(CELLS, SHAPES)))
def test_a_folder_gives_the_same_model_back(tmp_path: Path, cell: Cell, shape: Shape) -> None:
    model = _rough(_config(cell, shape, vocabulary=263))
    save_model(tmp_path / "m", model, train(ByteSettings(), []))
    again = load_model(tmp_path / "m")
    assert again.config == model.config
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


def test_dropout_falls_on_training_alone() -> None:
    config = _config().model_copy(update={"dropout": 0.5})
    model, tokens = build(config), _ids(2, 6)
    assert not torch.equal(model.train()(Batch(tokens)), model(Batch(tokens)))
    assert torch.equal(model.eval()(Batch(tokens)), model(Batch(tokens)))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(SettingsError, match="must be even"):
        decode(RecurrentConfig, {"vocab_size": 9, "hidden_size": 7, "shape": "encoder"}, where="")
    with pytest.raises(SettingsError, match="cell"):
        decode(RecurrentConfig, {"vocab_size": 9, "hidden_size": 8, "cell": "lstmm"}, where="")
    state = _rough(_config()).new_state(1, capacity=4)
    with pytest.raises(RequestError, match="more than the context"):
        build(_config()).new_state(1, capacity=(1 << 20) + 1)
    assert state.capacity == 4
