"""What verbs print with: data on stdout, notes and progress on stderr (NO_COLOR and pipes respected, by rich)."""

from __future__ import annotations

import json as _json
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

    from cutaway.records import Bar

Json = Annotated[bool, typer.Option("--json", help="Print data as JSON on stdout, errors included.")]
_NUMBER = re.compile(r"[+−≈<>≤≥ -]*\d[\d,.]*( ?[%×]| \S+)?$")
_PLAIN_SECONDS = 10.0  # without a terminal a progress line this often is enough to see that it lives


def stdout() -> Console:
    """Rich console for data; off a terminal it is wide, so that tables are not cut."""
    return _console(stderr=False)


def stderr() -> Console:
    """Rich console for everything that is not data."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, highlight=False, width=None if stream.isatty() else 120, soft_wrap=False)


def result(value: Mapping[str, Any], text: RenderableType, *, json: bool) -> None:
    """The verb's answer on stdout: ``value`` as one line of JSON with ``--json``, else ``text``.

    A plain string is printed as it is: never wrapped, never read as markup.
    """
    if json:
        row(value)
    elif isinstance(text, str):
        print(text, flush=True)
    else:
        stdout().print(text)


def row(value: Mapping[str, Any]) -> None:
    """One JSON object as one line on stdout."""
    print(_json.dumps(value, ensure_ascii=False, default=_plain), flush=True)


def _plain(value: Any) -> object:
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if hasattr(value, "item"):
        return value.item()
    return str(value)


def note(text: str) -> None:
    """One plain line on stderr."""
    print(text, file=sys.stderr, flush=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None) -> Table:
    """A quiet table: the first column left, columns of numbers (with or without a unit) to the right."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    cells = [[str(c) for c in r] for r in rows]
    made = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(columns):
        filled = [r[i] for r in cells if r[i].strip("– ")]
        numbers = i > 0 and bool(filled) and all(_NUMBER.match(c) for c in filled)
        made.add_column(name, justify="right" if numbers else "left", overflow="fold")
    for r in cells:
        made.add_row(*(Text(c) for c in r))
    return made


@contextmanager
def progress(name: str, *, total: float, unit: str, quiet: bool = False) -> Iterator[Bar]:
    """A bar with rate and time left on a terminal, plain lines elsewhere, nothing where ``quiet``; all on stderr."""
    if quiet:
        yield _Silent()
    elif sys.stderr.isatty():
        with _terminal_bar(name, total, unit) as bar:
            yield bar
    else:
        yield _Lines(name, total, unit)


@contextmanager
def _terminal_bar(name: str, total: float, unit: str) -> Iterator[Bar]:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    shown = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"),
             TextColumn("{task.fields[rate]}"), TimeRemainingColumn(), TextColumn("{task.fields[text]}"))
    with Progress(*shown, console=stderr()) as view:
        task = view.add_task(name, total=total, rate="", text="")
        started = time.perf_counter()

        class Shown:
            def advance(self, amount: float, text: str = "") -> None:
                done = view.tasks[0].completed + amount
                rate = done / max(time.perf_counter() - started, 1e-9)
                view.update(task, advance=amount, rate=_rate(rate, unit), text=text)

        yield Shown()


def _rate(rate: float, unit: str) -> str:
    return f"{rate:,.{0 if rate >= 10 else 1}f} {unit}/s"


@dataclass(slots=True)
class _Lines:
    name: str
    total: float
    unit: str
    done: float = 0.0
    started: float = field(default_factory=time.perf_counter)
    shown: float = 0.0

    def advance(self, amount: float, text: str = "") -> None:
        self.done += amount
        spent = time.perf_counter() - self.started
        if spent - self.shown < _PLAIN_SECONDS and self.done < self.total:
            return
        self.shown, rate = spent, self.done / max(spent, 1e-9)
        left = max(self.total - self.done, 0) / rate if rate else 0.0
        share = f"{100 * self.done / self.total:3.0f} %" if self.total else "100 %"
        note(f"{self.name} {share} {_rate(rate, self.unit)} {left:.0f} s left {text}".rstrip())


class _Silent:
    def advance(self, amount: float, text: str = "") -> None:
        """Shows nothing."""
