"""Every configuration: cached = uncached, packed = padded, batched = alone, chunked = plain, no future leaks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tiny import CONFIGS, CONTEXT, VOCABULARY

from cutaway.batch import Batch, Example, pack, pad
from cutaway.errors import RequestError
from cutaway.models.model import Model, build, for_sampling, with_head
from cutaway.nn.cache import KVCache
from cutaway.nn.linear import Linear
from cutaway.objectives.likelihood import Likelihood, token_logprobs

DTYPES = {"float32": (torch.float32, 2e-5), "bfloat16": (torch.bfloat16, 0.12)}


@pytest.fixture(params=CONFIGS, scope="module")
def model(request: pytest.FixtureRequest) -> Model:
    return build(CONFIGS[request.param], seed=3)


def _tokens(rows: int, length: int = CONTEXT) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(rows))


@pytest.mark.parametrize("dtype", DTYPES)
def test_cached_equals_uncached(model: Model, dtype: str) -> None:
    model.compute_dtype, tolerance = DTYPES[dtype]
    tokens = _tokens(3)
    with torch.inference_mode():
        whole = model(Batch(tokens))
        state = model.new_state(3, capacity=CONTEXT)
        parts = [model.logits(tokens[:, :7], state, every=True)]
        parts += [model.logits(tokens[:, i : i + 1], state)[:, None] for i in range(7, CONTEXT)]
    model.compute_dtype = torch.float32
    assert (torch.cat(parts, 1) - whole).abs().max() < tolerance
    assert state.lengths.tolist() == [CONTEXT] * 3


def test_ragged_rows_in_one_cache_equal_each_alone(model: Model) -> None:
    tokens, counts = _tokens(4, 12), torch.tensor([1, 12, 5, 9])
    with torch.inference_mode():
        state = model.new_state(4, capacity=CONTEXT)
        first = model.logits(tokens, state, counts=counts)
        after = model.logits(torch.full((4, 1), 5), state)
        for row, count in enumerate(counts.tolist()):
            alone = model(Batch(torch.cat((tokens[row : row + 1, :count], torch.tensor([[5]])), 1)))[0]
            assert (alone[-2] - first[row]).abs().max() < 2e-5
            assert (alone[-1] - after[row]).abs().max() < 2e-5


def test_a_selected_truncated_copy_continues_as_if_it_had_read_only_that(model: Model) -> None:
    tokens = _tokens(3, 10)
    with torch.inference_mode():
        state = model.new_state(3, capacity=CONTEXT)
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
            alone = model(Batch(torch.cat((tokens[source : source + 1, :length], torch.tensor([[9]])), 1)))[0, -1]
            assert (alone - out[row]).abs().max() < 2e-5
    assert state.lengths.tolist() == [10, 10, 10]


@given(lengths=st.lists(st.integers(2, CONTEXT), min_size=1, max_size=6))
def test_packed_equals_padded(model: Model, lengths: list[int]) -> None:
    draw = np.random.default_rng(len(lengths))
    examples = [Example(draw.integers(3, VOCABULARY, n), np.ones(n, np.float32)) for n in lengths]
    packed, padded = pack(examples, pad_id=0, length=CONTEXT), pad(examples, pad_id=0, length=CONTEXT)
    with torch.no_grad():
        one, other = Likelihood()(model, packed), Likelihood()(model, padded)
    assert one.weight == other.weight == sum(lengths) - len(lengths)
    assert float(one.total) == pytest.approx(float(other.total), rel=1e-5)


def test_batched_equals_alone(model: Model) -> None:
    batch = Batch(_tokens(5))
    with torch.inference_mode():
        together = model(batch)
        for row in range(5):
            assert (model(batch.rows(row, row + 1))[0] - together[row]).abs().max() < 2e-5


def test_no_position_sees_its_future(model: Model) -> None:
    tokens = _tokens(1)
    with torch.inference_mode():
        before = model(Batch(tokens))
        changed = tokens.clone()
        changed[0, 11:] = (changed[0, 11:] + 1) % VOCABULARY
        after = model(Batch(changed))
    assert torch.equal(before[0, :11], after[0, :11])
    assert not torch.equal(before[0, 11], after[0, 11])


@pytest.mark.parametrize("chunk", [1, 7, 64, 10_000])
def test_chunked_cross_entropy_equals_the_plain_one(model: Model, chunk: int) -> None:
    tokens, weights = _tokens(4, CONTEXT + 1), torch.rand(4, CONTEXT)
    weights[0] = 0
    batch = Batch(tokens[:, :-1], tokens[:, 1:], weights)
    parameters = list(model.parameters())
    loss = Likelihood(chunk=chunk)(model, batch).total
    nll = F.cross_entropy(model(batch).flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(4, -1)
    plain = (nll * weights).sum()
    assert loss.item() == pytest.approx(plain.item(), rel=1e-6)
    for ours, theirs in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(plain, parameters), strict=True):
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max() + 1e-7
    logs = token_logprobs(model, batch, chunk=chunk)
    assert (logs + nll * (weights != 0)).abs().max() < 1e-5


def test_the_reward_head_starts_from_a_copy_of_the_backbone(model: Model) -> None:
    reward = with_head(model, "scalar", seed=1)
    assert reward(Batch(_tokens(2))).shape == (2, CONTEXT)
    next(reward.backbone.parameters()).data.add_(1)
    assert not torch.equal(next(reward.backbone.parameters()), next(model.backbone.parameters()))


def test_a_copy_for_sampling_gives_the_same_bits(model: Model) -> None:
    model.compute_dtype = torch.bfloat16
    light, tokens = for_sampling(model), _tokens(3)
    with torch.inference_mode():
        same = torch.equal(light(Batch(tokens)), model(Batch(tokens)))
    model.compute_dtype = torch.float32
    linears = [part for part in light.backbone.modules() if isinstance(part, Linear)]
    assert same and linears and all(part.weight.dtype == torch.bfloat16 for part in linears)
    assert next(model.parameters()).dtype == torch.float32
