"""The shortest way to end a text that a grammar rules, found by asking the grammar itself about bytes.

llguidance says which bytes may follow but not how far the end is. A best-first search (Dijkstra 1959) over its states
finds an end; what the quotes and brackets of JSON say keeps it small, and never decides what is allowed.
"""

from __future__ import annotations

import heapq
import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from llguidance import LLMatcher

_QUOTE, _ESCAPE, _OPEN, _CLOSE, _SPACE = ord('"'), ord("\\"), b"{[", b"}]", b" \t\r\n"
_MANY = 12  # more bytes than this are a class of characters: one of each kind stands for the others


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a JSON document a text ends, as its quotes and brackets say."""

    stack: bytes = b""  # the brackets that are open
    string: bool = False
    escaped: bool = False
    key: bytes | None = None  # what a key's string holds so far; None elsewhere
    names: bool = False  # the next string is a key
    scalar: bool = False  # a number or a literal has begun
    starts: bool = True  # a value is about to begin

    def after(self, data: bytes) -> Place:
        """The place behind more bytes."""
        place = self
        for byte in data:
            place = place._string(byte) if place.string else place._between(byte)
        return place

    def _string(self, byte: int) -> Place:
        if self.escaped or byte != _QUOTE:
            key = None if self.key is None else self.key + bytes([byte])
            return replace(self, escaped=not self.escaped and byte == _ESCAPE, key=key)
        return replace(self, string=False, key=None)

    def _between(self, byte: int) -> Place:
        if byte in b",:":
            inside = self.stack.endswith(b"{") and byte == ord(",")
            return replace(self, names=inside, scalar=False, starts=not inside)
        if byte == _QUOTE:
            return replace(self, string=True, key=b"" if self.names else None, names=False, starts=False)
        if byte in _OPEN:
            return replace(self, stack=self.stack + bytes([byte]), names=byte == _OPEN[0], starts=byte == _OPEN[1])
        if byte in _CLOSE:
            return replace(self, stack=self.stack[:-1], names=False, scalar=False, starts=False)
        return self if byte in _SPACE else replace(self, scalar=True, starts=False)

    @property
    def value_string(self) -> bool:
        """Whether the text stands inside a string that is no key, and not behind a backslash."""
        return self.string and self.key is None and not self.escaped


@dataclass(frozen=True, slots=True)
class Closer:
    """Finds ends. ``json``: what is ruled is JSON, so a bracket that may close does. ``names`` are the keys that some
    object must have, as their bytes stand in a string, and ``samples`` what is tried in other strings, or where much
    may follow: where a pattern may begin anywhere no byte is nearer to its end than another. ``most`` bounds the
    states that one search looks at."""

    json: bool
    names: frozenset[bytes] = frozenset()
    most: int = 400
    samples: tuple[bytes, ...] = ()

    def shortest(self, matcher: LLMatcher, place: Place) -> bytes | None:
        """Bytes that complete the text of a matcher over single bytes, which is not changed; None if none was found."""
        order, seen, done = itertools.count(), set[object](), set[tuple[int, int]]()
        heap = [(0, next(order), _Node.of(b"", matcher.deep_copy(), place))]
        for _ in range(self.most):
            if not heap:
                return None
            _, number, node = heapq.heappop(heap)
            if not done.isdisjoint(node.values):
                continue  # that value has been completed on a shorter way
            done.update(node.completed)
            if node.matcher.is_accepting():
                return node.path
            for data in self._next(node):
                child = node.after(data, number)
                if child is not None and child.sign not in seen:
                    seen.add(child.sign)
                    heapq.heappush(heap, (len(child.path), next(order), child))
        return None

    def _next(self, node: _Node) -> Iterable[bytes]:
        """What is tried behind a node: the bytes that must follow, or a choice among those that may."""
        if node.forced:
            return (node.forced,)
        may = bytes(np.flatnonzero(np.unpackbits(np.frombuffer(node.mask, np.uint8)[:32], bitorder="little")).tolist())
        chosen = self._in_json(node.place, may) if self.json else _kinds(may)
        each = [bytes([byte]) for byte in chosen]
        inside = node.place.value_string and chosen != b'"' if self.json else len(may) > _MANY
        return [*each, *(sample for sample in self.samples if inside and sample[0] in may)]

    def _in_json(self, place: Place, may: bytes) -> bytes:
        if place.string:
            if _QUOTE in may and not place.escaped:
                return b'"'
            if place.key is not None and self.names:
                begun = bytes(b for b in may if any(n.startswith(place.key + bytes([b])) for n in self.names))
                may = begun or may
            return _kinds(may)
        for first in (_CLOSE, b",:"):
            found = bytes(b for b in may if b in first)
            if found:
                return found
        return bytes(b for b in may if b not in _SPACE)


@dataclass(frozen=True, slots=True)
class _Node:
    path: bytes
    matcher: LLMatcher
    place: Place
    mask: bytes
    forced: bytes
    values: tuple[tuple[int, int], ...] = ()  # the JSON values that are open here, named by where they began
    completed: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, path: bytes, matcher: LLMatcher, place: Place, *names: tuple[tuple[int, int], ...]) -> _Node:
        return cls(path, matcher, place, matcher.compute_bitmask(), matcher.compute_ff_bytes(), *names)

    @property
    def sign(self) -> object:
        """What tells states apart: one of those as long as each other that allow the same stands for all of them."""
        return (len(self.path), self.mask, self.forced, self.place.string, self.values)

    def after(self, data: bytes, number: int) -> _Node | None:
        """The node behind more bytes; None where the grammar's limits are met."""
        matcher = self.matcher.deep_copy()
        if not matcher.consume_tokens(list(data)):
            return None
        values, completed, place = self.values, self.completed, self.place
        for at, byte in enumerate(data):
            before, place = place, place.after(bytes([byte]))
            if before.starts and byte not in _SPACE:
                values = (*values, (number, at))
            gone = len(before.stack) - len(place.stack) == 1
            text = before.string and not place.string and before.key is None
            ended = (before.scalar and not place.scalar) + gone + text
            if ended:
                values, completed = values[:-ended], (*completed, *values[-ended:])
        return _Node.of(self.path + data, matcher, place, values, completed)


_LETTERS = tuple(re.compile(kind) for kind in (rb"[0-9]", rb"[a-z]", rb"[A-Z]", rb"[\xc2-\xf4]"))
_MARKS = re.compile(rb"[^0-9a-zA-Z\x80-\xff]")
_ENDS = re.compile(rb"[\n \"')\]}>;.]")


def _kinds(may: bytes) -> bytes:
    """All of a few bytes; of many, the first letter of each kind, and the other marks or those that end something."""
    if len(may) <= _MANY:
        return may
    marks = _MARKS.findall(may)
    marks = marks if len(marks) <= _MANY else _ENDS.findall(may)
    letters = [found[0] for kind in _LETTERS if (found := kind.search(may))]
    return b"".join((*marks, *letters)) or may[:_MANY]
