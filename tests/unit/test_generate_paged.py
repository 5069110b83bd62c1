"""The engine over pages without kernels: the answers are those of carried states, in any mix; who is served by which
runner, with how many pages; and what a step waits for."""

from __future__ import annotations

import random
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import DECODERS, ENCODERS, EVERY, decoder
from torch.utils._python_dispatch import TorchDispatchMode

from cutaway.errors import MachineError
from cutaway.generate import paged
from cutaway.generate.engine import PAGED_STEP, Engine, engine_for, work_of
from cutaway.generate.paged import PagedRunner
from cutaway.generate.request import Completion, Event, Request, Sampling
from cutaway.generate.runner import StateRunner, runner_for
from cutaway.generate.speculate import PromptLookup
from cutaway.models.model import Model, build
from cutaway.nn.batched import BatchedStack

GREEDY = Sampling(temperature=0)
KINDS = [GREEDY, GREEDY, Sampling(temperature=0.8), Sampling(top_p=0.8, repetition_penalty=1.2), Sampling(top_k=5)]


def over_pages(model: Model, pages: int, *, guesses: bool = False, rows: int = 256, step_tokens: int = 2048) -> Engine:
    room = BatchedStack(model.backbone, pages, dtype=model.compute_dtype)
    return Engine(model, runner=PagedRunner(model, room), max_rows=rows, step_tokens=step_tokens,
                  guess=(lambda: PromptLookup(cost=0.0)) if guesses else None)


def over_states(model: Model) -> Engine:
    return Engine(model, runner=StateRunner(model, max_rows=256))


def request(draw: random.Random, shared: tuple[int, ...]) -> Request:
    prompt = shared[: draw.choice([0, 16, 32, 40])] + tuple(draw.randrange(48) for _ in range(draw.randint(1, 30)))
    return Request(prompt, draw.randint(1, 24), draw.choice(KINDS), seed=draw.randrange(99), stop_ids=(3,), logprobs=2)


def gathered(events: list[Event]) -> Completion:
    return Completion(tuple(e.token for e in events), events[-1].finish or "stop",
                      tuple(e.logprob or 0.0 for e in events), tuple(e.alternatives for e in events))


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("seed", range(3))
def test_any_mix_over_pages_gives_what_states_give(name: str, seed: int) -> None:
    """Requests come and go, begin alike, are read in chunks, cancelled, preempted where pages are few, and guessed at;
    in the end every page is free or known."""
    draw, model = random.Random(seed), decoder(name)
    shared = tuple(draw.randrange(48) for _ in range(40))
    waiting = [request(draw, shared) for _ in range(draw.randint(4, 9))]
    pages = draw.choice([8, 12, 60])
    engine = over_pages(model, pages, step_tokens=draw.choice([7, 32, 2048]), guesses=draw.random() < 0.5)
    events, asked, cancelled = dict[int, list[Event]](), dict[int, Request](), set[int]()
    while waiting or not engine.idle:
        if waiting and draw.random() < 0.5:
            ticket = engine.submit(waiting[-1])
            asked[ticket], events[ticket] = waiting.pop(), []
        live = [t for t in asked if t not in cancelled and not (events[t] and events[t][-1].finish)]
        if live and draw.random() < 0.04:
            cancelled.add(live[0])
            engine.cancel(live[0])
        for event in engine.step():
            assert event.error is None
            events[event.request].append(event)
    stats = engine.stats()
    assert stats.pages_used == stats.running == stats.waiting == 0
    assert stats.pages_free + stats.pages_cached == pages
    alone = over_states(model).generate(list(asked.values()))
    for ticket, wanted in zip(asked, alone, strict=True):
        found = events[ticket]
        assert tuple(e.token for e in found) == wanted.tokens[: len(found)]
        if ticket not in cancelled:
            whole = gathered(found)
            assert (whole.tokens, whole.finish_reason) == (wanted.tokens, wanted.finish_reason)
            assert whole.logprobs == pytest.approx(wanted.logprobs, abs=1e-4)


