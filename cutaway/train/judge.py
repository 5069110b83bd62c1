"""Judges: who ranks the answers to a request (Christiano et al. 2017, arXiv 1706.03741; InstructGPT, 2203.02155).

A program or a person plays the same part, ``rank(request, answers) -> scores``. The program is a stand-in for people
and is labelled so wherever its verdict is shown. No judge ever runs an answer: code is parsed, never executed.
"""

from __future__ import annotations

import ast
import keyword
import re
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Protocol, TextIO

from cutaway.errors import DataError, TrainingError
from cutaway.records import Journal, Stopwatch, digest, read_journal
from cutaway.train.reward import Answer

STAND_IN = "a program standing in for people"
PREFERENCES_VERSION = 1


@dataclass(frozen=True, slots=True)
class Verdict:
    """``score`` in 0..1 orders answers; ``checks`` says which demands were met."""

    score: float
    checks: Mapping[str, bool]

    @property
    def satisfies(self) -> bool:
        """Whether every demand was met."""
        return all(self.checks.values())


class Judge(Protocol):
    """Whoever ranks answers. Higher is better, equal is a tie, and an empty list is no opinion."""

    @property
    def label(self) -> str: ...
    @property
    def stand_in(self) -> bool: ...
    def rank(self, request: str, answers: Sequence[Answer]) -> list[float]: ...


class Checker(Judge, Protocol):
    """A judge with demands that can be counted, one answer at a time."""

    @property
    def checks(self) -> tuple[str, ...]: ...
    def verdict(self, request: str, answer: Answer) -> Verdict: ...


@dataclass(frozen=True, slots=True)
class ProgramJudge:
    """Judges a Python function: does it ``parse``, is it exactly ``one_function``, does it end by itself, does it use
    the request's ``words``?

    ``words``: at least one content word of the request stands among the names in the code (names are taken apart at
    ``_`` and capitals; keywords, ``self`` and words that every text has do not count). Comments, strings and
    docstrings never count, so copying the request into one gains nothing. In the standard library 99.5 % of the
    functions meet this for their own request, and 11 % for another one's: that is the chance level.

    ``score`` is 0.8 of the share of demands met, plus 0.1 of how much of the text parses (lines before the first
    error) and 0.1 of the share of the request's content words among the names in the code, so that ties are few.

    What it cannot see: whether the function does what was asked. A body of ``pass`` under the name asked for
    satisfies it, and a policy that is rewarded for nothing else will find that out: the report shows the judge's score
    beside the proxy reward and the KL for that reason.
    """

    label: str = STAND_IN
    stand_in: bool = True
    checks: tuple[str, ...] = ("parses", "one_function", "ends", "words")

    def verdict(self, request: str, answer: Answer) -> Verdict:
        """Check one answer; never raises, whatever the text."""
        tree, progress = _parse(answer.text)
        names = _code_words(answer.text)
        used = _share(content_words(request), names)
        checks = {"parses": tree is not None, "one_function": _single(tree) is not None, "ends": answer.finished,
                  "words": used > 0}
        return Verdict(_score(checks, progress, used), checks)

    def rank(self, request: str, answers: Sequence[Answer]) -> list[float]:
        """The verdicts' scores."""
        return [self.verdict(request, a).score for a in answers]


@dataclass(frozen=True, slots=True)
class TextJudge:
    """Judges a continuation: does it end by itself, at a sentence's or block's end (``whole``), without repeating
    itself (``fresh``: no sequence of four words more than twice, and a third or more of the words distinct), and is
    every word of it one that is ``known`` (``spelt``; not asked where nothing is known)?

    ``score`` is 0.8 of the share of demands met, plus 0.2 where every word is known, a tenth of that less for each
    hundredth of the words that is not: coarse, so that answers of equal form are ties. It cannot see sense, truth or
    style, nor whether the answer belongs to the request. That it once asked for a word of the request could not be
    learned from a few hundred pairs; see docs/lab/judges.md.
    """

    known: frozenset[str] = frozenset()
    label: str = STAND_IN
    stand_in: bool = True

    @property
    def checks(self) -> tuple[str, ...]:
        """The demands."""
        return ("ends", "whole", "fresh", *(("spelt",) if self.known else ()))

    def verdict(self, request: str, answer: Answer) -> Verdict:
        """Check one answer; never raises, whatever the text."""
        words = _words(answer.text)
        unknown = sum(w not in self.known for w in words) / max(len(words), 1) if self.known else 0.0
        distinct = len(set(words)) / len(words) if words else 0.0
        met = {"ends": answer.finished, "whole": _WHOLE.search(answer.text) is not None,
               "fresh": distinct >= 1 / 3 and not _repeats(words), "spelt": not unknown}
        checks = {name: met[name] for name in self.checks}
        return Verdict(_score(checks, max(0.0, 1.0 - round(10 * unknown, 1))), checks)

    def rank(self, request: str, answers: Sequence[Answer]) -> list[float]:
        """The verdicts' scores."""
        return [self.verdict(request, a).score for a in answers]


