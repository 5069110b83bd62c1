"""The kernels' sources are C for every x86 processor there is, not only for the one that runs the tests."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from cutaway.cli import machine
from cutaway.nn import kernels
from cutaway.nn.kernels import FLAGS, SOURCES

PROCESSORS = {"no vectors to speak of": "x86-64", "AVX2": "x86-64-v3", "AVX2 alone": "haswell -mno-fma",
              "AVX-512 alone": "x86-64-v4", "its dot products": "icelake-server", "bfloat16": "cooperlake",
              "tiles": "sapphirerapids"}


@pytest.mark.skipif(platform.machine() != "x86_64" or shutil.which("gcc") is None, reason="asks gcc for x86")
@pytest.mark.parametrize("processor", PROCESSORS.values(), ids=PROCESSORS)
def test_every_processor_can_be_compiled_for(processor: str) -> None:
    march, *more = processor.split()
    for source in sorted(SOURCES.glob("*.c")):  # without optimising: what is inlined always is so here, too
        done = subprocess.run(["gcc", *FLAGS, "-O0", f"-march={march}", *more, "-Wall", "-Wno-psabi",
                               "-Wno-unused-function", "-Werror", "-S", "-o", os.devnull, str(source)],
                              capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_what_is_to_be_compiled_is_said_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                                               capsys: pytest.CaptureFixture[str]) -> None:
    """Where the library is there, cannot be made or is switched off, nobody has to wait and nothing is said."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CUTAWAY_KERNELS", raising=False)
    monkeypatch.setenv("CC", "cc")
    assert kernels.to_compile()
    machine.ready()
    assert machine.COMPILING in capsys.readouterr().err.replace("\n", " ")
    made: list[int] = []
    monkeypatch.setattr(kernels, "built", lambda: made.append(1))
    with machine.compiled_beside():
        pass
    assert made == [1]
    monkeypatch.setenv("CUTAWAY_KERNELS", "off")
    assert not kernels.to_compile()
    with machine.compiled_beside():
        pass
    assert made == [1]
    monkeypatch.delenv("CUTAWAY_KERNELS")
    kernels._target().write_bytes(b"")
    assert not kernels.to_compile()
