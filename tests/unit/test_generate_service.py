"""The engine as a service over a runner whose tokens are a hash of what it finds in its pages, and over the states of a
table: whatever comes, goes, waits and is preempted, every answer is the one the request has alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from paged import PageTape
from tables import CONTEXT, VOCAB, Table, row

from cutaway.errors import ModelError, RequestError
from cutaway.generate.engine import Engine
from cutaway.generate.request import Completion, Event, Request, Sampling
from cutaway.generate.runner import Runner, StateRunner
from cutaway.generate.track import Part, Work

GREEDY = Sampling(temperature=0)
beginnings = st.sampled_from([(), (1, 2), (1, 2, 3, 4), (5,)])
samplings = st.builds(Sampling, temperature=st.sampled_from([0.0, 1.0]), repetition_penalty=st.sampled_from([1.0, 1.3]))
requests = st.builds(
    lambda start, rest, **other: Request((*start, *rest), **other), beginnings,
    st.lists(st.integers(0, 3), min_size=1, max_size=6).map(tuple), max_tokens=st.integers(1, 8),
    seed=st.integers(0, 9), stop_ids=st.lists(st.integers(0, VOCAB - 1), max_size=2).map(tuple),
    sampling=samplings, logprobs=st.sampled_from([None, 1]), prompt_logprobs=st.sampled_from([None, None, 0]))


@dataclass(frozen=True)
class Pool:
    """An engine with hardly any room."""

    shares: bool
    pages: int
    size: int
    max_rows: int
    step_tokens: int
    step: float
    depth: float
    guesses: bool = False

    def engine(self) -> Engine:
        runner: Runner
        if self.shares:
            runner = PageTape(pages=self.pages, size=self.size)
        else:
            runner = StateRunner(Table(), max_rows=self.max_rows)
            runner.page_size, runner.num_pages = self.size, self.pages
        return Engine(Table(), max_rows=self.max_rows, runner=runner, step_tokens=self.step_tokens,
                      work=Work(self.step, self.depth), guess=Guessed if self.guesses and self.shares else None)


class Guessed:
    """The likeliest tokens, but now and then another."""

    def __init__(self, wrong: int = 4) -> None:
        self.wrong, self.before, self.notes = wrong, list[int](), list[tuple[int, int]]()

    def propose(self, tokens: Sequence[int], most: int) -> tuple[int, ...]:
        assert most > 0 and tokens[: len(self.before)] == self.before
        self.before, tape = list(tokens), list(tokens)
        for _ in range(most):
            tape.append((int(row(tape).argmax()) + (sum(tape) % self.wrong == 0)) % VOCAB)
        return tuple(tape[len(tokens) :])

    def note(self, proposed: int, kept: int) -> None:
        assert 0 <= kept <= proposed > 0
        self.notes.append((proposed, kept))


pools = st.builds(Pool, st.booleans(), guesses=st.booleans(), pages=st.integers(4, 12), size=st.integers(1, 4),
                  max_rows=st.integers(1, 5), step_tokens=st.integers(1, 20), step=st.sampled_from([1.0, 3.0, 9.0]),
                  depth=st.sampled_from([float("inf"), 6.0]))
submits, cancels = st.tuples(requests, st.sampled_from(["", "key"])), st.integers(0, 20)
moves = st.lists(st.one_of(submits, st.none(), st.none(), cancels), max_size=40)


@dataclass
class Desk:
    """Who asked what, and what came."""

    engine: Engine
    asked: dict[int, tuple[Request, str]] = field(default_factory=dict)
    events: dict[int, list[Event]] = field(default_factory=dict)
    gone: set[int] = field(default_factory=set)

    def submit(self, request: Request, salt: str = "") -> int | None:
        try:
            ticket = self.engine.submit(request, salt=salt)
        except RequestError as error:
            assert "all pages together" in str(error)
            return None
        self.asked[ticket], self.events[ticket] = (request, salt), []
        return ticket

    def cancel(self, which: int) -> None:
        if self.asked:
            ticket = which % len(self.asked)
            self.engine.cancel(ticket)
            self.gone |= set() if self.done(ticket) else {ticket}

    def step(self) -> None:
        for event in self.engine.step():
            assert event.request not in self.gone and not self.done(event.request)
            self.events[event.request].append(event)

    def done(self, ticket: int) -> bool:
        last = self.events[ticket][-1] if self.events[ticket] else None
        return last is not None and (last.finish is not None or last.error is not None)

    def check(self) -> None:
        stats, runner = self.engine.stats(), self.engine.runner
        assert stats.pages_free + stats.pages_cached + stats.pages_used == runner.num_pages
        if self.engine.idle:
            assert stats.pages_used == stats.running == stats.waiting == 0

    def finish(self) -> None:
        for _ in range(2000):
            if self.engine.idle:
                break
            self.step()
            self.check()
        assert self.engine.idle and self.engine.step() == []
        assert all(self.done(t) for t in self.asked if t not in self.gone)


def alone(request: Request) -> Completion:
    done, = Engine(Table()).generate([request])
    return done


def compare(desk: Desk) -> None:
    """Every answer is the request's own, and what was cached had been said under the same salt."""
    for ticket, (request, salt) in desk.asked.items():
        events, wanted = desk.events[ticket], alone(request)
        assert tuple(e.token for e in events) == wanted.tokens[: len(events)]
        if ticket not in desk.gone:
            assert len(events) == len(wanted.tokens) and events[-1].finish == wanted.finish_reason
            assert tuple(e.logprob for e in events if e.logprob is not None) == pytest.approx(wanted.logprobs)
        if events:
            assert events[0].prompt == wanted.prompt or np.allclose(events[0].prompt.logprobs, wanted.prompt.logprobs)
            shared, apart = request.tokens[: events[0].cached], desk.engine.runner.shares_pages
            assert len(shared) < len(request.tokens) or not apart
            assert not shared or (request.prompt_logprobs is None and any(
                (*r.tokens, *(e.token for e in desk.events[t]))[: len(shared)] == shared
                for t, (r, s) in desk.asked.items() if t != ticket and (s == salt or not apart)))
        assert not any(e.cached or e.prompt for e in events[1:])


