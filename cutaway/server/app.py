"""The application: routes of the table, errors in one form, what runs beside them, and the guard around it all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cutaway.errors import CutawayError
from cutaway.server.body import beside
from cutaway.server.endpoints import ENDPOINTS, Run, ask_schemas, extra
from cutaway.server.guard import Guard
from cutaway.server.keys import Key
from cutaway.server.problem import Problem, later, problem_of
from cutaway.server.service import Service

ABOUT = "Text, vectors and labels from the models of this server, in the public interface's words."
LOOK = 0.2  # seconds between two looks at what is idle and at whether the server is ending


def build(service: Service, *, keys: Sequence[Key] = (), hosts: frozenset[str] = frozenset(),
          origins: frozenset[str] = frozenset()) -> Guard:
    """The ASGI application; ``app`` of it is FastAPI's. ``service.draining`` says when the server is ending."""
    app = FastAPI(title="Cutaway", version=service.fingerprint.removeprefix("cutaway-"), description=ABOUT,
                  docs_url=None, redoc_url=None, redirect_slashes=False, lifespan=lambda app: _alongside(service))
    app.state.service, app.state.keys = service, tuple(keys)
    for endpoint in ENDPOINTS:
        app.add_api_route(endpoint.path, _handler(endpoint.run, service), methods=[endpoint.method],
                          summary=endpoint.summary, responses=endpoint.responses, openapi_extra=extra(endpoint),
                          response_model=None, operation_id=_named(endpoint.method, endpoint.path),
                          response_class=JSONResponse if endpoint.answer is not None else Response)
    app.add_exception_handler(HTTPException, _as_problem)
    for kind in (Problem, CutawayError, Exception):
        app.add_exception_handler(kind, _told)
    app.openapi = lambda: _schema(app, service, keyed=bool(keys))  # type: ignore[method-assign]
    return Guard(app, service.limits, service.metrics, keys, hosts, origins, service.ending)


def _handler(run: Run, service: Service) -> Callable[[Request], Awaitable[Response]]:
    async def handle(request: Request) -> Response:
        return await run(request, service)

    return handle


def _named(method: str, path: str) -> str:
    words = path.replace("{name:path}", "one").strip("/").replace("/", "_") or "page"
    return f"{method.lower()}_{words}"


async def _told(request: Request, error: Exception) -> Response:
    problem = problem_of(error)
    return JSONResponse(problem.body, problem.status, problem.headers)


async def _as_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = {404: (f"there is nothing at {request.url.path[:100]}", "unknown_url"),
            405: (f"{request.method} is not for {request.url.path[:100]}", "method_not_allowed")}
    message, code = what.get(error.status_code, (str(error.detail), None))
    problem = Problem(error.status_code, message, code=code, headers=dict(error.headers or {}))
    return await _told(request, problem)


@asynccontextmanager
async def _alongside(service: Service) -> AsyncIterator[None]:
    """While the server runs: models that nobody uses are closed, and what still runs when it is ending is ended."""
    try:
        async with beside(_look_after(service)):
            yield
    finally:
        await service.shelf.close()
        service.pool.shutdown(wait=False, cancel_futures=True)


async def _look_after(service: Service) -> None:
    began: float | None = None
    while True:
        await asyncio.sleep(LOOK)
        if not service.ending():
            await service.shelf.close_idle()
            continue
        began = time.monotonic() if began is None else began
        if time.monotonic() - began >= service.limits.drain_seconds:
            for found in service.shelf.opened.values():
                found.fail(later("the server is ending", status=503, code="draining", seconds=5))


def _schema(app: FastAPI, service: Service, *, keyed: bool) -> dict[str, Any]:
    if app.openapi_schema is None:
        tree = get_openapi(title=app.title, version=app.version, description=ABOUT, routes=app.routes)
        tree["components"]["schemas"] |= ask_schemas([*service.shelf.places])
        if keyed:
            tree["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            tree["security"] = [{"key": []}]
        app.openapi_schema = tree
    return app.openapi_schema
