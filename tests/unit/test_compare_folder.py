"""A comparison's folder: what is kept of its data, what goes on after damage, and what a stop leaves behind."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cutaway.cli.verb_compare import _next, compared
from cutaway.errors import RunError
from cutaway.run import compare
from cutaway.run.compare import Compared, go, read, start
from cutaway.run.compare_classification import open_bench as open_classification
from cutaway.run.compare_notes import read_notes
from cutaway.run.compare_recipe import Comparison, load
from cutaway.run.compare_report import write_report
from cutaway.run.compare_retrieval import open_bench as open_retrieval
from cutaway.run.compare_transformation import open_bench as open_transformation
from cutaway.run.compare_worker import _trained
from cutaway.run.folder import Run
from cutaway.run.work import Unseen

BYTES = ['tokenizer={kind="byte", masks=1}', "dtype=float32", "threads=1", "seeds=[3]"]
SKIPPED = "left out: 2 empty text"


class Heard:
    """A screen that remembers its notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def progress(self, name: str, *, total: float, unit: str) -> Any:
        from contextlib import nullcontext

        return nullcontext(Unseen())


def rows(folder: Path, count: int = 80) -> Path:
    """Texts with labels and targets; two of them are empty, and one stands twice."""
    lines = [{"text": f"{('cat', 'dog')[i % 2]} number {i}", "label": "cd"[i % 2], "target": f"so {i}"}
             for i in range(count)]
    lines += [{"text": " ", "label": "c", "target": "x"}] * 2 + [lines[0]]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def made(name: str, folder: Path, *more: str) -> Comparison:
    """One of the tasks on tables over those rows, its systems as they are built in."""
    columns = [] if name == "classification" else ["data.source=text"]
    kind = "labelled" if name == "classification" else "pairs"
    return load(name, [f"data.kind={kind}", f"data.path={rows(folder)}", *columns, "data.valid_share=0.2",
                       "data.test_share=0.2", "data.bad_rows=skip", *BYTES, *more])


def two(folder: Path) -> Comparison:
    """Guessing beside a bag of words."""
    names = load("classification").systems
    return made("classification", folder, *(f"systems.{n}=false" for n in names if n not in ("guess", "words")))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Compared:
    """A finished comparison whose table had rows that were left out."""
    here = tmp_path_factory.mktemp("done")
    return start(two(here), here, Heard())


def test_what_was_left_out_stands_in_every_report(done: Compared) -> None:
    kept = json.loads((done.folder / "comparison.json").read_text())["data"]
    assert kept == done.to_dict()["data"] and SKIPPED in kept["notes"]
    assert kept["skipped"]["counts"] == {"empty text": 2} and len(kept["skipped"]["listed"]) == 2
    assert any("duplicates" in note for note in kept["notes"])
    where = kept["skipped"]["listed"][0]["name"]
    for report in ("report.md", "report.html"):
        text = (done.folder / report).read_text()
        assert SKIPPED in text and f"{where}: empty text" in text and "exact duplicates" in text


def test_rows_that_are_not_listed_are_counted(done: Compared) -> None:
    skipped = {**done.data.skipped, "not_listed": 1234}
    write_report(replace(done, data=replace(done.data, skipped=skipped)))
    assert "and 1,234 more" in (done.folder / "report.md").read_text()


def test_a_damaged_outcome_is_made_again_with_a_note(done: Compared) -> None:
    path = done.folder / "systems" / "words" / "outcome.json"
    for damage in ("{", "[]", '{"scores": 1}'):
        path.write_text(damage)
        with pytest.raises(RunError, match=r"damaged.*delete it and resume"):
            read(done.folder)
    heard = Heard()
    assert go(done.folder, heard).verdict.best == done.verdict.best
    assert [n for n in heard.notes if "words" in n and "trained again" in n]


def test_damaged_notes_are_one_line_and_missing_ones_are_said(done: Compared, tmp_path: Path) -> None:
    assert "was not kept" in read_notes(tmp_path).notes[0]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "notes.json").write_text("[]")
    with pytest.raises(RunError, match="damaged"):
        read_notes(tmp_path)


def test_two_processes_cannot_be_at_one_comparison(done: Compared) -> None:
    with Run(done.folder).lock(), pytest.raises(RunError, match="in use by process"):
        go(done.folder, Heard())


