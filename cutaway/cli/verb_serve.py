"""``cutaway serve``: models behind HTTP, in the words that clients of the OpenAI API speak."""

from __future__ import annotations

import functools
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cutaway.cli.console import Json, note, result
from cutaway.cli.writing import DeviceName, PrecisionName
from cutaway.errors import MachineError, SettingsError

if TYPE_CHECKING:
    from cutaway.server.keys import Key

ENVIRONMENT = "CUTAWAY_API_KEY"


def command(
    models: Annotated[list[str] | None, typer.Argument(
        help="Names, folders or runs, or NAME=FOLDER; without any, every model that was fetched by name.")] = None,
    *,
    host: Annotated[str, typer.Option(help="Where to listen; a public address needs a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    keys: Annotated[Path | None, typer.Option(help=f"A file of keys' hashes; or one key in {ENVIRONMENT}.")] = None,
    new_key: Annotated[str | None, typer.Option(help="Make a key of this name, note its hash in --keys, print the key, "
                                                     "and end.")] = None,
    allow_host: Annotated[list[str] | None, typer.Option(help="A name under which this server may be asked.")] = None,
    allow_origin: Annotated[list[str] | None, typer.Option(help="A page that may ask: https://…")] = None,
    limit: Annotated[list[str] | None, typer.Option(help="NAME=NUMBER, as in body_bytes=4000000; docs/serve.md lists "
                                                         "them.")] = None,
    precision: PrecisionName = "stored",
    device: DeviceName = "auto",
    json: Json = False,
) -> None:
    """Serve models over HTTP until Ctrl-C or SIGTERM. Where it listens goes to stdout, what happens to stderr."""
    if new_key is not None:
        _make_key(new_key, keys, json=json)
        return
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MachineError(f"{error.name} is not installed", way_out="pip install 'cutaway[serve]'") from None
    from cutaway.device import pick, set_threads
    from cutaway.generate.engine import engine_for
    from cutaway.server.app import build
    from cutaway.server.limits import Limits
    from cutaway.server.serve import listening, run
    from cutaway.server.service import Service
    from cutaway.server.shelf import Shelf
    from cutaway.settings import decode, override

    limits = decode(Limits, override({}, limit or [], of=Limits), where="--limit")
    known, places = _keys(keys), _places(models or [])
    listener = listening(host, port, keyed=bool(known))
    set_threads()
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    made = functools.partial(engine_for, cache_bytes=limits.cache_bytes)
    service = Service(Shelf(places, limits, made, precision, pick(device).torch), limits)
    service.shelf.closed = service.metrics.closed
    app = build(service, keys=known, hosts=frozenset(h.lower() for h in allow_host or ()),
                origins=frozenset(allow_origin or ()))
    address = _address(listener.getsockname())
    run(app, service, listener, started=lambda: result(
        {"address": address, "models": [*places]}, f"{address} serves {', '.join(places)}", json=json))


def _make_key(name: str, file: Path | None, *, json: bool) -> None:
    from cutaway.server.keys import new_key

    if file is None:
        raise SettingsError("a key's hash needs a place", where="--new-key", way_out="give --keys FILE, too")
    secret = new_key(name, file)
    note(f"its hash is in {file}; the key itself is nowhere else")
    result({"name": name, "key": secret, "file": str(file)}, secret, json=json)


def _keys(file: Path | None) -> list[Key]:
    from cutaway.server.keys import chosen, read_keys

    given = os.environ.get(ENVIRONMENT)
    return [*(read_keys(file) if file is not None else []), *([chosen(given)] if given else [])]


def _places(models: list[str]) -> dict[str, Path]:
    """The names under which models are served, and where they lie. Raises SettingsError for two of one name."""
    from cutaway.models.store import fetched, located
    from cutaway.run.place import model_folder

    if not models:
        every = {source.name: place for source, _, _ in fetched() if (place := located(source.name)) is not None}
        if not every:
            raise SettingsError("no model was named, and none was fetched",
                                way_out="name a folder or a run, or cutaway pull smollm2-135m-instruct first")
        return every
    out: dict[str, Path] = {}
    for given in models:
        alias, equals, behind = given.partition("=")
        what = behind if equals else given
        name = alias if equals else given if located(given) is not None else Path(given).name
        if not name or name in out:
            raise SettingsError(f"two models would be served as {name!r}" if name else f"{given!r} has no name",
                                way_out="give one another name: NAME=FOLDER")
        out[name] = model_folder(what)
    return out


def _address(bound: tuple[str, int]) -> str:
    host = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
    return f"http://{host}:{bound[1]}"
