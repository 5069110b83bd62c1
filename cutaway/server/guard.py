"""What stands before every route: sizes of headers, names of hosts, origins, keys. What is not public is denied.

It is plain ASGI around the whole application, so nothing that is added later can be reached around it.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import logging
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cutaway.server.body import Gone
from cutaway.server.keys import Allowance, Key, holder
from cutaway.server.limits import Limits
from cutaway.server.metrics import Metrics
from cutaway.server.problem import Problem, later, problem_of

log = logging.getLogger("cutaway.server")
PUBLIC = frozenset({("GET", "/"), ("GET", "/health"), ("GET", "/ready")})
_ALWAYS = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer", "cache-control": "no-store",
           "cross-origin-resource-policy": "same-origin", "x-frame-options": "DENY"}


@dataclass(eq=False, slots=True)
class Guard:
    """``hosts`` and ``origins``: names beside the machine's own addresses, and pages beside its own, that may ask.
    ``draining`` says whether the server is ending."""

    app: ASGIApp
    limits: Limits
    metrics: Metrics
    keys: Sequence[Key] = ()
    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    draining: Callable[[], bool] = lambda: False
    allowances: dict[str, Allowance] = field(default_factory=dict)
    running: int = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it with what is wrong."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await self.app(scope, receive, send)
            return
        number, began, told = f"req_{secrets.token_hex(12)}", time.perf_counter(), _Told(self, scope, send)
        scope.setdefault("state", {})["request_id"] = told.request_id = number
        self.running += 1
        try:
            await self._admitted(scope, receive, told)
        except Gone:
            told.status = 499
        except Exception as error:
            if not isinstance(error, Problem):
                log.exception("%s failed", number)
            if not told.begun:
                with contextlib.suppress(OSError):
                    await answer(told, problem_of(error))
        finally:
            self.running -= 1
            route = getattr(scope.get("route"), "path", "none")
            self.metrics.http.labels(route, str(told.status)).inc()
            log.info("%s %s %s %s %d %.0f ms", number, scope["state"].get("key", "-"), scope["method"],
                     route, told.status, 1000 * (time.perf_counter() - began))

    async def _admitted(self, scope: Scope, receive: Receive, told: _Told) -> None:
        headers = _once(scope["headers"], self.limits.header_bytes)
        self._check_host(headers.get("host", ""))
        origin = headers.get("origin")
        if origin is not None:
            self._check_origin(origin, headers.get("host", ""))
            told.origin = origin if origin in self.origins else None
        if scope["method"] == "OPTIONS" and told.origin is not None:
            await _preflight(told, headers.get("access-control-request-headers", ""))
            return
        public = (scope["method"], scope["path"]) in PUBLIC  # who asks whether it lives is told, however much it does
        if self.running > self.limits.connections and not public:
            raise later(f"{self.running - 1} requests are running, and the server takes {self.limits.connections}")
        if self.draining() and not public:
            raise later("the server is ending", status=503, code="draining", seconds=5)
        if public:
            await self.app(scope, receive, told)
            return
        name = self._name(headers.get("authorization", ""))
        allowance = self.allowances.setdefault(name, Allowance(self.limits))
        scope["state"] |= {"key": name, "allowance": allowance, "salt": name if self.keys else ""}
        if self.keys:
            allowance.enter()
        try:
            await self.app(scope, receive, told)
        finally:
            if self.keys:
                allowance.leave()

    def _name(self, authorization: str) -> str:
        """Whose request it is; "-" where no keys are asked for. Raises Problem 401 without a key that is known."""
        if not self.keys:
            return "-"
        key = holder(authorization, self.keys)
        if key is None:
            what = "this key is not known" if authorization else "a key is missing"
            raise Problem(401, f"{what}; send Authorization: Bearer KEY", code="invalid_api_key",
                          headers={"WWW-Authenticate": "Bearer"})
        return key.name

    def _check_host(self, host: str) -> None:
        """Against DNS rebinding: a stranger's name that leads to this address is no name of ours."""
        name = host_name(host)
        if name != "localhost" and name not in self.hosts and not _is_address(name):
            raise Problem(403, f"no host {host[:100]!r} is served here; start the server with --allow-host to take it",
                          code="host_not_allowed")

    def _check_origin(self, origin: str, host: str) -> None:
        """A page of another origin may not use this server from a person's browser."""
        if origin not in self.origins and origin not in (f"http://{host}", f"https://{host}"):
            raise Problem(403, f"pages of {origin[:100]!r} may not ask; start the server with --allow-origin to let "
                          "them", code="origin_not_allowed")


@dataclass(eq=False, slots=True)
class _Told:
    """``send``, with the headers that every answer has."""

    guard: Guard
    scope: Scope
    send: Send
    request_id: str = ""
    origin: str | None = None
    begun: bool = False
    status: int = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun, self.status = True, message["status"]
            there = {name.lower() for name, _ in message["headers"]}
            extra = {"x-request-id": self.request_id, **_ALWAYS}
            if self.origin is not None:
                extra |= {"access-control-allow-origin": self.origin, "vary": "Origin",
                          "access-control-expose-headers": "x-request-id, retry-after"}
            message["headers"] = [*message["headers"], *((k.encode(), v.encode("latin-1", "replace"))
                                                         for k, v in extra.items() if k.encode() not in there)]
        await self.send(message)


async def answer(send: Send, problem: Problem) -> None:
    """Send a problem as the whole answer."""
    data = json.dumps(problem.body, ensure_ascii=False).encode(errors="replace")
    headers = {"content-type": "application/json", "content-length": str(len(data)), **problem.headers}
    await send({"type": "http.response.start", "status": problem.status,
                "headers": [(k.lower().encode(), v.encode("latin-1", "replace")) for k, v in headers.items()]})
    await send({"type": "http.response.body", "body": data})


async def _preflight(send: Send, wanted: str) -> None:
    """An origin that may ask may send what headers it likes: the official client's have names of their own."""
    headers = {"access-control-allow-methods": "GET, POST", "access-control-allow-headers":
               wanted or "authorization, content-type", "access-control-max-age": "600"}
    await send({"type": "http.response.start", "status": 204,
                "headers": [(k.encode(), v.encode()) for k, v in headers.items()]})
    await send({"type": "http.response.body", "body": b""})


def _once(headers: Iterable[tuple[bytes, bytes]], most: int) -> dict[str, str]:
    """The headers by name. Raises Problem for more bytes than may be, and for two hosts, origins or keys."""
    out: dict[str, str] = {}
    size = 0
    for name, value in headers:
        size += len(name) + len(value) + 4
        key = name.decode("latin-1").lower()
        if key in out and key in ("host", "origin", "authorization", "content-type"):
            raise Problem(400, f"the header {key} stands twice", code="invalid_header")
        out[key] = value.decode("latin-1")
    if size > most:
        raise Problem(431, f"the headers are {size:,} bytes, and may be {most:,}", headers={"Connection": "close"})
    return out


def host_name(host: str) -> str:
    """A Host header without its port and its brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.rpartition(":")[0].lower() if host.count(":") == 1 else host.lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
