"""Conversations from a corpus that holds none: a request made from a text's own words, and the text as the answer.

Source code is turned round at its docstrings (as CodeSearchNet did, arXiv 1909.09436): the first sentence asks for
the function, and the function without its docstring answers. Other text asks for its own continuation. A held-out
request comes from a held-out document, because each call sees the documents of one split, and ``without`` drops what
stands in both. What yields no conversation is counted under its reason.
"""

from __future__ import annotations

import ast
import re
import warnings
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, overload

from cutaway.data.documents import Document
from cutaway.errors import DataError

Kind = Literal["functions", "continuations", "given"]
Counts = Counter[str]

LONGEST_ANSWER = 900  # characters; in a context of 256 tokens no longer function fits
LONGEST_SENTENCE = 160
PASSAGE = (60, 320)  # characters of a continuation
OPENING = (24, 200)
FEWEST = 4  # continuations a document gives at most, or one in SPACING characters where that is more
SPACING = 2_000
ENOUGH = (50, 0.2)  # documented functions, and share of documents that give one, from which on a corpus is code
LIMIT = 50_000


@dataclass(frozen=True, slots=True)
class Conversation:
    """One request with a good answer; ``name`` says where it stands, ``document`` is its document's digest."""

    request: str
    answer: str
    name: str
    document: str


@dataclass(frozen=True, slots=True)
class Conversations(Sequence[Conversation]):
    """The conversations of one split, their kind, and how often each reason left something out."""

    items: tuple[Conversation, ...]
    kind: Kind
    left_out: Mapping[str, int] = field(default_factory=dict)

    @overload
    def __getitem__(self, index: int) -> Conversation: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Conversation, ...]: ...
    def __getitem__(self, index: int | slice) -> Conversation | tuple[Conversation, ...]:
        return self.items[index]

    def __len__(self) -> int:
        return len(self.items)

    def without(self, others: Iterable[Conversation]) -> Conversations:
        """These, less those whose request or answer also stands in ``others``: nothing held out was learned."""
        known = {text for c in others for text in (c.request, c.answer)}
        kept = tuple(c for c in self.items if c.request not in known and c.answer not in known)
        counts = Counter(self.left_out) + Counter({"in the other split": len(self.items) - len(kept)})
        return Conversations(kept, self.kind, dict(counts))

    def __str__(self) -> str:
        made = {"functions": "request → function", "continuations": "opening → continuation",
                "given": "as they were given"}[self.kind]
        return f"{len(self.items):,} conversations ({made}); left out: {_listed(self.left_out)}"


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(counts.items())) or "nothing"


def functions(documents: Iterable[Document], *, counts: Counts | None = None) -> Iterator[Conversation]:
    """Every short documented Python function, methods included, as request → source without docstring."""
    return _unique(documents, _functions, Counter() if counts is None else counts)


def continuations(documents: Iterable[Document], *, counts: Counts | None = None) -> Iterator[Conversation]:
    """Openings of passages → the passage, ended at a sentence's (in code or lists: a block's) end."""
    return _unique(documents, _continuations, Counter() if counts is None else counts)


def make(documents: Iterable[Document], kind: Kind | Literal["auto"] = "auto", *, limit: int = LIMIT) -> Conversations:
    """Conversations of the kind a corpus can give, in one pass.

    ``auto`` takes functions where there are 50 or more and a fifth of the documents gives one, else continuations.
    ``limit`` bounds what a large corpus costs: reading stops where a kind has so many, and ``left_out`` says so.
    Raises DataError where the documents give nothing.
    """
    makers: dict[Kind, Callable[[Document, Counts], Iterator[Conversation]]] = {
        "functions": _functions, "continuations": _continuations, "given": _given}
    if kind != "auto" and kind not in makers:
        raise DataError(f"unknown kind of conversations {kind!r}",
                        way_out="choose auto, functions, continuations or given")
    wanted: tuple[Kind, ...] = ("functions", "continuations") if kind == "auto" else (kind,)
    counts: dict[Kind, Counts] = {k: Counter() for k in wanted}
    found: dict[Kind, dict[tuple[str, str], Conversation]] = {k: {} for k in wanted}
    read = 0
    for document in documents:
        if any(len(found[k]) >= limit for k in wanted):
            for k in wanted:
                counts[k]["documents behind the limit (at least)"] += 1
            break
        read += 1
        for k in wanted:
            _collect(found[k], makers[k](document, counts[k]), counts[k], limit)
    givers = len({c.document for c in found[wanted[0]].values()})
    code = len(found[wanted[0]]) >= ENOUGH[0] and givers >= ENOUGH[1] * read
    chosen = wanted[0] if code or not found[wanted[-1]] else wanted[-1]
    if not found[chosen]:
        raise DataError(f"no conversation can be made of this text (left out: {_listed(counts[chosen])})",
                        way_out="give more text, or documented functions")
    return Conversations(tuple(found[chosen].values()), chosen, dict(counts[chosen]))


