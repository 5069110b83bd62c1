"""GET /health, /ready, /metrics, /v1/models: is it alive, can it answer, what does it measure, whom does it serve."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cutaway.server.answers_other import (
    Health,
    ModelCard,
    ModelList,
)
from cutaway.server.opened import Language
from cutaway.server.service import Service


async def health(request: Request, service: Service) -> Response:
    """The process answers."""
    return JSONResponse(Health(status="ok").model_dump(exclude_none=True))


async def ready(request: Request, service: Service) -> Response:
    """Whether a request sent now would be taken: 503 while an engine is being made again and while the server ends."""
    states = {name: found.state for name, found in service.shelf.opened.items()}
    good = not service.ending() and all(state == "ready" for state in states.values())
    shown = states if not request.app.state.keys else None  # names of models are nobody's without a key
    body = Health(status="ready" if good else "unavailable", models=shown).model_dump(exclude_none=True)
    return JSONResponse(body, 200 if good else 503, {} if good else {"Retry-After": "2"})


async def metrics(request: Request, service: Service) -> Response:
    """Prometheus' text format."""
    for worker in {found.worker for found in service.shelf.opened.values() if isinstance(found, Language)}:
        service.metrics.note(worker.name, worker.figures, waiting=worker.waiting, restarts=worker.restarts,
                             plain=worker.plain)
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def models(request: Request, service: Service) -> Response:
    """Every model that is served, open or not."""
    return JSONResponse(ModelList(data=[_card(service, name) for name in service.shelf.places]).model_dump())


async def model(request: Request, service: Service) -> Response:
    """One of them; its name may hold a slash."""
    name = request.path_params["name"]
    service.shelf.known(name)
    return JSONResponse(_card(service, name).model_dump())


def _card(service: Service, name: str) -> ModelCard:
    line = service.shelf.lines[name]
    return ModelCard(id=name, created=int(service.shelf.began), parent=line.name if name in line.adapters else None)
