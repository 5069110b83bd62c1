"""Adapters by name beside one base: each row gets what its own adds, and nothing of the others'."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lora import drawn, merged
from tiny import CONFIGS, CONTEXT, VOCABULARY

from cutaway.batch import Batch
from cutaway.errors import ModelError, RequestError
from cutaway.generate.beam import Beam, search
from cutaway.generate.engine import Engine
from cutaway.generate.paged import PagedRunner
from cutaway.generate.request import Completion, Request, Sampling
from cutaway.models.adapter import Lora
from cutaway.models.beside import with_adapters
from cutaway.models.light import Precision, for_reading
from cutaway.models.model import Model, build
from cutaway.nn.beside import Beside, Pair, Rows
from cutaway.nn.linear import PackedLinear, packs

WRITERS = ["tied", "untied", "one-kv-head", "around"]  # that can have adapters
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "int8", "int4")


@pytest.fixture(params=PRECISIONS)
def precision(request: pytest.FixtureRequest) -> Precision:
    if packs(torch.zeros(1, 2), request.param) is None:
        pytest.skip(f"no products of {request.param} here")
    return request.param  # type: ignore[no-any-return]


def _pair(inputs: int, rows: tuple[int, ...], ranks: tuple[int, ...], seed: int) -> Pair:
    draw = torch.Generator().manual_seed(seed)
    return Pair(tuple(torch.randn(rank, inputs, generator=draw) / 8 for rank in ranks),
                tuple(torch.randn(count, rank, generator=draw) for count, rank in zip(rows, ranks, strict=True)))


@pytest.mark.parametrize(("inputs", "rows", "ranks", "gated"), [
    (96, (64, 32, 32), (4, 4, 4), False),  # queries, keys, values
    (64, (50, 20, 30), (3, 0, 5), False),  # parts that end within a panel, one of no rank, outputs that are filled up
    (38, (48, 48), (2, 2), True),  # inputs that fill no register
    (64, (64, 64), (0, 6), True),  # nothing beside the gate
    (64, (33,), (1,), False)])
def test_the_kernels_add_what_each_row_has(inputs: int, rows: tuple[int, ...], ranks: tuple[int, ...],
                                           precision: Precision, gated: bool) -> None:
    draw, outputs = torch.Generator().manual_seed(1), sum(rows)
    weight, shown = torch.randn(outputs, inputs, generator=draw) / 8, Rows()
    pairs = [_pair(inputs, rows, ranks, 2), None, _pair(inputs, rows, tuple(2 * r for r in ranks), 3)]
    lib = packs(weight, precision)
    assert lib is not None
    made = PackedLinear(lib, weight, None, precision, gated=gated, after="silu" if gated else None,
                        beside=Beside(shown, pairs))
    base = PackedLinear(lib, weight, None, precision)
    for count in (1, 7, 9, 100):
        x = torch.randn(count, 1, inputs, generator=draw).to(made.dtype).float()
        which = [(0, 1, 2, -1)[i % 4] for i in range(count)]
        with shown.of(which):
            found = made(x, dtype=torch.float32)
        plain = made(x, dtype=torch.float32)
        for i, number in enumerate(which):
            pair = pairs[number] if number >= 0 else None
            if pair is None:
                assert torch.equal(found[i], plain[i])  # the company of adapters changes no bit
                continue
            with shown.of([number]):
                assert torch.equal(found[i], made(x[i : i + 1], dtype=torch.float32)[0])
            down, up = (t.to(made.dtype).float() for t in (torch.cat(pair.down), torch.block_diag(*pair.up)))
            sums = base(x[i : i + 1], dtype=torch.float32)[0, 0] + up @ (down @ x[i, 0])
            wanted = torch.nn.functional.silu(sums[: outputs // 2]) * sums[outputs // 2 :] if gated else sums
            assert (found[i, 0] - wanted).abs().max() < 1e-5 * wanted.abs().max()
            assert (found[i, 0] - plain[i, 0]).abs().max() > 0.01 * wanted.abs().max()


def _prompts() -> list[Request]:
    draw = torch.Generator().manual_seed(5)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, VOCABULARY, (count,), generator=draw).tolist())

    shared, made = ids(9), list[Request]()
    for i, adapter in enumerate(("first", None, "second", "first", "second", None, "first")):
        prompt = shared if i % 2 else ids(3 + i)
        made.append(Request(prompt, 5, Sampling(temperature=0), logprobs=0, adapter=adapter))
    return made


def _near(found: Completion, wanted: Completion, near: float) -> None:
    assert found.tokens == wanted.tokens
    assert torch.allclose(torch.tensor(found.logprobs), torch.tensor(wanted.logprobs), atol=near)


def _three(config: str, folder: Path) -> tuple[Model, dict[str | None, Model]]:
    """A model with two adapters beside it, and those that it stands for."""
    base = build(CONFIGS[config], seed=2)
    folders = {"first": drawn(folder / "1", base, Lora(rank=3), seed=4),
               "second": drawn(folder / "2", base, Lora(rank=2, alpha=6), seed=5)}
    apart: dict[str | None, Model] = {None: base, **{name: merged(f, base) for name, f in folders.items()}}
    return with_adapters(copy.deepcopy(base), folders, base=folder), apart


@pytest.mark.parametrize("config", WRITERS)
@pytest.mark.parametrize("how", ["states", "pages", "kernels"])
def test_one_batch_gives_what_merged_models_give(config: str, how: str, tmp_path: Path) -> None:
    model, apart = _three(config, tmp_path)
    if how == "kernels":
        model, apart = for_reading(model), {name: for_reading(one) for name, one in apart.items()}
    requests, pages = _prompts(), model.eval().new_pages(40)
    assert pages is not None
    engine = Engine(model, step_tokens=6, runner=PagedRunner(model, pages) if how == "pages" else None)
    for found, request in zip(engine.generate(requests), requests, strict=True):
        alone = Engine(apart[request.adapter].eval()).generate([replace(request, adapter=None)])[0]
        _near(found, alone, 1e-4)
    texts = {engine.generate([Request((5, 6, 7), 8, Sampling(temperature=0), adapter=adapter)])[0].tokens
             for adapter in apart}
    assert len(texts) == 3  # and they are others


def test_beams_have_adapters(tmp_path: Path) -> None:
    model, apart = _three("tied", tmp_path)
    requests = [replace(r, sampling=Sampling(), logprobs=None) for r in _prompts()]
    found = search(model.eval(), requests, Beam(width=3))
    for request, best in zip(requests, found, strict=True):
        alone = search(apart[request.adapter].eval(), [replace(request, adapter=None)], Beam(width=3))
        assert best[0].tokens == alone[0][0].tokens


def test_what_was_read_under_one_adapter_is_no_others(tmp_path: Path) -> None:
    model, _ = _three("tied", tmp_path)
    light, prompt = for_reading(model), tuple(range(3, 20))
    if light.new_pages(1) is None or not light.new_pages(1).exact:  # type: ignore[union-attr]
        pytest.skip("no kernels here")
    engine = Engine(light)
    for adapter, cached in (("first", 0), ("first", 16), (None, 0), ("second", 0), (None, 16), ("second", 16)):
        engine.submit(Request(prompt, 2, adapter=adapter))
        events = [event for event in iter(engine.step, []) if event.token >= 0]
        assert events[0].cached == cached


def test_a_copy_has_the_adapters_too_and_tells_them_apart(tmp_path: Path) -> None:
    model, _ = _three("tied", tmp_path)
    light = for_reading(model)
    other = copy.deepcopy(light)
    with light.rows.of([0]):  # of the first alone
        assert other.rows.which is None
    batch = Batch(torch.tensor([[4, 5, 6]]))
    with torch.inference_mode(), other.rows.of([0]):
        found = other(batch)
    with torch.inference_mode(), light.rows.of([0]):
        wanted = light(batch)
    with torch.inference_mode():
        assert torch.equal(found, wanted) and not torch.equal(found, other(batch))


def test_names_are_checked(tmp_path: Path) -> None:
    model, _ = _three("tied", tmp_path)
    with pytest.raises(RequestError, match=r"no adapter 'frist'.*did you mean 'first'"):
        Engine(model).start([Request((4,), 1, adapter="frist")])
    with pytest.raises(RequestError, match=r"no adapter 'first'.*none"):
        Engine(build(CONFIGS["tied"])).start([Request((4,), 1, adapter="first")])
    with pytest.raises(ModelError, match="already"):
        with_adapters(model, {"third": tmp_path / "1"}, base=tmp_path)
    with pytest.raises(ModelError, match=r"go with it|no place"):
        with_adapters(build(CONFIGS["around"]), {"other": tmp_path / "1"}, base=tmp_path)


def test_an_adapter_beside_few_maps_leaves_the_others_alone(tmp_path: Path) -> None:
    base = build(CONFIGS["tied"], seed=2)
    folder = drawn(tmp_path / "v", base, Lora(rank=2, targets=("v_proj", "down_proj")), seed=4)
    light = for_reading(with_adapters(copy.deepcopy(base), {"v": folder}, base=tmp_path))
    request = Request(tuple(range(4, CONTEXT - 6)), 5, Sampling(temperature=0), logprobs=0)
    alone = Engine(for_reading(merged(folder, base))).generate([request])[0]
    _near(Engine(light).generate([replace(request, adapter="v")])[0], alone, 1e-4)
