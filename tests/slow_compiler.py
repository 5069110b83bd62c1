"""A compiler that a test lets go on, or fail, when it likes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

SCRIPT = """#!/bin/sh
echo $$ >> {folder}/calls
for try in $(seq 3000); do [ -e {folder}/go ] || sleep 0.02; done  # and not for ever, whoever forgets it
{then}
"""
# what a compiler writes, without its work: a copy of the library that is there already
COPY = """
for word in "$@"; do
  [ "$before" = -o ] && cp {library} "$word"
  before="$word"
done
"""


@dataclass(frozen=True)
class Compiler:
    """``folder`` holds the script, its calls' process numbers, and ``go`` when they may go on."""

    folder: Path

    @property
    def path(self) -> str:
        """What CC is to be."""
        return str(self.folder / "cc")

    @property
    def calls(self) -> list[int]:
        """Numbers of the processes that were started so far."""
        file = self.folder / "calls"
        return [int(line) for line in file.read_text("utf-8").split()] if file.exists() else []

    @property
    def alive(self) -> list[int]:
        """Those of them that still run."""
        return [number for number in self.calls if Path(f"/proc/{number}").exists()]

    def go(self) -> None:
        """Let them go on."""
        (self.folder / "go").touch()

    def begun(self, seconds: float = 10) -> bool:
        """Whether one is called in time."""
        end = time.monotonic() + seconds
        while not self.calls and time.monotonic() < end:
            time.sleep(0.01)
        return bool(self.calls)


def slow_compiler(folder: Path, then: str) -> Compiler:
    """One that waits, and ``then`` runs a line of shell."""
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / "cc"
    script.write_text(SCRIPT.format(folder=folder, then=then), "utf-8")
    script.chmod(0o755)
    return Compiler(folder)
