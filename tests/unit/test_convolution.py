"""Convolutional networks: what a token can see, documents kept apart, pieces of any size, the bill, files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cutaway.batch import Batch, Example, lay, pack, pad
from cutaway.errors import ModelError, RequestError, SettingsError
from cutaway.generate.engine import Engine
from cutaway.generate.request import Request, Sampling
from cutaway.models.architectures import decode_config
from cutaway.models.convolution import ConvolutionConfig
from cutaway.models.folder import load_model, save_model
from cutaway.models.heads import Classes, Vector, pooled
from cutaway.models.model import Model, build
from cutaway.nn.convolution import Around, centred, places, taps
from cutaway.objectives.likelihood import Likelihood
from cutaway.settings import decode

VOCABULARY = 40
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 24}
DECODER = ConvolutionConfig(**SIZES, num_layers=4, kernel_sizes=(3, 2), dilations=(1, 2, 5), context_length=64)
KIM = ConvolutionConfig(**SIZES, shape="encoder", embedding_size=10, tie_embeddings=False)
PAIR = ConvolutionConfig(**SIZES, shape="encoder-decoder", num_layers=2, kernel_sizes=(3, 4), context_length=32)
LABELS = Classes(("a", "b", "c"))


def _tokens(rows: int, length: int) -> torch.Tensor:
    return torch.randint(1, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(length))


def _rough(config: ConvolutionConfig, head: Classes | Vector | str = "tokens") -> Model:
    """Weights far from small, biases far from zero, so that a slip shows."""
    model, draw = build(config, head=head, seed=2), torch.Generator().manual_seed(1)  # type: ignore[arg-type]
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=draw) * 0.1)
    return model.eval()


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize(("kernels", "dilations", "layers"), [((3,), (1, 2, 4), 3), ((2, 5), (3,), 2), ((1,), (7,), 2),
                                                             ((3, 2), (1, 2, 5), 4)])
def test_the_receptive_field_is_exact(kernels: tuple[int, ...], dilations: tuple[int, ...], layers: int,
                                      gated: bool) -> None:
    config = ConvolutionConfig(**SIZES, num_layers=layers, kernel_sizes=kernels, dilations=dilations, gated=gated)
    model, seen = _rough(config), config.receptive_field
    tokens = _tokens(1, seen + 6)
    stack = model.backbone.stack
    words = stack.words(tokens, None).detach().double().requires_grad_()
    stack.double()
    hidden = stack(words, Around(), dtype=torch.float64)
    (slope,) = torch.autograd.grad(hidden[0, -1].square().sum(), words)
    reached = slope[0].abs().sum(-1)
    assert (reached[: len(reached) - seen] == 0).all()
    assert reached[len(reached) - seen] > 0 and reached[-1] > 0


@pytest.mark.parametrize("width", range(1, 7))
def test_a_centred_window_is_torchs_same(width: int) -> None:
    x, offsets = torch.randn(2, 9, 3), centred(width)
    weight = torch.randn(5, 3, width)
    ours = taps(x, offsets) @ weight.permute(0, 2, 1).reshape(5, -1).T
    # torch's padding="same" puts the odd one behind, and warns of a copy where the width is even
    apart = torch.nn.functional.pad(x.transpose(1, 2), ((width - 1) // 2, width // 2))
    theirs = torch.nn.functional.conv1d(apart, weight).transpose(1, 2)
    assert len(offsets) == width and (ours - theirs).abs().max() < 1e-5


@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4), offsets=st.sets(st.integers(-9, 9), min_size=1))
def test_taps_stay_inside_their_document(lengths: list[int], offsets: set[int]) -> None:
    ids = torch.tensor([[d for d, n in enumerate(lengths) for _ in range(n)] + [-1, -1]])
    x = torch.randn(1, ids.shape[1], 2, dtype=torch.float64, requires_grad=True)
    found = taps(x, sorted(offsets), ids).view(ids.shape[1], len(offsets), 2)
    for t in range(ids.shape[1] - 2):
        for j, offset in enumerate(sorted(offsets)):
            inside = 0 <= t + offset < ids.shape[1] and ids[0, t + offset] == ids[0, t]
            assert torch.equal(found[t, j], x[0, t + offset] if inside else torch.zeros(2, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda v: taps(v, sorted(offsets), ids), (x,))


def test_places_begin_again_with_each_document() -> None:
    assert places(None) is None
    found = places(torch.tensor([[0, 0, 0, 1, 2, 2, -1], [0, 0, 0, 0, 0, 0, 0]]))
    assert found is not None
    assert found.tolist() == [[0, 1, 2, 0, 0, 1, 0], [0, 1, 2, 3, 4, 5, 6]]


def _read(model: Model, tokens: torch.Tensor, pieces: list[int],
          sources: list[list[int]] | None = None) -> torch.Tensor:
    state = model.new_state(len(tokens), capacity=tokens.shape[1], sources=sources)
    out = [model.logits(part, state, every=True) for part in tokens.split(pieces, 1)]
    return torch.cat(out, 1)


@given(cuts=st.lists(st.integers(1, 12), min_size=1, max_size=12))
def test_pieces_of_any_size_are_one_reading(cuts: list[int]) -> None:
    model, tokens = _rough(DECODER), _tokens(3, sum(cuts) if sum(cuts) <= 64 else 64)
    pieces, left = [], tokens.shape[1]
    for cut in cuts:
        pieces.append(min(cut, left))
        left -= pieces[-1]
    with torch.inference_mode():
        assert (_read(model, tokens, [p for p in pieces if p]) - model(Batch(tokens))).abs().max() < 2e-5


def test_rows_that_read_nothing_of_a_piece_wait() -> None:
    model, tokens = _rough(DECODER), _tokens(3, 20)
    lengths = [[5, 0, 9], [0, 7, 1], [3, 4, 0], [1, 1, 1]]
    state, at = model.new_state(3, capacity=20), [0, 0, 0]
    with torch.inference_mode():
        for counts in lengths:
            part = torch.zeros(3, max(counts), dtype=torch.long)
            for row, count in enumerate(counts):
                part[row, :count] = tokens[row, at[row] : at[row] + count]
            out = model.logits(part, state, counts=torch.tensor(counts))
            at = [a + c for a, c in zip(at, counts, strict=True)]
            for row, count in enumerate(counts):
                if count:
                    alone = model(Batch(tokens[row : row + 1, : at[row]]))[0, -1]
                    assert (out[row] - alone).abs().max() < 2e-5
    assert state.lengths.tolist() == at
    with pytest.raises(RequestError, match="do not fit a state of 20"):
        model.logits(tokens[:, :12], state)


def _pairs(count: int) -> list[Example]:
    draw = np.random.default_rng(count)
    return [Example(draw.integers(1, VOCABULARY, n), np.ones(n, np.float32), draw.integers(1, VOCABULARY, m))
            for n, m in draw.integers(2, 9, (count, 2))]


def test_a_packed_pair_is_a_padded_pair_is_a_pair_alone() -> None:
    model, examples = _rough(PAIR), _pairs(7)
    with torch.no_grad():
        padded = Likelihood()(model, pad(examples, pad_id=0))
        packed = Likelihood()(model, pack(examples, pad_id=0, length=20, source_length=24))
        alone = sum(float(Likelihood()(model, lay([[e]], pad_id=0, width=len(e) - 1)).total) for e in examples)
    assert padded.weight == packed.weight
    assert float(padded.total) == pytest.approx(float(packed.total), rel=1e-5)
    assert float(padded.total) == pytest.approx(alone, rel=1e-5)


def test_a_pair_read_behind_a_state_is_a_pair_read_at_once() -> None:
    model, examples = _rough(PAIR), _pairs(5)
    sources = [e.source.tolist() for e in examples if e.source is not None]
    tokens = _tokens(5, 13)
    whole = [model(Batch(tokens[i : i + 1], source=torch.tensor([s]))) for i, s in enumerate(sources)]
    with torch.inference_mode():
        found = _read(model, tokens, [4, 1, 1, 7], sources)
    assert (found - torch.cat(whole)).abs().max() < 2e-5
    with pytest.raises(RequestError, match="needs a source for each"):
        model.new_state(2, capacity=4, sources=[[1]])
    with pytest.raises(RequestError, match="does not fit 1 to 32"):
        model.new_state(1, capacity=4, sources=[[1] * 33])
    with pytest.raises(ModelError, match="the batch has none"):
        model(Batch(tokens))


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 9])
def test_kims_sentences_may_be_shorter_than_the_widest_filter(length: int) -> None:
    model, words = _rough(KIM, LABELS), _tokens(2, length)
    alone = model(Batch(words))
    padded = torch.nn.functional.pad(words, (0, 11 - length), value=7)
    documents = torch.zeros(2, 11, dtype=torch.int32)
    documents[:, length:] = -1
    assert torch.isfinite(alone).all()
    assert (model(Batch(padded, documents=documents)) - alone).abs().max() < 1e-5


def test_kims_vector_is_the_largest_of_its_hidden_states() -> None:
    model, words = _rough(KIM, Vector()), _tokens(3, 8)
    documents = torch.zeros(3, 8, dtype=torch.int32)
    documents[1, 3:], documents[2] = -1, -1
    batch = Batch(words, documents=documents)
    hidden = model.hidden(batch)
    assert hidden.shape == (3, 8, 24)
    assert (model.pooled(batch)[:2] - pooled(hidden, documents, "max")[:2]).abs().max() < 1e-6
    assert (model.pooled(batch)[2] == 0).all()  # a row of padding alone
    assert torch.allclose(model(batch)[:2].norm(dim=-1), torch.ones(2))
    with pytest.raises(ModelError, match="longer than the context"):
        model.pooled(Batch(torch.zeros(1, KIM.context_length + 1, dtype=torch.long)))


@pytest.mark.parametrize("config", [DECODER, KIM, PAIR, DECODER.model_copy(update={"gated": False}),
                                    KIM.model_copy(update={"kernel_sizes": (2,), "embedding_size": 24,
                                                           "tie_embeddings": True})])
def test_the_bill_is_exact(config: ConvolutionConfig) -> None:
    model = build(config)
    assert config.cost().parameters == sum(p.numel() for p in model.parameters())
    if config.shape == "decoder":
        state = model.new_state(1, capacity=8)
        assert config.cost().state_values == sum(p.numel() for p in state.past)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("config", "head"), [(DECODER, "tokens"), (KIM, LABELS), (KIM, Vector()), (PAIR, "tokens")])
def test_a_folder_gives_the_same_model(tmp_path: Path, config: ConvolutionConfig, head: Classes | Vector | str) -> None:
    model = _rough(config, head)
    save_model(tmp_path / "m", model, None)
    again = load_model(tmp_path / "m").eval()
    batch = Batch(_tokens(2, 6), source=_tokens(2, 5) if config.traits.reads_source else None)
    assert again.config == config and torch.equal(again(batch), model(batch))


def test_the_engine_writes_beside_nothing_but_the_cache() -> None:
    model = _rough(DECODER)
    done = Engine(model).generate([Request((3, 4, 5), 20, Sampling(temperature=0))])[0]
    line = [3, 4, 5]
    for token in done.tokens:
        assert token == int(model(Batch(torch.tensor([line])))[0, -1].argmax())
        line.append(token)


def test_sizes_of_a_shape_are_its_papers() -> None:
    kim = decode(ConvolutionConfig, {**SIZES, "shape": "encoder"}, where="")
    assert (kim.kernel_sizes, kim.dropout, kim.traits.pooling, kim.embedding_size) == ((3, 4, 5), 0.5, "max", 24)
    assert ConvolutionConfig(**SIZES, num_layers=5).steps == (1, 2, 4, 8, 1)
    assert decode_config(DECODER.model_dump()) == DECODER


@pytest.mark.parametrize(("change", "said"), [
    ({"embedding_size": 8}, "only an encoder"), ({"kernel_sizes": ()}, "at least one"), ({"kernel_sizes": (0,)}, "1"),
    ({"shape": "encoder", "hidden_size": 25}, "multiple of the 3"),
    ({"shape": "encoder", "num_layers": 2}, "one layer"),
    ({"shape": "encoder", "embedding_size": 8}, "tie_embeddings to false")])
def test_sizes_that_do_not_fit_are_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        decode(ConvolutionConfig, {**SIZES, **change}, where="")
