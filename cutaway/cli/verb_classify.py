"""``cutaway classify``: the label of texts by any saved classifier, bag of words or network."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cutaway.cli.console import Json, result, table


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
    from cutaway.errors import RequestError
    from cutaway.models.bag import Bag
    from cutaway.models.open import open_classifier

    set_threads()
    classifier = open_classifier(model)
    if why and not isinstance(classifier, Bag):
        raise RequestError("only a linear model's score can be taken apart", where=model, way_out="leave --why out")
    given = texts or [line.rstrip("\n") for line in sys.stdin if line.strip()]
    if not given:
        raise RequestError("there is no text to classify", way_out="give texts, or lines on standard input")
    rows: list[dict[str, Any]] = [_labelled(text, scores, classifier.labels, classifier.multi_label, top)
            for text, scores in zip(given, classifier.scores(given), strict=True)]
    if why and isinstance(classifier, Bag):
        for row in rows:
            moved = classifier.explain(row["text"], row["labels"][0]["label"])
            row["why"] = [{"feature": m.feature, "added": m.added} for m in moved]
    lines = [(row["text"][:60], *(f"{found['label']} {100 * found['share']:.1f} %" for found in row["labels"]))
             for row in rows]
    head = ("text", *(f"label {i + 1}" for i in range(min(top, len(classifier.labels)))))
    result({"texts": rows}, table(head, lines), json=json)
    for row in rows if why and not json else ():
        result({}, table(("feature", "added"), [(w["feature"], f"{w['added']:+.3f}") for w in row["why"]],
                         title=f"{row['labels'][0]['label']}: {row['text'][:60]}"), json=False)


def _labelled(text: str, scores: object, labels: tuple[str, ...], multi_label: bool, top: int) -> dict[str, Any]:
    """The likeliest labels; with several labels a text each one's own probability."""
    import numpy as np

    logs = np.asarray(scores, np.float64)
    shares = 1 / (1 + np.exp(-logs)) if multi_label else np.exp(logs)
    order = np.argsort(-logs, kind="stable")[:top]
    return {"text": text, "labels": [{"label": labels[i], "share": float(shares[i])} for i in order]}
