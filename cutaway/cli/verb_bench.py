"""``cutaway bench serve``: load on an OpenAI-compatible server, and its latencies with intervals."""

from __future__ import annotations

import asyncio
import json as _json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cutaway.cli.console import Json, note, progress, result, table
from cutaway.errors import SettingsError

if TYPE_CHECKING:
    from cutaway.records import Measurement

BENCHES = ("serve",)
KEY = "OPENAI_API_KEY"


def command(
    what: Annotated[str, typer.Argument(help="What to load: serve.")],
    url: Annotated[str, typer.Argument(help="The server, as in http://127.0.0.1:8000.")],
    *,
    model: Annotated[str | None, typer.Option(help="The model to ask for; left out, the first that it lists.")] = None,
    requests: Annotated[int, typer.Option(help="Requests that count.")] = 100,
    rate: Annotated[float | None, typer.Option(help="Open loop: requests a second, by a Poisson process.")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Closed loop: requests at once.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="A prompt a line, or .jsonl with prompt or messages.")] = None,
    words: Annotated[int, typer.Option(help="Words of made-up prompts.")] = 128,
    shared: Annotated[int, typer.Option(help="Words that all made-up prompts begin with.")] = 0,
    max_tokens: Annotated[int, typer.Option(help="The longest answer.")] = 128,
    api: Annotated[str, typer.Option(help="chat or completions.")] = "chat",
    extra: Annotated[str, typer.Option(help="JSON that goes into every body, as in '{\"temperature\": 0}'.")] = "{}",
    warmup: Annotated[int, typer.Option(help="Requests before those that count.")] = 1,
    timeout: Annotated[float, typer.Option(help="Seconds after which a request is given up.")] = 600.0,
    seed: Annotated[int, typer.Option(help="Draws prompts, arrivals and resamples.")] = 0,
    json: Json = False,
) -> None:
    """Put load on a server and measure it: first token, between tokens, whole answer, tokens a second. The key is taken
    from OPENAI_API_KEY."""
    from cutaway.probe.load import Load, made_up, read_prompts, send
    from cutaway.probe.load_client import Server
    from cutaway.probe.load_figures import DEFINITIONS, errors, figures, lengths
    from cutaway.settings import decode

    if what not in BENCHES:
        raise SettingsError(f"no bench {what!r}", way_out=f"there is {', '.join(BENCHES)}")
    if rate is None and concurrency is None:
        concurrency = 1
    load = decode(Load, {"requests": requests, "rate": rate, "concurrency": concurrency, "words": words,
                         "shared": shared, "max_tokens": max_tokens, "api": api, "warmup": warmup, "timeout": timeout,
                         "seed": seed}, where="options")
    server = Server.of(url, os.environ.get(KEY) or None)
    asked = made_up(load) if prompts is None else read_prompts(prompts)
    with progress("requests", total=load.requests, unit="requests", quiet=json) as bar:
        done = asyncio.run(send(server, load, asked, model=model, extra=_object(extra), done=lambda: bar.advance(1)))
    found = figures(load, done)
    value = {"url": url, "model": done.model, "seconds": done.seconds, "load": load.model_dump(), **lengths(done),
             "errors": errors(done), "definitions": DEFINITIONS, "measured": [m.to_dict() for m in found]}
    result(value, table(("measured", "value", "95 %", "n"), [_row(m) for m in found],
                        title=f"{done.model} at {url} · {done.seconds:.1f} s · {_how(load.rate, load.concurrency)}"),
           json=json)
    if not json:
        for line in (*_notes(errors(done), lengths(done)), *(f"{name}: {text}" for name, text in DEFINITIONS.items())):
            note(line)


def _object(text: str) -> dict[str, Any]:
    try:
        found = _json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise SettingsError(f"{text!r} is no JSON object", where="--extra")
    return found


def _how(rate: float | None, concurrency: int | None) -> str:
    return f"open loop, {rate:g} requests/s" if rate is not None else f"closed loop, {concurrency} at once"


def _notes(failed: dict[str, int], sizes: dict[str, float | None]) -> list[str]:
    said = [f"{count} × {kind}" for kind, count in failed.items()]
    known = [f"{name.replace('_', ' ')} {mean:.1f}" for name, mean in sizes.items() if mean is not None]
    return [f"errors: {', '.join(said)}"] * bool(said) + [f"mean {', '.join(known)}"] * bool(known)


def _row(m: Measurement) -> tuple[str, str, str, str]:
    if m.unit == "share":
        return m.name, f"{100 * m.value:.1f} %", "–", f"{m.n:,}"
    interval = "–" if m.low is None or m.high is None else f"{_short(m.low)} to {_short(m.high)}"
    return m.name, f"{_short(m.value)} {m.unit}", interval, f"{m.n:,}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
