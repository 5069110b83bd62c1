"""What rows may say and what it was worth: constraints, the sampler's own log-probabilities, those of a prompt."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray
from paged import GREEDY, Desk, PageTape, alone
from tables import CONTEXT, Table

from cutaway.generate.engine import Engine
from cutaway.generate.request import Request, Sampling


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
    rule = Spelled((4, 7), breaks=breaks)
    bad = desk.submit(Request((1, 2), 4, GREEDY, constraint=rule))
    desk.finish()
    assert not rule.told
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
