"""What tests do to files and disks: flipped bits, file systems that are soon full, folders nobody can write."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    path.write_bytes(data)


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """A real file system that is soon full; only root may mount one."""
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], capture_output=True,
                          check=False) if shutil.which("mount") else None
    if made is None or made.returncode:
        pytest.skip("a small file system can only be mounted by root; the injected failures above cover the same paths")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """By permission; root, whom permissions do not bind, by the file system's immutable mark."""
    if os.geteuid():
        folder.chmod(0o555)
        undo = lambda: folder.chmod(0o755)  # noqa: E731
    else:
        done = subprocess.run(["chattr", "+i", str(folder)], capture_output=True, check=False) \
            if shutil.which("chattr") else None
        if done is None or done.returncode:
            pytest.skip("root can write anywhere here, and this file system knows no immutable folders")
        undo = lambda: subprocess.run(["chattr", "-i", str(folder)], check=True)  # noqa: E731
    try:
        yield
    finally:
        undo()