@dataclass(frozen=True, slots=True)
class Satisfaction:
    """A checker as a reward: 1 where an answer meets every demand, else 0."""

    judge: Checker

    def __call__(self, requests: Sequence[str], answers: Sequence[Answer]) -> list[float]:
        return [float(self.judge.verdict(r, a).satisfies) for r, a in zip(requests, answers, strict=True)]


@dataclass(frozen=True, slots=True)
class Graded:
    """A checker as a reward: its score in 0..1, so that answers of which none meets every demand still differ."""

    judge: Checker

    def __call__(self, requests: Sequence[str], answers: Sequence[Answer]) -> list[float]:
        return [self.judge.verdict(r, a).score for r, a in zip(requests, answers, strict=True)]


def program_judge(kind: str, learned: Iterable[str] = ()) -> ProgramJudge | TextJudge:
    """The program that judges this kind of conversations: ``functions``, ``continuations`` or ``given``, of which it
    sees the form alone. The words of the texts that continuations were ``learned`` from are those it knows."""
    known = frozenset(w for text in learned for w in _words(text)) if kind == "continuations" else frozenset()
    judges: dict[str, ProgramJudge | TextJudge] = {"functions": ProgramJudge(), "continuations": TextJudge(known),
                                                       "given": TextJudge()}
    if kind not in judges:
        raise DataError(f"no program judges {kind!r}", way_out=f"choose {' or '.join(judges)}")
    return judges[kind]


def _score(checks: Mapping[str, bool], *grades: float) -> float:
    return (4 * sum(checks.values()) / len(checks) + sum(grades) / len(grades)) / 5  # never above 1


class Quit(KeyboardInterrupt):
    """The person stopped judging; what was answered is saved. Handled like Ctrl-C: save, print how to resume."""


_KEYS = {"1": "1", "2": "2", "t": "tie", "tie": "tie", "=": "tie", "s": "skip", "skip": "skip", "q": "quit",
         "quit": "quit"}
_QUESTION = "Which is better? 1 / 2 / t tie / s skip / q quit (saved): "


@dataclass(frozen=True, slots=True)
class PersonJudge:
    """Asks a person, blind and in random order: nothing on the screen says where an answer comes from, and which one
    stands first depends on ``seed`` and the texts alone.

    Every choice is appended to ``path`` (JSON lines, ``version`` 1) before the next question, and a pair that already
    has one there is not asked again, so that judging can stop and go on at any time. More than two answers are asked
    pair by pair; a score is the share of an answer's pairs it won, a tie counting half. Equal texts are a tie unasked.
    """

    path: Path
    seed: int = 0
    input: TextIO | None = None
    output: TextIO | None = None
    known: dict[str, str] = field(default_factory=dict)
    label: str = "a person"
    stand_in: bool = False

    def __post_init__(self) -> None:
        for row in read_journal(self.path) if self.path.exists() else ():
            if row.get("version") != PREFERENCES_VERSION:
                raise DataError(f"version {row.get('version')!r} of a preference is not {PREFERENCES_VERSION}",
                                where=self.path, way_out="name another file")
            self.known[row["pair"]] = row["choice"]

    def rank(self, request: str, answers: Sequence[Answer]) -> list[float]:
        """Scores in 0..1, or an empty list where the person skipped. Raises Quit, and TrainingError at a program's
        standard input that is no terminal."""
        points = [0.0] * len(answers)
        for i, j in combinations(range(len(answers)), 2):
            better = self._compare(request, answers[i], answers[j])
            if better is None:
                return []
            points[i] += better
            points[j] += 1.0 - better
        return [p / max(len(answers) - 1, 1) for p in points]

    def _compare(self, request: str, a: Answer, b: Answer) -> float | None:
        """1 where ``a`` is better, 0 where ``b`` is, one half for a tie, None for a skip."""
        if a.text == b.text:
            return 0.5
        low, high = sorted((a, b), key=lambda x: (x.text, x.finished))
        pair = digest("\0".join((request, low.text, high.text)).encode())
        turned = int(digest(f"{self.seed} {pair}".encode())[:8], 16) % 2 == 1
        shown = (high, low) if turned else (low, high)
        if pair not in self.known:
            self._ask(request, shown, pair)
        choice = self.known[pair]
        if choice in ("tie", "skip"):
            return 0.5 if choice == "tie" else None
        return 1.0 if shown[int(choice) - 1] is a else 0.0

    def _ask(self, request: str, shown: tuple[Answer, Answer], pair: str) -> None:
        screen = sys.stderr if self.output is None else self.output
        for title, text in (("Request", request), ("Answer 1", shown[0].text), ("Answer 2", shown[1].text)):
            screen.write(f"\n── {title} ──\n{_visible(text)}\n")
        with Stopwatch() as watch:
            choice = self._choice(screen)
        if choice == "quit":
            screen.write(f"\n{len(self.known):,} judged so far, saved in {self.path}\n")
            raise Quit("judging was stopped by the person")
        Journal(self.path).append({
            "version": PREFERENCES_VERSION, "judge": self.label, "pair": pair, "request": request,
            "answers": [a.text for a in shown], "finished": [a.finished for a in shown], "choice": choice,
            "seed": self.seed, "seconds": round(watch.seconds, 3)})
        self.known[pair] = choice

    def _choice(self, screen: TextIO) -> str:
        """One of 1, 2, tie, skip, quit; the end of the input is quit."""
        source = self.input
        if source is None:
            if not sys.stdin.isatty():
                raise TrainingError("a person can only be asked at a terminal",
                                    way_out="run it there, or set judge.kind=program")
            source = sys.stdin
        while True:
            screen.write(_QUESTION)
            screen.flush()
            line = source.readline()
            if not line:
                return "quit"
            if choice := _KEYS.get(line.strip().lower()):
                return choice
            screen.write(f"{_visible(line.strip())!r} is none of 1, 2, t, s, q\n")


