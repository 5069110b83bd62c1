"""Kernels that were just compiled are compared with PyTorch before they are used, and not used if they are others."""

from __future__ import annotations

import ctypes
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cutaway.models import selftest
from cutaway.nn import kernels
from cutaway.nn.linear import packs

needs_kernels = pytest.mark.skipif(kernels.built().library is None, reason=kernels.status())
# those that a small model calls on this path; the others have theirs in tests/parity
CALLED = ("add_norm", "add_norm_grad", "attention", "attention_grad", "gated", "gated_grad", "cross_entropy",
          "recurrence_step", "recurrence_step_grad", "taps", "taps_grad", "filters_max", "filters_grad", "step")


class Without:
    """A library one of whose functions does nothing."""

    def __init__(self, library: ctypes.CDLL, name: str) -> None:
        self.library, self.name, self.calls = library, name, 0

    def __getattr__(self, name: str) -> Any:
        return self._nothing if name == self.name else getattr(self.library, name)

    def _nothing(self, *given: object) -> int:
        self.calls += 1
        return 0


@needs_kernels
def test_what_was_compiled_here_is_sound() -> None:
    library = kernels.built().library
    assert library is not None
    assert list(selftest.differences(library)) == []


@needs_kernels
@pytest.mark.parametrize("name", CALLED)
def test_a_function_that_does_nothing_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "empty", torch.zeros)  # what was there by chance may be the right numbers
    monkeypatch.setattr(torch, "empty_like", torch.zeros_like)
    library = kernels.built().library
    assert library is not None
    broken: Any = Without(library, name)
    found = next(selftest.differences(broken), None)
    if not broken.calls and name.startswith("recurrence"):
        pytest.skip("this processor has another loop")
    assert found is not None and broken.calls


@needs_kernels
def test_a_product_that_is_off_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    near = dict.fromkeys(selftest.NEAR, 0.0)
    monkeypatch.setattr(selftest, "NEAR", near)
    library = kernels.built().library
    assert library is not None
    found = [line.split(":")[0] for line in selftest.differences(library)]
    here = [p for p in selftest.NEAR if packs(torch.zeros(1, 2), p) is not None]
    assert {f"reading in {precision}" for precision in here} <= {*found} and "decoder" in found


@pytest.mark.parametrize(("test", "said"), [("import sys; sys.exit('gated: 3 of the largest away')", "gated: 3 of"),
                                            ("import os; os.abort()", "exit code -6"),
                                            ("print('fine')", "")])
def test_the_gate(test: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                  caplog: pytest.LogCaptureFixture) -> None:
    def compiled(target: Path) -> str:
        target.write_bytes(b"a library")
        return ""

    monkeypatch.setattr(kernels, "compiled", compiled)
    monkeypatch.setattr(kernels, "SELFTEST", ("-c", test))
    target = tmp_path / "kernels.so"
    caplog.set_level(logging.WARNING)
    reason = kernels._made(target)
    assert said in reason and bool(reason) == bool(said)
    assert target.exists() == (not said) and [*tmp_path.iterdir()] == ([] if said else [target])
    assert ("not what PyTorch computes" in caplog.text) == bool(said)


@needs_kernels
@pytest.mark.parametrize("sound", [True, False])
def test_the_process_says_what_differs(sound: bool, tmp_path: Path) -> None:
    """Of the library itself, and of one that has none of its functions."""
    library = kernels.built().library
    assert library is not None
    path, empty = Path(library._name), tmp_path / "empty.so"
    subprocess.run(["gcc", "-shared", "-x", "c", "-o", str(empty), os.devnull], check=True)
    done = subprocess.run([sys.executable, *kernels.SELFTEST, str(path if sound else empty)], capture_output=True,
                          text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "") if sound else (
        done.returncode == 1 and "undefined symbol" in done.stderr)
