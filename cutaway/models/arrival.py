"""How much of what others are fetching has arrived: the bytes in a folder, looked at while they grow."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from cutaway.records import Bar

EVERY = 0.2  # seconds between two looks
MIB = 1 << 20
# what pip, the hub's library and its transport call somebody who does not answer
AWAY = ("ConnectError", "ConnectTimeout", "ConnectTimeoutError", "ConnectionError", "Connection refused",
        "MaxRetryError", "NameResolutionError", "NewConnectionError", "OfflineModeIsEnabled", "ProxyError")


# the name of the work and how many MiB it is -> its bar
Progress = Callable[[str, float], AbstractContextManager[Bar]]


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder that others are writing to."""
    total = 0
    for where, _, names in os.walk(folder):  # which goes on where a folder has been removed since
        for name in names:
            try:
                total += (Path(where) / name).stat().st_size
            except OSError:  # has been moved since
                continue
    return total


@contextmanager
def watched(folder: Path, name: str, total: int, progress: Progress | None) -> Iterator[None]:
    """Show how ``folder`` grows to ``total`` bytes while the block fetches them; nothing where that is not known."""
    if progress is None or total <= 0:
        yield
        return
    done, shown = threading.Event(), 0.0

    with progress(name, total / MIB) as bar:

        def look() -> None:
            nonlocal shown
            there = min(size_of(folder), total) / MIB
            if there > shown:
                bar.advance(there - shown)
                shown = there

        def follow() -> None:
            while not done.wait(EVERY):
                look()

        thread = threading.Thread(target=follow, daemon=True)
        look()
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
        if total / MIB > shown:  # what arrived may have been moved before it was seen
            bar.advance(total / MIB - shown)
