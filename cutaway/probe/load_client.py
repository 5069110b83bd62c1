"""One streamed request to an OpenAI-compatible server, timed: HTTP/1.1 and server-sent events over asyncio.

By hand, so that nothing but the socket stands between the clock and the server.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from cutaway.errors import SettingsError

_LINE = 1 << 20  # the longest line of an answer that is read


@dataclass(frozen=True, slots=True)
class Server:
    """Where requests go: the server's address with its path up to ``/v1``, and the key that it wants."""

    host: str
    port: int
    path: str
    secure: bool
    key: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, url: str, key: str | None = None) -> Server:
        """From ``http://host:port`` with or without ``/v1``. Raises SettingsError for what is no such address."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise SettingsError(f"{url!r} is no address ({error})") from None
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
            raise SettingsError(f"{url!r} is no address of a server", way_out="give http://HOST:PORT")
        if key is not None and not (key.isascii() and key.isprintable()):
            raise SettingsError("the key has characters that no header can hold")
        path, secure = parts.path.rstrip("/"), parts.scheme == "https"
        return cls(parts.hostname, port or (443 if secure else 80), path if path.endswith("/v1") else f"{path}/v1",
                   secure, key)

    def head(self, method: str, name: str, size: int) -> bytes:
        """The head of a request."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        lines = [f"{method} {self.path}/{name} HTTP/1.1", f"Host: {host}:{self.port}", "Connection: close",
                 "User-Agent: cutaway-bench", "Content-Type: application/json", f"Content-Length: {size}"]
        if self.key is not None:
            lines.append(f"Authorization: Bearer {self.key}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode()


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one request; times in seconds since the same moment. ``due``: when it was to be sent; ``texts``:
    when each piece of text came. ``error`` says what went wrong and is None for a whole answer."""

    due: float
    sent: float
    texts: tuple[float, ...]
    ended: float
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    finish: str | None = None
    error: str | None = None


async def ask(server: Server, name: str, body: Mapping[str, Any], *, due: float, timeout: float) -> Answer:
    """Send one request now and read its stream to the end; what goes wrong is in the answer and never raised."""
    log = _Log(due, time.perf_counter())
    try:
        async with asyncio.timeout(timeout):
            await _read(server, name, body, log)
    except TimeoutError:
        log.error = "timeout"
    except _Refused as error:
        log.error = str(error)
    except (OSError, EOFError, ValueError) as error:
        log.error = f"connection: {type(error).__name__}"
    return log.answer()


async def first_model(server: Server, *, timeout: float) -> str:
    """The name of the first model that the server lists. Raises SettingsError if it gives none."""
    try:
        async with asyncio.timeout(timeout):
            lines = [line async for line in _lines(server, "GET", "models", b"")]
        found = [str(m["id"]) for m in json.loads(b"\n".join(lines))["data"]]
    except (TimeoutError, _Refused, OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise SettingsError(f"it lists no models ({str(error) or type(error).__name__})", where=server.host,
                            way_out="give --model, or see that the server runs") from None
    if not found:
        raise SettingsError("it lists no models", where=server.host, way_out="give --model")
    return found[0]


class _Refused(Exception):
    """The server answered, and said no."""


@dataclass(slots=True)
class _Log:
    due: float
    sent: float
    texts: list[float] = field(default_factory=list)
    usage: dict[str, Any] = field(default_factory=dict)
    finish: str | None = None
    error: str | None = None
    whole: bool = False

    def event(self, data: str) -> None:
        """One server-sent event."""
        now = time.perf_counter()
        if data == "[DONE]":
            self.whole = True
            return
        tree = json.loads(data)
        if not isinstance(tree, dict):
            raise ValueError("an event is no object")
        if "error" in tree:
            raise _Refused("error event")
        self.usage = tree.get("usage") or self.usage
        for choice in tree.get("choices") or ():
            delta = choice.get("delta") or {}
            if choice.get("text") or delta.get("content") or delta.get("reasoning_content") or delta.get("tool_calls"):
                self.texts.append(now)
            self.finish = choice.get("finish_reason") or self.finish

    def answer(self) -> Answer:
        error = self.error or (None if self.whole else "stream cut off") or (None if self.texts else "no text")
        prompt, output = self.usage.get("prompt_tokens"), self.usage.get("completion_tokens")
        return Answer(self.due, self.sent, tuple(self.texts), time.perf_counter(), prompt, output, self.finish, error)


async def _read(server: Server, name: str, body: Mapping[str, Any], log: _Log) -> None:
    """The events of a stream, up to [DONE]."""
    async with aclosing(_lines(server, "POST", name, json.dumps(body).encode())) as lines:
        async for line in lines:
            if line.startswith(b"data:"):
                log.event(line[5:].strip().decode())
            if log.whole:
                return


async def _lines(server: Server, method: str, name: str, body: bytes) -> AsyncGenerator[bytes, None]:
    """The lines of the body of a good answer. Raises _Refused for any other."""
    context = ssl.create_default_context() if server.secure else None
    reader, writer = await asyncio.open_connection(server.host, server.port, ssl=context, limit=_LINE)
    try:
        writer.write(server.head(method, name, len(body)) + body)
        await writer.drain()
        status = (await reader.readline()).split(b" ", 2)
        if len(status) < 2 or not status[1].isdigit():
            raise _Refused("no HTTP answer")
        chunked = False
        while (line := (await reader.readline()).strip()):
            chunked = chunked or line.lower().replace(b" ", b"") == b"transfer-encoding:chunked"
        if int(status[1]) != 200:
            raise _Refused(f"http {int(status[1])}")
        async for piece in _whole(_chunks(reader) if chunked else _rest(reader)):
            yield piece
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def _rest(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while (data := await reader.read(65_536)):
        yield data


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """The data of a chunked body, as far as it comes."""
    while (line := await reader.readline()) and (size := int(line.split(b";")[0], 16)):
        try:
            data = await reader.readexactly(size + 2)
        except asyncio.IncompleteReadError:
            return
        yield data[:-2]


async def _whole(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Lines out of pieces that may end anywhere."""
    held = b""
    async for piece in pieces:
        *lines, held = (held + piece).split(b"\n")
        for line in lines:
            yield line.rstrip(b"\r")
    if held:
        yield held
