"""Records: whole files or none, rows that survive a crash, numbers that carry their truth."""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cutaway import records
from cutaway.errors import DataError, RunError
from cutaway.records import (
    Journal,
    Measurement,
    Stopwatch,
    TornLine,
    atomic_write,
    bootstrap,
    digest,
    environment,
    read_journal,
    wilson,
)


def test_a_failed_write_leaves_the_old_file_and_no_debris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    atomic_write(path, "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"a\.json: cannot be written \(No space left"):
        atomic_write(path, b"new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_written_files_have_ordinary_rights(tmp_path: Path) -> None:
    atomic_write(tmp_path / "a", b"x")
    (tmp_path / "b").write_bytes(b"x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_a_folder_that_is_missing_is_an_error_with_the_file_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="gone"):
        atomic_write(tmp_path / "gone" / "a", "x")


def test_a_journal_gives_back_its_rows(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "log.jsonl")
    journal.append({"step": 1, "loss": np.float32(0.5), "path": Path("a")})
    journal.append({"step": 2, "loss": torch.tensor(0.25), "text": "zwei\nZeilen"})
    assert journal.rows() == [{"step": 1, "loss": 0.5, "path": "a"}, {"step": 2, "loss": 0.25, "text": "zwei\nZeilen"}]


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_torn_last_line_is_reported_and_never_swallows_the_next_row(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "log.jsonl"
    Journal(path).append({"step": 1})
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:-cut])
    torn = cut < len(whole) and cut > 1  # without only its newline a row is still whole
    if torn:
        with pytest.warns(TornLine, match="line 2"):
            assert read_journal(path) == [{"step": 1}]
    Journal(path).append({"step": 3})
    if torn:
        with pytest.warns(TornLine):
            assert read_journal(path)[-1] == {"step": 3}
    else:
        assert read_journal(path)[-1] == {"step": 3}


def test_rows_of_several_writers_never_interleave(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "log.jsonl")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: journal.append({"i": i, "text": "x" * 500}), range(200)))
    assert sorted(r["i"] for r in journal.rows()) == list(range(200))


def test_journals_refuse_what_they_cannot_hold(tmp_path: Path) -> None:
    (tmp_path / "list.jsonl").write_text("[1]\n")
    with pytest.raises(DataError, match="line 1 is not an object"):
        read_journal(tmp_path / "list.jsonl")
    with pytest.raises(DataError, match="absent"):
        read_journal(tmp_path / "absent.jsonl")
    with pytest.raises(TypeError, match="no JSON form"):
        Journal(tmp_path / "x").append({"a": object()})
    with pytest.raises(RunError):
        Journal(tmp_path / "no" / "x").append({})


def test_measurements_say_value_interval_and_n() -> None:
    share = Measurement("parses", 0.37, "share", 200, *wilson(74, 200))
    assert str(share) == "parses 37.0 % [30.6 %, 43.9 %] (n = 200)"
    assert str(Measurement("speed", 12345.6, "tokens/s")) == "speed 12,346 tokens/s"
    assert Measurement.from_dict(json.loads(json.dumps(share.to_dict()))) == share


def test_wilson_is_the_published_interval() -> None:
    low, high = wilson(8, 10)  # Brown, Cai and DasGupta 2001: 0.490 to 0.943
    assert (round(low, 3), round(high, 3)) == (0.490, 0.943)
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 50)[0] == 0.0 and wilson(50, 50)[1] == 1.0
    for successes, n in ((3, 2), (-1, 5), (0, -1)):
        with pytest.raises(DataError):
            wilson(successes, n)


@given(st.integers(0, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_and_narrows_with_n(case: tuple[int, int]) -> None:
    successes, n = case
    low, high = wilson(successes, n)
    assert 0 <= low <= high <= 1
    if n:
        assert low <= successes / n <= high
        wider = wilson(successes, n, z=3.0)
        assert wider[0] <= low and high <= wider[1]


def test_bootstrap_covers_the_mean_and_is_repeatable() -> None:
    draw = np.random.default_rng(1)
    hits = 0
    for trial in range(100):
        sample = draw.normal(2.0, 1.0, 60)
        low, high = bootstrap(list(sample), seed=trial, resamples=200)
        hits += low <= 2.0 <= high
    assert hits >= 85
    assert bootstrap([1.0, 2.0, 4.0], seed=3) == bootstrap([1.0, 2.0, 4.0], seed=3)


def test_bootstrap_is_of_the_ratio_of_sums_not_of_the_mean_of_ratios() -> None:
    low, high = bootstrap([1.0, 100.0] * 50, [1.0, 1000.0] * 50)
    assert low <= 101 / 1001 <= high < 0.3  # the mean of the ratios would be 0.55
    assert bootstrap([3.0]) == (3.0, 3.0)
    with pytest.raises(DataError):
        bootstrap([])


def test_a_stopwatch_stops() -> None:
    with Stopwatch() as watch:
        first = watch.seconds
        assert watch.seconds >= first >= 0
    assert watch.seconds == watch.seconds


def test_the_environment_names_versions_and_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = environment()
    assert found["versions"]["torch"] == torch.__version__ or torch.__version__.startswith(found["versions"]["torch"])
    assert json.loads(json.dumps(found)) == found
    records._commit.cache_clear()
    monkeypatch.setattr(records, "__file__", str(tmp_path / "cutaway" / "records.py"))
    assert environment()["commit"] is None
    records._commit.cache_clear()


def test_digests_of_bytes_and_files_agree(tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    (tmp_path / "a").write_bytes(data)
    assert digest(data) == digest(tmp_path / "a") == hashlib.sha256(data).hexdigest()
    with pytest.raises(DataError):
        digest(tmp_path / "b")
