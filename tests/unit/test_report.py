"""The report says what the run's files say, and nothing in them can take over the page."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutaway.errors import RunError
from cutaway.run.report import headline, write_report
from cutaway.run.report_charts import Frame, Rule, Series, curves, ticks
from cutaway.run.report_forms import duration, percent, shown, size
from cutaway.run.report_markdown import escape
from cutaway.run.report_read import read
from cutaway.run.report_words import over_optimised
from tests.report_run import MET, make_run, write

VOID = {"meta", "link", "br", "hr", "img", "input", "line", "circle", "path"}


class Page(HTMLParser):
    """Tags, ids and text of a page; fails on a tag that is closed out of turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("runs") / "quickstart")
    write_report(folder)
    return folder


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy"))


@pytest.fixture(scope="module")
def page(run: Path) -> Page:
    return Page((run / "report.html").read_text("utf-8"))


def test_headline_numbers_stand_in_both_files(run: Path, page: Page) -> None:
    text = (run / "report.md").read_text("utf-8")
    for number in (
        "1.58",
        "gzip -9 2.05",
        "xz -9 1.61",
        "68 %",
        "83 %",
        "+0.058",
        "0 % → 12 % → 34 % → 68 %",
    ):
        assert number in page.text, number
        assert number in text, number


def test_every_share_has_n_and_its_wilson_interval(run: Path, page: Page) -> None:
    found = read(run).measured("aligned", "satisfies")
    assert found is not None and found.n == 250
    assert "68 % [62 %, 74 %], n = 250" in page.text
    assert "68 % \\[62 %, 74 %\\], n = 250" in (run / "report.md").read_text("utf-8")


def test_sections_come_in_the_documented_order(page: Page) -> None:
    sections = [a["id"] for tag, a in page.tags if tag == "section"]
    assert sections == [
        "numbers",
        "answers",
        "learning",
        "alignment",
        "cost",
        "data",
        "preferences",
        "lineage",
        "limits",
    ]


def test_nothing_is_loaded_from_anywhere(page: Page) -> None:
    assert not {"img", "link", "iframe", "object", "embed"} & {tag for tag, _ in page.tags}
    for tag, attrs in page.tags:
        target = attrs.get("src") or attrs.get("href") or "#"
        assert target.startswith("#"), (tag, target)
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'") and "script-src 'sha256-" in policy


def test_readable_by_keyboard_and_screen_reader(page: Page) -> None:
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert next(a.get("class") for tag, a in page.tags if tag == "a") == "skip"
    for tag, attrs in page.tags:
        for target in (attrs.get("href"), *(f"#{i}" for i in (attrs.get("aria-labelledby") or "").split())):
            assert target is None or target[1:] in ids, target
        if tag == "th":
            assert attrs.get("scope") in ("row", "col")
        if tag == "svg" and "chart" in str(attrs.get("class")):
            assert attrs["role"] == "img"
    tables = sum(tag == "table" for tag, _ in page.tags)
    assert tables == sum(tag == "caption" for tag, _ in page.tags) > 10
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))


def test_verdicts_are_labelled_as_a_programs(run: Path, page: Page) -> None:
    assert page.text.count("a program standing in for people") >= 5
    assert (run / "report.md").read_text("utf-8").count("a program standing in for people") >= 3


def test_text_of_a_run_cannot_become_a_tag_or_a_script(copy: Path) -> None:
    attack = "</pre></script><script>alert(1)</script><img src=x onerror=alert(1)>\"' `${1}` {{ 7*7 }}"
    for name in ("base", "aligned"):
        row = json.loads((copy / f"evals/{name}.json").read_text("utf-8"))
        for sample in row["samples"]:
            sample |= {
                "answer": attack,
                "request": sample["request"],
                "verdict": {attack: True, "satisfies": False},
            }
        write(copy / f"evals/{name}.json", row)
    lineage = json.loads((copy / "lineage.json").read_text("utf-8"))
    lineage["data"] |= {"note": attack, "skipped": {attack: 1}}
    lineage["sessions"][0]["hardware"]["cpu"] = attack
    write(copy / "lineage.json", lineage)
    (copy / "recipe.toml").write_text(
        f"name = '''{attack}'''\n[data]\nkind = 'path'\npath = '''{attack}'''\n", "utf-8"
    )
    found = Page(write_report(copy)[0].read_text("utf-8"))
    assert sum(tag == "script" for tag, _ in found.tags) == 1
    assert not any(tag == "img" or any(k.startswith("on") for k in a) for tag, a in found.tags)
    assert "{{ 7*7 }}" in found.text and "alert(1)" in found.text
    assert "<script>" not in re.sub(
        r"```.*?```", "", (copy / "report.md").read_text("utf-8"), flags=re.DOTALL
    )


