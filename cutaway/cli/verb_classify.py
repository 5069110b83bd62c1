"""``cutaway classify``: the label of texts by any saved classifier, bag of words or network."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from cutaway.cli.console import Json, note, result, table
from cutaway.cli.verb_generate import stdin_text
from cutaway.errors import RequestError

SHOWN = 60  # characters of a text in a table


def command(
    model: Annotated[Path, typer.Argument(help="The folder of a classifier, such as one of a comparison's systems.")],
    texts: Annotated[list[str] | None, typer.Argument(help="Texts; without any, lines of standard input.")] = None,
    *,
    top: Annotated[int, typer.Option(min=1, help="So many labels a text, the likeliest first.")] = 3,
    why: Annotated[bool, typer.Option(help="What moved the first label most (bag of words only).")] = False,
    json: Json = False,
) -> None:
    """Give texts their labels, with how likely each is."""
    from cutaway.device import set_threads
    from cutaway.models.bag import Bag
    from cutaway.models.open import open_classifier, read_in_windows

    set_threads()
    classifier = open_classifier(model)
    if why and not isinstance(classifier, Bag):
        raise RequestError("only a linear model's score can be taken apart", where=model, way_out="leave --why out")
    places, given = ([], texts) if texts else _lines()
    if not given:
        raise RequestError("there is no text to classify", way_out="give texts, or lines on standard input")
    if split := read_in_windows(classifier, given):
        note(f"{split:,} of {len(given):,} texts are longer than the model's context and were read in windows, whose "
             "scores are averaged")
    rows: list[dict[str, Any]] = [_labelled(text, scores, classifier.labels, classifier.multi_label, top)
            for text, scores in zip(given, classifier.scores(given), strict=True)]
    for row, place in zip(rows, places, strict=False):
        row["line"] = place
    if why and isinstance(classifier, Bag):
        for row in rows:
            moved = classifier.explain(row["text"], row["labels"][0]["label"])
            row["why"] = [{"feature": m.feature, "added": m.added} for m in moved]
    _show(rows, min(top, len(classifier.labels)), why=why, json=json)


def texts_or_lines(texts: Sequence[str] | None, what: str) -> list[str]:
    """The texts that were given, or else the lines of standard input; at least one, to ``what``."""
    given = list(texts) if texts else _lines()[1]
    if not given:
        raise RequestError(f"there is no text to {what}", way_out="give texts, or lines on standard input")
    return given


def _lines() -> tuple[list[int], list[str]]:
    """The lines of standard input that hold a text, with their numbers; how many are blank is said."""
    lines = [line.rstrip("\n") for line in io.StringIO(stdin_text(), newline=None)]
    kept = [(i, line) for i, line in enumerate(lines, start=1) if line.strip()]
    if kept and len(kept) < len(lines):
        note(f"{len(lines) - len(kept):,} of {len(lines):,} lines of standard input are blank and were left out; "
             "--json gives the line of each text")
    return [i for i, _ in kept], [line for _, line in kept]


def _show(rows: Sequence[dict[str, Any]], columns: int, *, why: bool, json: bool) -> None:
    lines = [(_short(row["text"]), *(f"{found['label']} {100 * found['share']:.1f} %" for found in row["labels"]))
             for row in rows]
    result({"texts": rows}, table(("text", *(f"label {i + 1}" for i in range(columns))), lines), json=json)
    for row in rows if why and not json else ():
        result({}, table(("feature", "added"), [(w["feature"], f"{w['added']:+.3f}") for w in row["why"]],
                         title=f"{row['labels'][0]['label']}: {_short(row['text'])}"), json=False)


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN - 1]}…"


def _labelled(text: str, scores: object, labels: tuple[str, ...], multi_label: bool, top: int) -> dict[str, Any]:
    """The likeliest labels; with several labels a text each one's own probability."""
    import numpy as np

    logs = np.asarray(scores, np.float64)
    shares = 1 / (1 + np.exp(-logs)) if multi_label else np.exp(logs)
    order = np.argsort(-logs, kind="stable")[:top]
    return {"text": text, "labels": [{"label": labels[i], "share": float(shares[i])} for i in order]}