@settings(max_examples=150, deadline=None)
@given(pools, moves)
def test_whatever_comes_and_goes_every_answer_is_the_requests_own(
        pool: Pool, some: list[tuple[Request, str] | int | None]) -> None:
    desk = Desk(pool.engine())
    for move in some:
        if isinstance(move, tuple):
            desk.submit(*move)
        elif move is None:
            desk.step()
        else:
            desk.cancel(move)
        desk.check()
    desk.finish()
    compare(desk)
    again = Desk(pool.engine())
    for move in some:
        if isinstance(move, tuple):
            again.submit(*move)
        elif move is None:
            again.step()
        else:
            again.cancel(move)
    again.finish()
    assert again.events == desk.events  # the same calls, the same steps


def work(part: Part, of: Work) -> float:
    return of.of(part.start, len(part.tokens))


def recorded(engine: Engine) -> Iterator[tuple[list[Part], list[Part]]]:
    """Of each step, what wrote and what read."""
    runner = engine.runner
    assert isinstance(runner, PageTape)
    begun: set[int] = set()
    for parts in runner.steps:
        writing = [p for p in parts if p.sequence in begun]
        yield writing, [p for p in parts if p.sequence not in begun]
        begun |= {p.sequence for p in parts if p.samples}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.integers(100, 380), st.sampled_from([1.0, 4.0, 32.0]),
       st.sampled_from([float("inf"), 50.0]), st.integers(0, 12))
