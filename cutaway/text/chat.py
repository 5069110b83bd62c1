"""Chat: messages to ids and loss weights, directly and by the same Jinja template that the model folder carries.

The direct way encodes each content by itself, so nothing that a person writes can open or close a turn. The template
runs in jinja2's immutable sandbox, in a process of little time and memory; a model folder of somebody else's is data,
not code (after nanochat's renderer).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cutaway.errors import RequestError
from cutaway.text.template import CHAT_TEMPLATE
from cutaway.text.template_worker import rendered
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
    if tokenizer.roles.public:
        return _by_template(messages, tokenizer, add_generation_prompt=add_generation_prompt)
    ids, weights = [tokenizer.bos_id], [0.0]
    for message in messages:
        content = [*tokenizer.encode(message.content), tokenizer.end_id]
        ids += [tokenizer.turn_id(message.role), *content]
        weights += [0.0, *([float(message.role == "assistant")] * len(content))]
    if add_generation_prompt:
        ids.append(tokenizer.turn_id("assistant"))
        weights.append(0.0)
    return Rendered(ids, weights)


def _by_template(messages: Sequence[Message], tokenizer: Tokenizer, *, add_generation_prompt: bool) -> Rendered:
    """By somebody else's template, whose control tokens are tokens while those in a content stay text: the template is
    given marks in place of the contents, and what stands between the marks is its own.

    Raises RequestError where the tokenizer has no template, or one that changes what it is given otherwise than by
    taking away outer spaces.
    """
    roles = tokenizer.roles
    if not roles.template:
        raise RequestError("this model has no chat template", way_out="name a model that was taught to chat, or "
                           "continue a text with `cutaway generate`")
    marks = [f"\x02{i}\x03" for i in range(len(messages))]
    words = {"bos_token": roles.bos, "eos_token": roles.eos}
    shown = apply_template([Message(m.role, mark) for m, mark in zip(messages, marks, strict=True)], roles.template,
                           add_generation_prompt=add_generation_prompt, words=words)
    wanted = apply_template(messages, roles.template, add_generation_prompt=add_generation_prompt, words=words)
    contents = [m.content for m in messages]
    if _filled(shown, marks, contents) != wanted:
        contents = [content.strip() for content in contents]
        if _filled(shown, marks, contents) != wanted:
            raise RequestError("this model's chat template rewrites what it is given",
                               way_out="render it yourself and continue the text with `cutaway generate`")
    ids, weights, rest, said = list[int](), list[float](), shown, list[int]()
    for message, mark, content in zip(messages, marks, contents, strict=True):
        before, found, rest = rest.partition(mark)
        ids += tokenizer.encode_marked(before)
        weights += [0.0] * (len(ids) - len(weights))
        ids += tokenizer.encode(content) if found else []
        weights += [float(message.role == "assistant")] * (len(ids) - len(weights))
        said += [len(ids)] if found and message.role == "assistant" else []
    ids += tokenizer.encode_marked(rest)
    weights += [0.0] * (len(ids) - len(weights))
    for at in said:  # where the assistant's turn ends, the end is learned too, or it would never be written
        if at < len(ids) and ids[at] in tokenizer.stop_ids:
            weights[at] = 1.0
    begun = tuple(ids[: len(tokenizer.begin_ids)]) == tokenizer.begin_ids
    once = () if begun else tokenizer.begin_ids  # exactly one, whether the template writes it or not
    return Rendered([*once, *ids], [0.0] * len(once) + weights)


def _filled(shown: str, marks: Sequence[str], contents: Sequence[str]) -> str:
    for mark, content in zip(marks, contents, strict=True):
        shown = shown.replace(mark, content)
    return shown


def apply_template(
    messages: Sequence[Message], template: str = CHAT_TEMPLATE, *, add_generation_prompt: bool = False,
    words: Mapping[str, str] | None = None,
) -> str:
    """The conversation as text by a Jinja template, which may also name ``words``. Raises RequestError for a template
    that fails or reaches out."""
    rows = [{"role": m.role, "content": m.content} for m in messages]
    given = {"messages": rows, "add_generation_prompt": add_generation_prompt, **(words or {})}
    text, wrong = rendered(template, given)
    if text is None:
        raise RequestError(f"the chat template cannot be used ({wrong})",
                           way_out="use a template that only reads its messages")
    return text
