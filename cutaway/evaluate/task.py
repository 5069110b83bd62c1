"""Task files: what is asked of a model, of which columns, and how the answers are scored, as a versioned TOML file.

After lm-evaluation-harness's YAML tasks (github.com/EleutherAI/lm-evaluation-harness), whose prompts and figures the
packaged files have; but strict, and without code. A file that another one ``extends`` changes what it says.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from cutaway.data.prompts import Template
from cutaway.errors import SettingsError
from cutaway.settings import Settings, decode, nearest, override, read_toml

FOLDER = Path(__file__).parent / "tasks"


def _template(text: str) -> str:
    return Template(text).source


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"{text[:60]!r} is no regular expression: {error}") from None
    return text


Text = Annotated[str, AfterValidator(_template)]
Pattern = Annotated[str, AfterValidator(_pattern)]


class Replace(Settings):
    """Every match of ``pattern`` becomes ``by``."""

    pattern: Pattern
    by: str = ""


class Fewshot(Settings):
    """Solved items before each: the ``first`` of the file, or ``random`` ones drawn for each item by ``seed`` and the
    item itself, so that no other item matters. From ``path``, or without it from the task's own data; a row equal to
    the item is never among them."""

    count: int = Field(default=0, ge=0)
    path: str | None = Field(default=None, min_length=1)
    pick: Literal["first", "random"] = "first"
    seed: int = Field(default=0, ge=0)
    separator: str = "\n\n"


class Extract(Settings):
    """What of an answer is compared: the match of ``pattern`` number ``match`` (-1 is the last), its first group that
    is not empty if it has groups; ``fallback`` where nothing matches."""

    name: str = Field(min_length=1)
    pattern: Pattern
    match: int = 0
    fallback: str = "[invalid]"


class Task(Settings):
    """What all kinds have. ``columns`` says which column of the file a template's name means, or several, of which the
    file has one. ``limit`` takes the ``first`` items, or those of the smallest ``hash``; ``context`` is how many tokens
    a model may look at, at most (unset: as many as it can)."""

    name: str = Field(min_length=1)
    version: int = Field(ge=1)
    about: str = ""
    path: str | None = Field(None, min_length=1)
    columns: dict[str, str | tuple[str, ...]] = Field(default_factory=dict)
    limit: int | None = Field(None, ge=1)
    pick: Literal["first", "hash"] = "first"
    bad_rows: Literal["error", "skip"] = "error"
    context: int | None = Field(None, ge=2)


class Perplexity(Task):
    """Texts whose every token is predicted, in windows as lm-evaluation-harness's ``loglikelihood_rolling``: perplexity
    a word and a byte, bits per byte."""

    kind: Literal["perplexity"] = "perplexity"
    text: Text = "{text}"


class Asked(Task):
    """``description``, solved items, then the item's ``prompt``; an answer follows it behind ``delimiter``. ``replace``
    is done, in order, to every prompt and answer. An item longer than the context loses the beginning of its prompt
    ("cut"), is left out ("leave_out") or is an error; both are counted and told."""

    description: str = ""
    prompt: Text = ""
    delimiter: str = " "
    replace: tuple[Replace, ...] = ()
    fewshot: Fewshot = Fewshot()
    too_long: Literal["cut", "leave_out", "error"] = "cut"


class MultipleChoice(Asked):
    """Which of the ``choices`` is likeliest: ``acc``, and likeliest for its length in characters (``acc_norm``) and in
    bytes (``acc_bytes``). ``label`` gives the right one's number from 0, or its place among ``labels``."""

    kind: Literal["multiple_choice"] = "multiple_choice"
    choices: Text | tuple[Text, ...]
    label: Text
    labels: Text | tuple[Text, ...] | None = None


class Continuation(Asked):
    """One given continuation (LAMBADA's last word): whether each of its tokens is the likeliest (``acc``), and its
    perplexity, of whole continuations and not of tokens."""

    kind: Literal["continuation"] = "continuation"
    target: Text


class Generation(Asked):
    """What the model writes, greedily, up to a ``stop`` string or its own end: the share whose extracted part equals
    the target's. ``ignore`` (patterns) is taken out of both, case too with ``ignore_case``. ``chat`` puts the prompt
    into the model's own chat template."""

    kind: Literal["generation"] = "generation"
    target: Text
    max_tokens: int = Field(256, ge=1)
    stop: tuple[str, ...] = ()
    chat: bool = False
    extract: tuple[Extract, ...] = ()
    ignore: tuple[Pattern, ...] = ()
    ignore_case: bool = False


AnyTask = Perplexity | MultipleChoice | Continuation | Generation
KINDS: dict[str, type[Any]] = {"perplexity": Perplexity, "multiple_choice": MultipleChoice,
                               "continuation": Continuation, "generation": Generation}


def packaged() -> list[str]:
    """The names of the task files that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def is_task(name: str) -> bool:
    """Whether a name is a packaged task's, or a path of a task file."""
    return name in packaged() or name.endswith(".toml")


def load_task(name: str, assignments: Sequence[str] = ()) -> AnyTask:
    """The task of that name, or of that file, with ``path=value`` laid on it. Raises SettingsError naming what is
    wrong."""
    path = FOLDER / f"{name}.toml" if name in packaged() else Path(name)
    if not path.is_file():
        near = nearest(name, packaged())
        raise SettingsError(f"no task {name!r}", way_out=f"did you mean {near!r}?" if near else
                            f"there are {', '.join(packaged())}, or give a .toml file")
    tree = read_toml(path, search=(FOLDER,))
    kind = tree.get("kind")
    if kind not in KINDS:
        near = nearest(str(kind), KINDS)
        what = "kind is missing" if kind is None else f"kind {kind!r} is unknown"
        raise SettingsError(what, where=path, way_out=f"did you mean {near!r}?" if near else
                            f"one of {', '.join(KINDS)}")
    task: AnyTask = decode(KINDS[str(kind)], override(tree, assignments, of=KINDS[str(kind)]), where=_shown(path))
    return task


def _shown(path: Path) -> str:
    return f"task {path.stem}" if path.parent == FOLDER else str(path)


def templates(task: AnyTask) -> Iterator[Template]:
    """Every template of a task."""
    match task:
        case Perplexity():
            found: list[str] = [task.text]
        case MultipleChoice():
            found = [task.prompt, *_several(task.choices), task.label, *_several(task.labels or ())]
        case _:
            found = [task.prompt, task.target]
    yield from map(Template, found)


def _several(given: str | tuple[str, ...]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else given