def test_a_beginning_is_read_once_and_proposals_are_taken_back() -> None:
    model = decoder("around")
    shared = tuple(range(7, 40))
    asked = [Request((*shared, 3 + i), 30, GREEDY, logprobs=0) for i in range(4)]
    engine = over_pages(model, 60, guesses=True)
    tickets = [engine.submit(r) for r in asked]
    said = {t: list[int]() for t in tickets}
    while not engine.idle:
        for event in engine.step():
            said[event.request].append(event.token)
    assert [tuple(said[t]) for t in tickets] == [c.tokens for c in over_states(model).generate(asked)]
    assert engine.stats().cached_tokens == 3 * 32


def test_who_is_served_over_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no kernel has the model's weights, only on kinds of device that are named; it promises no equal bits, and a
    step is not said to cost what it costs the kernels."""
    model = decoder("tied")
    assert isinstance(runner_for(model, max_rows=4), StateRunner)
    monkeypatch.setattr(paged, "BATCHED_ON", frozenset({"cpu"}))
    runner = runner_for(model, max_rows=4)
    assert isinstance(runner, PagedRunner) and isinstance(runner.pages, BatchedStack)
    assert runner.shares_pages and not runner.exact and runner.num_pages == 4 * 6
    assert len(runner.pages.keys[0]) == 4 * 6 + 1
    engine = engine_for(model)
    assert engine._loop._guess is PromptLookup
    assert engine._loop._scheduler.work == work_of(model) and work_of(model).step != PAGED_STEP
    assert model.page_bytes is not None
    assert runner_for(model, max_rows=4, cache_bytes=9 * model.page_bytes).num_pages == 8
    assert runner_for(model, max_rows=4, cache_bytes=7 * model.page_bytes).num_pages == 6
    with pytest.raises(MachineError, match=f"holds 80 tokens.*at least {7 * model.page_bytes}"):
        runner_for(model, max_rows=4, cache_bytes=7 * model.page_bytes - 1)


@pytest.mark.parametrize("config", [*ENCODERS, "encoder-decoder", "lstm"])
def test_only_decoders_have_pages(config: str) -> None:
    model = build(EVERY[config])
    assert model.page_bytes is None and model.new_pages(1) is None


def test_a_gpu_gives_pages_half_of_what_is_free_there(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[torch.device]()
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: asked.append(device) or (1000, 9000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 500)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 300)
    there: Any = SimpleNamespace(device=torch.device("cuda", 1))
    assert paged._room(there) == 600 and asked == [there.device]
    assert paged._room(decoder("tied")) > 2**20 and len(asked) == 1


class Waits(TorchDispatchMode):
    """Counts what cannot be done without knowing values: on a GPU each is a wait for all that was asked of it."""

    NAMES = ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal", "masked_select", "unique", "_unique2")

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = name.startswith("index") and any(getattr(i, "dtype", None) == torch.bool for i in _flat(args[1:2]))
        if name in self.NAMES or masks:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


def _flat(given: Any) -> list[Any]:
    return [x for each in given for x in _flat(each)] if isinstance(given, list | tuple) else [given]


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_waits_for_its_tokens_alone(kind: Sampling) -> None:
    """Also where rows join and leave. A token's way to the host is a copy, which is not counted here: there is one."""
    model = decoder("around, windows")
    engine = over_pages(model, 60)
    for i in range(5):
        engine.submit(Request(tuple(range(5, 10 + 7 * i)), 6 + 3 * i, kind, seed=i, logprobs=2))
    copies = 0
    with Waits() as waits, pytest.MonkeyPatch.context() as patch:
        plain = torch.Tensor.cpu

        def counted(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal copies
            copies += 1
            return plain(tensor)

        patch.setattr(torch.Tensor, "cpu", counted)
        steps = 0
        while not engine.idle:
            steps += bool(engine.step())
    assert not waits.found
    assert copies == 4 * steps  # tokens; and as they were asked for: log-probabilities, the best ids and theirs


def test_waits_are_counted() -> None:
    """The test above can fail."""
    x = torch.ones(3)
    for wait in (lambda: int(x.sum()), lambda: bool(x.any()), x.nonzero, lambda: x[x > 0], lambda: torch.equal(x, x),
                 lambda: x.clone().__setitem__(x > 0, x), lambda: x[None].clone().__setitem__((0, x > 0), 1.0)):
        with Waits() as waits, torch.inference_mode():
            wait()
        assert waits.found
