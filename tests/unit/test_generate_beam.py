"""Beam search over a table of random numbers: the exact optimum by enumeration, greedy at width 1, batched = alone."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import Table, Tape, row
from torch import Tensor

import cutaway.generate.beam as beams
from cutaway.errors import ModelError, RequestError, SettingsError
from cutaway.generate.beam import Beam, search
from cutaway.generate.engine import Engine
from cutaway.generate.request import Request, Sampling
from cutaway.settings import decode

TOKENS, LONGEST = 3, 4
penalties = st.sampled_from([-0.5, 0.0, 0.6, 1.0, 2.0])


def logprob(prompt: tuple[int, ...], answer: tuple[int, ...], source: tuple[int, ...], vocab_size: int) -> float:
    """The sum over an answer, term by term."""
    total, tape = 0.0, list(prompt)
    for token in answer:
        logits = row(tape, source, vocab_size).astype(np.float64)
        total += float(logits[token] - np.log(np.exp(logits).sum()))
        tape.append(token)
    return total


def every_answer(stops: tuple[int, ...], longest: int) -> list[tuple[int, ...]]:
    """All that end at their first stop id, or at ``longest`` tokens."""
    return [a for n in range(1, longest + 1) for a in product(range(TOKENS), repeat=n)
            if not set(a[:-1]) & set(stops) and (a[-1] in stops or n == longest)]


@settings(max_examples=40, deadline=None)
@given(prompt=st.lists(st.integers(0, 2), min_size=1, max_size=4).map(tuple),
       source=st.lists(st.integers(0, 2), min_size=1, max_size=5).map(tuple), penalty=penalties,
       stops=st.lists(st.integers(0, 2), max_size=2, unique=True).map(tuple), longest=st.integers(1, LONGEST))
def test_wide_enough_it_finds_the_optimum(prompt: tuple[int, ...], source: tuple[int, ...], penalty: float,
                                          stops: tuple[int, ...], longest: int) -> None:
    beam = Beam(width=TOKENS**LONGEST, num_return=3, length_penalty=penalty, early_stopping="never")
    model = Table(TOKENS, reads_source=True)
    found = search(model, [Request(prompt, longest, stop_ids=stops, source=source)], beam)[0]
    scored = [(logprob(prompt, a, source, TOKENS) / len(a)**penalty, a) for a in every_answer(stops, longest)]
    best = sorted(scored, reverse=True)[:3]
    assert [h.tokens for h in found] == [a for _, a in best]
    assert [h.score for h in found] == pytest.approx([s for s, _ in best], abs=1e-5)
    for h in found:
        assert h.logprob == pytest.approx(h.score * len(h.tokens)**penalty)
        assert h.finish_reason == ("stop" if h.tokens[-1] in stops else "length")


def stopped_early(beam: Beam, request: Request) -> tuple[float, int]:
    """The best score and how many tokens the model had to read for it."""
    model = Table(TOKENS)
    return search(model, [request], beam)[0][0].score, model.reads


@settings(max_examples=60, deadline=None)
@given(prompt=st.lists(st.integers(0, 2), min_size=1, max_size=6).map(tuple), penalty=penalties,
       width=st.integers(1, 6))
def test_never_gives_up_nothing_and_the_other_rules_only_save_work(prompt: tuple[int, ...], penalty: float,
                                                                   width: int) -> None:
    request = Request(prompt, 8, stop_ids=(0,))
    (first, least), (_, some), (never, most) = (
        stopped_early(Beam(width=width, length_penalty=penalty, early_stopping=rule), request)
        for rule in ("first", "heuristic", "never"))
    assert first <= never + 1e-9
    if penalty >= 0:  # below 0 the heuristic's length is one too short, and "never" stops before it
        assert least <= some <= most
    patient = Beam(width=width, length_penalty=penalty, early_stopping="never", num_return=width)
    found = search(Table(TOKENS), [request], patient)[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(beams._Wave, "_done", lambda _, best: ~best.isfinite())  # on to the last token
        assert search(Table(TOKENS), [request], patient)[0] == found


requests = st.builds(
    Request, tokens=st.lists(st.integers(0, 12), min_size=1, max_size=9).map(tuple), max_tokens=st.integers(1, 12),
    stop_ids=st.lists(st.integers(0, 12), max_size=3).map(tuple),
    source=st.lists(st.integers(0, 12), min_size=1, max_size=5).map(tuple))


@settings(max_examples=40, deadline=None)
@given(many=st.lists(requests, max_size=7), width=st.integers(1, 5), penalty=penalties, max_rows=st.integers(1, 12),
       rule=st.sampled_from(["first", "heuristic", "never"]))
def test_batched_is_alone(many: list[Request], width: int, penalty: float, max_rows: int, rule: str) -> None:
    beam = decode(Beam, {"width": width, "num_return": width, "length_penalty": penalty, "early_stopping": rule},
                  where="test")
    model = Table(reads_source=True)
    together = search(model, many, beam, max_rows=max_rows)
    assert together == [search(model, [r], beam)[0] for r in many]
    assert together[::-1] == search(model, many[::-1], beam)
    for request, found in zip(many, together, strict=True):
        assert len(found) == width
        for h in found:
            stopped = [t in request.stop_ids for t in h.tokens]
            assert not any(stopped[:-1])
            assert (h.finish_reason == "stop") == stopped[-1] and (stopped[-1] or len(h.tokens) == request.max_tokens)


@settings(max_examples=30, deadline=None)
@given(many=st.lists(requests, min_size=1, max_size=5), penalty=penalties)
def test_width_one_is_greedy(many: list[Request], penalty: float) -> None:
    model = Table(reads_source=True)
    greedy = Engine(model).generate([Request(r.tokens, r.max_tokens, Sampling(temperature=0), stop_ids=r.stop_ids,
                                             source=r.source) for r in many])
    found = search(model, many, Beam(width=1, length_penalty=penalty, early_stopping="first"))
    assert [(f[0].tokens, f[0].finish_reason) for f in found] == [(g.tokens, g.finish_reason) for g in greedy]


def test_fewer_answers_than_asked_for_only_where_fewer_exist() -> None:
    found = search(Table(TOKENS), [Request((1,), 1)], Beam(width=8, num_return=8))[0]
    assert {h.tokens for h in found} == {(0,), (1,), (2,)}


def test_what_a_search_does_not_honour_is_refused() -> None:
    for request in (Request((1,), 2, Sampling(temperature=0.5)), Request((1,), 2, logprobs=0)):
        with pytest.raises(RequestError, match="draws no tokens"):
            search(Table(), [request], Beam())
    with pytest.raises(SettingsError, match="num_return 5 must not be above the width of 4"):
        decode(Beam, {"num_return": 5}, where="test")
    with pytest.raises(RequestError, match=r"request 1: .* reads no source"):
        search(Table(), [Request((1,), 2), Request((1,), 2, source=(1,))], Beam())
    assert search(Table(), [], Beam()) == []


def test_logits_that_are_not_finite_are_an_error() -> None:
    class Broken(Table):
        def logits(self, tokens: Tensor, state: Tape, *, counts: Tensor | None = None, every: bool = False) -> Tensor:
            out = super().logits(tokens, state, counts=counts)
            out[0, 5] = torch.nan
            return out

    with pytest.raises(ModelError, match="not finite"):
        search(Broken(), [Request((1,), 2)], Beam())
