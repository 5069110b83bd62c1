"""One HTTP request's text being written: its requests to the engine, its choices as they grow, and what it cost."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.types import Receive

from cutaway.generate.request import SEEDS, Constraint, Event, Request, Sampling, Scores
from cutaway.server.answers import CachedDetails, Timings, Usage
from cutaway.server.asks import Drawing
from cutaway.server.assemble import Assembler, Delta, joined
from cutaway.server.body import Gone, beside, until_gone
from cutaway.server.opened import Language
from cutaway.server.problem import Problem
from cutaway.server.prompts import Prompt
from cutaway.server.seat import Call
from cutaway.server.service import Service, allowance_of, salt_of

PATIENCE = 1.0  # seconds that a stream waits for its first token, so that what fails at once still has a status


def sampling_of(ask: Drawing) -> Sampling:
    """How the request wants its tokens drawn; the public interface's defaults are temperature 1 and top_p 1."""
    biases = tuple((int(token), value) for token, value in (ask.logit_bias or {}).items())
    given = {"temperature": ask.temperature, "top_p": ask.top_p, "min_p": ask.min_p,
             "top_k": None if ask.top_k in (-1, 0) else ask.top_k,
             "presence_penalty": ask.presence_penalty, "frequency_penalty": ask.frequency_penalty,
             "repetition_penalty": ask.repetition_penalty, "logit_bias": biases or None}
    return Sampling.model_validate({k: v for k, v in given.items() if v is not None})


def seed_of(ask: Drawing) -> int:
    """The seed that was asked for (a negative one is its two's complement), or a fresh one, which the answer names."""
    return ask.seed % SEEDS if ask.seed is not None else secrets.randbelow(2**53)


