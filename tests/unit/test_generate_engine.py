"""The engine driven by a table: its bookkeeping, without a network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import VOCAB, Table, Tape, row
from torch import Tensor

from cutaway.errors import ModelError, RequestError
from cutaway.generate.engine import Engine
from cutaway.generate.prefill import waves
from cutaway.generate.request import Request, Sampling

requests = st.builds(
    Request, tokens=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=12).map(tuple),
    max_tokens=st.integers(1, 12), seed=st.integers(0, 2**64 - 1),
    stop_ids=st.lists(st.integers(0, VOCAB - 1), max_size=3).map(tuple), logprobs=st.sampled_from([None, 0, 2]),
    sampling=st.builds(Sampling, temperature=st.sampled_from([0.0, 0.7, 1.0]), top_k=st.sampled_from([None, 3]),
                       repetition_penalty=st.sampled_from([1.0, 1.3])))


@settings(max_examples=80, deadline=None)
@given(st.lists(requests, max_size=9), st.integers(1, 4))
def test_batched_is_alone(many: list[Request], max_rows: int) -> None:
    engine = Engine(Table(), max_rows=max_rows)
    together = engine.generate(many)
    assert together == [Engine(Table()).generate([r])[0] for r in many]
    for request, done in zip(many, together, strict=True):
        stopped = [t in request.stop_ids for t in done.tokens]
        assert not any(stopped[:-1])
        assert (done.finish_reason == "stop") == stopped[-1]
        assert stopped[-1] or len(done.tokens) == request.max_tokens
    events = list(engine.stream(many))
    for i, done in enumerate(together):
        mine = [e for e in events if e.request == i]
        assert tuple(e.token for e in mine) == done.tokens
        assert [e.finish for e in mine] == [None] * (len(mine) - 1) + [done.finish_reason]
        assert tuple(e.logprob for e in mine if e.logprob is not None) == done.logprobs


def test_greedy_is_the_argmax_and_logprobs_are_the_models_own() -> None:
    request = Request((1, 2), 6, Sampling(temperature=0, presence_penalty=3.0, repetition_penalty=1.5), logprobs=3)
    done = Engine(Table()).generate([request])[0]
    tape = [1, 2]
    for token, logprob, best in zip(done.tokens, done.logprobs, done.alternatives, strict=True):
        logits = row(tape).astype(np.float64)
        logs = logits - np.log(np.exp(logits).sum())
        assert logprob == pytest.approx(logs[token], abs=1e-5)
        assert [a.token for a in best] == np.argsort(-logs)[:3].tolist()
        assert [a.logprob for a in best] == pytest.approx(np.sort(logs)[::-1][:3], abs=1e-5)
        tape.append(token)
    plain = Engine(Table()).generate([Request((1, 2), 6, Sampling(temperature=0))])[0]
    tape = [1, 2]
    for token in plain.tokens:
        assert token == int(row(tape).argmax())
        tape.append(token)


def test_a_group_reads_its_prompt_once() -> None:
    model = Table()
    Engine(model).generate([Request((1, 2, 3, 4), 1, seed=s) for s in range(8)])
    assert model.reads == 4


def test_a_request_stopped_from_outside_gives_nothing_more() -> None:
    session = Engine(Table(), max_rows=2).start([Request((i,), 8, Sampling(temperature=0)) for i in range(4)])
    counts = [0] * 4
    session.stop(3)  # still waiting
    for event in session.events():
        counts[event.request] += 1
        if event.request == 1 and counts[1] == 3:
            session.stop(1)
    assert counts == [8, 3, 8, 0]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 30)), max_size=40), st.integers(1, 7))
def test_every_request_is_in_exactly_one_wave(sizes: list[tuple[int, int]], rows: int) -> None:
    made = waves([Request((1,) * prompt, 1, source=(1,) * source or None) for source, prompt in sizes], rows)
    assert sorted(i for w in made for i in w) == list(range(len(sizes)))
    assert all(1 <= len(w) <= rows for w in made)
    assert [sizes[i] for w in made for i in w] == sorted(sizes)


@pytest.mark.parametrize(("request_", "words"), [
    (Request((), 3), ["at least one token"]), (Request((1,), 0), ["max_tokens", "0"]),
    (Request((1,) * 24, 1), ["24 tokens", "context of 24"]),
    (Request((1,) * 30, "fit"), ["30 tokens", "context of 24"]),
    (Request((1,) * 20, 5), ["20 tokens", "max_tokens 5", "25", "24"]), (Request((13,), 1), ["token 13", "13"]),
    (Request((-1,), 1), ["token -1"]), (Request((1,), 1, seed=-1), ["seed"]),
    (Request((1,), 1, logprobs=14), ["logprobs"])])
def test_what_cannot_be_served_is_refused_with_numbers(request_: Request, words: list[str]) -> None:
    with pytest.raises(RequestError) as caught:
        Engine(Table()).generate([Request((1,), 1), request_])
    assert all(w in str(caught.value) for w in ["request 1", *words])


def test_fit_fills_the_context_exactly() -> None:
    done = Engine(Table()).generate([Request((1,) * 20, "fit"), Request((2,) * 3, "fit")])
    assert [len(d.tokens) for d in done] == [4, 21]


def test_logits_that_are_not_finite_are_an_error() -> None:
    class Broken(Table):
        def logits(self, tokens: Tensor, state: Tape, *, counts: Tensor | None = None, every: bool = False) -> Tensor:  # type: ignore[override]
            out = super().logits(tokens, state, counts=counts)
            out[0, 5] = torch.nan
            return out

    for temperature in (0.0, 1.0):
        with pytest.raises(ModelError, match="not finite"):
            Engine(Broken()).generate([Request((1,), 2, Sampling(temperature=temperature))])
