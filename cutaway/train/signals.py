"""Signals: Ctrl-C and SIGTERM as a value that the caller's loop asks, so that a step is never cut in two."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any, Self

WATCHED = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """``with Stop() as stop:`` then ``if stop.requested: save and leave``.

    The first signal is only remembered; a second Ctrl-C raises KeyboardInterrupt at once, for people in a hurry.
    The handlers that stood before come back at the end. Only the main thread may enter (as for ``signal.signal``).
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self.received is not None

    def __enter__(self) -> Self:
        for number in WATCHED:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
