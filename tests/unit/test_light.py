"""Copies that read and write faster: near the model in every precision, the same for a text alone and among others,
with a cache and without; and the words for which precision a person asks."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch

from cutaway.batch import Batch
from cutaway.errors import MachineError, ModelError
from cutaway.generate.engine import Engine, engine_for
from cutaway.generate.request import Request, Sampling
from cutaway.generate.speculate import PromptLookup
from cutaway.models import light, whole
from cutaway.models.adapter import Lora, adapt
from cutaway.models.folder import load_model, save_model, stored_small
from cutaway.models.gguf import public_config, public_tensors
from cutaway.models.gguf_file import read_gguf
from cutaway.models.gguf_numbers import FOUR_BITS, numbers
from cutaway.models.gguf_write import write_gguf
from cutaway.models.heads import Vector
from cutaway.models.light import Precision, for_reading
from cutaway.models.model import Model, build
from cutaway.models.ngram_folder import MODEL_TYPE as NGRAM
from cutaway.models.open import open_embedder, open_language_model
from cutaway.models.recurrent import RecurrentConfig
from cutaway.models.transformer import TransformerConfig
from cutaway.nn import linear
from cutaway.nn.linear import Blocks, Linear, Lying, PackedLinear, packed, packs
from cutaway.objectives.likelihood import token_logprobs
from cutaway.records import digest
from cutaway.text.tokenizer import ByteSettings, SubwordSettings, train

NEAR: dict[Precision, float] = {"float32": 0.0, "bfloat16": 5e-2, "int8": 8e-2, "int4": 0.5}  # of the largest logit
CONFIG = TransformerConfig(vocab_size=300, hidden_size=64, num_layers=2, num_heads=4, num_kv_heads=2,
                           intermediate_size=96, context_length=64)


def _here(precision: Precision) -> Precision:
    if precision == "int8" and packs(torch.zeros(1, 2), "int8") is None:
        pytest.skip("no dot products of int8 on this processor")
    return precision


@pytest.fixture(scope="module")
def decoder() -> Model:
    return build(CONFIG, seed=4).eval()


@pytest.fixture(params=NEAR)
def precision(request: pytest.FixtureRequest) -> Precision:
    return _here(request.param)


def _tokens(rows: int, steps: int) -> torch.Tensor:
    return torch.randint(0, 300, (rows, steps), generator=torch.Generator().manual_seed(rows))


@torch.no_grad()
def test_a_copy_is_near_and_leaves_the_model_as_it_was(decoder: Model, precision: Precision) -> None:
    before = {name: p.clone() for name, p in decoder.named_parameters()}
    batch = Batch(_tokens(3, 40))
    wanted, found = decoder(batch), for_reading(decoder, precision)(batch)
    assert found.dtype == torch.float32
    assert (found - wanted).abs().max() <= NEAR[precision] * wanted.abs().max()
    assert all(torch.equal(p, before[name]) for name, p in decoder.named_parameters())
    assert decoder.compute_dtype == torch.float32


@torch.no_grad()
def test_a_row_alone_and_one_token_at_a_time_give_the_same_tokens(decoder: Model, precision: Precision) -> None:
    """To the last bit where our kernels multiply: a row's sums do not depend on the rows beside it."""
    copy = for_reading(decoder, precision)
    together, packed = copy(Batch(_tokens(5, 30))), any(isinstance(m, PackedLinear) for m in copy.modules())
    alone = torch.cat([copy(Batch(row[None])) for row in _tokens(5, 30)])
    state = copy.new_state(5, capacity=30)
    cached = torch.stack([copy.logits(column[:, None], state) for column in _tokens(5, 30).T], 1)
    near = 0.0 if packed else 1e-5
    assert (alone - together).abs().max() <= near
    assert (cached - together).abs().max() <= (NEAR[precision] or 1e-5) * together.abs().max()
    prompts = [Request(tuple(row), 12, Sampling(temperature=0)) for row in _tokens(4, 9).tolist()]
    each = [Engine(copy).generate([p])[0].tokens for p in prompts]
    assert [c.tokens for c in Engine(copy).generate(prompts)] == each


@torch.no_grad()
def test_in_place_needs_no_second_model(decoder: Model, precision: Precision) -> None:
    model = build(CONFIG, seed=4)
    batch, wanted = Batch(_tokens(2, 20)), for_reading(decoder, precision)
    assert for_reading(model, precision, in_place=True) is model
    assert torch.equal(model(batch), wanted(batch))


