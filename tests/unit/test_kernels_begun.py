"""Kernels compiled beside what works without them: once for all who ask, told to all, ended when nobody is left."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tiny
import torch
from slow_compiler import Compiler, slow_compiler

from cutaway.errors import MachineError
from cutaway.generate.engine import Engine
from cutaway.generate.request import Request, Sampling
from cutaway.models.light import for_reading
from cutaway.models.model import build
from cutaway.nn import kernels
from cutaway.nn.kernels import Built, begin, library_for, ready, stop, without
from cutaway.nn.linear import PackedLinear, packs

ask = kernels.built.__wrapped__  # what was found before, by other tests, is not what is asked here
REAL = 'exec gcc "$@"'


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library of one small file, in a cache of its own."""
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "one.c").write_text("int one(void) { return 1; }\n", "utf-8")
    monkeypatch.setattr(kernels, "SOURCES", folder)
    monkeypatch.setattr(kernels, "SELFTEST", ("-c", "pass"))  # it has none of what a model calls
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sources: Path) -> Compiler:
    if shutil.which("gcc") is None:
        pytest.skip("needs a compiler")
    made = slow_compiler(tmp_path / "compiler", REAL)
    monkeypatch.setenv("CC", made.path)
    return made


def test_it_is_compiled_once_for_all_who_ask(compiler: Compiler) -> None:
    assert not ready()
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask) for _ in range(8)]
        told = begin()
        assert compiler.begun() and not ready() and not told.done()
        compiler.go()
        found = {id(one.result(30)) for one in asked}
    assert found == {id(told.result())} and told.result().library.one() == 1  # type: ignore[union-attr]
    assert len(compiler.calls) == 2  # a file, and what links it
    assert ready() and begin() is told


def test_nobody_who_was_told_can_take_it_back(compiler: Compiler) -> None:
    told = begin()
    assert not told.cancel()
    compiler.go()
    assert told.result(30).library is not None


def test_a_library_that_is_there_is_ready_at_once(compiler: Compiler, tmp_path: Path) -> None:
    compiler.go()
    ask()
    kernels._begun.clear()  # as in another process
    assert ready() and begin().result(10).library is not None and len(compiler.calls) == 2


def test_without_a_compiler_nothing_would_be_waited_for(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(kernels.shutil, "which", lambda name: None)
    assert ready() and begin().result(10) == Built(None, "no C compiler was found")
    monkeypatch.setenv("CUTAWAY_KERNELS", "off")
    assert ready() and "CUTAWAY_KERNELS=off" in begin().result(10).reason


def test_a_compiler_that_fails_is_not_asked_again(tmp_path: Path, sources: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = slow_compiler(tmp_path / "compiler", "echo 'one.c:1: error: not today' >&2; exit 1")
    monkeypatch.setenv("CC", compiler.path)
    told = begin()
    assert compiler.begun() and not ready()
    compiler.go()
    assert told.result(30).library is None and "error: not today" in told.result().reason
    assert ready() and ask() is told.result() and len(compiler.calls) == 1


def test_a_compiler_that_is_not_needed_any_more_is_ended(compiler: Compiler, tmp_path: Path) -> None:
    told = begin()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask)
        assert compiler.begun() and compiler.alive
        begun = time.monotonic()
        stop()
        assert time.monotonic() - begun < 1 and not compiler.alive
        for one in (told, waiting):
            with pytest.raises(MachineError, match="not compiled to the end"):
                one.result(5)
    assert not [*(tmp_path / "cache" / "cutaway").iterdir()]  # nothing half made is left
    stop()  # nobody is left to be ended
    compiler.go()  # and whoever asks again gets it
    assert not ready() and begin() is not told and ask().library is not None


def test_a_compiler_that_does_not_listen_is_ended_too(tmp_path: Path, sources: Path,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    deaf = "trap '' TERM; touch \"$0.deaf\"; for try in $(seq 600); do sleep 0.05; done"
    compiler = slow_compiler(tmp_path / "compiler", deaf)
    compiler.go()
    monkeypatch.setenv("CC", compiler.path)
    told = begin()
    while not Path(f"{compiler.path}.deaf").exists():
        time.sleep(0.01)
    stop()
    assert not compiler.alive
    with pytest.raises(MachineError):
        told.result(5)


def test_ctrl_c_ends_who_waits_and_the_compiler(compiler: Compiler) -> None:
    program = ("import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's & takes it away
               "from cutaway.nn.kernels import built; built()")
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL, env=os.environ) as process:
        try:
            assert compiler.begun(60)
            process.send_signal(signal.SIGINT)
            assert process.wait(20) != 0
        finally:
            process.kill()
    assert not compiler.alive


def test_without_holds_on_its_own_thread_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    there = object()
    monkeypatch.setattr(kernels, "built", lambda: Built(there, "a test says so"))  # type: ignore[arg-type]
    row, seen = torch.zeros(1), list[object]()
    with without():
        elsewhere = threading.Thread(target=lambda: seen.append(library_for(row)))
        elsewhere.start()
        elsewhere.join()
        assert seen == [there] and library_for(row) is None
        with without(False):
            assert library_for(row) is None
        with pytest.raises(ZeroDivisionError), without():
            raise ZeroDivisionError
        assert library_for(row) is None
    assert library_for(row) is there
    with without(False):
        assert library_for(row) is there


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_a_plain_model_stays_plain_whatever_is_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading and writing look nothing up, so nothing changes under a request when kernels are there at last."""
    model = build(tiny.CONFIGS[name], seed=1)
    source = (5, 6) if model.reads_source else None
    request = Request((3, 4, 5), 8, Sampling(temperature=1), seed=3, source=source)
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "built", lambda: Built(None, "not compiled yet"))
        before = Engine(for_reading(model, "float32")).generate([request])

    def looked() -> Built:
        raise AssertionError("looked for kernels")

    monkeypatch.setattr(kernels, "built", looked)
    with without():
        light = for_reading(model, "float32")
        after = Engine(light).generate([request])
    assert after == before
    assert not any(isinstance(part, PackedLinear) for part in light.modules())
    with pytest.raises(AssertionError, match="looked"):
        packs(torch.zeros(1, 2), "float32")
