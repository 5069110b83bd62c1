"""The engine as a service over a runner whose tokens are a hash of what it finds in its pages, and over the states of a
table: whatever comes, goes, waits and is preempted, every answer is the one the request has alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paged import GREEDY, Desk, Guessed, PageTape, Wide, alone, compare
from tables import VOCAB, Table
from torch import Tensor

from cutaway.errors import ModelError, RequestError
from cutaway.generate.engine import Engine
from cutaway.generate.loop import PROPOSED
from cutaway.generate.request import Request, Sampling
from cutaway.generate.runner import Runner, StateRunner
from cutaway.generate.track import Part, Work

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


pools = st.builds(Pool, st.booleans(), guesses=st.booleans(), pages=st.integers(4, 12), size=st.integers(1, 4),
                  max_rows=st.integers(1, 5), step_tokens=st.integers(1, 20), step=st.sampled_from([1.0, 3.0, 9.0]),
                  depth=st.sampled_from([float("inf"), 6.0]))
submits, cancels = st.tuples(requests, st.sampled_from(["", "key"])), st.integers(0, 20)
moves = st.lists(st.one_of(submits, st.none(), st.none(), cancels), max_size=40)


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
    for step in range(1, 9):
        desk.step()
        assert len(desk.events[0]) == step  # the oldest never waits
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


def test_a_step_that_fails_while_others_begin_as_a_beginning_leaks_no_page() -> None:
    engine = Engine(Table(), max_rows=2, runner=StateRunner(Table(), max_rows=2))
    for count in (2, 3):
        for seed in range(count):
            engine.submit(Request((1, 2, 3), 4, seed=seed))
        assert engine.step() == [] and engine.stats().pages_used == 1  # what they have in common
        engine.runner.run = fail  # type: ignore[method-assign]
        assert [e.error is None for e in engine.step()] == [False, False]
        del engine.runner.run
        assert engine.stats().pages_used == 0
        while not engine.idle:
            engine.step()


def fail(*_: object, **__: object) -> Tensor:
    raise RuntimeError("out of memory")


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


def test_in_one_go_rows_are_filled_several_at_a_time() -> None:
    runner = PageTape(pages=99, size=4)
    engine, asked = Engine(Table(), max_rows=8, runner=runner), [Request((i % 5, i), 2 + i, GREEDY) for i in range(13)]
    assert engine.generate(asked) == [alone(r) for r in asked]
    reads = [len(reading) for writing, reading in recorded(engine) if reading]
    assert reads[0] == 8 and sum(reads) == 13 and min(reads[1:-1]) >= 2


def test_a_finished_row_does_not_overflow_the_state_of_those_that_go_on() -> None:
    asked = [Request((1,) * 12, 3, GREEDY), *(Request((i,), 16, GREEDY) for i in range(7))]
    assert Engine(Table(), max_rows=8).generate(asked) == [alone(r) for r in asked]


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
    rest = len(wanted.tokens) - 1
    assert counts[0] == counts[2] == 1 + rest and counts[1] == 1 + -(-rest // (PROPOSED + 1))
    assert always.notes[0] == (PROPOSED, PROPOSED) and {kept for _, kept in never.notes} == {0}


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
