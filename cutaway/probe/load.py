"""Load on a server, open loop (requests arrive by a Poisson process, whatever the server does) or closed loop (so many
at once, the next when one is done), and what it made of them.

An open loop shows queues that a closed loop hides (Schroeder 2006); its latencies count from when a request was due.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from cutaway.errors import DataError
from cutaway.probe.load_client import Answer, Server, ask, first_model
from cutaway.settings import Settings

_WORDS = tuple(re.findall(r"\w+", """
time year people way day man thing woman life child world school state family student group country problem hand part
place case week company system program question work number night point home water room mother area money story fact
month lot right study book eye job word business issue side kind head house service friend father power hour game
"""))


class Load(Settings):
    """What is sent. ``rate`` is requests a second in an open loop, ``concurrency`` the requests at once of a closed
    one; one of the two. ``words`` is the length of made-up prompts, and ``shared`` how many of them all begin with."""

    requests: int = Field(default=100, ge=1)
    rate: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    concurrency: int | None = Field(default=None, ge=1)
    words: int = Field(default=128, ge=1)
    shared: int = Field(default=0, ge=0)
    max_tokens: int = Field(default=128, ge=1)
    api: Literal["chat", "completions"] = "chat"
    warmup: int = Field(default=1, ge=0)
    timeout: float = Field(default=600.0, gt=0)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _one_loop(self) -> Load:
        if (self.rate is None) == (self.concurrency is None):
            raise ValueError("give either a rate (open loop) or a concurrency (closed loop)")
        if self.shared > self.words:
            raise ValueError(f"{self.shared} shared words do not fit prompts of {self.words}")
        return self


@dataclass(frozen=True, slots=True)
class Outcome:
    """Every answer in the order of the requests, and the seconds from the first request to the last end."""

    model: str
    answers: tuple[Answer, ...]
    seconds: float


Messages = list[dict[str, Any]]


def made_up(load: Load) -> list[str]:
    """Prompts of common words: all begin with the same ``shared`` words and differ in the others."""
    common = random.Random(load.seed).choices(_WORDS, k=load.shared)
    draws = (random.Random(f"{load.seed}/{i}") for i in range(load.requests + load.warmup))
    return [" ".join((*common, *draw.choices(_WORDS, k=load.words - load.shared))) for draw in draws]


def read_prompts(path: Path) -> list[str | Messages]:
    """Prompts from a file: ``.jsonl`` with a ``prompt`` or ``messages`` in each row, else a prompt a line."""
    try:
        lines = [line for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read ({error})", where=path) from None
    if not lines:
        raise DataError("it holds no prompt", where=path)
    if path.suffix != ".jsonl":
        return list(lines)
    return [_prompt(line, f"{path}:{number}") for number, line in enumerate(lines, start=1)]


def _prompt(line: str, where: str) -> str | Messages:
    try:
        row = json.loads(line)
    except ValueError:
        raise DataError("is no JSON", where=where) from None
    found = (row.get("messages") or row.get("prompt")) if isinstance(row, dict) else None
    if isinstance(found, str) or (isinstance(found, list) and all(isinstance(m, dict) for m in found)):
        return found
    raise DataError("has neither a text in 'prompt' nor a list in 'messages'", where=where)


def bodies(load: Load, prompts: Sequence[str | Messages], model: str, extra: dict[str, Any]) -> list[dict[str, Any]]:
    """The bodies of all requests, warm-up first; prompts of a file are taken again from the start when they run out."""
    return [_body(load, prompts[i % len(prompts)], model, extra) for i in range(load.warmup + load.requests)]


def _body(load: Load, prompt: str | Messages, model: str, extra: dict[str, Any]) -> dict[str, Any]:
    if load.api == "completions" and not isinstance(prompt, str):
        raise DataError("messages can be sent to the chat API alone", way_out="give --api chat")
    asked = {"prompt": prompt} if load.api == "completions" else {
        "messages": [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt}
    return {"model": model, **asked, "max_tokens": load.max_tokens, "stream": True,
            "stream_options": {"include_usage": True}, **extra}


async def send(server: Server, load: Load, prompts: Sequence[str | Messages], *, model: str | None = None,
               extra: dict[str, Any] | None = None, done: Callable[[], None] = lambda: None) -> Outcome:
    """Warm up, then put the load on the server; ``done`` is called after each answer that counts."""
    model = model or await first_model(server, timeout=load.timeout)
    name = "chat/completions" if load.api == "chat" else "completions"
    every = bodies(load, prompts, model, extra or {})

    async def one(body: dict[str, Any], due: float) -> Answer:
        answer = await ask(server, name, body, due=due, timeout=load.timeout)
        done()
        return answer

    for body in every[: load.warmup]:
        await ask(server, name, body, due=time.perf_counter(), timeout=load.timeout)
    counted = every[load.warmup :]
    start = time.perf_counter()
    if load.rate is not None:
        answers = await _open(counted, one, load.rate, load.seed, start)
    else:
        answers = await _closed(counted, one, load.concurrency or 1)
    return Outcome(model, tuple(_since(a, start) for a in answers), max(a.ended for a in answers) - start)


_One = Callable[[dict[str, Any], float], Any]


async def _open(every: Sequence[dict[str, Any]], one: _One, rate: float, seed: int, start: float) -> list[Answer]:
    """Each request at its time: gaps are exponential with mean 1 / rate."""
    draw, due, tasks = random.Random(seed), start, []
    for body in every:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(one(body, due)))
        due += draw.expovariate(rate)
    return list(await asyncio.gather(*tasks))


async def _closed(every: Sequence[dict[str, Any]], one: _One, count: int) -> list[Answer]:
    """``count`` clients, each of which sends its next request when its last one is done."""
    left, answers = iter(enumerate(every)), dict[int, Answer]()

    async def client() -> None:
        for number, body in left:
            answers[number] = await one(body, time.perf_counter())

    await asyncio.gather(*(client() for _ in range(min(count, len(every)))))
    return [answers[i] for i in range(len(every))]


def _since(answer: Answer, start: float) -> Answer:
    return replace(answer, due=answer.due - start, sent=answer.sent - start, ended=answer.ended - start,
                   texts=tuple(t - start for t in answer.texts))