def test_a_long_prompt_no_more_than_doubles_the_step_of_those_that_write(
        short: list[int], long: int, step: float, depth: float, before: int) -> None:
    of = Work(step, depth)
    engine = Engine(Wide(), max_rows=8, runner=PageTape(pages=400, size=4, context=400), step_tokens=64, work=of)
    for n in short:
        engine.submit(Request((1,) * n, 60, GREEDY))
    for _ in range(before):
        engine.step()
    engine.submit(Request(tuple(i % 5 for i in range(long)), 1, GREEDY))
    steps, last = 0, {}
    while not engine.idle:
        steps += 1
        for event in engine.step():
            if event.request < len(short):
                assert steps - last.get(event.request, steps - 1) == 1  # a token in every step
                last[event.request] = steps
    for writing, reading in recorded(engine):
        assert sum(len(p.tokens) for p in reading) <= 64 or writing
        if writing and reading:
            alone_, extra = sum(work(p, of) for p in writing), sum(work(p, of) for p in reading)
            assert extra <= step + alone_ or sum(len(p.tokens) for p in reading) == 1


class Wide(Table):
    """The same with a longer context."""

    context_length = 400


def test_prompts_are_read_in_chunks_beside_answers() -> None:
    engine = Engine(Wide(), runner=PageTape(pages=200, size=4, context=400), work=Work(7.0))
    first = engine.submit(Request((1, 2, 3), 30, GREEDY))
    engine.step()
    long = engine.submit(Request(tuple(range(12)) * 10, 1, GREEDY))
    said = [e.request for _ in range(20) for e in engine.step()]
    assert said.index(long) == 120 // 8 - 1 + said[: said.index(long)].count(first) - (120 // 8 - 1)
    assert [len(p.tokens) for _, reading in recorded(engine) for p in reading if p.sequence == long] == [8] * 15


def test_a_short_prompt_does_not_wait_for_long_ones_to_be_read() -> None:
    engine = Engine(Wide(), runner=PageTape(pages=400, size=4, context=400), work=Work(16.0), step_tokens=32)
    for busy in (True, False):
        if busy:
            engine.submit(Request((1, 2, 3), 90, GREEDY))
            engine.step()
        for i in range(2):
            engine.submit(Request((i, busy, *(0,) * 298), 1, GREEDY))
        short = engine.submit(Request((3, 4, 5, 6), 1, GREEDY))
        steps = next(i for i in range(1, 99) if any(e.request == short for e in engine.step()))
        assert steps == 1 if not busy else steps <= 3
        while not engine.idle:
            engine.step()
    runner = engine.runner
    assert isinstance(runner, PageTape)
    steps_read = [sum(len(p.tokens) for p in reading) for _, reading in recorded(engine)]
    assert sum(n == 32 for n in steps_read) >= 600 // 32 and sum(n == 17 for n in steps_read) >= 600 // 17 - 2


def test_cancelled_pages_are_free_before_the_next_step() -> None:
    engine = Engine(Table(), runner=PageTape(pages=8, size=4))
    stays, goes, waits = (engine.submit(Request((i,) * 9, 8, GREEDY)) for i in range(3))
    engine.step()
    used = engine.stats().pages_used
    engine.cancel(goes)
    engine.cancel(waits)
    engine.cancel(waits)
    assert engine.stats().pages_used == used - 3
    assert {e.request for _ in range(9) for e in engine.step()} == {stays}
    runner = engine.runner
    assert isinstance(runner, PageTape) and goes in runner.forgotten
    engine.cancel(stays)
    with pytest.raises(RequestError, match="no request 3"):
        engine.cancel(3)


