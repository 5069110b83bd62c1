"""A person judges at a real terminal: sees two answers, types a key, stops, comes back, and is not asked again."""

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

from cutaway.records import read_journal

PROGRAM = """
import sys
from pathlib import Path
from cutaway.train.judge import PersonJudge, Quit
from cutaway.train.reward import Answer
judge = PersonJudge(Path(sys.argv[1]))
try:
    for request in ("one", "two", "three"):
        judge.rank(request, [Answer("left", (), True), Answer("right", (), True)])
except Quit:
    sys.exit(130)
"""
QUESTION = "Which is better?"


def judged(path: Path, keys: list[str]) -> tuple[int, str]:
    """Run the program at a pseudo-terminal, one key for each question; its exit status and all it showed."""
    terminal, other = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(path)], stdin=other, stdout=other, stderr=other)
    os.close(other)
    screen, waiting, end = "", list(keys), time.monotonic() + 120
    while time.monotonic() < end:
        if not select.select([terminal], [], [], 1.0)[0]:
            continue
        try:
            data = os.read(terminal, 65536)
        except OSError:  # the other side has closed
            break
        if not data:
            break
        screen += data.decode()
        if waiting and screen.count(QUESTION) > len(keys) - len(waiting):
            os.write(terminal, waiting.pop(0).encode() + b"\n")
    os.close(terminal)
    return process.wait(60), screen


def test_judging_at_a_terminal_stops_and_goes_on(tmp_path):
    path = tmp_path / "preferences.jsonl"
    status, screen = judged(path, ["1", "q"])
    assert status == 130 and "1 judged so far, saved in" in screen
    assert "Answer 1" in screen and "Answer 2" in screen
    status, screen = judged(path, ["2", "t"])
    assert status == 0 and screen.count(QUESTION) == 2
    assert [row["choice"] for row in read_journal(path)] == ["1", "2", "tie"]
