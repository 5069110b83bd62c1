"""The benchmark of texts written for texts: its tables are read without leaks, its scores are right, and it runs."""

from __future__ import annotations

import gzip
import importlib
import json
import random
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from cutaway.evaluate.resample import mean_of

ROOT = Path(__file__).resolve().parents[2] / "benchmarks" / "quality"
WORDS = ["".join(random.Random(i).choices("abdeiklmnoprstu", k=3 + i % 5)) for i in range(120)]


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT))  # as it is when the script is run
    return importlib.import_module("transformation_tasks")


@pytest.fixture
def script(tasks: ModuleType) -> ModuleType:
    return importlib.import_module("transformation")


def write(path: Path, lines: Sequence[object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode()))


def phrase(draw: random.Random) -> str:
    return " ".join(draw.choices(WORDS, k=5))


def made_up(root: Path) -> Path:
    """Every table in small, of words that mean nothing."""
    draw = random.Random(0)
    for part, count in (("train", 60), ("valid", 7)):
        texts = [phrase(draw) for _ in range(count)]
        write(root / "tatoeba_en_fr" / f"{part}.tsv.gz", [f"{t}\t{t.upper()}" for t in texts])
        write(root / "wikisql" / f"{'dev' if part == 'valid' else part}.jsonl.gz",
              [{"text": f"{t} var0 ?", "variables": {"var0": t[:3]}, "sql": f"SELECT {t} ;"} for t in texts])
        write(root / "recipes" / f"{part}.jsonl.gz",
              [{"title": t, "category": None, "servings": "4", "time": None, "difficulty": "2",
                "ingredients": t.split()} for t in texts])
        write(root / "scitldr" / f"{part}.jsonl.gz",
              [{"source": f"{t}. {phrase(draw)}.", "targets": [t, t[:9]]} for t in texts])
    return root


def test_a_value_stands_behind_its_name(tasks: ModuleType) -> None:
    given = tasks.with_values("Is var1 above var0, not var14 ?", {"var0": "3", "var1": "two words"})
    assert given == "Is var1 ⟨two words⟩ above var0 ⟨3⟩, not var14 ?"
    assert tasks.without_values(given) == "Is var1 above var0, not var14 ?"
    nested = tasks.with_values("Who scored var0 ?", {"var0": "10.11 (71)"})
    assert nested == "Who scored var0 ⟨10.11 (71)⟩ ?" and tasks.without_values(nested) == "Who scored var0 ?"


def test_a_question_with_other_values_is_not_learned(tasks: ModuleType, tmp_path: Path) -> None:
    def row(text: str, value: str) -> dict[str, object]:
        return {"text": text, "variables": {"var0": value}, "sql": "SELECT TABLEalias0.A_FIELD ;"}

    folder = tmp_path / "wikisql"
    write(folder / "train.jsonl.gz", [row("Who has var0 ?", "1"), row("What is var0 ?", "1")])
    write(folder / "dev.jsonl.gz", [row("Who has var0 ?", "2 or 3")])
    parts = tasks.read(tmp_path, tasks.TASKS["wikisql"])
    assert parts.left_out == 1 and [source for source, _ in parts.learn] == ["What is var0 ⟨1⟩ ?"]


def test_a_query_is_worded_as_its_question(tasks: ModuleType) -> None:
    given = tasks.plain_query('SELECT AVG TABLEalias0.CROWD_FIELD FROM TABLE AS TABLEalias0 WHERE '
                              'TABLEalias0.AWAY_TEAM_SCORE_FIELD = "var0" AND NO._FIELD < var1 ;')
    assert given == 'SELECT AVG crowd WHERE away team score = "var0" AND no. < var1'


def test_what_is_held_out_is_neither_learned_nor_chosen_by(tasks: ModuleType, tmp_path: Path) -> None:
    folder = made_up(tmp_path) / "tatoeba_en_fr"
    held = ["one two\tun deux", "one two\tun, deux", "three\ttrois"]
    write(folder / "test.tsv.gz", held)
    write(folder / "train.tsv.gz", [*(f"{w}\t{w}" for w in WORDS), "three\tthree"])
    parts = tasks.read(tmp_path, tasks.TASKS["tatoeba"])
    assert (parts.where, parts.sources, parts.left_out) == ("test.tsv.gz", ["one two", "three"], 1)
    assert parts.references == [["un deux", "un, deux"], ["trois"]]
    assert len(parts.learn) == len(WORDS) and len(parts.valid) == 7  # the valid file chooses
    (folder / "test.tsv.gz").unlink()
    parts = tasks.read(tmp_path, tasks.TASKS["tatoeba"], items=3)
    assert parts.where == "valid.tsv.gz" and len(parts.sources) == 3
    chosen_by = {source for source, _ in parts.valid}
    assert chosen_by and not chosen_by & {source for source, _ in parts.learn}
    assert len(parts.learn) + len(parts.valid) == len(WORDS) + 1
    assert parts == tasks.read(tmp_path, tasks.TASKS["tatoeba"], items=3)