def test_equal_prompts_share_their_full_pages_and_read_the_rest_themselves() -> None:
    engine = Engine(Table(), runner=PageTape(pages=40, size=4))
    desk = Desk(engine)
    prompt = tuple(range(11))
    for seed in range(3):
        desk.submit(Request(prompt, 2, seed=seed))
    desk.submit(Request(prompt, 2, seed=3), salt="another's")
    desk.submit(Request(prompt, 2, seed=4, prompt_logprobs=0))
    desk.finish()
    compare(desk)
    assert [desk.events[i][0].cached for i in range(5)] == [0, 8, 8, 0, 0]
    ends = [desk.submit(Request((*prompt[:8], 7, 8, 9, 7, 1), 1)), desk.submit(Request((7, 8, 9, 7, 1), 1))]
    desk.finish()
    assert [desk.events[t][0].cached for t in ends if t is not None] == [8, 0]  # a page is its beginning's alone
    later = desk.submit(Request((*prompt, *(e.token for e in desk.events[0][:1]), 3, 3), 1))
    desk.finish()
    assert later is not None and desk.events[later][0].cached == 12  # the answer's first token fills the third page
    stats = engine.stats()
    assert (stats.prompt_tokens, stats.cached_tokens, stats.generated_tokens) == (5 * 11 + 14 + 18, 16 + 12 + 8, 13)
    engine.clear()
    assert engine.stats().pages_cached == 0


def test_the_youngest_gives_way_and_its_answer_does_not_change() -> None:
    desk = Desk(Engine(Table(), runner=PageTape(pages=6, size=2)))
    for i in range(3):
        desk.submit(Request((i, 1), 8, GREEDY))
    desk.finish()
    compare(desk)
    assert desk.engine.stats().preemptions > 0
    ends = [desk.events[i][-1] for i in range(3)]
    assert all(e.finish == "length" for e in ends)


def test_what_could_never_fit_is_refused_with_numbers() -> None:
    engine = Engine(Table(), runner=PageTape(pages=3, size=4))
    with pytest.raises(RequestError, match=r"a prompt of 9 tokens and max_tokens 5 need room for 13.* have 12"):
        engine.submit(Request((1,) * 9, 5))
    with pytest.raises(RequestError, match="request 1: a prompt of 9"):
        engine.generate([Request((1,), 1), Request((1,) * 9, 5)])
    assert engine.idle
    ticket = engine.submit(Request((1,) * 9, 4))
    assert sum(e.request == ticket for _ in range(9) for e in engine.step()) == 4


@pytest.mark.parametrize("shares", [True, False])
def test_a_step_that_fails_ends_what_was_running_and_nothing_else(shares: bool) -> None:
    desk = Desk(Pool(shares, 10, 4, 2, 20, 3.0, float("inf")).engine())
    for i in range(4):
        desk.submit(Request((i, 1, 2, 3, 4), 6, GREEDY))
    desk.step()
    desk.step()
    break_next(desk.engine)
    desk.step()
    for ticket in (0, 1):
        *_, last = desk.events[ticket]
        assert isinstance(last.error, ModelError) and "out of memory" in str(last.error) and last.token == -1
    assert desk.engine.stats().pages_used == 0
    desk.finish()
    again = desk.submit(desk.asked[0][0])  # what was known of its pages is not any more
    desk.finish()
    assert again is not None and desk.events[again][0].cached == 0
    for ticket in (2, 3, again):
        assert tuple(e.token for e in desk.events[ticket]) == alone(desk.asked[ticket][0]).tokens


def break_next(engine: Engine) -> None:
    """The next step fails."""
    runner = engine.runner
    if isinstance(runner, PageTape):
        runner.fails = True
        return
    assert isinstance(runner, StateRunner)
    model = runner.model

    def fail(*_: object, **__: object) -> None:
        runner.model = model
        raise RuntimeError("out of memory")

    class Broken(Table):
        logits = fail  # type: ignore[assignment]

    runner.model = Broken()


def test_in_one_go_the_failure_is_raised_and_the_engine_goes_on() -> None:
    engine = Engine(Table(), runner=PageTape(pages=20, size=4))
    waiting = engine.submit(Request((1, 2), 3, GREEDY))
    break_next(engine)
    with pytest.raises(RuntimeError, match="out of memory"):
        engine.generate([Request((4,), 5, GREEDY)])
    assert [e.request for e in engine.step() if e.error is not None] == [waiting]
    assert engine.generate([Request((4,), 5, GREEDY)]) == [alone(Request((4,), 5, GREEDY))]