def test_the_only_script_is_the_one_the_policy_allows(run: Path) -> None:
    import base64
    import hashlib

    text = (run / "report.html").read_text("utf-8")
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script.group(1).encode()).digest()).decode()
    assert f"'sha256-{digest}'" in text


@pytest.mark.parametrize(
    "missing", ["evals", "log.jsonl", "stages.jsonl", "lineage.json", "preferences.jsonl", "data"]
)
def test_a_run_that_stopped_early_is_reported_as_far_as_it_came(copy: Path, missing: str) -> None:
    path = copy / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    Page(write_report(copy)[0].read_text("utf-8"))


def test_what_was_not_measured_is_said(copy: Path) -> None:
    (copy / "evals" / "aligned.json").unlink()
    found = Page(write_report(copy)[0].read_text("utf-8"))
    assert "Not evaluated: aligned." in found.text
    assert "Forgetting after alignment not measured" in found.text
    assert headline(copy)["satisfies_aligned"] is None


def test_a_run_with_nothing_but_its_recipe(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text('name = "new"\n', "utf-8")
    found = Page(write_report(tmp_path)[0].read_text("utf-8"))
    assert "the model has not been trained yet" in found.text


def test_parameters_are_counted_in_the_models_file(copy: Path) -> None:
    folder = copy / "models" / "base"
    folder.mkdir(parents=True)
    header = json.dumps({"__metadata__": {}, "a": {"shape": [1000, 600]}, "b": {"shape": [700_000]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert (
        "A language model of 1.3 million parameters that learned from 9.1 MB"
        in Page(write_report(copy)[0].read_text("utf-8")).text
    )
    (folder / "model.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(RunError, match=r"base/model\.safetensors"):
        write_report(copy)


def test_a_persons_preferences_are_not_called_a_programs(copy: Path) -> None:
    rows = [json.loads(line) for line in (copy / "preferences.jsonl").read_text("utf-8").splitlines()]
    (copy / "preferences.jsonl").write_text(
        "".join(json.dumps({**r, "judge": "a person", "stand_in": False}) + "\n" for r in rows), "utf-8"
    )
    text = Page(write_report(copy)[0].read_text("utf-8")).text
    assert "ranked by a person" in text
    assert "Preferences are a person's, but the verdicts counted here are a program's" in text


def test_damaged_file_is_named(copy: Path) -> None:
    (copy / "evals" / "base.json").write_text("{", "utf-8")
    with pytest.raises(RunError, match=r"base\.json"):
        write_report(copy)
    with pytest.raises(RunError, match=r"recipe\.toml"):
        write_report(copy / "evals")


def test_torn_line_is_shown_not_hidden(copy: Path) -> None:
    with (copy / "log.jsonl").open("a") as file:
        file.write('{"stage": "align", "st')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        html, _ = write_report(copy)
    assert "log.jsonl: line" in Page(html.read_text("utf-8")).text


def test_few_requests_and_skipped_steps_are_named_as_limits(copy: Path) -> None:
    row = json.loads((copy / "evals/base.json").read_text("utf-8"))
    row["answers"]["satisfies"]["n"] = 20
    write(copy / "evals/base.json", row)
    with (copy / "log.jsonl").open("a") as file:
        file.write(
            json.dumps({"stage": "align", "step": 61, "tokens": 1, "loss": 1.0, "skipped": True}) + "\n"
        )
    found = Page(write_report(copy)[0].read_text("utf-8")).text
    assert "Only 20 held-out requests were asked" in found
    assert "1 steps were skipped" in found


def test_headline_is_json_with_n_and_interval(run: Path) -> None:
    found = json.loads(json.dumps(headline(run)))
    assert (
        found["satisfies_aligned"]["n"] == 250 and found["satisfies_aligned"]["value"] == MET["aligned"] / 250
    )
    assert (
        found["reward_accuracy"]["low"] < found["reward_accuracy"]["value"] < found["reward_accuracy"]["high"]
    )
    assert found["seconds"] == pytest.approx(253.6) and found["memory_bytes"] == 1.1e9


def test_costs_stand_beside_their_predictions(run: Path) -> None:
    stage = next(s for s in read(run).stages if s.key == "pretrain")
    assert (stage.predicted_seconds, stage.calibrated_seconds, stage.seconds) == (85.5, 95.0, 93.2)
    row = "| Pre-training | 86 s | 1 min 35 s | 1 min 33 s | +9 % | 400 | 3.28M |"
    assert row in (run / "report.md").read_text("utf-8")


def test_a_resumed_stage_keeps_its_first_promise_and_its_last_cost(copy: Path) -> None:
    with (copy / "stages.jsonl").open("a") as file:
        for row in (
            {"event": "plan", "basis": "steps", "seconds": 1.0},
            {"event": "done", "elapsed": 300.0, "seconds": 77.0},
        ):
            file.write(json.dumps({"stage": "align", **row}) + "\n")
    stage = next(s for s in read(copy).stages if s.key == "align")
    assert (stage.calibrated_seconds, stage.seconds) == (50.0, 77.0)
    assert read(copy).seconds == 300.0


def test_over_optimisation_is_told_from_its_absence() -> None:
    def rows(judge: list[float]) -> list[dict[str, float]]:
        return [{"reward": i / 10, "judge": j + 0.01 * (i % 2)} for i, j in enumerate(judge)]

    assert "it was over-optimised" in over_optimised(
        rows([0.3] * 10 + [0.7] * 10 + [0.7] * 10 + [0.6] * 10 + [0.4] * 10)
    )
    assert "no over-optimisation" in over_optimised(rows([0.3] * 10 + [0.5] * 10 + [0.6] * 10 + [0.7] * 20))
    assert "the proxy's alone" in over_optimised(rows([0.2] * 50))
    assert "Both rose" in over_optimised(rows([0.2, 0.8] * 5 + [0.3, 0.9] * 20))
    assert over_optimised(rows([0.5] * 5)) == ""


def _points(svg: str) -> list[tuple[float, float]]:
    path = re.search(r'class="line [^"]*" d="([^"]*)"', svg)
    assert path is not None
    return [(float(a), float(b)) for a, b in re.findall(r"([\d.]+) ([\d.]+)", path.group(1))]


def test_dense_curves_keep_every_extreme() -> None:
    values = [1.0] * 50_000
    values[31_337] = 9.0
    drawn = _points(curves(Frame("k", "t", "d", "x"), [Series("s", range(50_000), values)]))
    assert len(drawn) < 5000
    assert min(y for _, y in drawn) < 40
    assert max(y for _, y in drawn) > 200


def test_gaps_break_the_line_and_rules_are_drawn() -> None:
    svg = curves(
        Frame("k", "t<", "d", "x"),
        [Series("s", [0, 1, 2, 3], [1.0, float("nan"), 2.0, 3.0])],
        [Rule(2.5, "here")],
    )
    assert svg.count("M") == 2 and "here" in svg and "t&lt;" in svg


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9))
def test_ticks_lie_inside_and_are_few(low: float, span: float) -> None:
    found = ticks(low, low + span)
    assert len(found) <= 6
    assert all(low - span * 1e-6 <= t <= low + span * (1 + 1e-6) for t in found) or span < abs(low) * 1e-9


@given(st.text())
def test_escaped_text_is_one_line_without_markup(text: str) -> None:
    found = escape(text)
    assert "\n" not in found
    assert not re.search(r"(?<!\\)[<>|`*]", found.replace("\\\\", ""))


def test_numbers_in_words() -> None:
    assert [duration(s) for s in (None, 4.21, 61, 254, 7300)] == [
        "–",
        "4.2 s",
        "61 s",
        "4 min 14 s",
        "2 h 01 min",
    ]
    assert [size(b) for b in (None, 12, 2**20, 3.5 * 2**30)] == ["–", "12 B", "1.00 MiB", "3.50 GiB"]
    assert [percent(v) for v in (0.0, 0.004, 0.675, 0.996, 1.0)] == [
        "0 %",
        "0.4 %",
        "68 %",
        "99.6 %",
        "100 %",
    ]
    assert shown(None) == "not measured"
