"""Pages: whatever is read beside a sequence, however its prompt is cut and whichever pages it has, the bits are the
same, and near those of the model that reads it whole."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from tiny import VARIANTS

from cutaway.batch import Batch
from cutaway.errors import MachineError
from cutaway.generate.engine import Engine
from cutaway.generate.request import Request, Sampling
from cutaway.models.light import Precision, for_reading
from cutaway.models.model import Model, build
from cutaway.models.transformer import TransformerConfig
from cutaway.nn.linear import packs
from cutaway.nn.paged import PAGE, Reading

SIZES: dict[str, Any] = {"vocab_size": 120, "hidden_size": 64, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2,
                         "intermediate_size": 96, "context_length": 96}
NEAR = {"float32": 2e-5, "bfloat16": 6e-2, "int8": 8e-2, "int4": 0.3}


def _model(name: str, precision: Precision, *, heads: int = 4) -> Model:
    sizes = SIZES | ({"num_heads": 6, "num_kv_heads": 2, "hidden_size": 96} if name == "grouped by three" else {})
    model = build(TransformerConfig(**sizes, variant=VARIANTS[name]), seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms and biases
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return for_reading(model, precision)


@pytest.fixture(params=NEAR)
def precision(request: pytest.FixtureRequest) -> Precision:
    if packs(torch.zeros(1, 2), request.param) is None:
        pytest.skip(f"no products of {request.param} here")
    return request.param  # type: ignore[no-any-return]


def _tokens(count: int, seed: int) -> list[int]:
    return torch.randint(0, 120, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("name", VARIANTS)
def test_near_the_whole_pass(name: str, precision: Precision) -> None:
    model, tokens = _model(name, precision), _tokens(75, 1)
    pages = model.new_pages(6)
    assert pages is not None and pages.exact
    found = model.read(Reading.of([(tokens, 0, [4, 0, 2, 5, 1])], range(75)), pages)
    wanted = model(Batch(torch.tensor([tokens])))[0]
    assert (found - wanted).abs().max() <= NEAR[precision] * wanted.abs().max()


@pytest.mark.parametrize("name", VARIANTS)
def test_the_plain_pass_over_pages_is_the_whole_pass(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cutaway.nn.batched.laid_out", lambda _: False)
    model, first, second = _model(name, "float32"), _tokens(41, 1), _tokens(30, 2)
    pages = model.new_pages(8)
    assert pages is not None and not pages.exact
    for left in (pages.keys, pages.values):
        left.fill_(torch.nan)  # of others
    one, two = [4, 0, 2], [1, 7, 3]
    model.read(Reading.of([(first[:17], 0, one), (second[:29], 0, two)], []), pages)
    found = model.read(Reading.of([(second[29:], 29, two), (first[17:], 17, one)], [0, 24]), pages)
    for row, tokens in zip(found, (second, first), strict=True):
        wanted = model(Batch(torch.tensor([tokens])))[0, -1]
        assert (row - wanted).abs().max() <= 2e-5 * wanted.abs().max()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", ["grouped by three", "around, windows", "gpt2"])
def test_bits_do_not_depend_on_company_chunks_or_pages(name: str, precision: Precision, seed: int) -> None:
    """Sequences are read in any chunks beside any others; logits after each chunk are those of the sequence alone."""
    model, draw = _model(name, precision), random.Random(seed)
    count = draw.randint(1, 5)
    rows = [_tokens(draw.randint(1, 60), i) for i in range(count)]
    pages, alone = model.new_pages(count * 4), model.new_pages(4)
    assert pages is not None and alone is not None
    order = draw.sample(range(count * 4), count * 4)
    own = [order[4 * i : 4 * i + 4] for i in range(count)]
    for left in (pages.keys, pages.values):
        left.fill_(torch.nan)  # of others
    done = [0] * count
    while any(done[i] < len(rows[i]) for i in range(count)):
        parts, ends, flat = [], [], 0
        for i in range(count):
            chunk = draw.randint(0, min(20, len(rows[i]) - done[i]))
            if chunk:
                parts.append((i, rows[i][done[i] : done[i] + chunk]))
                flat += chunk
                ends.append(flat - 1)
        if not parts:
            continue
        found = model.read(Reading.of([(t, done[i], own[i]) for i, t in parts], ends), pages)
        for (i, chunk_tokens), logits in zip(parts, found, strict=True):
            done[i] += len(chunk_tokens)
            whole = Reading.of([(rows[i][: done[i]], 0, range(4))], [done[i] - 1])
            assert torch.equal(logits, model.read(whole, alone)[0])


def test_pages_are_as_many_as_the_memory_given_to_them_holds() -> None:
    """A quarter of the machine's, or what is said; one that holds none is refused, and answers do not depend on it."""
    model = _model("plain", "float32")
    assert model.page_bytes is not None
    plain, small = Engine(model), Engine(model, cache_bytes=7 * model.page_bytes + 1)
    if not small.runner.shares_pages:
        pytest.skip("no pages without kernels")
    assert (small.runner.num_pages, plain.runner.num_pages) == (7, 256 * 96 // PAGE)
    asked = [Request(tuple(_tokens(20 + i, i)), 30, Sampling(temperature=0)) for i in range(6)]
    assert [c.tokens for c in small.generate(asked)] == [c.tokens for c in plain.generate(asked)]
    with pytest.raises(MachineError, match="holds 80 tokens, and a context of this model has 96"):
        Engine(model, cache_bytes=6 * model.page_bytes - 1)


@pytest.mark.parametrize("heads", [(4, 4, 16), (4, 2, 16), (4, 1, 16), (6, 1, 16), (7, 1, 16), (8, 1, 16), (12, 1, 16),
                                   (13, 1, 16), (3, 1, 48), (12, 1, 64), (10, 2, 80)])
def test_token_by_token_beside_others_is_the_whole(heads: tuple[int, int, int], precision: Precision) -> None:
    """Steps in which every sequence reads one token, where a tile (of 6 or 12) holds all queries of a head and where it
    does not; heads as wide as one to five registers."""
    sizes = SIZES | {"num_heads": heads[0], "num_kv_heads": heads[1], "hidden_size": heads[2] * heads[0]}
    model = for_reading(build(TransformerConfig(**sizes), seed=3), precision)
    pages, alone = model.new_pages(9), model.new_pages(3)
    assert pages is not None and alone is not None
    rows = [_tokens(37, seed) for seed in range(3)]
    found = [model.read(Reading.of([([row[t]], t, [i, 3 + i, 6 + i]) for i, row in enumerate(rows)], range(3)), pages)
             for t in range(37)]
    for i, row in enumerate(rows):
        whole = model.read(Reading.of([(row, 0, range(3))], range(37)), alone)
        assert torch.equal(torch.stack([step[i] for step in found]), whole)
