"""A worker gets a better engine while the old one writes: every token comes, each from the engine that began it."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

from wired import BYTES, Fake, FakeEngine, FakeStats

from cutaway.generate.request import Event, Request
from cutaway.nn import kernels
from cutaway.server.limits import Limits
from cutaway.server.problem import Problem
from cutaway.server.seat import Call, Seat, summed
from cutaway.server.served import Figures
from cutaway.server.worker import Worker

MODEL: Any = SimpleNamespace(vocab_size=BYTES.vocab_size, context_length=256)


class Seen(FakeEngine):
    """Notes under which name it wrote for whom, and whether kernels were out of reach."""

    def __init__(self, name: str, fake: Fake) -> None:
        super().__init__(MODEL, fake)
        self.name, self.plain, self.own = name, set[bool](), list[int]()
        self.gone = list[int]()

    def submit(self, request: Request, *, salt: str = "") -> int:
        self.plain.add(kernels._here.instead == (None,))
        self.own.append(super().submit(request, salt=salt))
        return self.own[-1]

    def cancel(self, ticket: int) -> None:
        self.plain.add(kernels._here.instead == (None,))
        self.gone.append(ticket)
        super().cancel(ticket)

    def step(self) -> list[Event]:
        self.plain.add(kernels._here.instead == (None,))
        return super().step()


class Bench:
    """A worker, its engines as they were made, and the figures that it showed."""

    def __init__(self, pause: float = 0.003) -> None:
        self.fake, self.made = Fake(pause=pause), list[Seen]()
        self.worker = Worker("tiny", self.seat("old", plain=True), Limits())
        self.shown: list[Figures] = []

    def seat(self, name: str, *, plain: bool) -> Seat:
        def make() -> Seen:
            self.made.append(Seen(name, self.fake))
            return self.made[-1]

        return Seat(make, plain=plain)

    def ask(self, word: str, length: int, n: int = 1) -> Call:
        """``n`` equal requests, each with a seed of its own."""
        call = Call(tuple(Request(tuple(BYTES.encode(word)), length, seed=i) for i in range(n)))
        self.worker.submit(call)
        return call

    async def heard(self, call: Call, most: int = 1_000_000) -> dict[int, list[int]]:
        """The tokens of each choice, up to so many more in all. Raises what the call is told instead."""
        out: dict[int, list[int]] = {i: [] for i in range(len(call.requests))}
        ended = 0
        while ended < len(out) and most > 0:
            if not call.inbox:
                call.awake.clear()
                await asyncio.wait_for(call.awake.wait(), 10)
                continue
            item = call.inbox.popleft()
            if not isinstance(item, tuple):
                raise item
            index, event, _ = item
            out[index].append(event.token)
            ended += event.finish is not None
            most -= 1
            self.note()
        return out

    def note(self) -> None:
        """Keep what the figures show now."""
        if self.worker.figures is not None:
            self.shown.append(self.worker.figures)

    async def settled(self, what: Callable[[], bool]) -> bool:
        """Whether something becomes true in time."""
        for _ in range(1000):
            if what():
                return True
            await asyncio.sleep(0.005)
        return False


def alone(call: Call) -> dict[int, list[int]]:
    """What an engine without company writes for each choice."""
    engine, out = FakeEngine(MODEL, Fake()), {}
    for i, request in enumerate(call.requests):
        engine.submit(request)
        out[i] = []
        while not engine.idle:
            out[i] += [event.token for event in engine.step()]
    return out


def run(story: Callable[[Bench], Awaitable[None]], bench: Bench | None = None) -> Bench:
    bench = bench or Bench()

    async def whole() -> None:
        bench.worker.start()
        try:
            await asyncio.wait_for(story(bench), 30)
        finally:
            await bench.worker.close()

    asyncio.run(whole())
    return bench


def plus(first: dict[int, list[int]], second: dict[int, list[int]]) -> dict[int, list[int]]:
    return {i: first[i] + second[i] for i in first}


def test_no_token_is_lost_or_changed_and_each_comes_from_where_it_began() -> None:
    async def story(bench: Bench) -> None:
        first, second = bench.ask("one", 60), bench.ask("two", 40, n=2)
        waiting = bench.ask("not yet submitted by the thread", 30)
        begun = await bench.heard(first, 5)
        bench.worker.change(bench.seat("new", plain=False))
        third = bench.ask("three", 50, n=2)
        assert [call.plain for call in (first, second, waiting, third)] == [True, True, True, False]
        assert not bench.worker.plain
        assert plus(begun, await bench.heard(first)) == alone(first)
        for call in (second, waiting, third):
            assert await bench.heard(call) == alone(call)
        last = bench.ask("four", 10)
        assert await bench.heard(last) == alone(last)
        assert await bench.settled(lambda: getattr(bench.worker.figures, "running", 1) == 0)

    bench = run(story)
    old, new = bench.made
    assert (old.name, new.name) == ("old", "new")
    assert len(old.own) == 4 and len(new.own) == 3 and set(old.own) & set(new.own)  # with tickets of equal numbers
    assert old.plain == {True} and new.plain == {False}
    assert not old.gone and not new.gone and bench.worker.restarts == 0


def test_old_and_new_take_turns() -> None:
    order: list[str] = []

    async def story(bench: Bench) -> None:
        old = bench.ask("old", 40)
        await bench.heard(old, 1)
        bench.worker.change(bench.seat("new", plain=False))
        new = bench.ask("new", 20)
        await bench.heard(new)
        assert old.inbox and len(old.inbox) < 39  # it went on beside, and is not done
        order.append("new first")
        await bench.heard(old)

    run(story)
    assert order


def test_what_is_cancelled_is_cancelled_where_it_is() -> None:
    async def story(bench: Bench) -> None:
        old = bench.ask("old", 200, n=2)
        await bench.heard(old, 2)
        bench.worker.change(bench.seat("new", plain=False))
        new = bench.ask("new", 200, n=2)
        await bench.heard(new, 2)
        first, second = bench.made
        assert first.own == second.own == [1, 2]
        bench.worker.cancel(old, 0)
        assert await bench.settled(lambda: first.gone == [1]) and second.gone == []
        bench.worker.cancel(new, 1)
        assert await bench.settled(lambda: second.gone == [2]) and first.gone == [1]
        bench.worker.drop(old)
        assert await bench.settled(lambda: first.gone == [1, 2]) and second.gone == [2]
        bench.worker.cancel(old, 1)  # its engine is let go: nobody is hit in its place
        bench.worker.drop(old)
        bench.worker.drop(new)
        assert await bench.settled(lambda: second.gone == [2, 1]) and first.gone == [1, 2]
        again = bench.ask("again", 5)
        assert await bench.heard(again) == alone(again)

    run(story)


def test_an_engine_that_is_done_is_let_go_and_its_counts_stay() -> None:
    async def story(bench: Bench) -> None:
        old = bench.ask("old", 30)
        await bench.heard(old, 3)
        bench.worker.change(bench.seat("new", plain=False))
        new = bench.ask("new", 60)
        await asyncio.gather(bench.heard(old), bench.heard(new))
        held = weakref.ref(bench.made.pop(0))
        assert await bench.settled(lambda: held() is None)
        for _ in range(3):
            await bench.heard(bench.ask("more", 7))
        assert await bench.settled(lambda: getattr(bench.worker.figures, "running", 1) == 0)
        bench.note()

    bench = run(story)
    assert len({f.running for f in bench.shown}) == 3  # none, one, and two beside each other
    for name in ("generated_tokens", "prompt_tokens", "cached_tokens", "preemptions"):
        counts = [getattr(f, name) for f in bench.shown]
        assert counts == sorted(counts), name
    assert bench.shown[-1].generated_tokens == 30 + 60 + 21


def test_an_idle_engine_is_let_go_at_once() -> None:
    async def story(bench: Bench) -> None:
        await bench.heard(bench.ask("old", 3))
        held = weakref.ref(bench.made.pop())
        bench.worker.change(bench.seat("new", plain=False))
        assert await bench.settled(lambda: held() is None)
        new = bench.ask("new", 3)
        assert await bench.heard(new) == alone(new)
        assert bench.worker.figures is not None and bench.worker.figures.generated_tokens == 6

    run(story)


def test_a_failure_ends_both_and_the_newest_is_made_again() -> None:
    async def story(bench: Bench) -> None:
        old = bench.ask("old", 200)
        await bench.heard(old, 2)
        bench.worker.change(bench.seat("new", plain=False))
        new = bench.ask("new", 200)
        await bench.heard(new, 2)
        bench.fake.broken = True
        for call in (old, new):
            try:
                await bench.heard(call)
            except Problem as problem:
                assert problem.code == "engine_failed"
            else:
                raise AssertionError("it went on")
        bench.fake.broken = False
        for call in (old, new):
            bench.worker.drop(call)
        assert await bench.settled(lambda: bench.worker.state == "ready")
        after = bench.ask("after", 5)
        assert not after.plain and await bench.heard(after) == alone(after)
        assert bench.worker.restarts == 1 and bench.worker.figures is not None
        assert bench.worker.figures.generated_tokens == 5  # what an engine counts begins anew when it is made again

    bench = run(story)
    assert [engine.name for engine in bench.made] == ["old", "new", "new"]


def test_a_new_engine_that_cannot_be_made_is_tried_again() -> None:
    async def story(bench: Bench) -> None:
        await bench.heard(bench.ask("old", 3))
        tries: list[Seen | None] = [None, Seen("new", bench.fake)]

        def make() -> Seen:
            made = tries.pop(0)
            if made is None:
                raise RuntimeError("no memory, as the test wants it")
            return made

        bench.worker.change(Seat(make))
        assert await bench.settled(lambda: bench.worker.restarts == 1 and bench.worker.state == "ready")
        after = bench.ask("after", 5)
        assert await bench.heard(after) == alone(after)

    run(story)


def test_requests_begin_in_the_order_of_their_own_engine() -> None:
    """Who waits in one engine does not make those wait who are begun in another."""
    class Queues(Seen):
        def stats(self) -> FakeStats:
            return FakeStats(1, waiting=1 if self.name == "old" else 0)

    bench = Bench()
    bench.worker.start = lambda: None  # type: ignore[method-assign]
    old, new = Seat(lambda: Queues("old", bench.fake), plain=True), Seat(lambda: Queues("new", bench.fake))
    calls = [Call((Request((1,), 5),)) for _ in range(3)]
    for call, seat in zip(calls, (old, old, new), strict=True):
        call.seat, call.submitted = seat, 0.0
        bench.worker._unread.append(call)
    bench.worker._note_started(old, 1, 1.0)
    assert [call.started for call in calls] == [1.0, None, None]
    bench.worker._note_started(new, 0, 2.0)
    assert [call.started for call in calls] == [1.0, None, 2.0]


def test_figures_of_several_are_one() -> None:
    first = FakeStats(1, 2, 3, 4, 5, 6, 7, 8, 9)
    second = FakeStats(10, 20, 30, 40, 50, 60, 70, 80, 90)
    assert summed([first], []) is first
    both = summed([first, second], [])
    assert [getattr(both, name) for name in both.__slots__] == [11, 22, 33, 44, 55, 66, 77, 88, 99]  # type: ignore[attr-defined]
    after = summed([second], [first])
    assert [getattr(after, name) for name in both.__slots__] == [10, 20, 30, 40, 50, 66, 77, 88, 99]  # type: ignore[attr-defined]
