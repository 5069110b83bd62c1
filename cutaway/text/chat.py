"""Chat: messages to ids and loss weights, directly and by the same Jinja template that the model folder carries.

The direct way encodes each content by itself, so nothing that a person writes can open or close a turn. The template
runs in jinja2's immutable sandbox, in a process of little time and memory; a model folder of somebody else's is data,
not code (after nanochat's renderer).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from cutaway.errors import RequestError
from cutaway.text.line import Line
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


Row = Mapping[str, Any]


def _said(text: str) -> str:
    """What stands behind what was thought."""
    return text.rpartition("</think>")[2]


# how a template may take outer spaces from what it is given; from turns that are over, and are not to be learned, also
# what was thought
_OUTER: tuple[Callable[[str], str], ...] = (str, str.strip, str.lstrip, str.rstrip)
_OVER: tuple[Callable[[str], str], ...] = (
    *_OUTER, _said, lambda text: _said(text).strip(), lambda text: _said(text).lstrip(),
    lambda text: _said(text).rstrip(), lambda text: _said(text).lstrip("\n"), lambda text: _said(text).strip("\n"))
_MARK = re.compile("\x02(\\d+|[gh])\x03")  # in place of a content, and around what the template says is generated


def render(messages: Sequence[Message | Row], tokenizer: Tokenizer, *, add_generation_prompt: bool = False,
           tools: Sequence[Row] = ()) -> Rendered:
    """A conversation as ids and weights; ``add_generation_prompt`` opens the assistant's next turn. A public template
    also takes turns as the public format has them (``role``, ``content``, ``tool_calls``) and what ``tools`` there are.

    Equal to ``apply_template`` and to transformers' ``apply_chat_template`` for contents without control tokens; such
    tokens in a content stay text here.
    """
    if not messages:
        raise RequestError("a conversation needs at least one message")
    if tokenizer.roles.public:
        return _by_template(messages, tools, tokenizer, add_generation_prompt=add_generation_prompt)
    if tools or not all(isinstance(m, Message) for m in messages):
        raise RequestError("this model's own template knows turns of a user, an assistant and a system, and no tools",
                           way_out="name a model whose template does")
    ids, weights = [tokenizer.bos_id], [0.0]
    for message in messages:
        assert isinstance(message, Message)
        content = [*tokenizer.encode(message.content), tokenizer.end_id]
        ids += [tokenizer.turn_id(message.role), *content]
        weights += [0.0, *([float(message.role == "assistant")] * len(content))]
    if add_generation_prompt:
        ids.append(tokenizer.turn_id("assistant"))
        weights.append(0.0)
    return Rendered(ids, weights)


def _by_template(messages: Sequence[Message | Row], tools: Sequence[Row], tokenizer: Tokenizer, *,
                 add_generation_prompt: bool) -> Rendered:
    """By somebody else's template, whose control tokens are tokens while those in a content stay text: the template is
    given marks in place of the contents, and what stands between the marks is its own. What it says is generated
    weighs 1; where it says nothing of that, what the assistant's contents are.

    Raises RequestError where the tokenizer has no template, or one that changes what it is given otherwise than by
    taking away outer spaces and, where a turn is to follow, what was thought (up to ``</think>``) in those before; and
    for a control token in anything but a content.
    """
    roles = tokenizer.roles
    if not roles.template:
        raise RequestError("this model has no chat template", way_out="name a model that was taught to chat, or "
                           "continue a text with `cutaway generate`")
    rows = [_row(message) for message in messages]
    _refuse_control([{k: v for k, v in row.items() if k != "content"} for row in rows] + list(tools), tokenizer)
    # an empty content stays one: templates ask for it
    marked = [{**row, "content": f"\x02{i}\x03"} if row.get("content") else row for i, row in enumerate(rows)]
    words = {"bos_token": roles.bos, "eos_token": roles.eos, "pad_token": roles.pad}
    shown = _applied(marked, roles.template, tools, words, add_generation_prompt=add_generation_prompt, spans=True)
    wanted = _applied(rows, roles.template, tools, words, add_generation_prompt=add_generation_prompt)
    said, generated, line = any(mark == "g" for mark in _MARK.findall(shown)), False, Line(tokenizer)
    contents, ways = [str(row.get("content")) for row in rows], _OVER if add_generation_prompt else _OUTER
    for part, number in _parts(shown, wanted, contents, ways):
        own = number.isdecimal() and rows[int(number)].get("role") == "assistant"
        if number in ("g", "h"):
            generated = number == "g"
        elif number:
            line.content(part, weight=float(generated if said else own))
        else:
            line.own(part, weight=float(generated))
    ids, weights = line.finished()
    if not said:
        weights = _with_ends(ids, weights, tokenizer)
    begun = tuple(ids[: len(tokenizer.begin_ids)]) == tokenizer.begin_ids
    once = () if begun else tokenizer.begin_ids  # exactly one, whether the template writes it or not
    return Rendered([*once, *ids], [0.0] * len(once) + weights)


def _with_ends(ids: Sequence[int], weights: Sequence[float], tokenizer: Tokenizer) -> list[float]:
    """The weights with those of the tokens that end an answer, or it would never end one: the stop token behind it and
    the white space that the template writes before that."""
    out, last = list(weights), -1  # where the answer that is being looked at had its last token
    for at, token in enumerate(ids):
        if out[at]:
            last = at
        elif last >= 0 and token in tokenizer.stop_ids:
            out[last + 1 : at + 1] = [1.0] * (at - last)
            last = -1
        elif last >= 0 and tokenizer.decode([token]).strip():
            last = -1
    return out


def _row(message: Message | Row) -> dict[str, Any]:
    """A turn as the public format has it."""
    if isinstance(message, Message):
        return {"role": message.role, "content": message.content}
    if not isinstance(message.get("role"), str) or not isinstance(message.get("content"), str | None):
        raise RequestError("a turn has a role and a content of text", way_out="images and lists are not supported")
    return dict(message)


def _refuse_control(values: Sequence[Any], tokenizer: Tokenizer) -> None:
    """What a template writes with its own text is read for control tokens: names and descriptions must hold none."""
    text, names = json.dumps(values, ensure_ascii=False), {tokenizer.name_of(i) for i in tokenizer.control_ids}
    found = next((name for name in sorted(names) if name in text), None)
    if found is not None or "\\u0002" in text:
        raise RequestError(f"a role, a tool or a call of one holds {found or 'a control character'!r}",
                           way_out="take it out: it would be read as the model's own")


def _parts(shown: str, wanted: str, contents: Sequence[str],
           ways: Sequence[Callable[[str], str]]) -> Iterator[tuple[str, str]]:
    """What a template wrote, in parts: its own text (""), the contents by their number, where something generated
    begins and ends ("g", "h"). Raises RequestError where the marks do not stand for the contents."""
    pieces, at = _MARK.split(shown), 0
    for i, number in [(i, pieces[i]) for i in range(1, len(pieces), 2)] + [(len(pieces), "")]:
        own = pieces[i - 1]
        if not wanted.startswith(own, at):
            raise _rewritten()
        yield own, ""
        at += len(own)
        if number in ("g", "h"):
            yield "", number
        elif number:
            behind, given = _until_content(pieces, i), contents[int(number) : int(number) + 1]
            content = next((c for c in dict.fromkeys(how(text) for text in given for how in ways)
                            if wanted.startswith(c + behind, at)), None)
            if content is None:
                raise _rewritten()
            yield content, number
            at += len(content)
    if at != len(wanted):
        raise _rewritten()


def _until_content(pieces: Sequence[str], i: int) -> str:
    """The template's own text behind a mark, up to the next content."""
    out = pieces[i + 1]
    while i + 2 < len(pieces) and pieces[i + 2] in ("g", "h"):
        i += 2
        out += pieces[i + 1]
    return out


def _rewritten() -> RequestError:
    return RequestError("this model's chat template rewrites what it is given",
                        way_out="render it yourself and continue the text with `cutaway generate`")


def apply_template(
    messages: Sequence[Message | Row], template: str = CHAT_TEMPLATE, *, add_generation_prompt: bool = False,
    words: Mapping[str, Any] | None = None, tools: Sequence[Row] = (),
) -> str:
    """The conversation as text by a Jinja template, which may also name ``words``. Raises RequestError for a template
    that fails or reaches out."""
    return _applied([_row(m) for m in messages], template, tools, words, add_generation_prompt=add_generation_prompt)


def _applied(rows: Sequence[Row], template: str, tools: Sequence[Row], words: Mapping[str, Any] | None, *,
             add_generation_prompt: bool, spans: bool = False) -> str:
    given = {"messages": rows, "tools": list(tools) or None, "documents": None,
             "add_generation_prompt": add_generation_prompt, **(words or {})}
    text, wrong = rendered(template, given, spans=spans)
    if text is None:
        raise RequestError(f"the chat template cannot be used ({wrong})",
                           way_out="use a template that only reads its messages")
    return text
