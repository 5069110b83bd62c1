"""What the routes share: the models, the limits, the counters, and a few threads for templates and tokenizers."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TypeVar

from starlette.requests import Request

from cutaway.server.body import decode, read
from cutaway.server.keys import Allowance
from cutaway.server.limits import Limits
from cutaway.server.metrics import Metrics
from cutaway.server.shelf import Shelf
from cutaway.settings import Settings

S = TypeVar("S", bound=Settings)
R = TypeVar("R")
T = TypeVar("T")


@dataclass(eq=False, slots=True)
class Service:
    """One server's parts. ``pool`` keeps templates and tokenizers off the event loop: they may take seconds."""

    shelf: Shelf
    limits: Limits
    metrics: Metrics = field(default_factory=Metrics)
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(2, "prepare"))
    fingerprint: str = field(default_factory=lambda: f"cutaway-{version('cutaway')}")
    draining: Callable[[], bool] = lambda: False

    def ending(self) -> bool:
        """Whether the server takes nothing new any more."""
        return self.draining()

    async def ask(self, request: Request, cls: type[S], unsupported: Mapping[str, str] | None = None) -> S:
        """The request's body as a ``cls``. Raises Problem for the first thing wrong with it."""
        data = await read(request, self.limits)
        return await self.aside(lambda: decode(cls, data, unsupported))

    async def aside(self, work: Callable[[], R]) -> R:
        """``work`` done in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self.pool, work)


def allowance_of(request: Request) -> Allowance:
    """What the key of a request may still do."""
    found = request.scope["state"]["allowance"]
    assert isinstance(found, Allowance)
    return found


@dataclass(slots=True)
class Spent:
    """Whether what tokens were spent for was begun."""

    begun: bool = False

    def on(self, work: Callable[[T], R]) -> Callable[[T], R]:
        """``work``, which notes that it was begun."""
        def noted(what: T) -> R:
            self.begun = True
            return work(what)

        return noted


@contextmanager
def spent(request: Request, tokens: int) -> Iterator[Spent]:
    """So many tokens of a key's, for something to be read; they come back where it was never begun."""
    allowance, taken = allowance_of(request), Spent()
    allowance.spend(tokens)
    try:
        yield taken
    finally:
        if not taken.begun:
            allowance.give_back(tokens)


def salt_of(request: Request) -> str:
    """What keeps one key's prompts from being found by another's through the prefix cache."""
    return str(request.scope["state"]["salt"])


def new_id(prefix: str) -> str:
    """An identifier that nobody guesses."""
    return f"{prefix}{secrets.token_hex(12)}"


def now() -> int:
    """Seconds since 1970."""
    return int(time.time())