@dataclass(frozen=True, slots=True)
class Plan:
    """``n`` answers to each prompt, choice k of prompt i drawn with ``seed + i * n + k``. ``logprobs`` as a Request's;
    ``constraints`` are one a choice, or none."""

    model: Language
    prompts: tuple[Prompt, ...]
    max_tokens: int | None
    sampling: Sampling
    seed: int
    n: int = 1
    stops: tuple[str, ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    constraints: tuple[Constraint, ...] = ()
    shaves: bool = False

    @property
    def requests(self) -> tuple[Request, ...]:
        """What the engine is asked, prompt by prompt."""
        return tuple(
            Request(prompt.tokens, self._most(prompt), self.sampling, (self.seed + at) % SEEDS,
                    self.model.tokenizer.stop_ids, self.logprobs, prompt.source, prompt_logprobs=self.prompt_logprobs,
                    constraint=self.constraints[at] if self.constraints else None, adapter=self.model.adapter)
            for at, prompt in enumerate(p for p in self.prompts for _ in range(self.n)))

    def _most(self, prompt: Prompt) -> int:
        room = self.model.context_length - len(prompt.tokens)
        return room if self.max_tokens is None else self.max_tokens

    @property
    def most(self) -> int:
        """Tokens that it may take, read and written."""
        return sum(len(p.read) + self.n * self._most(p) for p in self.prompts)


@dataclass(eq=False, slots=True)
class Writing:
    """A plan that runs. ``steps`` must be left by ``close``, or it goes on for nobody."""

    service: Service
    plan: Plan
    request: HttpRequest
    call: Call = field(init=False)
    choices: list[Assembler] = field(init=False)
    cached: int = 0
    prompt_scores: dict[int, Scores] = field(default_factory=dict)  # by prompt, where they were asked for
    last: float | None = None  # when the newest token was there
    _before: list[float | None] = field(init=False)
    _gaps: dict[int, float] = field(init=False, default_factory=dict)  # of a step, shared by the tokens that came of it
    _closed: bool = False

    def __post_init__(self) -> None:
        requests = self.plan.requests
        self.call = Call(requests, salt_of(self.request))
        self.choices = [Assembler(self.plan.model.tokenizer, self.plan.stops, self.plan.shaves) for _ in requests]
        self._before = [None] * len(requests)
        allowance_of(self.request).spend(self.plan.most)
        try:
            self.plan.model.worker.submit(self.call)
        except Problem:
            allowance_of(self.request).give_back(self.plan.most)
            raise

    async def begun(self) -> None:
        """Wait a moment for the first token. Raises Problem for what fails before there is one."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.call.awake.wait(), PATIENCE)
        if self.call.inbox and isinstance(self.call.inbox[0], Problem):
            raise self.call.inbox[0]

    async def steps(self) -> AsyncIterator[list[tuple[int, Delta]]]:
        """What is new of each choice, all that came since last time; nothing as a sign of life. Raises Problem where
        it fails or takes too long, Gone where the client left."""
        end = time.monotonic() + self.service.limits.answer_seconds
        while any(choice.finish is None for choice in self.choices):
            left = end - time.monotonic()
            if left <= 0:
                raise Problem(504, f"the answer took more than {self.service.limits.answer_seconds:g} seconds",
                              headers={"x-should-retry": "false"})
            if not self.call.inbox:
                self.call.awake.clear()
                try:
                    await asyncio.wait_for(self.call.awake.wait(), min(left, self.service.limits.ping_seconds))
                except TimeoutError:
                    yield []
                continue
            yield self._news()

    @asynccontextmanager
    async def attended(self) -> AsyncIterator[AsyncIterator[list[tuple[int, Delta]]]]:
        """``steps`` for an answer that is sent when it is whole: a client that leaves ends them."""
        async with present(self.request.receive, self.call):
            yield self.steps()

    async def whole(self) -> list[Delta]:
        """Each choice when it is complete."""
        parts: list[list[Delta]] = [[] for _ in self.choices]
        async with self.attended() as steps:
            async for news in steps:
                for index, delta in news:
                    parts[index].append(delta)
        return [joined(p) for p in parts]

    def _news(self) -> list[tuple[int, Delta]]:
        found: dict[int, list[Delta]] = {}
        together = Counter((i[0], i[2]) for i in self.call.inbox if isinstance(i, tuple))  # tokens of one step
        while self.call.inbox:
            item = self.call.inbox.popleft()
            if isinstance(item, Problem | Gone):
                raise item
            index, event, when = item
            if self.choices[index].finish is None:
                found.setdefault(index, []).append(self._pushed(index, event, when, together[index, when]))
        return [(index, joined(deltas)) for index, deltas in sorted(found.items())]

    def _pushed(self, index: int, event: Event, when: float, together: int) -> Delta:
        before, self._before[index], self.last = self._before[index], when, when
        if before is None:
            self.cached += event.cached if index % self.plan.n == 0 else 0
            if event.prompt is not None:
                self.prompt_scores.setdefault(index // self.plan.n, event.prompt)
        else:
            if when != before:
                self._gaps[index] = (when - before) / together
            self.service.metrics.between.labels(self.plan.model.name).observe(self._gaps.get(index, 0.0))
        delta = self.choices[index].push(event)
        if delta.finish is not None and event.finish is None:  # a stop string, of which the engine knows nothing
            self.plan.model.worker.cancel(self.call, index)
        return delta

    def end(self, index: int) -> None:
        """Write no more of a choice: it is complete for a reason of the caller's."""
        if self.choices[index].finish is None:
            self.choices[index].finish = "stop"
            self.plan.model.worker.cancel(self.call, index)

    @property
    def fingerprint(self) -> str:
        """What gives equal answers to equal seeds: this version, and on which path of it the answer is written."""
        return f"{self.service.fingerprint}-plain" if self.call.plain else self.service.fingerprint

    @property
    def tail(self) -> dict[str, Any]:
        """What stands on a stream's last chunk."""
        return {"seed": self.plan.seed, "reproducible": self.call.exact, "timings": self.timings.model_dump()}

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        read, written = sum(len(p.read) for p in self.plan.prompts), sum(c.tokens for c in self.choices)
        return Usage(prompt_tokens=read, completion_tokens=written, total_tokens=read + written,
                     prompt_tokens_details=CachedDetails(cached_tokens=self.cached))

    @property
    def timings(self) -> Timings:
        """Where the time went so far."""
        call, written = self.call, sum(c.tokens for c in self.choices)
        first, last = call.first, self.last
        begun = call.started if call.started is not None else first
        decode = last - first if first is not None and last is not None else None
        rate = (written - len(self.choices)) / decode if decode else None
        return Timings(queue_ms=_ms((begun or time.perf_counter()) - call.submitted),
                       prefill_ms=None if first is None or begun is None else _ms(first - begun),
                       decode_ms=None if decode is None else _ms(decode),
                       tokens_per_second=None if rate is None else round(rate, 2))

    def close(self) -> None:
        """It is over, finished or not: the engine stops what is left, and what it took is counted."""
        if self._closed:
            return
        self._closed = True
        self.plan.model.worker.drop(self.call)
        self.plan.model.used = time.monotonic()
        usage, name, metrics = self.usage, self.plan.model.name, self.service.metrics
        allowance_of(self.request).give_back(self.plan.most - usage.total_tokens)
        metrics.prompt.labels(name).inc(usage.prompt_tokens)
        metrics.generated.labels(name).inc(usage.completion_tokens)
        call, first = self.call, self.call.first
        for choice in self.choices:
            metrics.done.labels(name, choice.finish or "abort").inc()
            metrics.answer_length.labels(name).observe(choice.tokens)
        for prompt in self.plan.prompts:
            metrics.prompt_length.labels(name).observe(len(prompt.read))
        if first is not None and self.last is not None:
            begun = call.started if call.started is not None else first
            for histogram, seconds in ((metrics.queue, begun - call.submitted), (metrics.prefill, first - begun),
                                       (metrics.first, first - call.submitted), (metrics.decode, self.last - first),
                                       (metrics.whole, self.last - call.submitted)):
                histogram.labels(name).observe(seconds)


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 3)


@asynccontextmanager
async def present(receive: Receive, call: Call) -> AsyncIterator[None]:
    """While the client is there; when it leaves, ``call`` is told."""
    async def watch() -> None:
        await until_gone(receive)
        call.put(Gone())

    async with beside(watch()):
        yield


