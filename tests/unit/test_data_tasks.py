"""Tasks made of Python source: what is asked, what is left out, and that no module straddles two splits."""

from __future__ import annotations

import ast
import hashlib

import pytest

from cutaway.data.documents import Document, Skipped
from cutaway.data.tasks import TaskSettings, documented, packages, searches, summaries
from cutaway.errors import DataError

MODULE = '''"""The module.

More of it."""
class A:
    """A class."""
    @property
    def f(self):
        """First line,
        second line.

        Second paragraph."""
        x = 1
        return x

    def g(self): "one line"; return 2

async def h():
    """Only this."""

def i():
    return 0
'''


def document(name: str, text: str) -> Document:
    return Document(text, name, name, hashlib.sha256(text.encode()).hexdigest())


def test_what_is_documented_is_found_with_its_code() -> None:
    found = {d.name: d for d in documented([document("p/m.py", MODULE)])}
    assert set(found) == {"p/m.py", "p/m.py:A", "p/m.py:f", "p/m.py:g", "p/m.py:h"}
    f = found["p/m.py:f"]
    assert f.code == "def f(self):\n    x = 1\n    return x\n"
    assert (f.line, f.paragraph, f.package) == ("First line,", "First line, second line.", "p")
    assert [n for n, d in found.items() if d.code] == ["p/m.py:f"]


def test_what_is_no_python_is_counted() -> None:
    skipped = Skipped()
    assert not list(documented([document("a.py", "print 'two'")], skipped=skipped))
    assert skipped.counts == {"not Python": 1}


def many(n: int = 60) -> list[Document]:
    return [document(f"{'ab'[i % 2]}/m{i}.py", f'def f{i}(x):\n    """Give {i} of it."""\n    return {i} + x\n')
            for i in range(n)]


def test_splits_are_by_module_and_texts_stand_in_one() -> None:
    settings = TaskSettings(fewest=5, fewest_held=1)
    found = packages(settings, many())
    assert found.split("train").classes == ("a", "b") and "2 of 2 packages" in found.notes[0]
    assert sum(len(p) for p in found.parts.values()) == 60
    again = [*many(), document("b/copy.py", many()[0].text + "\n")]
    pairs = summaries(settings, again)
    assert sum(len(p) for p in pairs.parts.values()) == 60 and pairs.skipped.counts.total() == 1
    every = [s for p in pairs.parts.values() for s in p.sources]
    assert len(set(every)) == 60
    query = searches(settings, many()).split("train")
    assert query.sources[0].startswith("Give ") and query.targets[0].startswith("def f")


def test_too_little_is_an_error() -> None:
    with pytest.raises(DataError, match="packages have 20 docstrings"):
        packages(TaskSettings(), many(20))
    with pytest.raises(DataError, match="no function is left for"):
        searches(TaskSettings(), many(1))


def test_the_standard_library_gives_all_three() -> None:
    found = packages(TaskSettings())
    assert len(found.split("train").classes) >= 5 and min(map(len, found.parts.values())) > 100
    modules = {n: {name.split(":")[0] for name in p.names} for n, p in found.parts.items()}
    assert not modules["train"] & (modules["valid"] | modules["test"])
    pairs = summaries(TaskSettings())
    assert len(pairs.split("train")) > 1000 and all(map(ast.parse, pairs.split("test").sources[:50]))