def _given(document: Document, counts: Counts) -> Iterator[Conversation]:
    """The document itself where it is a conversation."""
    if document.asked is None:
        counts["documents that are no conversations"] += 1
        return
    request, answer = document.text[: document.asked], document.text[document.asked :].strip()
    yield Conversation(request, answer, document.name, document.digest)


def _collect(found: dict[tuple[str, str], Conversation], made: Iterable[Conversation], counts: Counts,
             limit: int) -> None:
    for c in made:
        key = (c.request, c.answer)
        if key in found:
            counts["duplicate"] += 1
        elif len(found) >= limit:
            counts["over the limit"] += 1
        else:
            found[key] = c


def _unique(documents: Iterable[Document], maker: Callable[[Document, Counts], Iterator[Conversation]],
            counts: Counts) -> Iterator[Conversation]:
    seen: set[tuple[str, str]] = set()
    for document in documents:
        for c in maker(document, counts):
            if (c.request, c.answer) in seen:
                counts["duplicate"] += 1
            else:
                seen.add((c.request, c.answer))
                yield c


# A block is found by its indentation and then parsed alone: this costs a tenth of parsing every module whole, and
# reads files whose other parts are no valid Python.
_DEF = re.compile(r"^([ \t]*)((?:async[ \t]+)?def[ \t]+([^\W\d]\w*)[ \t]*\()", re.MULTILINE)
_DOCSTRING = re.compile(r"""[ \t]*[rRuU]?(?:\"{3}(.*?)\"{3}|'{3}(.*?)'{3}|"([^"\n]*)"|'([^'\n]*)')[ \t]*(?:;|\n|$)""",
                        re.DOTALL)
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=\S)")


def _functions(document: Document, counts: Counts) -> Iterator[Conversation]:
    text = document.text.expandtabs(8) if "\t" in document.text else document.text
    for match in _DEF.finditer(text):
        header = _header_end(text, match.end())
        doc = _DOCSTRING.match(text, header) if header else None
        if doc is None:
            counts["functions without docstring"] += 1
            continue
        indent = len(match.group(1))
        body = text[doc.end():_block_end(text, doc.end(), indent)]
        reason, conversation = _function(text[match.start(2):header] + body.rstrip(), _summary(doc), indent, document)
        if conversation is None:
            counts[f"functions {reason}"] += 1
        else:
            yield conversation


def _header_end(text: str, start: int) -> int | None:
    """Offset just behind the colon and line end that close a signature whose parenthesis opened before ``start``."""
    depth = 1
    for i in range(start, min(len(text), start + LONGEST_ANSWER)):
        depth += (text[i] in "([{") - (text[i] in ")]}")
        if depth == 0:
            closed = re.compile(r"[^:\n#]*:[ \t]*(?:#[^\n]*)?\n").match(text, i + 1)
            return closed.end() if closed else None
    return None


def _block_end(text: str, start: int, indent: int) -> int:
    at = start
    while at < len(text):
        line_end = text.find("\n", at)
        line_end = len(text) if line_end < 0 else line_end + 1
        line = text[at:line_end]
        if line.strip() and len(line) - len(line.lstrip(" ")) <= indent:
            return at
        if line_end - start > LONGEST_ANSWER * 2:
            return line_end
        at = line_end
    return at