def test_a_service_and_sessions_do_not_disturb_each_other() -> None:
    engine = Engine(Table(), runner=PageTape(pages=40, size=4))
    asked = [Request((i, 2), 6, GREEDY) for i in range(5)]
    ticket = engine.submit(asked[0])
    first, second = engine.start(asked[1:3]).events(), engine.start(asked[3:]).events()
    one, two = [next(first)], [next(second)]
    online = engine.step()
    one += first
    two += second
    while not engine.idle:
        online += engine.step()
    said = {0: [e.token for e in online if e.request == ticket]}
    for events, base in ((one, 1), (two, 3)):
        said |= {base + i: [e.token for e in events if e.request == i] for i in range(2)}
    assert said == {i: list(alone(r).tokens) for i, r in enumerate(asked)}


def test_a_session_that_is_left_takes_its_requests_with_it() -> None:
    engine = Engine(Table(), runner=PageTape(pages=40, size=4))
    events = engine.stream([Request((1,), 9, GREEDY), Request((2,), 9, GREEDY)])
    next(events)
    events.close()  # type: ignore[attr-defined]
    assert engine.idle and engine.stats().pages_used == 0


@dataclass
class Spelled:
    """Allows the tokens of a word, one after another, and two at its second place."""

    word: tuple[int, ...]
    told: list[int] = field(default_factory=list)
    breaks: str = ""

    @property
    def done(self) -> bool:
        return len(self.told) == len(self.word)

    def mask(self) -> NDArray[np.uint32] | None:
        if self.breaks == "mask":
            raise RuntimeError("no such rule")
        allowed = {self.word[len(self.told)]} | ({11} if len(self.told) == 1 else set())
        if self.breaks == "nothing":
            allowed = set()
        return None if self.breaks == "free" else np.array([sum(1 << t for t in allowed)], np.uint32)

    def accept(self, token: int) -> None:
        self.told.append(token)


def test_a_constraint_rules_its_own_row_and_ends_it() -> None:
    word = Spelled((4, 7, 9))
    free, bound = (Request((1, 2), 8, seed=3, constraint=c, logprobs=0, sampler_logprobs=3) for c in (None, word))
    plain, done = Engine(Table()).generate([free, bound])
    assert plain == alone(free)
    assert done.tokens in ((4, 7, 9), (4, 11, 9)) and done.finish_reason == "stop" and list(done.tokens) == word.told
    assert done.sampler is not None and done.sampler.logprobs[::2] == (0.0, 0.0)
    assert [len(best) for best in done.sampler.alternatives] == [1, 2, 1]
    assert all(log < 0 for log in done.logprobs)
    free_, = Engine(Table()).generate([Request((1, 2), 3, seed=3, constraint=Spelled((0,) * 9, breaks="free"))])
    assert free_.tokens == plain.tokens[:3]


@pytest.mark.parametrize(("breaks", "words"), [("mask", "no such rule"), ("nothing", "allows no token")])
def test_a_constraint_that_fails_is_its_own_requests_end(breaks: str, words: str) -> None:
    desk = Desk(Engine(Table(), runner=PageTape(pages=40, size=4)))
    desk.submit(Request((1, 2), 4, GREEDY))
    bad = desk.submit(Request((1, 2), 4, GREEDY, constraint=Spelled((4, 7), breaks=breaks)))
    desk.finish()
    assert bad is not None and [words in str(e.error) for e in desk.events[bad]] == [True]
    assert tuple(e.token for e in desk.events[0]) == alone(Request((1, 2), 4, GREEDY)).tokens


