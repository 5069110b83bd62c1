"""Answers that follow rules: a JSON schema, a regular expression, a grammar, or simply JSON.

llguidance (Earley parsing over derivatives of regular expressions) says which tokens may come next. Around it: bounds
on what is accepted, bounded white space, and an answer that is complete before its tokens run out.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cutaway.errors import RequestError
from cutaway.generate.closing import Closer, Place
from cutaway.generate.request import Constraint
from cutaway.generate.schema import Growth, checked_schema, growth, patterns, required_names
from cutaway.generate.spelled import Spelled, spelled
from cutaway.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits

REGEX_BYTES, GRAMMAR_BYTES, COMPILE_SECONDS = 2_048, 65_536, 1.0
WHITE_SPACE = r" {1,8}|\n {0,8}"  # between two tokens of JSON, at most
_STATES = 20_000  # of the lexer, 1 to 2 kB each
_SEARCHED = 4_000  # states that the search for the shortest whole answer looks at
_UNKNOWN = Growth(48, 1, certain=False)
_FEW, _TRIED = 16, 256  # ids that are followed to an end each, and those that are tried with the end that is known
_REST = 16  # tokens between two searches that find nothing

Words = NDArray[np.uint32]


@dataclass(frozen=True, eq=False)
class Rules:
    """Compiled rules; ``begin`` starts an answer. ``end`` is the shortest whole answer that was found, if one was, and
    ``growth`` how fast the way to an end can become longer: where it is certain, an answer whose ``end`` fits is
    always complete in time; else it may end with "length", and is not complete then."""

    vocabulary: Spelled
    tokens: LLMatcher
    bytewise: LLMatcher
    closer: Closer
    growth: Growth
    end: bytes | None

    @property
    def least(self) -> int | None:
        """Tokens of the shortest whole answer that was found."""
        return None if self.end is None else len(self.vocabulary.tokens(self.end) or ())

    def begin(self, max_tokens: int, *, vocab_size: int | None = None) -> Constraint:
        """What one answer of at most ``max_tokens`` may be; its masks are for a model of ``vocab_size`` ids, the
        tokenizer's if not given."""
        least = self.least
        if least is not None and least > max_tokens:
            raise RequestError(f"the shortest complete answer found takes {least} tokens, and max_tokens is "
                               f"{max_tokens}", where="constraint", way_out=f"raise max_tokens to {least} or more")
        return _Answer(self, max_tokens, self.vocabulary.padding(vocab_size))


def json_schema(schema: object, tokenizer: Tokenizer) -> Rules:
    """JSON of a schema, its properties in the schema's order. Raises RequestError for a schema that is too large or
    asks for what is not honoured."""
    from llguidance import LLMatcher

    checked = checked_schema(schema)
    vocabulary = spelled(tokenizer)
    vocabulary.check_spells(bytes(range(0x20, 0x7F)), "JSON")
    text = LLMatcher.grammar_from_json_schema(checked, overrides={"whitespace_pattern": WHITE_SPACE})
    return _compiled(text, vocabulary, "JSON schema", checked)


def json_object(tokenizer: Tokenizer) -> Rules:
    """Any JSON object."""
    return json_schema({"type": "object"}, tokenizer)


def regex(pattern: str, tokenizer: Tokenizer) -> Rules:
    """A text that the whole of ``pattern`` matches, in the syntax of Rust's regex: no lookaround, no back reference."""
    from llguidance import LLMatcher

    _check_size(pattern, REGEX_BYTES, "regex")
    return _compiled(LLMatcher.grammar_from_regex(pattern), spelled(tokenizer), "regex")


def grammar(lark: str, tokenizer: Tokenizer) -> Rules:
    """A text of a context-free grammar in llguidance's dialect of Lark. Control tokens cannot be asked for."""
    from llguidance import LLMatcher

    _check_size(lark, GRAMMAR_BYTES, "grammar")
    _check_lark(lark)
    return _compiled(LLMatcher.grammar_from_lark(lark), spelled(tokenizer), "grammar")


def _check_size(text: str, most: int, name: str) -> None:
    size = len(text.encode(errors="surrogatepass"))
    if not 0 < size <= most:
        raise RequestError(f"{size:,} bytes, and it may have 1 to {most:,}", where=name)


def _check_lark(lark: str) -> None:
    """What would write control tokens, take tokens back or change the rules from inside is refused."""
    bare = re.sub(r'"(?:[^"\\\n]|\\.)*"|/(?:[^/\\\n]|\\.)+/|//[^\n]*|#[^\n]*', " ", lark)
    for what, name in ((r"<", "a special token"), (r"%llguidance", "%llguidance"),
                       (r"\[[^\]]*\b(?:stop|suffix|max_tokens|temperature)", "stop, suffix, max_tokens, temperature"),
                       (r"@", "another grammar")):
        if re.search(what, bare):
            raise RequestError(f"{name} is not honoured in a grammar", where="grammar", way_out="leave it out")
    if "x-guidance" in lark:
        raise RequestError("x-guidance is not honoured in a grammar", where="grammar", way_out="leave it out")