def _summary(doc: re.Match[str]) -> str:
    """The first sentence of a docstring, on one line, without its full stop."""
    text = next((g for g in doc.groups() if g is not None), "")
    paragraph = " ".join(text.strip().split("\n\n")[0].split())
    return _SENTENCE.split(paragraph)[0].rstrip(" .:")


def _function(source: str, summary: str, indent: int, document: Document) -> tuple[str, Conversation | None]:
    """The conversation, or why there is none."""
    answer = "\n".join(line[indent:] if line[:indent].isspace() else line for line in source.split("\n"))
    if not summary or summary.startswith(">>>"):
        return "with an empty docstring", None
    if len(summary) > LONGEST_SENTENCE:
        return f"whose first sentence is longer than {LONGEST_SENTENCE} characters", None
    if len(answer) > LONGEST_ANSWER:
        return f"longer than {LONGEST_ANSWER} characters", None
    node = _only_function(answer)
    if node is None:
        return "without a body, or that do not parse alone", None
    # ``def`` and the space before the name give its tokens the same ids here as in the answer, so that copying it is
    # one step of induction; `` `name`` would be other tokens.
    request = f"Write `def {node.name}({', '.join(_parameters(node.args))})`: {summary}."
    return "", Conversation(request, answer, f"{document.name}:{node.name}", document.digest)


def _only_function(source: str) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in somebody's source are not ours to report
            body = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    node = body[0] if len(body) == 1 else None
    return node if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else None


def _parameters(args: ast.arguments) -> list[str]:
    """The names a caller sees, ``*`` and ``**`` kept, without defaults and annotations."""
    names = [a.arg for a in (*args.posonlyargs, *args.args)]
    names += [f"*{args.vararg.arg}"] if args.vararg else []
    names += [a.arg for a in args.kwonlyargs]
    return names + ([f"**{args.kwarg.arg}"] if args.kwarg else [])


_END = re.compile(r"""[.!?…]["'”’)\]]*(?=\s|$)""")
_BLOCK = re.compile(r"(?:\n[ \t]*){2,}")


def _continuations(document: Document, counts: Counts) -> Iterator[Conversation]:
    text = document.text.replace("\r\n", "\n").strip()
    ends = [m.end() for m in _END.finditer(text)]
    prose = len(ends) * 400 >= len(text)  # a sentence in 400 characters; otherwise code, lists, tables
    pairs = list(_sentences(text, ends) if prose else _blocks(text))
    if not pairs:
        counts["documents without an opening and a passage"] += 1
    wanted = max(FEWEST, len(text) // SPACING)
    chosen = pairs[:: max(1, len(pairs) // wanted)][:wanted]
    if len(pairs) > len(chosen):
        counts["passages of a document that gave its share"] += len(pairs) - len(chosen)
    for at, opening, passage in chosen:
        yield Conversation(f"Continue: {opening}", passage, f"{document.name}@{at}", document.digest)


def _sentences(text: str, ends: Sequence[int]) -> Iterator[tuple[int, str, str]]:
    """(offset, a sentence, what follows it up to the last sentence end that fits a passage), not overlapping."""
    start = i = 0
    while i < len(ends) - 1:
        opening = text[start:ends[i]].strip()
        last = bisect_right(ends, ends[i] + PASSAGE[1]) - 1
        passage = text[ends[i]:ends[last]].strip()
        letters = sum(map(str.isalpha, opening))
        if OPENING[0] <= len(opening) <= OPENING[1] and 2 * letters > len(opening) and len(passage) >= PASSAGE[0]:
            yield start, opening, passage
            i = last
        start, i = ends[i], i + 1


def _blocks(text: str) -> Iterator[tuple[int, str, str]]:
    """(offset, first line, the other lines) of every block between blank lines that fits a passage."""
    start = 0
    for edge in (*(m.span() for m in _BLOCK.finditer(text)), (len(text), len(text))):
        first, _, rest = text[start:edge[0]].strip("\n").partition("\n")
        if OPENING[0] // 3 <= len(first.strip()) <= OPENING[1] and PASSAGE[0] // 3 <= len(rest.strip()) <= PASSAGE[1]:
            yield start, first.strip(), rest.rstrip()
        start = edge[1]