def test_what_a_token_was_drawn_from_is_told_apart_from_what_the_model_says() -> None:
    cold = Request((1, 2), 5, Sampling(temperature=0.5, top_k=2), seed=1, logprobs=2, sampler_logprobs=5)
    done = alone(cold)
    assert done.sampler is not None
    for raw, best, drawn, of in zip(done.logprobs, done.alternatives, done.sampler.logprobs,
                                    done.sampler.alternatives, strict=True):
        odds = np.exp([2 * a.logprob for a in best])  # temperature 0.5 squares them
        assert [a.token for a in of] == [a.token for a in best]
        assert [np.exp(a.logprob) for a in of] == pytest.approx(odds / odds.sum(), rel=1e-4)
        assert drawn in [a.logprob for a in of] and raw in [a.logprob for a in best]
    greedy = alone(Request((1, 2), 3, GREEDY, sampler_logprobs=2))
    assert greedy.sampler is not None and greedy.sampler.logprobs == (0.0,) * 3
    assert [[a.token for a in best] for best in greedy.sampler.alternatives] == [[t] for t in greedy.tokens]


def test_a_context_that_is_full_of_a_prompt_in_chunks() -> None:
    desk = Desk(Engine(Table(), runner=PageTape(pages=12, size=2), step_tokens=5))
    desk.submit(Request(tuple(i % 7 for i in range(CONTEXT - 1)), "fit", GREEDY, prompt_logprobs=2))
    desk.finish()
    wanted = alone(desk.asked[0][0])
    event, = desk.events[0]
    assert event.prompt is not None and wanted.prompt is not None and event.finish == "length"
    assert event.prompt.logprobs == pytest.approx(wanted.prompt.logprobs)
    assert len(event.prompt.logprobs) == len(event.prompt.alternatives) == CONTEXT - 2


def test_proposed_tokens_that_come_true_save_steps_and_change_nothing() -> None:
    request = Request((1, 2), 20, GREEDY, logprobs=1)
    wanted, counts = alone(request), list[int]()
    always, never = Guessed(10**9), Guessed(1)
    for guess in (None, always, never):
        runner = PageTape(pages=12, size=2)
        desk = Desk(Engine(Table(), runner=runner, work=Work(6.0), guess=None if guess is None else lambda g=guess: g))
        desk.submit(request)
        desk.finish()
        compare(desk)
        counts.append(len(runner.steps))
    assert counts[0] == counts[2] == len(wanted.tokens) and counts[1] == 1 + -(-(len(wanted.tokens) - 1) // 7)
    assert always.notes[0] == (6, 6) and {kept for _, kept in never.notes} == {0}


def test_nothing_is_proposed_while_prompts_wait_nor_where_it_could_not_be_taken_back() -> None:
    engine = Engine(Table(), runner=PageTape(pages=40, size=2), max_rows=1, guess=Guessed)
    engine.submit(Request((1, 2), 9, GREEDY))
    engine.submit(Request((1, 3), 9, GREEDY))
    while engine.stats().waiting:
        engine.step()
    assert all(len(p.tokens) == 1 for writing, _ in recorded(engine) for p in writing)
    with pytest.raises(ModelError, match="leave speculation out"):
        Engine(Table(), guess=Guessed)


def test_what_prompts_have_in_common_is_read_once_and_each_of_them_once() -> None:
    model, common = Wide(), tuple(i % 7 for i in range(40))
    asked = [Request((*common, i, 3, 4), 2, seed=s) for i in range(5) for s in range(3)]
    asked += [Request((*common, 8, 8, 8), 2), Request(common, 2, seed=5)]
    done = Engine(model, max_rows=8).generate(asked)
    assert done == [Engine(Wide()).generate([r])[0] for r in asked]
    assert model.reads == 40 + 6 * 3 + len(asked)  # beginnings, ends, and of each answer the token before its last
    engine = Engine(Wide(), max_rows=3)
    engine.generate(asked)
    assert engine.stats().cached_tokens == 15 * 43 + 40 + 40