def _during(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    monkeypatch.setitem(compare.PREPARE, "classification", lambda *_: act())


def test_whatever_goes_wrong_while_preparing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _during(monkeypatch, lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        start(two(tmp_path), tmp_path / "here", Heard())
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_while_preparing_says_that_nothing_was_kept(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int) -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # without the mend the test fails, and pytest lives
    # a shell's background job ignores SIGINT, and Python then has no handler for it
    keys = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        _during(monkeypatch, lambda: os.kill(os.getpid(), number))
        comparison = two(tmp_path)
        folder = tmp_path / "here" / comparison.name
        assert compared(lambda: start(comparison, tmp_path / "here", Heard()), folder, json=False) == 130
        assert capsys.readouterr().err.strip() == "stopped before the data was ready; nothing was kept"
        assert not folder.exists() and signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, keys)


def test_what_a_stopped_training_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / ".training-abc"
    (left / "model").mkdir(parents=True)
    bench: Any = SimpleNamespace(train=lambda system, seed, folder: folder.mkdir())
    _trained(bench, load("language").systems["unigram"], 0, tmp_path / "seed-0")
    assert [p.name for p in tmp_path.iterdir()] == ["seed-0"]


def test_no_advice_that_fails(done: Compared) -> None:
    assert _next(done)[0].split()[2].endswith("systems/words/seed-3")
    guessing = replace(done, verdict=replace(done.verdict, best="guess"))
    assert _next(guessing) == []


def _prepared(comparison: Comparison, folder: Path) -> list[str]:
    for part in ("data", "tokenizer", "systems"):
        (folder / part).mkdir()
    heard = Heard()
    compare.PREPARE[comparison.task.kind](comparison, folder, heard)
    assert list(read_notes(folder).notes) == heard.notes
    return heard.notes


def test_pairs_that_are_held_out_and_not_scored_are_said(tmp_path: Path) -> None:
    said = _prepared(made("transformation", tmp_path, "task.items=2"), tmp_path)
    assert "held out, of which the first 2 are scored (task.items)" in said[-1]
    other = tmp_path / "other"
    other.mkdir()
    assert "scored" not in _prepared(made("transformation", tmp_path, "task.items=300"), other)[-1]


@pytest.mark.parametrize(("size", "said"), [
    (10, r"; 1 of \d+ held-out documents are scored, 10 of [\d,]+ bytes \(task.bytes\), the last document cut$"),
    (10**6, r"; \d+ held-out documents, [\d,]+ bytes$")])
def test_a_held_out_text_that_is_cut_is_said(tmp_path: Path, size: int, said: str) -> None:
    (tmp_path / "corpus").mkdir()
    for i in range(40):
        (tmp_path / "corpus" / f"{i}.txt").write_text(f"a text that is number {i}\n" * 30)
    comparison = load("language", ["data.kind=path", f"data.path={tmp_path / 'corpus'}", "data.test_share=0.1",
                                   'tokenizer={kind="byte"}', f"task.bytes={size}", *BYTES[1:]])
    note = _prepared(comparison, tmp_path)[-1]
    assert re.search(said, note), note


@pytest.mark.parametrize(("task", "open_bench", "shape", "what", "context"), [
    ("classification", open_classification, "encoder", "texts", 12),
    ("transformation", open_transformation, "encoder-decoder", "sources", 12),
    ("transformation", open_transformation, "decoder", "sources", 20),
    ("retrieval", open_retrieval, "encoder", "queries", 12)])
def test_held_out_texts_that_are_cut_are_counted(
        tmp_path: Path, task: str, open_bench: Callable[[Comparison, Path], Any], shape: str, what: str,
        context: int) -> None:
    network = ('systems.tiny={kind="neural", rows=4, architecture={kind="transformer", hidden_size=16, num_layers=1, '
               f'num_heads=1, num_kv_heads=1, intermediate_size=16, context_length={context}, '
               f'shape="{shape}"}}}}')
    more = ["task.max_tokens=8", "task.items=5"] if task == "transformation" else []
    comparison = made(task, tmp_path, "budget.kind=steps", "budget.steps=2", network, *more)
    _prepared(comparison, tmp_path)
    bench = open_bench(comparison, tmp_path)
    trained = bench.train(comparison.systems["tiny"], 0, tmp_path / "systems" / "tiny")
    n = len(bench.test)
    assert (f"{n} of {n} held-out {what} do not fit the context of {context} tokens and were cut before they were "
            "scored") in trained.notes