def test_a_missing_table_says_what_is_missing(tasks: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"wikisql lacks train .* CUTAWAY_DATA"):
        tasks.read(tmp_path, tasks.TASKS["wikisql"])


def test_a_card_says_what_its_record_has_and_no_more(tasks: ModuleType) -> None:
    for title in WORDS[:8]:
        text, answer = tasks.card({"title": title, "category": "Soup", "servings": None, "time": "1 hour",
                                   "difficulty": "2", "ingredients": ["1 egg", "½ cup milk"]})
        record = json.loads(answer)
        assert list(record) == ["title", "category", "time", "difficulty", "ingredients"]
        assert text.startswith(title) and all(x in text for x in ("Soup", "1 hour", "2", "1 egg; ½ cup milk"))
    bare = tasks.card({"title": "Ice", "category": None, "servings": None, "time": None, "difficulty": None,
                       "ingredients": ["water"]})
    assert bare == ("Ice. You need water.", '{"title": "Ice", "ingredients": ["water"]}')


def test_scores_are_those_of_the_items(tasks: ModuleType) -> None:
    assert tasks.lead("One is 3.5. Two! Three") == "One is 3.5."
    exact = tasks.measure(tasks.equality(["a ", "b", "c"], [["a"], ["x", "b"], ["d"]])["exact_match"])
    assert (exact.value, exact.n) == (pytest.approx(2 / 3), 3) and exact.low < 2 / 3 < exact.high
    found = tasks.record(['{"a": "1", "b": ["2", "3"]}', "none"], [['{"a": "1", "b": ["3", "4"]}'], ['{"a": "1"}']])
    assert found["field_f1"].value == pytest.approx(2 * 2 / (3 + 4))
    assert tasks.translation(["the cat sat on the mat"], [["the cat sat on the mat"]])["bleu"].value > 99.9
    assert tasks.summary(["a b c"], [["x y", "a b c"]])["rougeL"].value == 1


def test_networks_stay_below_ten_million_parameters(script: ModuleType) -> None:
    sizes = {}
    for name in script.NETWORKS:
        config = script.network(name, script.Size(1).vocab_size, script.TASKS["scitldr"], script.Size(1).width)
        assert config.traits.reads_source and config.dropout == 0.3
        sizes[name] = config.cost().parameters
    assert max(sizes.values()) < script.MOST_PARAMETERS and max(sizes.values()) < 1.5 * min(sizes.values())


def test_names_are_checked(script: ModuleType) -> None:
    assert script.chosen("cnn, copy", ("copy", "nearest", "cnn")) == ["copy", "cnn"]
    for wrong in ("cn", " ,"):
        with pytest.raises(SystemExit, match="choose from copy, cnn"):
            script.chosen(wrong, ("copy", "cnn"))


def test_the_mean_over_seeds_is_what_is_judged(script: ModuleType) -> None:
    table = script.Table("tatoeba", wanted=0.5)
    for seed, hits in ((0, [1, 1, 0, 0]), (1, [1, 1, 1, 1])):
        score = {"exact_match": mean_of("exact_match", hits)}
        table.add("rnn beam 4", seed, score, {"seconds": 1.0, "writing_seconds": 1.0})
    assert script.judged([table], ["rnn"], [0, 1]) == {"tatoeba, rnn": pytest.approx(0.75 / 0.5)}
    assert table.figures["tatoeba, rnn beam 4, exact_match"]["sd"] == pytest.approx(np.std([0.5, 1.0], ddof=1))


def test_quick_runs_every_path_and_ends_with_one_json_line(script: ModuleType, tmp_path: Path,
                                                           monkeypatch: pytest.MonkeyPatch,
                                                           capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("CUTAWAY_DATA", str(made_up(tmp_path)))
    monkeypatch.setattr(script, "QUICK", script.Size(seconds=0.05, vocab_size=300, width=16, tokens=512, pairs=30,
                                                     items=3, longest=4))
    script.main(["--quick"])
    *shown, last = capsys.readouterr().out.strip().split("\n")
    result = json.loads(last)
    assert set(result) >= {"name", "figures", "ratios", "targets", "ok", "machine", "versions"} and result["ok"]
    rows = {key: row for key, row in result["figures"].items() if " less " not in key}
    assert {key.split(",")[0] for key in rows} == set(script.TASKS)
    assert all(row["n"] == 3 and row["low"] is not None and row["held_out"] for row in rows.values())
    for system in ("copy", "nearest", "transformer greedy", "rnn beam 4", "cnn beam 4"):
        assert any(key.startswith(f"scitldr, {system}, rougeL") for key in rows), system
    assert any("beam 4 less transformer greedy" in text and "p = " in text for text in shown)
    assert sum("held out" in text and "to choose by" in text for text in shown) == len(script.TASKS)
