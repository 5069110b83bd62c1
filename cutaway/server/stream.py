"""Server-sent events: what one request writes, as it comes, to a reader that may be slow or gone.

Every stream ends in ``[DONE]`` (or a last event of its own) or in an error event: one that just ends reads as complete.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cutaway.server.assemble import Delta
from cutaway.server.body import Gone
from cutaway.server.problem import Problem, problem_of
from cutaway.server.writing import Writing, present

log = logging.getLogger("cutaway.server")
PING, DONE = b": ping\n\n", b"data: [DONE]\n\n"


def event(value: dict[str, Any], name: str | None = None) -> bytes:
    """One event; ``name`` is for the interfaces that name them."""
    data = b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
    return data if name is None else f"event: {name}\n".encode() + data


class EventStream(Response):
    """Sends ``begin()``, then what ``each`` makes of every step, then ``end()``; ``failed`` says how a problem is told.
    The writing is closed at the end, whatever the end is."""

    media_type = "text/event-stream"

    def __init__(self, writing: Writing, *, begin: Callable[[], Iterable[bytes]],
                 each: Callable[[int, Delta], Iterable[bytes]], end: Callable[[], Iterable[bytes]],
                 failed: Callable[[Problem], bytes] = lambda problem: event(problem.body)) -> None:
        super().__init__(None, 200, {"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._writing, self._begin, self._each, self._end, self._failed = writing, begin, each, end, failed

    async def begun(self) -> EventStream:
        """Itself, once there is something to send: what fails before still has a status. Raises that failure."""
        try:
            await self._writing.begun()
        except BaseException:
            self._writing.close()
            raise
        return self

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        seconds = self._writing.service.limits.send_seconds

        async def put(data: bytes, more: bool = True) -> None:
            async with asyncio.timeout(seconds):
                await send({"type": "http.response.body", "body": data, "more_body": more})

        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async with present(receive, self._writing.call):
                async for data in self._told():
                    if data:
                        await put(data)
            await put(b"", more=False)
        except TimeoutError:
            log.warning("a reader left its stream unread for %g seconds and is let go", seconds)
            raise Gone from None
        except OSError:
            raise Gone from None
        finally:
            self._writing.close()

    async def _told(self) -> AsyncIterator[bytes]:
        try:
            yield b"".join(self._begin())
            async for news in self._writing.steps():
                yield b"".join(part for index, delta in news for part in self._each(index, delta)) if news else PING
            yield b"".join(self._end())
        except Gone:
            raise
        except Exception as error:  # the status is long sent: the stream itself must say it
            if not isinstance(error, Problem):
                log.exception("a stream failed")
            yield self._failed(problem_of(error))
