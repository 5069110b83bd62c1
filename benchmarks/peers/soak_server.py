"""The server of ``soak.py``: ``cutaway serve`` as it is, but that its engine's next step fails when SIGUSR1 comes."""

from __future__ import annotations

import signal
import sys
from types import FrameType

from cutaway.cli.main import main
from cutaway.generate.engine import Engine
from cutaway.generate.request import Event

asked: list[int] = []
step = Engine.step


def note(number: int, frame: FrameType | None) -> None:
    """The signal: what is asked for is done by the engine's own thread."""
    asked.append(number)


def failing(self: Engine) -> list[Event]:
    """A step, or the failure that was asked for."""
    if asked:
        asked.clear()
        raise RuntimeError("killed by the soak test")
    return step(self)


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, note)
    Engine.step = failing  # type: ignore[method-assign]
    sys.exit(main(["serve", *sys.argv[1:]]))