def _visible(text: str) -> str:
    """The text with control characters spelt out, so that an answer cannot steer the terminal or hide."""
    return "".join(c if c in "\n\t" or c.isprintable() else f"\\x{ord(c):02x}" for c in text)


# ---- code

_BLANKED = re.compile(r"""\"{3}.*?(?:\"{3}|\Z)|'{3}.*?(?:'{3}|\Z)|"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])*'?|\#[^\n]*""",
                      re.DOTALL)
_NAME = re.compile(r"[^\W\d]\w*")
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
_PART = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[^\W\d_A-Za-z]+")
_WHOLE = re.compile(r"""[.!?…;}\])>]["'”’)\]*_]*\s*\Z""")
_COMMON = frozenset(re.findall(r"\w+", """
a about after all also an and any are as at be been before being but by can could did do does each else for from
given has have he her him his how i if in into is it its let me more most my no not of on one only or other our
out over she should so some such than that the their them then there these they this to too under up us use used
using was we were what when where which while who whose will with would write yes yet you your
""")) | {"self", "cls", "arg", "args", "kwargs", "returns", *(k.lower() for k in keyword.kwlist)}


def _parse(source: str) -> tuple[ast.Module | None, float]:
    """(the tree, 1.0), or (None, share of the lines before the first error)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an answer's invalid escapes are no warnings of ours
            return ast.parse(source), 1.0
    except SyntaxError as error:
        return None, min(max((error.lineno or 1) - 1, 0) / max(source.count("\n") + 1, 1), 1.0)
    except (ValueError, RecursionError, MemoryError):  # null bytes, nesting beyond the parser's stack
        return None, 0.0


Function = ast.FunctionDef | ast.AsyncFunctionDef


def _single(tree: ast.Module | None) -> Function | None:
    only = tree.body[0] if tree is not None and len(tree.body) == 1 else None
    return only if isinstance(only, Function) else None


def _code_words(source: str) -> set[str]:
    """The words that names in the code are made of; strings and comments are blanked first."""
    return content_words(" ".join(_NAME.findall(_BLANKED.sub(" ", source))))


# ---- words


def content_words(text: str) -> set[str]:
    """The stems of a text's words, without the ones every text has; names are taken apart at ``_`` and capitals."""
    parts = [p for word in _WORD.findall(text.replace("_", " ")) for p in _PART.findall(word) or [word]]
    return {_stem(p) for p in parts if len(p) > 1 and p.lower() not in _COMMON}


def _stem(word: str) -> str:
    """A word without its commonest English endings, so that ``parses`` meets ``parse``."""
    low = word.lower().replace("’", "'").removesuffix("'s")
    for ending in ("ing", "ed", "es", "s", "e"):
        if low.endswith(ending) and len(low) - len(ending) >= 3:
            return low.removesuffix(ending)
    return low


def _words(text: str) -> list[str]:
    return [w.lower() for w in _WORD.findall(text)]


def _share(wanted: set[str], present: set[str]) -> float:
    return len(wanted & present) / len(wanted) if wanted else 0.0


def _repeats(words: Sequence[str]) -> bool:
    """Whether some sequence of four words stands more than twice."""
    seen: dict[tuple[str, ...], int] = {}
    for i in range(len(words) - 3):
        key = tuple(words[i:i + 4])
        seen[key] = seen.get(key, 0) + 1
    return any(count > 2 for count in seen.values())