@torch.no_grad()
def test_adapters_stay_beside_what_is_laid_out(decoder: Model, precision: Precision) -> None:
    model, batch = adapt(copy.deepcopy(decoder), Lora(rank=2), seed=1), Batch(_tokens(2, 20))
    for name, parameter in model.named_parameters():
        if ".up." in name:
            torch.nn.init.normal_(parameter, std=0.01)
    wanted, found = model(batch), for_reading(model, precision)(batch)
    assert (wanted - decoder(batch)).abs().max() > 0.2 * wanted.abs().max()
    assert (found - wanted).abs().max() <= NEAR[precision] * wanted.abs().max()


def test_a_copy_stays_as_it_was_when_the_model_learns(precision: Precision) -> None:
    model, batch = build(CONFIG, seed=4), Batch(_tokens(2, 20))
    copied = for_reading(model, precision)
    with torch.no_grad():
        before = copied(batch)
        for parameter in model.parameters():
            parameter.mul_(1.5)
        assert torch.equal(copied(batch), before) and torch.equal(copy.deepcopy(copied)(batch), before)
    assert not any(p.requires_grad for p in copied.parameters()) and all(p.requires_grad for p in model.parameters())


@torch.no_grad()
def test_what_tokens_cost_is_said_by_the_same_head(decoder: Model, precision: Precision) -> None:
    """Bits per byte and choices must not be of two models."""
    copied, tokens = for_reading(decoder, precision), _tokens(3, 21)
    batch = Batch(tokens[:, :-1], targets=tokens[:, 1:], weights=(tokens[:, 1:] % 3 > 0).float())
    found = token_logprobs(copied, batch, chunk=7)
    wanted = torch.log_softmax(copied(batch), -1).gather(2, tokens[:, 1:, None]).squeeze(2)
    assert (found - wanted * (batch.weights != 0)).abs().max() <= 1e-5


def test_a_loop_has_no_products_of_int8() -> None:
    _here("int8")
    with pytest.raises(ModelError, match="of its products cannot be of int8"):
        for_reading(build(RecurrentConfig(vocab_size=50, hidden_size=32, num_layers=1)), "int8")


def _saved(folder: Path, dtype: torch.dtype) -> Path:
    tokenizer = train(ByteSettings(), [])
    save_model(folder, build(CONFIG.model_copy(update={"vocab_size": tokenizer.vocab_size}), seed=1), tokenizer,
               dtype=dtype)
    return folder


def test_stored_is_the_precision_of_the_file(tmp_path: Path) -> None:
    full, half = (_saved(tmp_path / str(d), d) for d in (torch.float32, torch.bfloat16))
    assert not stored_small(full) and stored_small(half)
    opened = [open_language_model(folder, precision="stored") for folder in (full, half)]
    assert isinstance(opened[0], Model) and opened[0].compute_dtype == torch.float32
    if packs(torch.zeros(1, 2), "bfloat16") is not None:
        assert isinstance(opened[1], Model) and opened[1].compute_dtype == torch.bfloat16


@torch.no_grad()
def test_vectors_of_texts_of_all_lengths_are_those_of_each(tmp_path: Path, precision: Precision) -> None:
    tokenizer = train(ByteSettings(), [])
    shape = {"shape": "encoder", "num_kv_heads": 4, "variant": None}
    config = CONFIG.model_copy(update=shape | {"vocab_size": tokenizer.vocab_size})
    save_model(tmp_path / "encoder", build(config, head=Vector(), seed=2), tokenizer)
    embedder = open_embedder(tmp_path / "encoder", precision=precision)
    exact = open_embedder(tmp_path / "encoder")
    texts = ["a", "a few words", "x" * 60, "", "another text, of middling length"] * 3
    vectors = embedder.vectors(texts)
    for text, vector in zip(texts, vectors, strict=True):
        assert vector @ embedder.vectors([text])[0] > 1 - 1e-5
        assert vector @ exact.vectors([text])[0] > 1 - (0.1 if precision == "int4" else 1e-3)


def test_what_has_no_such_products_says_so(tmp_path: Path, decoder: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "counts").mkdir()
    (tmp_path / "counts" / "config.json").write_text(json.dumps({"model_type": NGRAM}))
    with pytest.raises(ModelError, match="counts, and has no products of int8"):
        open_language_model(tmp_path / "counts", precision="int8")
    monkeypatch.setattr(light, "packs", lambda *given: None)
    with pytest.raises(MachineError, match="no dot products of int8"):
        for_reading(decoder, "int8")


