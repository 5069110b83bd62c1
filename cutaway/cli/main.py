"""The command line's front door: finds the verb, runs it, and turns every failure into one line and an exit code.

A verb is one entry of ``VERBS`` and one file ``cutaway/cli/verb_<name>.py`` with one typed function ``command``
(typer reads its signature). The file is imported only when its verb is called, so help costs no torch.
Data goes to stdout, everything else to stderr; with ``--json`` errors are one JSON object on stdout too.
"""

from __future__ import annotations

import atexit
import difflib
import errno
import functools
import gc
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module, metadata
from typing import Any, TextIO

from cutaway.errors import CutawayError, MachineError, SettingsError

VERBS = {
    "run": "Run a recipe: text in, a trained and aligned model and its report out.",
    "resume": "Go on with a run exactly where it stopped.",
    "runs": "List the runs of a folder.",
    "show": "Show one run: stages, figures, where everything lies.",
    "diff": "Compare the settings and figures of two runs.",
    "compare": "Train every architecture on one task and budget: when is simple enough?",
    "eval": "Measure a model: bits per byte, answers, public tasks, with n and interval.",
    "probe": "Measure what an architecture can do: speed, memory and reach.",
    "trace": "Name the document behind every token of a step's batch.",
    "generate": "Write text from a prompt, or beside a source.",
    "chat": "Talk with a model in the terminal.",
    "serve": "Serve models over HTTP, as clients of the OpenAI API expect.",
    "classify": "Give texts their labels by a saved classifier.",
    "embed": "Give texts their vectors.",
    "similar": "How alike texts are, by their vectors.",
    "pull": "Fetch a model: two small real ones, or any of the Hugging Face hub.",
    "models": "List the models that were fetched.",
    "export": "Write a model for other programs: GGUF or safetensors.",
    "tokens": "Show a text as tokens, ids and bytes.",
    "bench": "Put load on a server and measure its latencies.",
    "doctor": "Measure this machine and keep the result.",
}
INTERRUPTED, BROKEN_PIPE, UNEXPECTED = 130, 141, 1

HEAD = """\
Usage: cutaway VERB [arguments] [path=value …]

The whole language model in one package, with its side cut away.

Verbs:
"""
TAIL = """
Every verb:
  --help    its arguments and options
  --json    machine-readable data on stdout, errors included
  --debug   the traceback of an error

Start here:
  cutaway run quickstart
  cutaway run quickstart data.path=DIR
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code (docs/exit-codes.md)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if arguments is None:
        atexit.register(gc.freeze)  # what a process leaves need not be searched for garbage: a quarter of a second
    plain = words[: words.index("--")] if "--" in words else words
    debug, as_json = "--debug" in plain, "--json" in plain
    words = [w for i, w in enumerate(words) if not (w == "--debug" and i < len(plain))]
    with _one_line_warnings():
        try:
            return _dispatch(words)
        except KeyboardInterrupt:
            return _fail("interrupted", INTERRUPTED, as_json)
        except BrokenPipeError:
            # The reader went away (`| head`): what is still buffered has nowhere to go and must not complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return BROKEN_PIPE
        except Exception as error:
            if debug:
                raise
            known = _known(error)
            if known is None:
                kind = type(error).__name__
                return _fail(f"unexpected {kind}: {error}; run again with --debug to see where", UNEXPECTED, as_json)
            return _fail(str(known), known.exit_code, as_json)


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("--help", "-h", "help"):
        width = max(map(len, VERBS))
        print(HEAD + "".join(f"  {name:<{width}}  {line}\n" for name, line in VERBS.items()) + TAIL, end="")
        return 0
    if words[0] == "--version":
        print(f"cutaway {metadata.version('cutaway')}")
        return 0
    verb = words[0]
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1, cutoff=0.5)
        raise SettingsError(f"no verb {verb!r}", way_out=f"did you mean {near[0]!r}?" if near else "see cutaway --help")
    return _call(import_module(f"cutaway.cli.verb_{verb}").command, verb, words[1:])


def _call(command: Callable[..., int | None], verb: str, words: list[str]) -> int:
    """Parse with typer, then run outside of it: its own handling of Ctrl-C and of closed pipes is not ours."""
    import typer

    parsed: list[dict[str, Any]] = []

    @functools.wraps(command)
    def _remember(**values: Any) -> None:
        parsed.append(values)

    usage_error: type[Any] = typer.BadParameter.__mro__[1]  # typer has no public name for its UsageError
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command(help=VERBS[verb])(_remember)
    try:
        typer.main.get_command(app).main(words, prog_name=f"cutaway {verb}", standalone_mode=False)
    except usage_error as error:
        raise SettingsError(_sentence(error), where=f"cutaway {verb}", way_out=f"see cutaway {verb} --help") from None
    code = command(**parsed[0]) if parsed else 0
    sys.stdout.flush()
    return code or 0


def _sentence(error: Any) -> str:
    text = str(error.format_message()).strip().rstrip(".")
    return text[:1].lower() + text[1:]


def _known(error: Exception) -> CutawayError | None:
    """Failures of the machine as errors of ours; None for what we did not foresee."""
    if isinstance(error, CutawayError):
        return error
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        text = str(error).splitlines()[0] if str(error) else "a request could not be met"
        return MachineError(f"out of memory: {text}", way_out="use a smaller batch, context or model")
    if isinstance(error, OSError) and error.filename is not None:
        full = error.errno == errno.ENOSPC
        way_out = "free space on the disk" if full else "check that it exists and may be read or written"
        return MachineError(error.strerror or type(error).__name__, where=error.filename, way_out=way_out)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return MachineError("no space left on the disk", way_out="free some")
    return None


def _fail(message: str, code: int, as_json: bool) -> int:
    message = " ".join(message.split())
    if as_json:
        print(json.dumps({"error": message, "exit_code": code}, ensure_ascii=False), flush=True)
    else:
        sys.stdout.flush()
        print(f"cutaway: {'' if code == INTERRUPTED else 'error: '}{message}", file=sys.stderr, flush=True)
    return code


@contextmanager
def _one_line_warnings() -> Iterator[None]:
    """Warnings as one line each on stderr, without the source line that raised them."""
    with warnings.catch_warnings():
        warnings.showwarning = _note
        yield


def _note(message: Warning | str, category: type[Warning], filename: str, lineno: int,
          file: TextIO | None = None, line: str | None = None) -> None:
    if not issubclass(category, DeprecationWarning | PendingDeprecationWarning | ImportWarning | ResourceWarning):
        print(f"cutaway: note: {' '.join(str(message).split())}", file=sys.stderr, flush=True)