def _limits() -> LLParserLimits:
    from llguidance import LLParserLimits

    return LLParserLimits(max_lexer_states=_STATES, verbose_errors=False)


def _compiled(text: str, vocabulary: Spelled, name: str, schema: Mapping[str, Any] | None = None) -> Rules:
    """Rules whose compiling took no longer than is allowed. Raises RequestError with what is wrong with them."""
    from llguidance import LLMatcher

    slices, bytes_alone = vocabulary.plain if schema is None else vocabulary.json, vocabulary.bytewise
    started = time.thread_time()  # of this thread alone: what else runs here refuses nobody
    bytewise = LLMatcher(bytes_alone, text, log_level=0, limits=_limits())
    _check_error(bytewise, name)
    closer = Closer(False, most=_SEARCHED)
    if schema is not None:
        closer = Closer(True, required_names(schema), _SEARCHED, _samples(schema, bytes_alone))
    end = closer.shortest(bytewise, Place())
    if end is None and schema is not None:
        raise RequestError("no document of it was found: there is none, or the shortest is too long", where=name)
    if end is not None and vocabulary.tokens(end) is None:
        raise RequestError(f"this vocabulary cannot spell {end[:40]!r}", where=name,
                           way_out="use a model whose tokenizer knows every byte")
    made = LLMatcher(slices, text, log_level=0, limits=_limits())
    made.compute_bitmask()
    _check_error(made, name)
    grows = _UNKNOWN if schema is None else growth(schema)
    took = time.thread_time() - started
    if took > COMPILE_SECONDS:
        raise RequestError(f"it took {took:.1f} s to compile, and may take {COMPILE_SECONDS:g}", where=name,
                           way_out="make it smaller: fewer properties, repetitions or alternatives")
    closer = Closer(closer.json, closer.names, samples=closer.samples)
    return Rules(vocabulary, made, bytewise, closer, grows, end)


def _samples(schema: Mapping[str, Any], vocabulary: Any) -> tuple[bytes, ...]:
    """A short text of each pattern by itself, as it stands inside quotes; none where it is not found."""
    from llguidance import LLMatcher

    found = []
    for pattern in patterns(schema):
        alone = LLMatcher.grammar_from_regex(pattern.removeprefix("^").removesuffix("$"))
        matcher = LLMatcher(vocabulary, alone, log_level=0, limits=_limits())  # an error where an anchor stands inside
        words = tuple(word.encode() for word in re.findall(r"\w+", pattern))
        text = None if matcher.is_error() else Closer(False, samples=words).shortest(matcher, Place())
        if text:
            found.append(json.dumps(text.decode(errors="replace"), ensure_ascii=False).encode()[1:-1])
    return tuple(found)


def _check_error(matcher: LLMatcher, name: str) -> None:
    if matcher.is_error():
        said = " ".join(matcher.get_error().split())
        raise RequestError(said[:300] or "it cannot be followed", where=name)