@torch.no_grad()
@pytest.mark.parametrize("kind", ["bfloat16", "float16", "q8_0", "q4_0", "f16"])
def test_every_form_of_weights_is_laid_out_from_its_file(tmp_path: Path, kind: str, precision: Precision) -> None:
    """One after another as they are asked for, they are what loading them all gives; blocks of four bits are kept as
    they are, where loading finds their grid again and rounds its lowest value."""
    path = tmp_path / "model"
    if kind in ("bfloat16", "float16"):
        save_model(path, build(CONFIG, seed=4), dtype=getattr(torch, kind))
    else:
        path = path.with_suffix(".gguf")
        tokenizer = train(SubwordSettings(vocab_size=275), ["a few words of text"] * 40)
        write_gguf(path, build(CONFIG, seed=4), tokenizer, kind=kind)
    batch = Batch(_tokens(2, 20))
    found = open_language_model(path, precision=precision)(batch)
    wanted = for_reading(load_model(path), precision)(batch)
    if precision == "int4" and kind.startswith("q4"):
        torch.testing.assert_close(found, wanted, atol=0.1, rtol=0)  # of logits up to 3
    else:
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("kind", [2, 3])
def test_blocks_of_four_bits_are_multiplied_as_the_file_has_them(kind: int, gated: bool) -> None:
    """By whole numbers up to 127 in every group, which int8 holds: nothing is rounded but float32's sums."""
    lib, draw = packs(torch.zeros(1, 2), "int4"), torch.Generator().manual_seed(3)
    if lib is None:
        pytest.skip("int4 needs AVX2 here")
    raw = torch.randint(0, 256, (64, 6, FOUR_BITS[kind]), generator=draw, dtype=torch.uint8)
    scales = torch.randn(64, 6, FOUR_BITS[kind] // 2 - 8, generator=draw).half()
    raw[:, :, : FOUR_BITS[kind] - 16] = scales.view(torch.uint8)
    weight = numbers(raw.flatten().numpy().copy(), kind).view(64, 192)
    x = torch.randint(-127, 128, (5, 192), generator=draw).float()
    x[:, ::64] = 127
    found = PackedLinear(lib, raw, None, "int4", gated=gated)(x.bfloat16(), dtype=torch.float32)
    wanted = x @ weight.T
    if gated:
        wanted = wanted[:, :32] * wanted[:, 32:]
    torch.testing.assert_close(found, wanted, rtol=2e-5, atol=float(wanted.abs().max()) * 1e-5)


def test_blocks_have_the_order_of_rows_that_reading_gives(tmp_path: Path) -> None:
    """Llama's files have the two of a rotary pair side by side."""
    path, tokenizer = tmp_path / "m.gguf", train(SubwordSettings(vocab_size=275), ["a few words of text"] * 40)
    write_gguf(path, build(CONFIG, seed=4), tokenizer, kind="q4_0")
    file = read_gguf(path)
    tensors = [t for t in public_tensors(file, public_config(file)).values() if t.blocks is not None]
    assert len(tensors) >= 7 * CONFIG.num_layers
    for tensor in tensors:
        assert tensor.blocks is not None and tensor.blocks.size == FOUR_BITS[2]
        raw = tensor.blocks.read()
        assert torch.equal(numbers(raw.numpy().reshape(-1), 2).view(tensor.shape), tensor.read())


def test_blocks_of_two_kinds_are_joined_as_numbers() -> None:
    """One cannot be laid beside the other as it is."""
    draw, lib, joined = torch.Generator().manual_seed(5), packs(torch.zeros(1, 2), "int4"), Linear(64, 64)
    if lib is None:
        pytest.skip("int4 needs AVX2 here")
    raws = {kind: torch.randint(0, 256, (32, 2, size), generator=draw, dtype=torch.uint8)
            for kind, size in FOUR_BITS.items()}
    for raw in raws.values():
        scales = torch.rand(32, 2, raw.shape[2] // 2 - 8, generator=draw).half()
        raw[:, :, : raw.shape[2] - 16] = scales.view(torch.uint8)
    floats = {kind: numbers(raw.flatten().numpy().copy(), kind).view(32, 64) for kind, raw in raws.items()}
    joined.lying = tuple(Lying(lambda kind=kind: floats[kind], False,  # type: ignore[misc]
                               Blocks(lambda raw=raw: raw, raw.shape[2])) for kind, raw in raws.items())  # type: ignore[misc]
    made = packed(joined, "int4")
    assert not joined.in_blocks and made is not None
    x = torch.randn(3, 64, generator=draw)
    wanted = x @ torch.cat([*floats.values()]).T
    assert (made(x.bfloat16(), dtype=torch.float32) - wanted).abs().max() < 0.02 * wanted.abs().max()


@pytest.mark.parametrize("inputs", [64, 96, 192])
def test_a_row_of_a_product_does_not_depend_on_the_rows_beside_it(inputs: int, precision: Precision) -> None:
    """In any number: tiles have one row, two, three, four or six, and up to eight are laid out by each thread."""
    lib, draw = packs(torch.zeros(1, 2), precision), torch.Generator().manual_seed(6)
    if lib is None:
        pytest.skip(f"no products of {precision} here")
    product = PackedLinear(lib, torch.randn(80, inputs, generator=draw), torch.randn(80, generator=draw), precision)
    x = torch.randn(100, inputs, generator=draw).to(product.dtype)
    alone = torch.cat([product(row[None]) for row in x])
    for rows in (2, 3, 4, 5, 6, 7, 8, 9, 13, 24, 25, 97, 100):
        assert torch.equal(product(x[:rows]), alone[:rows]), rows


@pytest.mark.parametrize("kind", ["q4_0", "q8_0"])
def test_stored_is_int4_for_a_file_of_four_bits(tmp_path: Path, kind: str) -> None:
    path, tokenizer = tmp_path / "m.gguf", train(SubwordSettings(vocab_size=275), ["a few words of text"] * 40)
    write_gguf(path, build(CONFIG, seed=4), tokenizer, kind=kind)
    model = open_language_model(path, precision="stored")
    assert isinstance(model, Model)
    kinds = {part.plan.precision for part in model.backbone.modules() if isinstance(part, PackedLinear)}
    whole = packs(torch.zeros(1, 2), "int4") is not None and kind.startswith("q4")
    assert (kinds == {3}) == whole


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_what_is_proposed_from_the_prompt_changes_no_answer(decoder: Model, precision: Precision,
                                                            temperature: float) -> None:
    """On prompts that repeat themselves; a model without pages cannot take back what was read of a proposal."""
    asked = [Request(tuple(range(7, 7 + n)) * 3, 24, Sampling(temperature=temperature), seed=n) for n in (2, 5)]
    model = for_reading(decoder, precision)
    plain = Engine(model)
    quick = engine_for(model)
    assert [c.tokens for c in quick.generate(asked)] == [c.tokens for c in plain.generate(asked)]
    assert (quick._loop._guess is not None) == quick.runner.shares_pages
    assert engine_for(build(RecurrentConfig(vocab_size=300, hidden_size=16), seed=1))._loop._guess is None
    with pytest.raises(ModelError, match="cannot be taken back"):
        Engine(build(RecurrentConfig(vocab_size=300, hidden_size=16), seed=1), guess=PromptLookup)


@torch.no_grad()
def test_weights_that_stay_in_the_file_are_laid_out_as_others(tmp_path: Path, decoder: Model, precision: Precision,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries, keys and values are three tensors there, gate and up two; the file is let go of."""
    save_model(tmp_path / "model", decoder)
    mapped, batch = load_model(tmp_path / "model", mapped=True), Batch(_tokens(2, 20))
    pieces = [part.lying for part in mapped.modules() if isinstance(part, Linear)]
    assert {len(some) for some in pieces} == {1, 2, 3}
    assert torch.equal(for_reading(mapped, precision)(batch), for_reading(decoder, precision)(batch))
    monkeypatch.setattr(linear, "packs", lambda *given: None)  # nothing can be laid out: what is read is copied
    monkeypatch.setattr(light, "packs", lambda *given: None)
    plain = for_reading(load_model(tmp_path / "model", mapped=True), "float32")
    assert not any(part.lying for part in plain.modules() if isinstance(part, Linear))
    assert torch.equal(plain(batch), decoder(batch))


def test_a_file_is_hashed_once_and_again_when_it_has_changed(tmp_path: Path, decoder: Model,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(tmp_path / "model", decoder)
    path, times = tmp_path / "model" / "model.safetensors", []
    monkeypatch.setattr(whole, "_SETTLED", -1)
    monkeypatch.setattr(whole, "digest", lambda path: times.append(path) or digest(path))
    for _ in range(3):
        load_model(tmp_path / "model")
    assert times == [path]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelError, match="sha256 is not the one"):
        load_model(tmp_path / "model")
