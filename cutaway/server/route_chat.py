"""POST /v1/chat/completions: a conversation's next turn, whole or as it comes, with calls of tools."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cutaway.server.answers import (
    AssistantMessage,
    Called,
    CalledFunction,
    ChatAnswer,
    ChatChoice,
    ChoiceLogprobs,
    TokenLogprob,
)
from cutaway.server.asks import CHAT_UNSUPPORTED, ChatAsk, JsonFormat, NamedTool, SchemaFormat, Tool
from cutaway.server.assemble import Delta, Drawn, Finish
from cutaway.server.form import call_schema, constraints, rules
from cutaway.server.opened import Language
from cutaway.server.problem import Problem
from cutaway.server.prompts import Prompt, chat_ids, check_biases, check_room
from cutaway.server.service import Service, new_id, now
from cutaway.server.stream import DONE, EventStream, event
from cutaway.server.tools import Asked, CallReader, beginning, way_of
from cutaway.server.writing import Plan, Writing, sampling_of, seed_of
from cutaway.server.written import entries


async def chat(request: Request, service: Service) -> Response:
    """Answer it. Raises Problem for what cannot be served."""
    ask = await service.ask(request, ChatAsk, CHAT_UNSUPPORTED)
    model = await service.shelf.language(ask.model)
    plan = await service.aside(lambda: chat_plan(ask, model))
    readers = _readers(ask, model, len(plan.requests))
    talk = _Talk(ask, Writing(service, plan, request), readers)
    return await (talk.streamed() if ask.stream else talk.whole())


def chat_plan(ask: ChatAsk, model: Language) -> Plan:
    """What a conversation becomes. Raises Problem for one that the model cannot take."""
    if model.reads_source:
        raise Problem(400, f"{model.name} writes beside a source and does not chat; use /v1/completions, whose prompt "
                      "is what it reads", code="model_unsuited", param="model")
    tools, n, tokenizer = used_tools(ask), ask.n or 1, model.tokenizer
    begun = tokenizer.encode(beginning(way_of(tokenizer))) if forced(ask) else []
    prompt = Prompt((*chat_ids(ask.messages, tools, tokenizer), *begun))
    most = ask.max_completion_tokens or ask.max_tokens
    check_room(prompt, most, context_length=model.context_length, vocab_size=model.vocab_size, param="messages")
    check_biases(ask.logit_bias, model.vocab_size)
    param = "tools" if forced(ask) else "response_format"
    held = rules(_schema(ask, model), tokenizer, param=param)
    room = model.context_length - len(prompt.tokens) if most is None else most
    return Plan(model, (prompt,), most, sampling_of(ask), seed_of(ask), n, ask.stops,
                (ask.top_logprobs or 0) if ask.logprobs else None,
                constraints=constraints(held, room, count=n, param=param),
                shaves=tokenizer.spelling.spaced and not begun)


def used_tools(ask: ChatAsk) -> tuple[Tool, ...]:
    """The tools that the model is told of: none where none may be called."""
    return () if ask.tool_choice == "none" else ask.tools or ()


def forced(ask: ChatAsk) -> bool:
    """Whether the answer must be a call."""
    return ask.tool_choice == "required" or isinstance(ask.tool_choice, NamedTool)


def _schema(ask: ChatAsk, model: Language) -> dict[str, Any] | None:
    """What the answer must be, if it is said."""
    if forced(ask):
        wanted = [tool for tool in ask.tools or () if not isinstance(ask.tool_choice, NamedTool)
                  or tool.function.name == ask.tool_choice.function.name]
        if isinstance(ask.tool_choice, NamedTool) and not wanted:
            raise Problem(400, f"tool_choice names {ask.tool_choice.function.name!r}, which is not among the tools",
                          param="tool_choice", code="invalid_tool")
        return call_schema(wanted, way_of(model.tokenizer))
    if isinstance(ask.response_format, SchemaFormat):
        return ask.response_format.json_schema.schema_
    return {"type": "object"} if isinstance(ask.response_format, JsonFormat) else None


def _readers(ask: ChatAsk, model: Language, count: int) -> list[CallReader]:
    """One a choice, where tools may be called. What was written for the model to begin with is theirs, too."""
    tools = used_tools(ask)
    if not tools:
        return []
    way, names = way_of(model.tokenizer), frozenset(tool.function.name for tool in tools)
    return [CallReader(way, names, beginning(way) if forced(ask) else "") for _ in range(count)]


@dataclass(frozen=True, slots=True)
class _Part:
    """What a step added to a choice."""

    text: str
    calls: tuple[Asked, ...]
    drawn: tuple[Drawn, ...]
    finish: Finish | None


@dataclass(eq=False, slots=True)
class _Talk:
    """An answer on its way; ``readers`` find calls in the text of each choice."""

    ask: ChatAsk
    writing: Writing
    readers: list[CallReader]
    id: str = field(default_factory=lambda: new_id("chatcmpl-"))
    created: int = field(default_factory=now)
    ended: int = 0  # choices whose end was sent

    async def whole(self) -> Response:
        """The answer when it is complete."""
        parts: list[list[_Part]] = [[] for _ in self.writing.choices]
        try:
            async with self.writing.attended() as steps:
                async for news in steps:
                    for index, delta in news:
                        parts[index].append(self._part(index, delta))
            choices = [self._choice(index, mine) for index, mine in enumerate(parts)]
            answer = ChatAnswer(id=self.id, created=self.created, model=self.ask.model, choices=choices,
                                usage=self.writing.usage, seed=self.writing.plan.seed,
                                reproducible=self.writing.call.exact, system_fingerprint=self.writing.fingerprint,
                                timings=self.writing.timings)
        finally:
            self.writing.close()
        return JSONResponse(answer.model_dump())

    async def streamed(self) -> Response:
        """The answer as it comes."""
        return await EventStream(self.writing, begin=self._begin, each=self._each, end=self._end).begun()

    def _choice(self, index: int, parts: list[_Part]) -> ChatChoice:
        text, calls = "".join(p.text for p in parts), [c for p in parts for c in p.calls]
        made = [Called(id=c.id, function=CalledFunction(name=c.name, arguments=c.arguments)) for c in calls]
        message = AssistantMessage(content=text if text or not made else None, tool_calls=made or None)
        logs = None
        if self.ask.logprobs:
            found = entries([d for p in parts for d in p.drawn], self.writing.plan.model.tokenizer)
            logs = ChoiceLogprobs(content=[TokenLogprob.model_validate(e) for e in found])
        finish = parts[-1].finish
        assert finish is not None
        return ChatChoice(index=index, message=message, logprobs=logs, finish_reason=finish)

    def _part(self, index: int, delta: Delta) -> _Part:
        """A step of a choice, its calls parted from its text. Where one call is all that is wanted the choice ends
        with it."""
        if not self.readers:
            return _Part(delta.text, (), delta.drawn, delta.finish)
        reader, finish = self.readers[index], delta.finish
        text, calls = reader.push(delta.text, last=finish is not None)
        if calls and self.ask.parallel_tool_calls is False:
            calls, finish = calls[:1], "tool_calls"
            self.writing.end(index)
        if finish == "stop" and reader.found:
            finish = "tool_calls"
        return _Part(text, tuple(calls), delta.drawn, finish)

    def _chunk(self, index: int, delta: dict[str, Any], *, finish: str | None = None,
               logprobs: dict[str, Any] | None = None, tail: dict[str, Any] | None = None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        usage = {"usage": None} if self._counts else {}
        return event({**self._head(), "choices": [choice], **usage, **(tail or {})})

    def _head(self) -> dict[str, Any]:
        return {"id": self.id, "object": "chat.completion.chunk", "created": self.created, "model": self.ask.model,
                "system_fingerprint": self.writing.fingerprint}

    @property
    def _counts(self) -> bool:
        return bool(self.ask.stream_options and self.ask.stream_options.include_usage)

    def _begin(self) -> Iterator[bytes]:
        """Roles first, in order: the client makes its choices of them, and joins what comes twice."""
        for index in range(len(self.writing.choices)):
            yield self._chunk(index, {"role": "assistant", "content": None if self.readers else ""})

    def _each(self, index: int, delta: Delta) -> Iterator[bytes]:
        at = self.readers[index].found if self.readers else 0
        part = self._part(index, delta)
        logs = None
        if self.ask.logprobs and part.drawn:
            logs = {"content": entries(part.drawn, self.writing.plan.model.tokenizer), "refusal": None}
        if part.text or logs:
            yield self._chunk(index, {"content": part.text}, logprobs=logs)
        for number, call in enumerate(part.calls, start=at):
            said = {"index": number, "id": call.id, "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments}}
            yield self._chunk(index, {"tool_calls": [said]})
        if part.finish is not None:
            self.ended += 1
            over = self.ended == len(self.writing.choices)
            yield self._chunk(index, {}, finish=part.finish, tail=self._tail() if over and not self._counts else None)

    def _tail(self) -> dict[str, Any]:
        """What stands on the last chunk of all."""
        return self.writing.tail

    def _end(self) -> Iterator[bytes]:
        if self._counts:
            yield event({**self._head(), "choices": [], "usage": self.writing.usage.model_dump(), **self._tail()})
        yield DONE
