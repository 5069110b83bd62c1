"""Every configuration: cached = uncached, packed = padded, batched = alone, chunked = plain, no future leaks."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tiny import CONFIGS, CONTEXT, ENCODERS, EVERY, VOCABULARY, source_of, suited

from cutaway.batch import Batch, Example, beside, pack, pad
from cutaway.errors import ModelError, RequestError
from cutaway.models.heads import Classes
from cutaway.models.light import for_reading, for_sampling
from cutaway.models.model import Model, State, build, with_head
from cutaway.nn.cache import KVCache
from cutaway.nn.linear import Linear, packs
from cutaway.objectives.likelihood import Likelihood, token_logprobs

DTYPES = {"float32": (torch.float32, 2e-5), "bfloat16": (torch.bfloat16, 0.12)}


@pytest.fixture(params=CONFIGS, scope="module")
def model(request: pytest.FixtureRequest) -> Model:
    """One that writes."""
    return build(CONFIGS[request.param], seed=3)


@pytest.fixture(params=EVERY, scope="module")
def any_model(request: pytest.FixtureRequest) -> Model:
    """One of any shape."""
    return build(EVERY[request.param], seed=3)


def _batch(model: Model, batch: Batch) -> Batch:
    """As the model reads it."""
    return suited(batch, next(name for name, config in EVERY.items() if config == model.config))


def _whole(model: Model, tokens: torch.Tensor) -> torch.Tensor:
    """What the model says of rows read at once."""
    out: torch.Tensor = model(_batch(model, Batch(tokens)))
    return out


def _state(model: Model, tokens: torch.Tensor) -> State:
    sources = [source_of(row).tolist() for row in tokens.numpy()] if model.reads_source else None
    return model.new_state(len(tokens), capacity=CONTEXT, sources=sources)


def _tokens(rows: int, length: int = CONTEXT) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(rows))


@pytest.mark.parametrize("dtype", DTYPES)
def test_cached_equals_uncached(model: Model, dtype: str) -> None:
    model.compute_dtype, tolerance = DTYPES[dtype]
    tokens = _tokens(3)
    with torch.inference_mode():
        whole = _whole(model, tokens)
        state = _state(model, tokens)
        parts = [model.logits(tokens[:, :7], state, every=True)]
        parts += [model.logits(tokens[:, i : i + 1], state)[:, None] for i in range(7, CONTEXT)]
    model.compute_dtype = torch.float32
    assert (torch.cat(parts, 1) - whole).abs().max() < tolerance
    assert state.lengths.tolist() == [CONTEXT] * 3


def test_ragged_rows_in_one_cache_equal_each_alone(model: Model) -> None:
    tokens, counts = _tokens(4, 12), torch.tensor([1, 12, 5, 9])
    with torch.inference_mode():
        state = _state(model, tokens)
        first = model.logits(tokens, state, counts=counts)
        after = model.logits(torch.full((4, 1), 5), state)
        for row, count in enumerate(counts.tolist()):
            alone = _whole(model, torch.cat((tokens[row : row + 1, :count], torch.tensor([[5]])), 1))[0]
            assert (alone[-2] - first[row]).abs().max() < 2e-5
            assert (alone[-1] - after[row]).abs().max() < 2e-5


def test_a_selected_truncated_copy_continues_as_if_it_had_read_only_that(model: Model) -> None:
    tokens = _tokens(3, 10)
    with torch.inference_mode():
        state = _state(model, tokens)
        model.logits(tokens, state)
        chosen = state.copy().select(torch.tensor([2, 0, 2]))
        lengths = torch.tensor([4, 10, 7])
        if not isinstance(chosen, KVCache):  # a state of the last inputs goes back nowhere, and says so
            with pytest.raises(RequestError, match="cannot be truncated"):
                chosen.truncate(lengths)
            lengths = torch.full((3,), 10)
        chosen.truncate(lengths)
        out = model.logits(torch.full((3, 1), 9), chosen)
        for row, (source, length) in enumerate(zip((2, 0, 2), lengths.tolist(), strict=True)):
            alone = _whole(model, torch.cat((tokens[source : source + 1, :length], torch.tensor([[9]])), 1))[0, -1]
            assert (alone - out[row]).abs().max() < 2e-5
    assert state.lengths.tolist() == [10, 10, 10]


@given(lengths=st.lists(st.integers(2, CONTEXT), min_size=1, max_size=6))
def test_packed_equals_padded(any_model: Model, lengths: list[int]) -> None:
    draw = np.random.default_rng(len(lengths))
    examples = [Example(draw.integers(3, VOCABULARY, n), np.ones(n, np.float32)) for n in lengths]
    packed, padded = (_batch(any_model, b) for b in (pack(examples, pad_id=0, length=CONTEXT),
                                                     pad(examples, pad_id=0, length=CONTEXT)))
    with torch.no_grad():
        one, other = Likelihood()(any_model, packed), Likelihood()(any_model, padded)
    assert one.weight == other.weight == packed.total_weight()
    assert one.weight == sum(lengths) - len(lengths) or not any_model.config.traits.generates
    assert float(one.total) == pytest.approx(float(other.total), rel=1e-5)


def test_batched_equals_alone(any_model: Model) -> None:
    batch = _batch(any_model, pad([Example(t.numpy(), np.ones(len(t), np.float32)) for t in
                                   (_tokens(1, n)[0] for n in (CONTEXT, 4, 11, 2))], pad_id=0))
    with torch.inference_mode():
        together = any_model(batch)
        for row, count in enumerate(batch.lengths().tolist()):
            alone = any_model(batch.rows(row, row + 1))
            assert (alone[0, :count] - together[row, :count]).abs().max() < 2e-5


def test_no_position_sees_its_future(model: Model) -> None:
    tokens = _tokens(1)
    with torch.inference_mode():
        before = _whole(model, tokens)
        changed = tokens.clone()
        changed[0, 11:] = (changed[0, 11:] + 1) % VOCABULARY
        after = _whole(model, changed)
    assert torch.equal(before[0, :11], after[0, :11])
    assert not torch.equal(before[0, 11], after[0, 11])


@pytest.mark.parametrize("name", [n for n, c in CONFIGS.items() if c.traits.reads_source])
def test_every_position_sees_the_whole_source_and_no_other_document_s(name: str) -> None:
    model = build(CONFIGS[name], seed=3)
    examples = [Example(t.numpy(), np.ones(len(t), np.float32), np.array(s))
                for t, s in ((_tokens(1, 6)[0], [5, 6, 7]), (_tokens(2, 9)[0], [8, 9]))]
    batch = pack(examples, pad_id=0, length=CONTEXT, source_length=CONTEXT)
    assert len(batch.tokens) == 1 and batch.source is not None
    changed = batch.source.clone()
    changed[0, 2] += 1  # the last token of the first source
    with torch.inference_mode():
        apart = (model(batch) - model(replace(batch, source=changed)))[0].abs().amax(1)
    assert (apart[:5] > 1e-5).all() and not apart[5:13].any()


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_sees_both_ways(name: str) -> None:
    model, tokens = build(ENCODERS[name], seed=3), _tokens(1)
    changed = tokens.clone()
    changed[0, 11] = (changed[0, 11] + 1) % VOCABULARY
    with torch.inference_mode():
        assert ((model(Batch(tokens)) - model(Batch(changed)))[0].abs().amax(1) > 1e-6).all()


@pytest.mark.parametrize("chunk", [1, 7, 64, 10_000])
def test_chunked_cross_entropy_equals_the_plain_one(any_model: Model, chunk: int) -> None:
    model, tokens, weights = any_model, _tokens(4, CONTEXT + 1), torch.rand(4, CONTEXT)
    weights[0] = 0
    batch = _batch(model, Batch(tokens[:, :-1], tokens[:, 1:], weights))
    targets, weights = batch.targets, batch.weights
    assert targets is not None and weights is not None
    parameters = list(model.parameters())
    loss = Likelihood(chunk=chunk)(model, batch).total
    nll = F.cross_entropy(model(batch).flatten(0, 1), targets.flatten(), reduction="none").view(4, -1)
    plain = (nll * weights).sum()
    assert loss.item() == pytest.approx(plain.item(), rel=1e-6)
    for ours, theirs in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(plain, parameters), strict=True):
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max() + 1e-7
    logs = token_logprobs(model, batch, chunk=chunk)
    assert (logs + nll * (weights != 0)).abs().max() < 1e-5


def test_the_reward_head_starts_from_a_copy_of_the_backbone(model: Model) -> None:
    reward = with_head(model, "scalar", seed=1)
    assert _whole(reward, _tokens(2)).shape == (2, CONTEXT)
    next(reward.backbone.parameters()).data.add_(1)
    assert not torch.equal(next(reward.backbone.parameters()), next(model.backbone.parameters()))


def test_a_copy_for_sampling_gives_the_same_bits(any_model: Model) -> None:
    model = any_model
    model.compute_dtype = torch.bfloat16
    light, tokens = for_sampling(model), _tokens(3)
    with torch.inference_mode():
        same = torch.equal(_whole(light, tokens), _whole(model, tokens))
    model.compute_dtype = torch.float32
    linears = [part for part in light.backbone.modules() if isinstance(part, Linear)]
    assert same and linears and all(part.weight.dtype == torch.bfloat16 for part in linears)
    assert next(model.parameters()).dtype == torch.float32


def test_a_copy_for_reading_gives_the_same_numbers(any_model: Model) -> None:
    """But for bfloat16's last places; in float32 to a rounding, for a library's sums depend on where a weight lies."""
    model = with_head(any_model, Classes(("a", "b", "c")), seed=2)
    tokens, documents = _tokens(3), torch.zeros(3, CONTEXT, dtype=torch.int32)
    documents[1, 5:] = -1
    batch = Batch(tokens, documents=documents)
    batch = beside(batch, 1) if model.reads_source else batch
    with torch.inference_mode():
        assert torch.allclose(for_reading(model)(batch), model(batch), rtol=1e-6, atol=1e-6)
        model.compute_dtype = torch.bfloat16
        wanted, found = model(batch), for_reading(model)(batch)
        model.compute_dtype = torch.float32
        whole = wanted
        if packs(torch.zeros(1, 2), "int8"):
            with contextlib.suppress(ModelError):  # a loop has none
                whole = for_reading(model, "int8")(batch)
    assert (found - wanted).abs().max() <= DTYPES["bfloat16"][1] * wanted.abs().max()
    assert (whole - wanted).abs().max() <= DTYPES["bfloat16"][1] * wanted.abs().max()
