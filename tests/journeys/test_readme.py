"""The README is true: its Python runs, its verbs, recipes, settings and files exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from cutaway.cli.main import VERBS
from cutaway.run.recipe import Recipe, names
from cutaway.settings import paths

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "README.md").read_text("utf-8")


def test_its_python_runs_and_learns() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    losses = [float(line.split()[1]) for line in done.stdout.splitlines()]
    assert len(losses) == 50
    assert losses[-1] < 0.5 * losses[0]


def test_its_verbs_and_recipes_exist() -> None:
    called = re.findall(r"\bcutaway ([a-z]+)(?: ([a-z][a-z0-9-]*))?", TEXT)
    verbs = [(verb, thing) for verb, thing in called if verb in VERBS]
    assert {"run", "chat", "show", "trace", "doctor"} <= {verb for verb, _ in verbs}
    assert {thing for verb, thing in verbs if verb == "run"} <= set(names())


def test_its_settings_exist() -> None:
    known = {p.rsplit(".", 1)[0] if p.endswith(".kind") else p for p in paths(Recipe)} | set(paths(Recipe))
    for setting in re.findall(r"`([a-z_.]+)=[a-z]+`", TEXT):
        assert setting in known or setting == "path", setting


def test_its_files_exist() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", TEXT) + re.findall(r"`(cutaway/[a-z_/]+\.py)`", TEXT):
        assert (ROOT / target).exists(), target
