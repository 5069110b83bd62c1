"""The kernels' sources are C for every x86 processor there is, not only for the one that runs the tests."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

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


def test_compiling_is_said_when_it_begins_and_only_then(monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                                                       caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(kernels, "_call", lambda command: "failed: not tried here")
    monkeypatch.setenv("CC", "cc")
    assert kernels.compiled(tmp_path / "kernels.so") == "failed: not tried here"
    assert caplog.messages == ["compiling kernels for this processor, once: about a quarter of a minute"]
    monkeypatch.delenv("CC")
    monkeypatch.setattr(kernels.shutil, "which", lambda name: None)
    assert kernels.compiled(tmp_path / "kernels.so") == "no C compiler was found" and len(caplog.messages) == 1
