"""Tasks from a corpus of Python source that needs no labels: name the package of a docstring, sum up a function, find
the code that a docstring describes (after CodeSearchNet, arXiv 1909.09436).

A module's hash decides its split, so no module is learned from and asked about; a text that also stands in a held-out
module is dropped from train. What is left out is counted.
"""

from __future__ import annotations

import ast
import textwrap
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from cutaway.data.documents import SPLITS, Document, Skipped, Split, StdlibSettings, read, split_of
from cutaway.data.table import Labelled, Pairs, Table
from cutaway.errors import DataError
from cutaway.settings import Settings

_Function = ast.FunctionDef | ast.AsyncFunctionDef
_Node = ast.Module | ast.ClassDef | _Function


class TaskSettings(Settings):
    """Shares of modules that are held out, and the longest function in characters."""

    kind: Literal["python-stdlib"] = "python-stdlib"
    valid_share: float = Field(0.15, gt=0.0, lt=0.5)
    test_share: float = Field(0.15, gt=0.0, lt=0.5)
    longest: int = Field(2_000, ge=100)
    fewest: int = Field(20, ge=1)  # texts of a package in train; a package with fewer is no class
    fewest_held: int = Field(5, ge=1)  # and in each held-out split


@dataclass(frozen=True, slots=True)
class Documented:
    """A docstring, what it stands in (source without docstring; None but for functions), and where."""

    docstring: str
    code: str | None
    name: str
    document: Document

    @property
    def paragraph(self) -> str:
        """The docstring's first paragraph on one line."""
        return " ".join(self.docstring.strip().split("\n\n")[0].split())

    @property
    def line(self) -> str:
        """The docstring's first line."""
        return self.docstring.strip().split("\n", 1)[0].strip()

    @property
    def package(self) -> str:
        """The top-level module or package."""
        return self.document.name.split("/", 1)[0].removesuffix(".py")


def documented(documents: Iterable[Document], *, skipped: Skipped | None = None) -> Iterator[Documented]:
    """Every module, class and function that has a docstring."""
    for document in documents:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escapes in somebody's source are not ours to report
                tree = ast.parse(document.text)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            if skipped is not None:
                skipped.add(document.name, "not Python", str(error))
            continue
        lines = document.text.splitlines(keepends=True)
        for node in ast.walk(tree):
            text = ast.get_docstring(node) if isinstance(node, _Node) else None
            if text and text.strip() and isinstance(node, _Node):
                own = getattr(node, "name", "")
                code = _code(node, lines) if isinstance(node, _Function) else None
                yield Documented(text, code, f"{document.name}:{own}" if own else document.name, document)


def _code(node: _Function, lines: Sequence[str]) -> str | None:
    """The function without its docstring and decorators, at the margin; None where nothing is left but that."""
    doc = node.body[0]
    if len(node.body) == 1 or doc.end_lineno is None or node.end_lineno is None:
        return None
    if node.body[1].lineno == doc.end_lineno or doc.lineno == node.lineno:
        return None
    kept = [*lines[node.lineno - 1:doc.lineno - 1], *lines[doc.end_lineno:node.end_lineno]]
    return textwrap.dedent("".join(kept)).strip() + "\n"


def packages(settings: TaskSettings, documents: Iterable[Document] | None = None) -> Table[Labelled]:
    """Docstrings (first paragraph) and the package each stands in: a classification task.

    Classes are the packages with ``fewest`` texts in train and ``fewest_held`` in each held-out split; the note says
    how many. Raises DataError where fewer than two are left.
    """
    skipped = Skipped()
    parts = _parts(settings, documents, lambda d: (d.paragraph, d.package), skipped)
    counts = {name: Counter(d.package for d in part) for name, part in parts.items()}
    least: dict[Split, int] = {"train": settings.fewest, "valid": settings.fewest_held, "test": settings.fewest_held}
    known = {p for p in counts["train"] if all(counts[name][p] >= n for name, n in least.items())}
    if len(known) < 2:
        raise DataError(f"{len(known)} packages have {settings.fewest} docstrings in train and {settings.fewest_held} "
                        f"in each held-out split", where=settings.kind, way_out="set data.fewest or data.fewest_held")
    out: dict[Split, Labelled] = {}
    for name, part in parts.items():
        kept = [d for d in part if d.package in known]
        skipped.counts["in a package with too few docstrings"] += len(part) - len(kept)
        out[name] = Labelled(tuple(d.paragraph for d in kept), tuple(d.package for d in kept),
                             tuple(d.name for d in kept))
    many = len({d.package for part in parts.values() for d in part})
    note = f"{len(known)} of {many} packages have enough docstrings in every split and are classes"
    return Table(out, settings.kind, skipped, (note, f"left out: {skipped.counted}"))


def summaries(settings: TaskSettings, documents: Iterable[Document] | None = None) -> Table[Pairs]:
    """Functions without their docstring → its first line."""
    return _pairs(settings, documents, lambda d: (d.code or "", d.line))


def searches(settings: TaskSettings, documents: Iterable[Document] | None = None) -> Table[Pairs]:
    """Docstrings (first paragraph) → the function that each describes; in a split, each query stands once."""
    return _pairs(settings, documents, lambda d: (d.paragraph, d.code or ""))


def _pairs(settings: TaskSettings, documents: Iterable[Document] | None,
           pair: Callable[[Documented], tuple[str, str]]) -> Table[Pairs]:
    skipped = Skipped()
    parts = _parts(settings, documents, pair, skipped, functions=True)
    out: dict[Split, Pairs] = {}
    for name, part in parts.items():
        if not part:
            raise DataError(f"no function is left for {name} ({skipped.counted})", where=settings.kind,
                            way_out="give more modules, or larger shares")
        both = [pair(d) for d in part]
        out[name] = Pairs(tuple(a for a, _ in both), tuple(b for _, b in both), tuple(d.name for d in part))
    return Table(out, settings.kind, skipped, (f"left out: {skipped.counted}",))


def _parts(settings: TaskSettings, documents: Iterable[Document] | None, pair: Callable[[Documented], tuple[str, str]],
           skipped: Skipped, *, functions: bool = False) -> dict[Split, list[Documented]]:
    """What is documented, by the split of its module; each source text once, in a held-out split before train."""
    found: dict[Split, list[Documented]] = {"test": [], "valid": [], "train": []}
    corpus = read(StdlibSettings(valid_share=0.0, test_share=0.0)) if documents is None else documents
    for one in documented(corpus, skipped=skipped):
        if functions and one.code is None:
            skipped.add(one.name, "no function, or without a body")
        elif functions and len(one.code or "") > settings.longest:
            skipped.add(one.name, f"longer than {settings.longest:,} characters")
        else:
            found[split_of(one.document.digest, settings.valid_share, settings.test_share)].append(one)
    known: dict[str, Split] = {}
    kept = {name: list(_distinct(part, name, known, pair, skipped)) for name, part in found.items()}
    return {name: kept[name] for name in SPLITS}


def _distinct(part: Iterable[Documented], name: Split, known: dict[str, Split],
              pair: Callable[[Documented], tuple[str, str]], skipped: Skipped) -> Iterator[Documented]:
    for one in part:
        keys = {pair(one)[0], one.code or pair(one)[0]}
        before = next((known[k] for k in keys if k in known), None)
        if before is None:
            known.update(dict.fromkeys(keys, name))
            yield one
        else:
            skipped.add(one.name, "duplicate" if before == name else f"also in {before}")
