"""Conversations: what is asked, what answers, and that nothing disappears uncounted."""

import ast
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutaway.data.conversations import Conversation, Conversations, continuations, functions, make
from cutaway.data.documents import Document
from cutaway.errors import DataError
from cutaway.records import digest

SOURCE = '''
"""A module."""
import os

def plain(a, b=2):
    """Add two numbers. Really."""
    return a + b

class Box:
    @property
    def size(self):
        """Return the size of
        the box."""
        if self._n:

            return self._n
        return 0

    async def fetch(self, url, *rest, timeout: float = 3.0, **more):
        "Fetch the page at url."
        # a comment stays
        return await get(url, timeout)

    def many(
        self,
        first,
        second=(1, 2),
    ) -> int:
        r"""Count \\d."""
        return len((self, first))

    def banner(self):
        """Give the banner."""
        return """
at the margin
"""

def undocumented():
    return 1

def empty():
    """Only words."""

def blank():
    """ """
    return 2
'''


def document(text: str, name: str = "m.py") -> Document:
    return Document(text, name, name, digest(text.encode()))


def made(text: str) -> tuple[dict[str, Conversation], Counter[str]]:
    counts: Counter[str] = Counter()
    return {c.name.split(":")[1]: c for c in functions([document(text)], counts=counts)}, counts


def test_a_function_is_asked_for_by_its_signature_and_first_sentence():
    found, _ = made(SOURCE)
    assert found["plain"].request == "Write `def plain(a, b)`: Add two numbers."
    assert found["plain"].answer == "def plain(a, b=2):\n    return a + b"
    assert found["size"].request == "Write `def size(self)`: Return the size of the box."
    assert found["fetch"].request == "Write `def fetch(self, url, *rest, timeout, **more)`: Fetch the page at url."
    assert set(found) == {"plain", "size", "fetch", "many"}


def test_methods_are_dedented_and_comments_stay():
    found, _ = made(SOURCE)
    assert found["size"].answer == "def size(self):\n    if self._n:\n\n        return self._n\n    return 0"
    assert found["fetch"].answer.startswith("async def fetch(self, url, *rest, timeout: float = 3.0, **more):\n    # a")
    assert found["many"].answer == (
        "def many(\n    self,\n    first,\n    second=(1, 2),\n) -> int:\n    return len((self, first))")


def test_what_gives_no_conversation_is_counted_under_its_reason():
    long = "def long():\n    '''Do much.'''\n" + "    step = 1\n" * 200
    wordy = f"def wordy():\n    '''{'very ' * 50}wordy.'''\n    return 1\n"
    _, counts = made(SOURCE + long + wordy + "def broken(:\n    '''No.'''\n    return 1\n")
    assert counts == {
        "functions without docstring": 2, "functions with an empty docstring": 1,
        "functions without a body, or that do not parse alone": 2, "functions longer than 900 characters": 1,
        "functions whose first sentence is longer than 160 characters": 1}


def test_a_file_that_does_not_parse_still_gives_its_good_functions():
    found, _ = made("print 'old'\n" + SOURCE + "\nexcept except\n")
    assert "plain" in found


def test_equal_conversations_are_one():
    counts: Counter[str] = Counter()
    twice = [document(SOURCE, "a.py"), document(SOURCE + "\n", "b.py")]
    assert len(list(functions(twice, counts=counts))) == 4
    assert counts["duplicate"] == 4


@given(st.lists(st.sampled_from(SOURCE.splitlines()), max_size=60))
def test_every_answer_is_one_function_without_docstring(lines):
    for c in functions([document("\n".join(lines))]):
        (node,) = ast.parse(c.answer).body
        assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        assert c.request.startswith(f"Write `def {node.name}(")


STORY = " ".join(
    f"Once there was a fox called {name} who lived in a wood. He ran to the river each day. He drank the cold water. "
    f"One morning the river was gone and {name} was afraid. He asked the owl where it went. The owl did not know."
    for name in ("Red", "Tod", "Rust", "Ember", "Brush", "Ash"))


def test_a_continuation_follows_its_opening_and_ends_with_a_sentence():
    found = list(continuations([document(STORY, "story")]))
    assert len(found) == 4 and len({c.answer for c in found}) == 4
    for c in found:
        opening = c.request.removeprefix("Continue: ")
        assert f"{opening} {c.answer}" in STORY
        assert c.answer[-1] == "." and 60 <= len(c.answer) <= 320


def test_text_without_sentences_is_continued_block_by_block():
    code = "\n\n".join(f"function area{i}(w, h) {{\n  const a = w * h\n  return a + {i}\n}}" for i in range(9))
    found = list(continuations([document(code, "a.js")]))
    assert found[0].request == "Continue: function area0(w, h) {"
    assert found[0].answer == "  const a = w * h\n  return a + 0\n}"


def test_a_long_document_gives_its_share_and_says_what_it_kept_back():
    text = " ".join(f"Sentence number {i} tells of a thing that nobody else has told yet." for i in range(2000))
    made_ = make([document(text, "book")])
    assert made_.kind == "continuations" and len(made_) == len(text) // 2000
    assert made_.left_out["passages of a document that gave its share"] > 0


def test_auto_takes_functions_where_there_are_enough_and_says_so():
    code = "\n".join(f"def add{i}(a):\n    '''Add {i} to a.'''\n    return a + {i}\n" for i in range(50))
    chosen = make(document(t, n) for t, n in ((STORY, "story"), (code, "m.py")))
    assert (chosen.kind, len(chosen)) == ("functions", 50)
    assert "50 conversations (request → function)" in str(chosen)
    manual = [document(f"{STORY} {i}", f"{i}.md") for i in range(9)]
    assert make([document(code, "m.py"), *manual]).kind == "continuations"
    assert make([document(STORY, "story"), document(SOURCE)]).kind == "continuations"
    assert make([document(SOURCE)], "functions").kind == "functions"


def test_the_limit_is_kept_and_told():
    texts = [document(f"def f{i}(a):\n    '''Give {i}.'''\n    return {i}\n", f"{i}.py") for i in range(9)]
    few = make(texts, "functions", limit=5)
    assert len(few) == 5 and few.left_out["documents behind the limit (at least)"] == 1


@pytest.mark.parametrize("kind", ["auto", "functions", "continuations"])
def test_text_that_gives_nothing_is_an_error_with_the_reason(kind):
    with pytest.raises(DataError, match="no conversation can be made"):
        make([document("x = 1\n")], kind)


def test_an_unknown_kind_is_refused():
    with pytest.raises(DataError, match="choose auto"):
        make([], "poems")  # type: ignore[arg-type]


def test_nothing_held_out_also_stands_in_training():
    def one(request: str, answer: str) -> Conversation:
        return Conversation(request, answer, "n", "d")

    held = Conversations((one("a", "1"), one("b", "2"), one("c", "3")), "functions", {"duplicate": 1})
    left = held.without([one("a", "9"), one("z", "2")])
    assert [c.request for c in left] == ["c"] and left[0].answer == "3" and left[:1] == left.items
    assert left.left_out == {"duplicate": 1, "in the other split": 2}
