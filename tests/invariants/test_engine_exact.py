"""A request gives the same tokens and the same log-probabilities, bit for bit, alone and in any mix: beside others that
come and go, with adapters of their own, in chunks, behind cached pages, preempted and read again, with what may follow
proposed and checked several tokens a step."""

from __future__ import annotations

import random

import pytest
import torch
from lora import drawn

from cutaway.generate.engine import Engine
from cutaway.generate.paged import PagedRunner
from cutaway.generate.request import Completion, Event, Request, Sampling
from cutaway.generate.speculate import PromptLookup
from cutaway.models.adapter import Lora
from cutaway.models.beside import with_adapters
from cutaway.models.light import Precision, for_reading
from cutaway.models.model import Model, build
from cutaway.models.transformer import TransformerConfig, Variant
from cutaway.nn.linear import packs

MIXES = 70  # of each precision
ADAPTERS = ("small", "large")
SIZES = {"vocab_size": 90, "hidden_size": 48, "num_layers": 2, "num_heads": 3, "num_kv_heads": 1,
         "intermediate_size": 64, "context_length": 96}


@pytest.fixture(scope="module", params=["float32", "bfloat16", "int8", "int4"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    precision: Precision = request.param
    if packs(torch.zeros(1, 2), precision) is None:
        pytest.skip(f"no products of {precision} here")
    variant = Variant(family="gemma3_text", order="around", head_norm=True, window=24, local_layers=(1,))
    base, folder = build(TransformerConfig(**SIZES, variant=variant), seed=1), tmp_path_factory.mktemp("adapters")  # type: ignore[arg-type]
    adapters = {"small": drawn(folder / "1", base, Lora(rank=3, targets=("q_proj", "down_proj")), seed=2),
                "large": drawn(folder / "2", base, Lora(rank=8), seed=3)}
    return for_reading(with_adapters(base, adapters, base=folder), precision)


def _engine(model: Model, pages: int, *, step_tokens: int = 2048, guesses: bool = False) -> Engine:
    room = model.new_pages(pages)
    assert room is not None
    return Engine(model, runner=PagedRunner(model, room), step_tokens=step_tokens,
                  guess=(lambda: PromptLookup(cost=0.0)) if guesses else None)


def _request(draw: random.Random, shared: tuple[int, ...]) -> Request:
    prompt = shared[: draw.choice([0, 16, 32, 40])] + tuple(draw.randrange(90) for _ in range(draw.randint(1, 30)))
    sampling = Sampling(temperature=draw.choice([0, 0, 0.8]), top_p=draw.choice([1.0, 0.9]))
    return Request(prompt, draw.randint(1, 20), sampling, seed=draw.randrange(1000), stop_ids=(3,), logprobs=2,
                   adapter=draw.choice([None, None, *ADAPTERS]))


def _gathered(events: list[Event]) -> Completion:
    assert events[-1].finish is not None
    return Completion(tuple(e.token for e in events), events[-1].finish, tuple(e.logprob or 0.0 for e in events),
                      tuple(e.alternatives for e in events))


@pytest.mark.parametrize("seed", range(MIXES))
def test_any_mix_gives_what_each_gives_alone(model: Model, seed: int) -> None:
    draw = random.Random(seed)
    shared = tuple(draw.randrange(90) for _ in range(40))
    waiting = [_request(draw, shared) for _ in range(draw.randint(2, 9))]
    engine = _engine(model, draw.choice([8, 12, 60]), step_tokens=draw.choice([7, 32, 2048]),
                     guesses=draw.random() < 0.5)
    events: dict[int, list[Event]] = {}
    asked: dict[int, Request] = {}
    cancelled: set[int] = set()
    while waiting or not engine.idle:
        if waiting and draw.random() < 0.5:
            request = waiting.pop()
            ticket = engine.submit(request)
            asked[ticket], events[ticket] = request, []
        live = [t for t in asked if t not in cancelled and not (events[t] and events[t][-1].finish)]
        if live and draw.random() < 0.04:
            cancelled.add(live[0])
            engine.cancel(live[0])
        for event in engine.step():
            events[event.request].append(event)
    stats = engine.stats()
    assert stats.pages_used == 0 and stats.running == stats.waiting == 0
    for ticket, request in asked.items():
        alone, found = _engine(model, 6).generate([request])[0], events[ticket]
        if ticket in cancelled:
            assert tuple(e.token for e in found) == alone.tokens[: len(found)]
        else:
            assert _gathered(found) == alone
