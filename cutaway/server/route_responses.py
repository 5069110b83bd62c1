"""POST /v1/responses: one answer in the form of the Responses API, whole or as it comes. Nothing is kept."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cutaway.generate.request import Sampling
from cutaway.server.answers import ResponseAnswer, ResponseUsage
from cutaway.server.asks import AssistantTurn, ChatMessage, SystemMessage, UserMessage
from cutaway.server.asks_other import RESPONSE_UNSUPPORTED, FlatSchema, InputMessage, ResponseAsk
from cutaway.server.assemble import Delta, Drawn
from cutaway.server.form import constraints, rules
from cutaway.server.opened import Language
from cutaway.server.problem import Problem
from cutaway.server.prompts import Prompt, chat_ids, check_room
from cutaway.server.service import Service, new_id, now
from cutaway.server.stream import EventStream, event
from cutaway.server.writing import Plan, Writing
from cutaway.server.written import entries

Status = Literal["in_progress", "completed", "incomplete", "failed"]


async def responses(request: Request, service: Service) -> Response:
    """Answer it. Raises Problem for what cannot be served."""
    ask = await service.ask(request, ResponseAsk, RESPONSE_UNSUPPORTED)
    model = await service.shelf.language(ask.model)
    plan = await service.aside(lambda: _plan(ask, model))
    made = _Made(ask, Writing(service, plan, request))
    return await (made.streamed() if ask.stream else made.whole())


def _plan(ask: ResponseAsk, model: Language) -> Plan:
    if model.reads_source:
        raise Problem(400, f"{model.name} writes beside a source and does not chat; use /v1/completions",
                      code="model_unsuited", param="model")
    turns: list[ChatMessage] = []
    if ask.instructions:
        turns.append(SystemMessage(role="system", content=ask.instructions))
    given = (InputMessage(role="user", content=ask.input),) if isinstance(ask.input, str) else ask.input
    turns += [_turn(message) for message in given]
    try:
        prompt = Prompt(chat_ids(turns, (), model.tokenizer))
    except Problem as problem:
        raise Problem(problem.status, problem.message, code=problem.code, param="input") from None
    check_room(prompt, ask.max_output_tokens, context_length=model.context_length, vocab_size=model.vocab_size,
               param="input")
    form = ask.text.format if ask.text is not None else None
    schema = form.schema_ if isinstance(form, FlatSchema) else (
        {"type": "object"} if form is not None and form.type == "json_object" else None)
    room = model.context_length - len(prompt.tokens) if ask.max_output_tokens is None else ask.max_output_tokens
    how = {"temperature": ask.temperature, "top_p": ask.top_p}
    wanted = (ask.top_logprobs or 0) if ask.include else None
    return Plan(model, (prompt,), ask.max_output_tokens, Sampling.model_validate(
        {k: v for k, v in how.items() if v is not None}), secrets.randbelow(2**53), logprobs=wanted,
        constraints=constraints(rules(schema, model.tokenizer, param="text.format"), room, count=1,
                                param="text.format"),
        shaves=model.tokenizer.spelling.spaced)


def _turn(message: InputMessage) -> ChatMessage:
    if message.role == "user":
        return UserMessage(role="user", content=message.text)
    if message.role == "assistant":
        return AssistantTurn(role="assistant", content=message.text)
    return SystemMessage(role="system", content=message.text)


@dataclass(eq=False, slots=True)
class _Made:
    """A response on its way; ``number`` counts its events."""

    ask: ResponseAsk
    writing: Writing
    id: str = field(default_factory=lambda: new_id("resp_"))
    item: str = field(default_factory=lambda: new_id("msg_"))
    created: int = field(default_factory=now)
    number: int = 0
    parts: list[str] = field(default_factory=list)
    drawn: list[Drawn] = field(default_factory=list)

    async def whole(self) -> Response:
        """The response when it is complete."""
        try:
            (delta,) = await self.writing.whole()
            self.parts, self.drawn = [delta.text], list(delta.drawn)
            return JSONResponse(self._response(self._status).model_dump())
        finally:
            self.writing.close()

    async def streamed(self) -> Response:
        """The response as it comes."""
        stream = EventStream(self.writing, begin=self._begin, each=self._each, end=self._end, failed=self._failed)
        return await stream.begun()

    @property
    def _status(self) -> Status:
        return "incomplete" if self.writing.choices[0].finish == "length" else "completed"

    def _part(self) -> dict[str, Any]:
        logs = entries(self.drawn, self.writing.plan.model.tokenizer) if self.ask.include else []
        return {"type": "output_text", "text": "".join(self.parts), "annotations": [], "logprobs": logs}

    def _message(self, status: str) -> dict[str, Any]:
        return {"id": self.item, "type": "message", "role": "assistant", "status": status,
                "content": [] if status == "in_progress" else [self._part()]}

    def _response(self, status: Status, error: dict[str, Any] | None = None) -> ResponseAnswer:
        over = status in ("completed", "incomplete")
        ask, usage = self.ask, self.writing.usage
        form = ask.text.format if ask.text is not None else None
        return ResponseAnswer(
            id=self.id, created_at=self.created, completed_at=now() if status == "completed" else None, error=error,
            status=status, instructions=ask.instructions, max_output_tokens=ask.max_output_tokens,
            incomplete_details={"reason": "max_output_tokens"} if status == "incomplete" else None,
            metadata=ask.metadata or {}, model=ask.model, output=[self._message(status)] if over else [],
            parallel_tool_calls=bool(ask.parallel_tool_calls), tool_choice=ask.tool_choice or "auto",
            temperature=1.0 if ask.temperature is None else ask.temperature,
            top_p=1.0 if ask.top_p is None else ask.top_p,
            text={"format": {"type": "text"} if form is None else form.model_dump(by_alias=True, exclude_none=True)},
            usage=ResponseUsage(
                input_tokens=usage.prompt_tokens, output_tokens=usage.completion_tokens,
                input_tokens_details={"cached_tokens": usage.prompt_tokens_details.cached_tokens,
                                      "cache_write_tokens": 0},
                output_tokens_details={"reasoning_tokens": 0}, total_tokens=usage.total_tokens) if over else None,
            reproducible=self.writing.call.exact if over else None, timings=self.writing.timings if over else None)

    def _event(self, kind: str, **about: Any) -> bytes:
        made = event({"type": kind, "sequence_number": self.number, **about}, kind)
        self.number += 1
        return made

    def _whole_event(self, kind: str, status: Status, error: dict[str, Any] | None = None) -> bytes:
        return self._event(kind, response=self._response(status, error).model_dump())

    def _begin(self) -> Iterator[bytes]:
        yield self._whole_event("response.created", "in_progress")
        yield self._whole_event("response.in_progress", "in_progress")
        yield self._event("response.output_item.added", output_index=0, item=self._message("in_progress"))
        yield self._event("response.content_part.added", **self._at, part=self._part())

    @property
    def _at(self) -> dict[str, Any]:
        return {"item_id": self.item, "output_index": 0, "content_index": 0}

    def _each(self, index: int, delta: Delta) -> Iterator[bytes]:
        self.parts.append(delta.text)
        self.drawn += delta.drawn
        if delta.text or delta.drawn:
            logs = entries(delta.drawn, self.writing.plan.model.tokenizer) if self.ask.include else []
            yield self._event("response.output_text.delta", **self._at, delta=delta.text, logprobs=logs)

    def _end(self) -> Iterator[bytes]:
        part, status = self._part(), self._status
        yield self._event("response.output_text.done", **self._at, text=part["text"], logprobs=part["logprobs"])
        yield self._event("response.content_part.done", **self._at, part=part)
        yield self._event("response.output_item.done", output_index=0, item=self._message(status))
        yield self._whole_event(f"response.{status}", status)

    def _failed(self, problem: Problem) -> bytes:
        code = "rate_limit_exceeded" if problem.status == 429 else "server_error"
        return self._whole_event("response.failed", "failed", {"code": code, "message": problem.message})
