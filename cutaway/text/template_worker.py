"""Chat templates of others, rendered in a process that may take little time and memory: the immutable sandbox keeps a
template from Python, and nothing in it from looping for ever or doubling a string until the memory is gone.

One process serves a whole program; it imports jinja2 and nothing of ours. It is started anew after a template that had
to be stopped. Run as a script, this file is that process.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import sys
import threading
from typing import Any

SECONDS, PATIENCE, MEMORY, LARGEST = 5.0, 60.0, 512 << 20, 1 << 24  # of its own time, and by the clock
KNOWN = 16  # templates that are kept compiled
_lock = threading.Lock()
_worker: dict[int, subprocess.Popen[str]] = {}  # by the process that asks: a fork must not read another's answers


def rendered(template: str, words: dict[str, Any], *, spans: bool = False) -> tuple[str | None, str]:
    """The text, or None and what is wrong with the template. With ``spans`` marks stand around what it says is
    generated."""
    with _lock:
        worker = _running()
        assert worker.stdin is not None and worker.stdout is not None
        late = threading.Timer(PATIENCE, worker.kill)  # a busy or stopped machine is not the template's fault
        late.start()
        try:
            worker.stdin.write(json.dumps([template, words, spans]) + "\n")
            worker.stdin.flush()
            answer = worker.stdout.readline()
        except BrokenPipeError:
            answer = ""
        finally:
            late.cancel()
        if not answer:
            stop()
            return None, f"it takes more than {SECONDS:.0f} seconds or {MEMORY >> 20} MiB"
        text, wrong = json.loads(answer)
        return text, str(wrong)


def _running() -> subprocess.Popen[str]:
    if os.getpid() not in _worker:
        _worker.clear()  # a parent's is the parent's to end
        _worker[os.getpid()] = subprocess.Popen([sys.executable, "-I", __file__], stdin=subprocess.PIPE,
                                                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                                                encoding="utf-8")
        atexit.register(stop)
    return _worker[os.getpid()]


def stop() -> None:
    """End the process, if there is one."""
    worker = _worker.pop(os.getpid(), None)
    if worker is None:
        return
    worker.kill()
    worker.wait()
    for pipe in (worker.stdin, worker.stdout):
        with contextlib.suppress(OSError, ValueError):  # what was not sent any more
            if pipe is not None:
                pipe.close()


def _sandbox() -> Any:
    """What public templates need, as transformers gives it to them (``utils/chat_template_utils.py``)."""
    from datetime import datetime

    from jinja2 import TemplateError, nodes
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(Extension):
        """``{% generation %}``: what stands in it was said by the assistant."""

        tags = {"generation"}  # noqa: RUF012 - jinja2's own way
        marks = ("", "")

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_around"), [], [], body).set_lineno(line)

        def _around(self, caller: Any) -> str:
            return Generation.marks[0] + str(caller()) + Generation.marks[1]

    class Plain(Namespace):
        """A namespace without names that Python itself uses."""

        def __setitem__(self, name: str, value: Any) -> None:
            if name.startswith("_"):
                raise SecurityError(f"{name!r} is no name for a template")
            super().__setitem__(name, value)

    def _namespace(*given: Any, **start: Any) -> Any:
        made = Plain()
        for name, value in ((dict(given[0]) if given else {}) | start).items():
            made[name] = value
        return made

    def refuse(message: object) -> None:
        raise TemplateError(str(message)[:200])

    def _as_json(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None,
                 sort_keys: bool = False) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                                extensions=["jinja2.ext.loopcontrols", Generation])
    def strftime_now(form: str) -> str:
        return datetime.now().strftime(form)

    environment.globals |= {"raise_exception": refuse, "namespace": _namespace, "strftime_now": strftime_now}
    environment.filters["tojson"] = _as_json
    return environment


def _alarm(seconds: float) -> None:
    """Die after so many seconds of own work; 0 takes it back. Where there is no such clock the parent's counts."""
    import signal

    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds)


def _serve() -> None:
    """Answer line by line until the input ends."""
    from jinja2 import TemplateError

    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    environment = _sandbox()
    (generation,) = (e for name, e in environment.extensions.items() if name.endswith("Generation"))
    known: dict[str, Any] = {}
    for line in sys.stdin:
        template, words, spans = json.loads(line)
        _alarm(SECONDS)
        type(generation).marks = ("\x02g\x03", "\x02h\x03") if spans else ("", "")
        try:
            if template not in known:
                known = dict([*known.items()][1 - KNOWN:])
                known[template] = environment.from_string(template)
            text = known[template].render(**words)
            given: list[Any] = [text, ""] if len(text) <= LARGEST else [None, f"it writes {len(text):,} characters"]
        except (TemplateError, TypeError, ValueError, OverflowError, ArithmeticError, LookupError, AttributeError,
                RecursionError, MemoryError) as error:
            given = [None, f"{type(error).__name__}: {str(error)[:200]}"]
        _alarm(0.0)
        sys.stdout.write(json.dumps(given) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    sys.stdin.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    _serve()
