"""Every route of the server in one table: what it takes, what it gives, and every status that it may answer with.

The OpenAPI schema is made of this table; a client that believes it is never surprised.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import Response

from cutaway.server import route_responses, route_status, route_tokens
from cutaway.server.answers import (
    Answer,
    ChatAnswer,
    CompletionAnswer,
    ErrorAnswer,
    ResponseAnswer,
)
from cutaway.server.answers_other import (
    ClassifyAnswer,
    DetokenizeAnswer,
    EmbeddingAnswer,
    Health,
    ModelCard,
    ModelList,
    RenderAnswer,
    RerankAnswer,
    TokenizeAnswer,
)
from cutaway.server.asks import ChatAsk, CompletionAsk
from cutaway.server.asks_other import (
    ClassifyAsk,
    DetokenizeAsk,
    EmbeddingAsk,
    RerankAsk,
    ResponseAsk,
    TokenizeAsk,
)
from cutaway.server.guard import PUBLIC
from cutaway.server.problem import UNSAYABLE
from cutaway.server.route_chat import chat
from cutaway.server.route_completions import completions
from cutaway.server.route_page import page
from cutaway.server.route_reading import classify, embeddings, rerank
from cutaway.server.service import Service
from cutaway.settings import Settings

Run = Callable[[Request, Service], Awaitable[Response]]
_GUARDED = {400: "A header is wrong.", 401: "No key, or one that is not known.", 403: "This host or origin may not "
            "ask.", 429: "Too many requests; come again after Retry-After.", 431: "Headers too large.",
            500: "A fault of the server.", 503: "Ending, or an engine is being made again."}
_WRONG = ("The body or a header is wrong; param names the field. What no schema can say is refused, too: "
          + "; ".join(f"{code} ({why})" for code, why in UNSAYABLE.items()))
_POSTED = {**_GUARDED, 400: _WRONG, 404: "No model of that name.",
           408: "The body did not arrive in time.", 413: "The body is too large.",
           415: "The body is not application/json.", 504: "The answer took too long."}
_NAME = {"$ref": "#/components/schemas/ServedModel"}
_EVENT = {"type": "object", "required": ["data"], "additionalProperties": False, "properties": {
    "event": {"type": "string", "description": "What it is, in the Responses API."},
    "data": {"type": "string", "description": "JSON; the last of all may be [DONE]."}}}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A route. ``asks``: bodies it takes; ``streams``: it may answer in events; ``kind``: what it gives if no JSON."""

    method: str
    path: str
    run: Run
    summary: str
    answer: type[Answer] | None = None
    asks: tuple[type[Settings], ...] = ()
    streams: bool = False
    kind: str = "application/json"

    @property
    def public(self) -> bool:
        """Whether it needs no key."""
        return (self.method, self.path) in PUBLIC

    @property
    def responses(self) -> dict[int | str, dict[str, Any]]:
        """Every status, for the schema."""
        content: dict[str, Any] = {}
        if self.streams:
            content["text/event-stream"] = {"schema": _EVENT}  # of each event, as OpenAPI before 3.2 has it
        if self.kind != "application/json":
            content[self.kind] = {"schema": {"type": "string"}}
        good: dict[str, Any] = {"description": "The answer."}
        if content:
            good["content"] = content
        if self.answer is not None:
            good["model"] = self.answer
        known = dict(_POSTED if self.asks else _GUARDED)
        if "{" in self.path:
            known[404] = _POSTED[404]
        if self.public:
            known = {s: known[s] for s in (400, 403, 431, 500)}
        out: dict[int | str, dict[str, Any]] = {200: good}
        out |= {status: {"description": what, "model": ErrorAnswer} for status, what in known.items()}
        if self.path == "/ready":
            out[503] = {"description": "A request sent now would not be taken.", "model": Health}
        return out


ENDPOINTS = (
    Endpoint("POST", "/v1/chat/completions", chat, "A conversation's next turn.", ChatAnswer, (ChatAsk,), streams=True),
    Endpoint("POST", "/v1/completions", completions, "Texts continued; by an encoder-decoder, texts made of texts.",
             CompletionAnswer, (CompletionAsk,), streams=True),
    Endpoint("POST", "/v1/responses", route_responses.responses, "One response; nothing is kept.", ResponseAnswer,
             (ResponseAsk,), streams=True),
    Endpoint("POST", "/v1/embeddings", embeddings, "Texts as vectors.", EmbeddingAnswer, (EmbeddingAsk,)),
    Endpoint("POST", "/v1/rerank", rerank, "Documents by how near they are to a query.", RerankAnswer, (RerankAsk,)),
    Endpoint("POST", "/v1/classify", classify, "The labels of texts.", ClassifyAnswer, (ClassifyAsk,)),
    Endpoint("GET", "/v1/models", route_status.models, "Every model that is served.", ModelList),
    Endpoint("GET", "/v1/models/{name:path}", route_status.model, "One of them.", ModelCard),
    Endpoint("POST", "/tokenize", route_tokens.tokenize, "A text or a conversation as tokens.", TokenizeAnswer,
             (TokenizeAsk,)),
    Endpoint("POST", "/detokenize", route_tokens.detokenize, "Tokens as a text.", DetokenizeAnswer, (DetokenizeAsk,)),
    Endpoint("POST", "/render", route_tokens.render, "The exact prompt that a request becomes.", RenderAnswer,
             (ChatAsk, CompletionAsk)),
    Endpoint("GET", "/health", route_status.health, "The process answers.", Health),
    Endpoint("GET", "/ready", route_status.ready, "A request sent now would be taken.", Health),
    Endpoint("GET", "/metrics", route_status.metrics, "Prometheus' text format.", kind="text/plain"),
    Endpoint("GET", "/", page, "A page to chat with.", kind="text/html"),
)


def extra(endpoint: Endpoint) -> dict[str, Any]:
    """What a handler does not say of itself: the body, the name in the path, that a public route asks for no key."""
    out: dict[str, Any] = {"security": []} if endpoint.public else {}
    if "{" in endpoint.path:
        out["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": _NAME,
                              "description": "The model's name, which may have a slash."}]
    if endpoint.asks:
        refs = [{"$ref": f"#/components/schemas/{cls.__name__}"} for cls in endpoint.asks]
        schema = refs[0] if len(refs) == 1 else {"anyOf": refs}
        out["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return out


def ask_schemas(models: list[str]) -> dict[str, Any]:
    """The schemas of all bodies, in which a model is one of those served."""
    every = dict.fromkeys(cls for endpoint in ENDPOINTS for cls in endpoint.asks)
    _, tree = models_json_schema([(cls, "validation") for cls in every], ref_template="#/components/schemas/{model}")
    schemas: dict[str, Any] = tree["$defs"]
    for cls in every:
        schemas[cls.__name__]["properties"]["model"] = _NAME
    return {**schemas, "ServedModel": {"type": "string", "enum": models, "description": "A model of this server."}}
