"""The pages of docs/explain/ are true: their Python runs, a page in one namespace; links and pictures hold."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "explain"
PAGES = sorted(page for page in FOLDER.glob("*.md") if page.name != "README.md")
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def program(text: str) -> str:
    """The Python blocks of a page, each on the line where the page has it, so that an error names that line."""
    out = ""
    for block in BLOCK.finditer(text):
        out += "\n" * (text.count("\n", 0, block.start(1)) - out.count("\n")) + block[1]
    return out


def test_blocks_keep_their_lines() -> None:
    page = "# One\n\n```python\na = 1\n```\n\ntext\n\n```text\nno\n```\n\n```python\nb = a\n\nc = b\n```\n"
    assert program(page).splitlines() == ["", "", "", "a = 1", *[""] * 9, "b = a", "", "c = b"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CUTAWAY_DATA", raising=False)
    code = program(page.read_text("utf-8"))
    assert code, "a page without Python explains nothing that can be tried"
    (tmp_path / f"{page.stem}.py").write_text(code, "utf-8")
    runpy.run_path(str(tmp_path / f"{page.stem}.py"))


@pytest.mark.parametrize("page", sorted(FOLDER.glob("*.md")), ids=lambda page: page.stem)
def test_its_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8")):
        assert (FOLDER / target).exists(), target


def test_the_index_names_every_page() -> None:
    named = re.findall(r"\]\(([\w-]+\.md)\)", (FOLDER / "README.md").read_text("utf-8"))
    assert sorted(named) == [page.name for page in PAGES]


def test_the_pictures_are_what_the_models_say() -> None:
    done = subprocess.run([sys.executable, "docs/draw_masks.py", "--check"], cwd=ROOT, capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0, f"run `python docs/draw_masks.py`: {done.stdout}{done.stderr}"
