"""A server that answers as an OpenAI-compatible one does, or fails in a chosen way, for tests of what asks one."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Fake:
    """``gaps`` are the seconds before each piece of text; ``fails`` says what happens to which request (from 0)."""

    gaps: tuple[float, ...] = (0.02, 0.005, 0.005)
    fails: dict[int, str] = field(default_factory=dict)
    usage: bool = True
    chunked: bool = True
    port: int = 0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    heads: list[bytes] = field(default_factory=list)
    running: int = 0
    at_once: int = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            size = next(int(h.split(b":")[1]) for h in head.split(b"\r\n") if h.lower().startswith(b"content-length"))
            self.heads.append(head)
            body = await reader.readexactly(size)
            if head.startswith(b"GET"):
                data = json.dumps({"data": [{"id": "first"}, {"id": "second"}]}, indent=1).encode()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(data), data))
            else:
                self.bodies.append(json.loads(body))
                self.running += 1
                self.at_once = max(self.at_once, self.running)
                await self.stream(writer, self.fails.get(len(self.bodies) - 1, ""))
                self.running -= 1
            await writer.drain()
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def stream(self, writer: asyncio.StreamWriter, fails: str) -> None:
        if fails == "busy":
            writer.write(b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\n\r\n{}")
            return
        if fails == "nothing":
            return
        kind = b"Transfer-Encoding: chunked\r\n" if self.chunked else b""
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n" + kind + b"\r\n")
        self.event(writer, {"choices": [{"delta": {"role": "assistant"}}]})
        self.piece(writer, b": ping\n\n")
        for i, gap in enumerate(self.gaps):
            await asyncio.sleep(gap)
            if fails == "error" and i == 1:
                self.event(writer, {"error": {"message": "the engine died"}})
                return
            self.event(writer, {"choices": [{"delta": {"content": f"word{i} "}, "finish_reason": None}]})
            await writer.drain()
            if fails == "cut" and i == 1:
                return
            if fails == "hang":
                await asyncio.sleep(30)
        self.event(writer, {"choices": [{"delta": {}, "finish_reason": "stop"}]})
        if self.usage:
            self.event(writer, {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": len(self.gaps)}})
        self.piece(writer, b"data: [DONE]\n\n")
        if self.chunked:
            writer.write(b"0\r\n\r\n")

    def event(self, writer: asyncio.StreamWriter, tree: dict[str, Any]) -> None:
        self.piece(writer, f"data: {json.dumps(tree)}\n\n".encode())

    def piece(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        """Cut where no line ends, so that a reader must put lines together."""
        for part in (data[:5], data[5:]):
            writer.write(b"%x\r\n%s\r\n" % (len(part), part) if self.chunked else part)


@contextmanager
def serving(fake: Fake) -> Iterator[Fake]:
    """The fake on a free port of this machine, in a thread of its own."""
    loop, ready = asyncio.new_event_loop(), threading.Event()
    stop = asyncio.Event()

    async def run() -> None:
        server = await asyncio.start_server(fake.answer, "127.0.0.1", 0)
        fake.port = server.sockets[0].getsockname()[1]
        ready.set()
        async with server:
            await stop.wait()
        left = asyncio.all_tasks(loop) - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    thread = threading.Thread(target=lambda: loop.run_until_complete(run()))
    thread.start()
    ready.wait(10)
    try:
        yield fake
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()
