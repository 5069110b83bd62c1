"""The kernels' sources are C for every x86 processor there is, not only for the one that runs the tests."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess

import pytest

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
