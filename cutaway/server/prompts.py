"""What a request becomes before a model reads it: conversations by the chat template, texts and ids checked for room.

Run in a thread: a template may take seconds, and a long text some.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cutaway.errors import CutawayError
from cutaway.server.asks import AssistantTurn, ChatMessage, Tool, ToolMessage, text_of
from cutaway.server.problem import Problem, problem_of
from cutaway.text.chat import Message, render
from cutaway.text.tokenizer import Tokenizer

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is read: ``tokens`` to go on with, beside a ``source`` for a model that reads one."""

    tokens: Ids
    source: Ids | None = None

    @property
    def read(self) -> Ids:
        """The tokens that a client's text became."""
        return self.tokens if self.source is None else self.source


def chat_ids(messages: Sequence[ChatMessage], tools: Sequence[Tool], tokenizer: Tokenizer) -> Ids:
    """A conversation whose next turn is the assistant's. Raises Problem for what the template does not take."""
    public = tokenizer.roles.public
    if tools and not takes_tools(tokenizer):
        raise Problem(400, "this model's chat template knows no tools; leave them out, or name a model whose does",
                      code="model_unsuited", param="tools")
    rows = [_row(message, at, public) for at, message in enumerate(messages)]
    try:
        return tuple(render(rows, tokenizer, add_generation_prompt=True,
                            tools=[tool.model_dump(exclude_none=True) for tool in tools]).ids)
    except CutawayError as error:
        raise Problem(400, str(error), param="messages", code="model_unsuited") from None


def takes_tools(tokenizer: Tokenizer) -> bool:
    """Whether a chat template does something with tools."""
    return tokenizer.roles.public and "tools" in tokenizer.roles.template


def _row(message: ChatMessage, at: int, public: bool) -> Message | Mapping[str, Any]:
    """A turn as templates know it: a developer's is the system's, a call's arguments are no text but what it says."""
    role, text = "system" if message.role == "developer" else message.role, text_of(message)
    calls = message.tool_calls if isinstance(message, AssistantTurn) else None
    if not public:
        if calls or isinstance(message, ToolMessage):
            raise Problem(400, "this model's chat template knows no tools; leave their messages out",
                          code="model_unsuited", param=f"messages[{at}]")
        return Message(role, text or "")
    row: dict[str, Any] = {"role": role, "content": text}
    if calls:
        row["tool_calls"] = [_call(call.model_dump(), f"messages[{at}].tool_calls[{i}]")
                             for i, call in enumerate(calls)]
    if isinstance(message, ToolMessage):
        row |= {"tool_call_id": message.tool_call_id, **({} if message.name is None else {"name": message.name})}
    return row


def _call(call: dict[str, Any], where: str) -> dict[str, Any]:
    try:
        arguments = json.loads(call["function"]["arguments"])
    except (ValueError, RecursionError):
        raise Problem(400, "the arguments of a call must be JSON", param=f"{where}.function.arguments",
                      code="invalid_tool") from None
    return {**call, "function": {**call["function"], "arguments": arguments}}


def text_prompt(given: str | Ids, tokenizer: Tokenizer, *, reads_source: bool) -> Prompt:
    """A text or ids to go on with, or the source of a model that reads one. Ids are taken as they are."""
    try:
        if isinstance(given, str):
            begin, end = ((), (tokenizer.eos_id,)) if reads_source else (tokenizer.begin_ids, ())
            ids = (*begin, *tokenizer.encode(given), *end)
        else:
            ids = given
        if not ids:
            raise Problem(400, "the prompt is empty, and this model has no token that begins a text", param="prompt",
                          code="empty_prompt")
        return Prompt((tokenizer.bos_id,), ids) if reads_source else Prompt(ids)
    except CutawayError as error:
        raise problem_of(error) from None


def check_biases(biases: Mapping[str, float] | None, vocab_size: int) -> None:
    """Raises Problem for a token that the model does not have."""
    if biases and (worst := max(map(int, biases))) >= vocab_size:
        raise Problem(400, f"token {worst} is outside the vocabulary of {vocab_size}", param=f"logit_bias.{worst}",
                      code="token_out_of_range")


def check_room(prompt: Prompt, max_tokens: int | None, *, context_length: int, vocab_size: int,
               param: str) -> None:
    """Raises Problem ``context_length_exceeded`` with both numbers where prompt and answer do not fit."""
    if (worst := max(prompt.read)) >= vocab_size:
        raise Problem(400, f"token {worst} is outside the vocabulary of {vocab_size}", param=param,
                      code="token_out_of_range")
    for ids, least in ((prompt.tokens, 1 if max_tokens is None else max_tokens), (prompt.source or (), 0)):
        if len(ids) + least > context_length:
            asked = f" and {least} for the answer" if max_tokens is not None and least else ""
            raise Problem(400, f"this model's context is {context_length} tokens, and the request has {len(ids)}"
                          f"{asked}; shorten the prompt{' or lower max_tokens' if asked else ''}",
                          code="context_length_exceeded", param=param)


def shown(ids: Sequence[int], tokenizer: Tokenizer) -> tuple[str, list[tuple[int, str, bytes]]]:
    """The ids as a text in which control tokens stand by their names, and each by itself."""
    control = {*tokenizer.control_ids}
    each = [(i, tokenizer.name_of(i), b"" if i in control else tokenizer.bytes_of([i])) for i in ids]
    whole = b"".join(data or (name.encode() if i in control else b"") for i, name, data in each)
    return whole.decode(errors="replace"), each
