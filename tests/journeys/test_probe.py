"""``cutaway probe range`` as a person types it: a table, a folder with one page, and errors that name the way out."""

from __future__ import annotations

import html.parser
import json
import re
from pathlib import Path

import pytest

from cutaway.cli.main import main
from cutaway.probe.range import Range
from cutaway.run.range_page import markdown, page

Captured = pytest.CaptureFixture[str]
TINY = ["seeds=[0,1]", "recall.steps=4", "copying.steps=4", "text.steps=3", "text.questions=40", "recall.questions=10",
        "copying.questions=2", "scaling.lengths=[16,32]", "scaling.train_lengths=[16,32]", "scaling.tokens=64",
        "scaling.repeats=2", "sizes.parameters=20000", "sizes.heads=2", "recall.tokens=256", "copying.tokens=256",
        "text.rows=2", "text.context=16", "text.train_bytes=60000", "text.vocab_size=300"]


class Page(html.parser.HTMLParser):
    """Ids, links and what is fetched from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.anchors: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.ids.append(str(value))
            elif name == "href" and str(value).startswith("#"):
                self.anchors.append(str(value)[1:])
            elif name in ("src", "href"):
                self.fetched.append(str(value))


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tiny probe of a folder of text."""
    root = tmp_path_factory.mktemp("probe")
    (root / "text").mkdir()
    for i in range(60):
        words = " ".join(f"word{(i * j) % 41} is {j % 7}" for j in range(120))
        (root / "text" / f"{i}.txt").write_text(f"Document {i}. {words}.\n")
    assert main(["probe", "range", f"data.path={root / 'text'}", "name=tiny", "--probes", str(root / "probes"),
                 "--json", *TINY]) == 0
    return root


def test_a_probe_is_one_folder(probed: Path) -> None:
    folder = probed / "probes" / "tiny"
    assert sorted(p.name for p in folder.iterdir()) == ["probe.json", "recall.svg", "report.html", "report.md"]
    value = json.loads((folder / "probe.json").read_text())
    found = Range.from_dict(value)
    assert [c.name for c in found.contenders] == ["RNN", "CNN", "transformer"]
    sizes = [c.parameters for c in found.contenders]
    assert max(sizes) <= 1.1 * 20_000 and min(sizes) >= 0.9 * 20_000
    assert len(found.named("recall_by_distance")) == 3 * 2 * 8
    assert {m.conditions["architecture"] for m in found.named("loss_by_context")} == {"RNN", "CNN", "transformer",
                                                                                      "n-gram"}
    assert all(m.value == m.conditions["predicted"] for m in found.named("state_bytes"))
    assert all(m.low is not None for m in found.measured if m.unit == "share")
    assert len(found.courses) == 3 * 2 * 2 + 3
    assert page(value) == (folder / "report.html").read_text()
    assert markdown(value) == (folder / "report.md").read_text()


def test_the_page_needs_no_network_and_can_be_read_by_keyboard(probed: Path) -> None:
    text = (probed / "probes" / "tiny" / "report.html").read_text()
    read = Page()
    read.feed(text)
    assert not read.fetched and "http://" not in text and "https://" not in text
    assert len(read.ids) == len(set(read.ids)) and set(read.anchors) <= set(read.ids)
    assert text.count("<svg class=\"chart\"") == text.count("<desc id=") == 8
    assert "receptive field of the CNN: 31" in text and "trained up to 127" in text
    assert not re.search(r"\b(nan|None|inf)\b", re.sub(r"<(style|script)>.*?</\1>", "", text, flags=re.DOTALL))


def test_a_name_is_never_taken_twice(probed: Path, capsys: Captured) -> None:
    assert main(["probe", "range", "name=tiny", "--probes", str(probed / "probes"), *TINY]) == 7
    assert "a probe of this name exists" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "code", "said"), [
    (["rang"], 2, "did you mean 'range'"),
    (["range", "recal.steps=3"], 2, "did you mean recall"),
    (["range", "sizes.parameters=7"], 2, "parameters"),
    (["range", "recall.distances=[500]"], 2, "distances"),
    (["range", "seeds=[1,1]"], 2, "twice"),
    (["range", "sizes.kinds=[\"rnn\"]"], 2, "recurrent"),
    (["range", "data.path=no/such/folder"], 3, "no"),
    (["range", "name=../up"], 2, "name"),
])
def test_what_is_wrong_is_said(words: list[str], code: int, said: str, tmp_path: Path, capsys: Captured) -> None:
    assert main(["probe", *words, "--probes", str(tmp_path / "probes")]) == code
    error = capsys.readouterr().err
    assert said in error and len(error.strip().splitlines()) == 1
    assert not list((tmp_path / "probes").glob("*")) if (tmp_path / "probes").exists() else True