class _Answer:
    """One answer under rules (a Constraint). While tokens abound llguidance's mask is all there is; when the end comes
    near, only what leaves room for an end is allowed; in the last moment, the end itself."""

    def __init__(self, rules: Rules, max_tokens: int, padding: Words) -> None:
        self._padding = padding
        self._rules, self._words = rules, rules.vocabulary
        self._matcher, self._left = rules.tokens.deep_copy(), max_tokens
        self._bytewise, self._place, self._unread = rules.bytewise.deep_copy(), Place(), b""  # read when it is needed
        self._end = rules.end
        self._way: tuple[int, ...] | None = None if rules.end is None else self._words.tokens(rules.end)
        self._most = len(self._way or ())  # tokens to an end, at most
        self._forced = self._over = False
        self._rest = 0  # tokens before the next search for an end

    @property
    def done(self) -> bool:
        return self._over or (self._matcher.is_stopped() and not self._matcher.is_error())

    @property
    def complete(self) -> bool:
        """Whether what was written is a whole document, though more of it might follow."""
        return self._over or self._matcher.is_accepting()

    def accept(self, token: int) -> None:
        if token in self._words.stop_ids and self.complete:
            self._over = True
            return
        if self._over or not self._words.is_text(token) or not self._matcher.consume_token(token):
            raise RequestError(f"token {token} does not follow the rules here", where="constraint")
        self._left, self._rest = self._left - 1, self._rest - 1
        self._unread += self._words.bytes_of(token)
        if self._forced:
            assert self._way is not None and self._way[0] == token
            self._way = self._way[1:]
        else:
            self._most += self._rules.growth.base + self._rules.growth.choice * (1 + self._words.begun(token))

    def mask(self) -> Words | None:
        found = self._mask()
        return np.concatenate([found, self._padding]) if len(self._padding) else found

    def _mask(self) -> Words:
        if self.done:
            return self._words.stops
        if self._forced and self._way is not None:
            return self._words.only(self._way[0]) if self._way else self._words.stops
        if self._far():
            return self._allowed()
        self._measure()
        return self._allowed() if self._way is None else self._near(self._way)

    def _allowed(self) -> Words:
        """llguidance's own mask, with ends where the document is complete and never a control token."""
        words = np.frombuffer(self._matcher.compute_bitmask(), np.uint32)[: len(self._words.texts)]
        _check_error(self._matcher, "constraint")
        words = words & (self._words.texts_or_stops if self._matcher.is_accepting() else self._words.texts)
        if not words.any():
            raise RequestError("no token of this vocabulary can follow", where="constraint")
        return words

    def _far(self) -> bool:
        """Whether any token that may come leaves room for an end, by what is known without looking."""
        growth = self._rules.growth
        if self._rules.end is None or self._rest > 0:
            return True  # no end is known
        return self._left - 1 >= self._most + growth.base + growth.choice * (1 + self._words.most_begun)

    def _near(self, way: tuple[int, ...]) -> Words:
        """What leaves room for an end: everything, less what begins too much; near the end what was tried; at last the
        end alone."""
        growth, spare = self._rules.growth, self._left - 1 - len(way)
        choices = (spare - growth.base) // growth.choice
        if choices > self._words.most_begun:
            return self._allowed()
        first = self._words.only(way[0]) if way else self._words.stops
        if choices > 0 or (choices == 0 and self._in_text()):
            return first | self._allowed() & (self._words.begins(choices - 1) if choices else self._words.characters)
        if spare >= 0:
            return first | self._tried(way)
        self._forced = True
        return first

    def _in_text(self) -> bool:
        """Whether any character may follow, as in the middle of a JSON string: the end is as near behind it."""
        if not (self._rules.closer.json and self._rules.growth.certain and self._place.value_string):
            return False
        return not (self._words.characters & ~self._allowed()).any()

    def _tried(self, way: tuple[int, ...]) -> Words:
        """Of what may come next, what an end was found behind that is short enough. Of few, each is followed to an end
        of its own; of many, the commonest are tried with the end that is known, or none."""
        words = self._allowed()
        ids = self._words.ids(words & ~self._words.stops, _TRIED)
        if len(ids) <= _FEW:
            kept = [i for i in ids if self._leaves_room(i)]
        else:
            stop, ends = self._words.stop_ids[0], ((), way)
            kept = [i for i in ids if any(  # the stop counts where the document is complete
                self._matcher.validate_tokens([i, *end, stop]) == len(end) + 2 for end in ends)]
        return self._words.of(kept) | words & self._words.stops

    def _leaves_room(self, token: int) -> bool:
        data, matcher = self._words.bytes_of(token), self._bytewise.deep_copy()
        if not matcher.consume_tokens(list(data)):
            return False
        end = self._end_behind(data, matcher, self._place.after(data) if self._rules.closer.json else self._place)
        way = None if end is None else self._words.tokens(end)
        return way is not None and len(way) < self._left

    def _measure(self) -> None:
        """Find the way to an end from here. Where none is found it is not looked for again before some tokens."""
        new, self._unread = self._unread, b""
        if self._rules.end is None or (new and not self._bytewise.consume_tokens(list(new))):
            self._way, self._most = None, 0
            return
        self._place = self._place.after(new) if self._rules.closer.json else self._place
        self._end = self._end_behind(new, self._bytewise, self._place)
        self._way = None if self._end is None else self._words.tokens(self._end)
        self._most = len(self._way or ())
        self._rest = 0 if self._way is not None else _REST

    def _end_behind(self, new: bytes, matcher: LLMatcher, place: Place) -> bytes | None:
        """Bytes to an end from a state that ``new`` led to: those known before if they still do, else by a search."""
        if matcher.is_accepting():
            return b""
        if self._end is not None:
            end = self._end[len(new):] if self._end.startswith(new) else self._end
            reached = matcher.deep_copy()
            if (reached.validate_tokens(list(end)) == len(end) and reached.consume_tokens(list(end))
                    and reached.is_accepting()):
                return end
        return self._rules.closer.shortest(matcher, place)
