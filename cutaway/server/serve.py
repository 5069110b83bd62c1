"""A server from its beginning to its end: where it listens, who may reach it, and how it stops without losing words."""

from __future__ import annotations

import asyncio
import ipaddress
import math
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import h11
import uvicorn

from cutaway.errors import SettingsError
from cutaway.server.guard import Guard
from cutaway.server.limits import Limits
from cutaway.server.service import Service

SWEEP = 0.5  # seconds between two looks at the connections


def listening(host: str, port: int, *, keyed: bool) -> socket.socket:
    """A socket at the address. Raises SettingsError for a public one without keys, and for one that is taken."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM,
                                                                flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError, OverflowError) as error:
        raise SettingsError(f"no address {host}:{port} ({error})", way_out="use 127.0.0.1 and a free port") from None
    if not keyed and not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback:
        raise SettingsError(f"{host} can be reached by others, and there is no key",
                            way_out="make one with cutaway serve --new-key NAME --keys FILE and give --keys FILE, or "
                                    "listen on 127.0.0.1")
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(1024)
    except OSError as error:
        made.close()
        raise SettingsError(f"cannot listen on {host}:{port} ({error.strerror or error})",
                            way_out="choose another --port, or 0 for any that is free") from None
    return made


def run(app: Guard, service: Service, listener: socket.socket, *, started: Callable[[], None]) -> None:
    """Serve until SIGTERM or Ctrl-C: then nothing new is taken, what is running may end within the limit, and what is
    left is told. A second Ctrl-C ends at once."""
    server = server_of(app, service)
    with _quiet_end():
        asyncio.run(attend(server, listener, service.limits, started=started))


def server_of(app: Guard, service: Service) -> uvicorn.Server:
    """uvicorn around the application; ``should_exit`` ends it as a signal does."""
    limits = service.limits
    config = uvicorn.Config(app, http="h11", ws="none", loop="asyncio", log_config=None, access_log=False,
                            log_level="critical", lifespan="on", server_header=False, timeout_keep_alive=15,
                            proxy_headers=False, h11_max_incomplete_event_size=limits.header_bytes + (16 << 10),
                            timeout_graceful_shutdown=int(limits.drain_seconds) + 3, backlog=1024)
    server = uvicorn.Server(config)
    service.draining = lambda: server.should_exit
    return server


async def attend(server: uvicorn.Server, listener: socket.socket, limits: Limits, *,
                 started: Callable[[], None]) -> None:
    """Run ``server`` and look after its connections until it ends; ``started`` is called when it listens."""
    sweeper = asyncio.create_task(_sweep(server, limits, started))
    try:
        await server.serve(sockets=[listener])
    finally:
        sweeper.cancel()


@contextmanager
def _quiet_end() -> Iterator[None]:
    """uvicorn raises the signal that ended it once more when it is done; a clean end is no failure."""
    def note(number: int, frame: FrameType | None) -> None:
        pass

    kept = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


async def _sweep(server: uvicorn.Server, limits: Limits, started: Callable[[], None]) -> None:
    """Close connections that send no head in time or when the server ends, those beyond the limit, and those that do
    not go when told to."""
    since: dict[object, tuple[str, float]] = {}
    told = False
    while True:
        await asyncio.sleep(0.02 if not server.started else SWEEP)
        if server.started and not told:
            told = True
            started()
        now, connections = time.monotonic(), [*server.server_state.connections]
        crowd = len(connections) - limits.connections
        since = {c: since[c] for c in connections if c in since}
        for connection in connections:
            state = _state(connection)
            before, when = since.get(connection, ("", now))
            since[connection] = (state, when if before == state else now)
            waited = now - since[connection][1]
            late = waited > {"head": limits.head_seconds, "closing": limits.send_seconds}.get(state, math.inf)
            if late or (state == "head" and (crowd > 0 or server.should_exit)):
                connection.transport.abort()
                crowd -= 1


def _state(connection: object) -> str:
    """What a connection is doing: waiting for a head, at work, or closing."""
    transport, parser = getattr(connection, "transport", None), getattr(connection, "conn", None)
    if transport is None or transport.is_closing():
        return "closing"
    return "head" if getattr(parser, "their_state", None) is h11.IDLE else "work"
