"""``cutaway pull``: fetch a model by its name."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated

import typer

from cutaway.cli.console import Json, note, progress, result

if TYPE_CHECKING:
    from cutaway.records import Bar


def command(
    name: Annotated[str, typer.Argument(help="smollm2-135m-instruct, all-minilm-l6-v2, or OWNER/NAME of the Hugging "
                                             "Face hub; OWNER/NAME:FILE.gguf for one of several.")],
    *,
    revision: Annotated[str | None, typer.Option(help="A branch, tag or commit of the hub.")] = None,
    json: Json = False,
) -> None:
    """Fetch a model, so that other verbs know it by its name. Nothing that is fetched is executed."""
    from concurrent.futures import ThreadPoolExecutor

    from cutaway.models.pull import pull

    def bar(name: str, total: float) -> AbstractContextManager[Bar]:
        return progress(name, total=total, unit="MiB", quiet=json)

    with ThreadPoolExecutor(1) as beside:
        ended = threading.Event()
        beside.submit(_compiled, ended)  # the first thing that a model would wait for
        try:
            folder = pull(name, revision=revision, say=note, progress=bar)
        except KeyboardInterrupt:
            ended.set()
            _stopped()
            raise
    result({"name": name, "folder": str(folder)}, str(folder), json=json)


def _compiled(ended: threading.Event) -> None:
    from cutaway.nn.kernels import built

    if not ended.is_set():  # importing takes a second
        built()


def _stopped() -> None:
    from cutaway.nn.kernels import stop

    stop()
