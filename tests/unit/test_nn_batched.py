"""Pages without kernels: a token of many sequences in one pass is what each sequence gives alone, for every decoder, in
whatever pages, buckets and pieces it is read; and a pass asks the device for nothing while it runs."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
from tiny import DECODERS, LENGTH, decoder
from torch import Tensor

from cutaway.batch import Batch
from cutaway.models.model import Model, build
from cutaway.nn import batched
from cutaway.nn.batched import BatchedStack, PagedCache
from cutaway.nn.captured import WARM_UP, Again, Capture, Pass, Recorded, bucket, called
from cutaway.nn.paged import PAGE, Reading


def pages_of(model: Model, count: int, capture: Capture | None = None) -> BatchedStack:
    """Pages in which others have left what is not even a number."""
    pages = BatchedStack(model.backbone, count, dtype=model.compute_dtype, capture=capture)
    for left in (pages.keys, pages.values):
        left.fill_(torch.nan)
    return pages


@torch.inference_mode()
def read(model: Model, reading: Reading, pages: BatchedStack) -> Tensor:
    return model.read(reading, pages)


def tokens_of(count: int, seed: int) -> list[int]:
    return torch.randint(0, 48, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def near(found: Tensor, model: Model, tokens: list[int]) -> None:
    """Logits behind the last tokens are those of the whole pass."""
    with torch.no_grad():
        wanted = model(Batch(torch.tensor([tokens])))[0, -len(found) :]
    assert (found - wanted).abs().max() <= 1e-5 * max(1.0, float(wanted.abs().max()))


class Taped:
    """What is captured must do: every shape has inputs that stay where they are and are read anew at each run, and is
    run some times more beforehand; all write their result to the same place, as graphs of one pool may."""

    def __init__(self) -> None:
        self.room = torch.full((64, 8, 128), torch.nan)
        self.inputs: list[Tensor] = []

    def __call__(self, run: Pass, inputs: Tensor) -> Again:
        assert all(inputs.data_ptr() != other.data_ptr() for other in self.inputs)
        self.inputs.append(inputs)
        for _ in range(WARM_UP):
            run(inputs)

        def again() -> Tensor:
            out = run(inputs)
            self.room.fill_(torch.nan)
            return self.room[: len(out), : out.shape[1], : out.shape[2]].copy_(out)

        return again


@pytest.mark.parametrize("name", DECODERS)
def test_a_token_of_many_rows_is_what_each_gives_alone(name: str) -> None:
    """Rows of all lengths around the borders of pages, two of them with a beginning in common, come and go."""
    model, tape = decoder(name), Taped()
    pages, order = pages_of(model, 40, tape), torch.randperm(40, generator=torch.Generator().manual_seed(0)).tolist()
    lengths = [1, 15, 16, 17, 31, 48]
    rows = [tokens_of(LENGTH, i) for i in range(len(lengths))]
    own = [order[6 * i : 6 * i + 6] for i in range(len(lengths))]
    rows[5][:32], own[5] = rows[4][:32], [own[4][0], *own[5][1:]]  # the first page is the other's too
    read(model, Reading.of([(rows[i][: lengths[i]], 0, own[i]) for i in range(5)], []), pages)
    read(model, Reading.of([(rows[5][16:48], 16, own[5])], []), pages)
    for step in range(36):
        going = [i for i in range(len(rows)) if i != step % 7 and lengths[i] < LENGTH]  # one waits now and then
        parts = [([rows[i][lengths[i]]], lengths[i], own[i][: lengths[i] // PAGE + 1]) for i in going]
        found = read(model, Reading.of(parts, range(len(going))), pages)
        for i, logits in zip(going, found, strict=True):
            lengths[i] += 1
            near(logits[None], model, rows[i][: lengths[i]])
    assert {tuple(t.shape) for t in tape.inputs} == {(1, 4), (8, 7), (8, 9)}  # 5 or 6 rows of 4 to 6 pages


@pytest.mark.parametrize("name", DECODERS)
def test_together_and_one_by_one_are_the_same(name: str) -> None:
    """Prompts of all lengths beside rows that write, in one reading and in one of each, every logit wanted or some."""
    model = decoder(name)
    together, apart = pages_of(model, 30), pages_of(model, 30)
    sizes = [(0, 1), (20, 1), (0, 33), (16, 32), (5, 30), (0, 2)]
    rows = [tokens_of(before + count, i) for i, (before, count) in enumerate(sizes)]
    parts = [(row[before:], before, range(5 * i, 5 * i + 5)) for i, (row, (before, _)) in
             enumerate(zip(rows, sizes, strict=True))]
    for pages in (together, apart):
        for row, (before, _), (_, _, own) in zip(rows, sizes, parts, strict=True):
            if before:
                read(model, Reading.of([(row[:before], 0, own)], []), pages)
    found = read(model, Reading.of(parts, range(99)), together).split([count for _, count in sizes])
    alone = [read(model, Reading.of([part], range(len(part[0]))), apart) for part in parts]
    for one, other, row in zip(found, alone, rows, strict=True):
        assert (one - other).abs().max() <= 1e-5 * max(1.0, float(other.abs().max()))
        near(one, model, row)
    picked = read(model, Reading.of(parts, [98, 0, 40]), together)
    for logits, (row, at) in zip(picked, ((5, 1), (0, 0), (3, 5)), strict=True):
        assert (logits - alone[row][at]).abs().max() <= 1e-5 * max(1.0, float(logits.abs().max()))


@pytest.mark.parametrize("name", ["around, windows", "gpt2"])
def test_what_is_too_much_for_a_pass_takes_several(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder(name)
    monkeypatch.setattr(batched, "PAIRS", 700)
    monkeypatch.setattr(batched, "PIECE", 5)
    monkeypatch.setattr(batched, "GATHERED", 10)
    runs, tape = list[tuple[int, ...]](), Taped()

    def noted(run: Pass, inputs: Tensor) -> Again:
        again = tape(run, inputs)
        return lambda: (runs.append(tuple(inputs.shape)), again())[1]

    pages = pages_of(model, 25, noted)
    plain, prompts = pages._read, list[tuple[int, int]]()

    def read_noted(sheet: Tensor, steps: int) -> Tensor:
        prompts.append((len(sheet), steps))
        return plain(sheet, steps)

    monkeypatch.setattr(pages, "_read", read_noted)
    rows = [tokens_of(n, n) for n in (70, 66, 20, 19, 3)]
    own = [range(5 * i, 5 * i + 5) for i in range(5)]
    found = read(model, Reading.of([(row[:-1], 0, p) for row, p in zip(rows, own, strict=True)], range(173)), pages)
    for logits, row in zip(found.split([len(row) - 1 for row in rows]), rows, strict=True):
        near(logits, model, row[:-1])
    warm = [(1, 2)] * WARM_UP  # what is short is made ready, and then runs
    assert prompts == [*warm, (1, 2), *[(2, 5)] * 13, (1, 4), (2, 18), (1, 1)]
    last = Reading.of([(row[-1:], len(row) - 1, p) for row, p in zip(rows, own, strict=True)], [4, 1, 0, 2, 3])
    for logits, i in zip(read(model, last, pages), (4, 1, 0, 2, 3), strict=True):
        near(logits[None], model, rows[i])
    assert runs[0] == (1, 2 + 2 + 1)
    assert runs[1:] == [(1, 2 + 1 + 6), (1, 2 + 1 + 6), (4, 2 + 1 + 2)]  # 5 pages are a bucket of 6, a whole context
    prompts.clear()
    monkeypatch.setattr(batched, "GATHERED", 9)  # two prompts of five pages would gather more
    read(model, Reading.of([(row[:-1], 0, p) for row, p in zip(rows, own, strict=True)], range(173)), pages)
    assert prompts == [(1, 2), *[(1, 10)] * 6, (1, 9), *[(1, 10)] * 6, (1, 5), (2, 18), (1, 1)]


def test_few_tokens_are_read_in_one_pass_with_single_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some that were proposed beside rows that read one; not where padding would make them many."""
    model = decoder("around")
    for joined, counts, shapes in ((64, (1, 3, 1), [(4, 4, 2 + 4 + 4)]), (64, (8,), [(8, 1, 2 + 8 + 4)]),
                                   (64, (9, 1), [(1, 1, 2 + 1 + 4)]), (7, (1, 2, 1), [(1, 2, 2 + 1 + 4)]),
                                   (64, (1, 5, *[1] * 7), [(1, 8, 2 + 1 + 4)])):
        monkeypatch.setattr(batched, "JOINED", joined)
        many = len(counts)
        pages, tape = pages_of(model, 4 * many, Taped()), [tokens_of(40 + i, i) for i in range(many)]
        own = [range(4 * i, 4 * i + 4) for i in range(many)]
        read(model, Reading.of([(row, 0, p) for row, p in zip(tape, own, strict=True)], []), pages)
        more = [tokens_of(count, 50 + i) for i, count in enumerate(counts)]
        now = [(new, len(row), p) for new, row, p in zip(more, tape, own, strict=True)]
        found = read(model, Reading.of(now, range(sum(counts))), pages).split(counts)
        for logits, row, new in zip(found, tape, more, strict=True):
            near(logits, model, row + new)
        assert pages.replays.shapes == shapes


