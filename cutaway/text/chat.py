"""Chat: messages to ids and loss weights, directly and by the same Jinja template that the model folder carries.

The direct way encodes each content by itself, so nothing that a person writes can open or close a turn. The template
runs in jinja2's immutable sandbox; a model folder of somebody else's is data, not code (after nanochat's renderer).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cutaway.errors import RequestError
from cutaway.text.template import CHAT_TEMPLATE
from cutaway.text.tokenizer import ROLES, Tokenizer

__all__ = ["CHAT_TEMPLATE", "Message", "Rendered", "apply_template", "render"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: ``role`` is user, assistant or system."""

    role: str
    content: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise RequestError(f"no role {self.role!r}", way_out=f"the roles are {', '.join(ROLES)}")


class Rendered(NamedTuple):
    """``ids`` and as many ``weights``: 1 on what the assistant says and on the end of its turn, else 0."""

    ids: list[int]
    weights: list[float]


def render(messages: Sequence[Message], tokenizer: Tokenizer, *, add_generation_prompt: bool = False) -> Rendered:
    """A conversation as ids and weights; ``add_generation_prompt`` opens the assistant's next turn.

    Equal to ``apply_template`` and to transformers' ``apply_chat_template`` for contents without control tokens; such
    tokens in a content stay text here.
    """
    if not messages:
        raise RequestError("a conversation needs at least one message")
    ids, weights = [tokenizer.bos_id], [0.0]
    for message in messages:
        content = [*tokenizer.encode(message.content), tokenizer.end_id]
        ids += [tokenizer.turn_id(message.role), *content]
        weights += [0.0, *([float(message.role == "assistant")] * len(content))]
    if add_generation_prompt:
        ids.append(tokenizer.turn_id("assistant"))
        weights.append(0.0)
    return Rendered(ids, weights)


def apply_template(
    messages: Sequence[Message], template: str = CHAT_TEMPLATE, *, add_generation_prompt: bool = False
) -> str:
    """The conversation as text by a Jinja template. Raises RequestError for a template that fails or reaches out."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    rows = [{"role": m.role, "content": m.content} for m in messages]
    try:
        compiled = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(template)
        return compiled.render(messages=rows, add_generation_prompt=add_generation_prompt)
    except (TemplateError, TypeError, ValueError, OverflowError, MemoryError, RecursionError) as error:
        raise RequestError(f"the chat template cannot be used ({type(error).__name__}: {error})",
                           way_out="use a template that only reads its messages") from None
