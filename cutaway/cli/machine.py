"""What every verb that computes does first: all cores, and a word where the kernels have yet to be compiled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cutaway.cli.console import note

COMPILING = "compiling kernels for this processor, once: about a quarter of a minute"


def ready() -> None:
    """Use all cores; say so where the first product will have to wait."""
    from cutaway.device import set_threads
    from cutaway.nn.kernels import to_compile

    set_threads()
    if to_compile():
        note(COMPILING)


@contextmanager
def compiled_beside() -> Iterator[None]:
    """Compile the kernels, if they are not, while something else is waited for."""
    from threading import Thread

    from cutaway.nn.kernels import built, to_compile

    if not to_compile():
        yield
        return
    beside = Thread(target=built)
    beside.start()
    try:
        yield
    finally:
        if beside.is_alive():
            note(COMPILING)
        beside.join()