def test_it_is_a_state_like_another() -> None:
    """What a pass finds and leaves behind pages and behind a cache, some rows reading less than others."""
    model, counts = decoder("learned"), torch.tensor([3, 1])
    pages, cache = pages_of(model, 6), model.new_state(2, capacity=48)
    table, lengths = torch.tensor([[4, 0, 2], [1, 5, 3]]), torch.tensor([0, 0])
    for left in (pages.keys, pages.values):
        left.fill_(7.0)  # finite, for the last pages are not begun
    for steps, own in ((17, None), (3, counts), (1, None)):
        batch = Batch(torch.randint(0, 48, (2, steps), generator=torch.Generator().manual_seed(steps)))
        state = PagedCache(pages.keys, pages.values, table, lengths, steps=steps, counts=own)
        with torch.inference_mode():
            found, wanted = (model.backbone(batch, dtype=torch.float32, state=s, counts=own) for s in (state, cache))
        real = torch.arange(steps) < (torch.tensor([[steps]] * 2) if own is None else own[:, None])
        assert (found - wanted)[real].abs().max() <= 1e-5 * wanted[real].abs().max()
        assert torch.equal(state.lengths, cache.lengths) and state.room(0) is None
        lengths = state.lengths


def test_what_others_left_touches_nobody() -> None:
    """A page that held what is no number, and one that a broken row wrote beside the others."""
    model = decoder("tied")
    pages, one, other = pages_of(model, 4), tokens_of(33, 1), tokens_of(20, 2)
    read(model, Reading.of([(one[:32], 0, [0, 1]), (other[:19], 0, [2, 3])], []), pages)
    pages.values[:, 2].fill_(torch.nan)  # of the other, which reads on
    found = read(model, Reading.of([(one[32:], 32, [0, 1, 3]), (other[19:], 19, [2, 2])], [0, 1]), pages)
    near(found[:1], model, one)
    assert found[1].isnan().all()


