"""Calls of tools in what a model writes: found in the text while it comes, by the mark that its chat template teaches.

Two ways are known: ``<tool_call>{"name", "arguments"}</tool_call>`` (Hermes, Qwen, SmolLM), and an answer that is one
JSON object (``{"name", "parameters"}``, Llama 3). What only looks like a call stays text.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from cutaway.server.problem import Problem
from cutaway.text.tokenizer import Tokenizer

Way = Literal["tagged", "bare"]
OPEN, CLOSE = "<tool_call>", "</tool_call>"


@dataclass(frozen=True, slots=True)
class Asked:
    """A call that a model asks for; ``arguments`` is JSON in a string."""

    name: str
    arguments: str
    id: str = field(default_factory=lambda: f"call_{secrets.token_hex(12)}")


def way_of(tokenizer: Tokenizer) -> Way:
    """How the model of this tokenizer writes a call. Raises Problem for a way that is not known."""
    template = tokenizer.roles.template
    if OPEN in template and "<function=" not in template:
        return "tagged"
    if '"parameters"' in template or "'parameters'" in template or "\\\"parameters\\\"" in template:
        return "bare"
    raise Problem(400, "this model writes calls of tools in a way that is not known here; leave tools out",
                  code="model_unsuited", param="tools")


def beginning(way: Way) -> str:
    """What is written for a model whose answer must be a call."""
    return f"{OPEN}\n" if way == "tagged" else ""


@dataclass(slots=True)
class CallReader:
    """Takes the text of one choice and parts it into content and calls. ``known``: the names that may be called."""

    way: Way
    known: frozenset[str]
    held: str = ""
    found: int = 0

    def push(self, text: str, *, last: bool) -> tuple[str, list[Asked]]:
        """What is content for certain, and the calls that are complete."""
        self.held += text
        if self.way == "bare":
            return self._bare(last=last)
        content, calls = "", []
        while (at := self.held.find(OPEN)) >= 0:
            end = self.held.find(CLOSE, at)
            if end < 0 and not last:
                break
            inside = self.held[at + len(OPEN):end] if end >= 0 else self.held[at + len(OPEN):]
            asked = self._calls(inside)
            before, self.held = self.held[:at], "" if end < 0 else self.held[end + len(CLOSE):]
            if not asked:  # looks like one, and is none
                before += OPEN + inside + (CLOSE if end >= 0 else "")
            content += before.rstrip() if asked else before
            calls += asked
            self.found += len(asked)
            if asked:
                self.held = self.held.lstrip()
        out, self.held = self._sure(last)
        if self.found and not out.strip():
            out = ""
        return content + out, calls

    def _sure(self, last: bool) -> tuple[str, str]:
        """What cannot become a call any more, and what can; white space before a call is not content."""
        if last:
            return self.held, ""
        at = self.held.find(OPEN)
        if at < 0:
            at = next((len(self.held) - n for n in range(min(len(OPEN), len(self.held)), 0, -1)
                       if OPEN.startswith(self.held[-n:])), len(self.held))
        at = len(self.held[:at].rstrip())
        return self.held[:at], self.held[at:]

    def _bare(self, *, last: bool) -> tuple[str, list[Asked]]:
        start = self.held.lstrip()
        if start and not start.startswith("{"):
            out, self.held = self.held, ""
            return out, []
        if not last:
            return "", []
        whole, self.held = self.held, ""
        calls = self._calls(whole)
        self.found += len(calls)
        return ("", calls) if calls else (whole, [])

    def _calls(self, text: str) -> list[Asked]:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return []
        each = [self._call(v) for v in (value if isinstance(value, list) else [value])]
        return [] if None in each else [asked for asked in each if asked is not None]

    def _call(self, value: Any) -> Asked | None:
        """A name that is known with an object of arguments; anything else is text."""
        if not isinstance(value, Mapping) or value.get("name") not in self.known:
            return None
        arguments = value.get("arguments", value.get("parameters", {}))
        if not isinstance(arguments, dict):
            return None
        return Asked(str(value["name"]), json.dumps(arguments, ensure_ascii=False))