def test_buckets_are_few() -> None:
    assert [bucket(n) for n in (1, 2, 3, 4, 5, 8, 9, 200, 256)] == [1, 2, 4, 4, 8, 8, 16, 256, 256]
    assert [bucket(n, 6) for n in (1, 3, 4, 5, 6)] == [1, 4, 4, 6, 6]
    model, tape = decoder("tied"), Taped()
    pages = pages_of(model, 6 * 16, tape)
    for many, before in itertools.product(range(1, 17), (0, 15, 16, 40, 70, 95)):
        own = [range(6 * i, 6 * i + 6) for i in range(many)]
        read(model, Reading.of([([1], before, p) for p in own], range(many)), pages)
    shapes = {(1, rows, 3 + width) for rows in (1, 2, 4, 8, 16) for width in (1, 2, 4, 6)}
    assert set(pages.replays.shapes) == shapes and len(tape.inputs) == len(shapes)


META = torch.device("meta")  # shapes without content: to wait for a value there is an error, and so are two devices


def on_meta(name: str) -> tuple[Model, BatchedStack]:
    model = build(DECODERS[name], compute_dtype=torch.bfloat16).eval().to(META)
    return model, BatchedStack(model.backbone, 8, dtype=torch.bfloat16, capture=called)


@pytest.mark.parametrize("steps", [1, 20])
@pytest.mark.parametrize("name", DECODERS)
def test_a_pass_waits_for_nothing_and_stays_on_its_device(name: str, steps: int) -> None:
    model, pages = on_meta(name)
    with torch.inference_mode():
        out = model.head(pages._read(torch.zeros((4, 2 + steps + 3), dtype=torch.long, device=META), steps))
    assert out.shape == (4, steps, 48) and out.device == META


@pytest.mark.parametrize("waits", [lambda out: int(out.argmax()), lambda out: bool(out.any()),
                                   lambda out: out.nonzero(), lambda out: out + torch.ones(1)])
def test_what_would_wait_is_found(waits: Callable[[Tensor], object]) -> None:
    """The test above can fail."""
    model, pages = on_meta("tied")
    model.backbone.norm.register_forward_hook(lambda module, given, out: (waits(out[1]), out)[1])
    with torch.inference_mode(), pytest.raises((RuntimeError, NotImplementedError)):
        pages._read(torch.zeros((4, 6), dtype=torch.long, device=META), 1)


@pytest.fixture
def gpu() -> Iterator[torch.device]:
    if not torch.cuda.is_available():
        pytest.skip("this machine has no GPU that CUDA serves")
    yield torch.device("cuda", 0)


@pytest.mark.parametrize("name", DECODERS)
def test_graphs_give_what_calls_give(name: str, gpu: torch.device) -> None:
    here, there = decoder(name), copy.deepcopy(decoder(name)).to(gpu)
    rows, own = [tokens_of(40, i) for i in range(6)], [range(6 * i, 6 * i + 6) for i in range(6)]
    graphs, calls = pages_of(there, 36), pages_of(there, 36, called)
    for pages in (graphs, calls):
        read(there, Reading.of([(row[:10], 0, p) for row, p in zip(rows, own, strict=True)], []), pages)
    for at in range(10, 40):
        for going in (range(6), range(1 + at % 6)):
            now = Reading.of([([rows[i][at]], at, own[i]) for i in going], going)
            one, other = read(there, now, graphs), read(there, now, calls)
            assert (one - other).abs().max() <= 1e-5 * max(1.0, float(other.abs().max()))
        for i, logits in enumerate(one.cpu()):
            with torch.no_grad():
                wanted = here(Batch(torch.tensor([rows[i][: at + 1]])))[0, -1]
            assert (logits - wanted).abs().max() <= 1e-4 * max(1.0, float(wanted.abs().max()))
    assert isinstance(graphs.replays._capture, Recorded) and graphs.replays.shapes == calls.replays.shapes
