"""Tables: every kind of file gives the same rows, a bad row is named or counted, equal texts never straddle splits."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutaway.data.documents import PathSettings, read
from cutaway.data.table import LabelledSettings, PairsSettings, read_labelled, read_pairs
from cutaway.errors import DataError, SettingsError
from cutaway.settings import decode

ROWS = [("good film", "pos"), ("bad, dull", "neg"), ("a\nline", "pos"), ("größer", "neg")]
WHOLE = {"valid_share": 0.0, "test_share": 0.0}


def jsonl(path: Path, rows) -> str:  # type: ignore[no-untyped-def]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def labelled(path, **settings):  # type: ignore[no-untyped-def]
    return read_labelled(LabelledSettings(path=str(path), **{**WHOLE, **settings}))


def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    jsonl(tmp_path / "a.jsonl", [{"id": i, "label": y, "text": x} for i, (x, y) in enumerate(ROWS)])
    for name, delimiter in (("b.csv", ","), ("c.tsv", "\t")):
        with (tmp_path / name).open("w", newline="") as file:
            csv.writer(file, delimiter=delimiter).writerows([("label", "id", "text"), *((y, 0, x) for x, y in ROWS)])
    columns = {"text": [x for x, _ in ROWS], "label": [y for _, y in ROWS]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "d.parquet")
    for name in ("a.jsonl", "b.csv"):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    for file in sorted(tmp_path.iterdir()):
        found = labelled(file).split("train")
        assert list(zip(found.texts, found.labels, strict=True)) == ROWS
        assert len(set(found.names)) == 4 and all(n.startswith(f"{file.name}:") for n in found.names)
        assert found.classes == ("neg", "pos")


def test_a_missing_column_names_the_nearest(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"text": "x", "labels": "y"}])
    with pytest.raises(DataError, match=r"no label in 'label'; it has text, labels; set data.label=labels$"):
        labelled(path)
    (tmp_path / "b.csv").write_text("txt,label\nx,y\n")
    with pytest.raises(DataError, match=r"no text in 'text'; it has txt, label; set data.text=txt$"):
        labelled(tmp_path / "b.csv")
    (tmp_path / "c.csv").write_text("text,label,label\nx,y,z\n")
    with pytest.raises(DataError, match=r"column 'label' twice"):
        labelled(tmp_path / "c.csv")
    (tmp_path / "d.txt").write_text("text")
    with pytest.raises(DataError, match="holds no rows"):
        labelled(tmp_path / "d.txt")
    with pytest.raises(DataError, match="no such file"):
        labelled(tmp_path / "e.csv")


@pytest.mark.parametrize(("row", "words"), [
    ({"text": "  ", "label": "a"}, "empty text"),
    ({"text": "x", "label": " "}, "empty label"),
    ({"text": "x", "label": None}, "without label"),
    ({"text": 5, "label": "a"}, "without text"),
    ({"text": "x", "label": 1.5}, "a float"),
    ({"text": "x", "label": ["a"]}, "set data.multi_label=true"),
    ({"text": "x" * 2_000_000, "label": "a"}, r"text too long \(2,000,000 characters"),
    ({"text": "\ud800", "label": "a"}, "lone surrogates"),
])
def test_a_bad_row_is_named_or_counted(tmp_path: Path, row, words: str) -> None:  # type: ignore[no-untyped-def]
    path = jsonl(tmp_path / "a.jsonl", [*({"text": x, "label": y} for x, y in ROWS), row])
    with pytest.raises(DataError, match=words) as error:
        labelled(path)
    assert "a.jsonl:5" in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 300
    found = labelled(path, bad_rows="skip")
    assert len(found.split("train")) == 4 and found.skipped.counts.total() == 1
    assert any(n.startswith("left out: 1 ") for n in found.notes)


def test_damaged_files_are_said(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("text,label\nok,a\nfine,b\nl\xe9,b\n".encode("latin-1"))
    with pytest.raises(DataError, match="undecodable"):
        labelled(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text("text,label\nx,y,z\nok,a\n")
    with pytest.raises(DataError, match=r"b.csv:2: .*3 fields for 2 columns"):
        labelled(tmp_path / "b.csv")
    (tmp_path / "c.jsonl").write_text('{"text": "a", "label": "x"}\nno json\n')
    with pytest.raises(DataError, match=r"c.jsonl:2: .*not JSON"):
        labelled(tmp_path / "c.jsonl")
    (tmp_path / "d.csv.gz").write_bytes(gzip.compress(b"text,label\n" + b"a,b\n" * 5000)[:-20])
    with pytest.raises(DataError, match="cannot be read"):
        labelled(tmp_path / "d.csv.gz")
    (tmp_path / "e.csv").write_bytes(b"")
    with pytest.raises(DataError, match="nothing by name"):
        labelled(tmp_path / "e.csv")


def test_a_row_of_ten_megabytes_can_be_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"text,label\n{'word ' * 2_000_000},a\nshort,b\n")
    assert len(labelled(tmp_path / "a.csv", longest=20_000_000).split("train").texts[0]) == 10_000_000


def test_labels_become_text_and_never_mix(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"text": str(i), "label": i % 2} for i in range(4)])
    found = labelled(path)
    assert found.split("train").classes == ("0", "1") and found.notes == ("labels are integers and were made text",)
    path = jsonl(tmp_path / "b.jsonl", [{"text": str(i), "label": i == 1} for i in range(4)])
    assert labelled(path).split("train").classes == ("false", "true")
    path = jsonl(tmp_path / "c.jsonl", [{"text": "a", "label": 1}, {"text": "b", "label": "1"}])
    with pytest.raises(DataError, match=r"mixed types: integer at c.jsonl:1, text at c.jsonl:2"):
        labelled(path)
    path = jsonl(tmp_path / "d.jsonl", [{"text": "a", "label": "x"}, {"text": "b", "label": "x"}])
    with pytest.raises(DataError, match="every row has the label 'x'"):
        labelled(path)


def test_several_labels_a_row(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"text": "a", "label": ["y", "x"]}, {"text": "b", "label": []}])
    assert labelled(path, multi_label=True).split("train").labels == (("x", "y"), ())
    (tmp_path / "b.csv").write_text("text,label\na,x; y\nb,z\nc,\n")
    assert labelled(tmp_path / "b.csv", multi_label=True, separator=";").split("train").labels == (
        ("x", "y"), ("z",), ())
    with pytest.raises(DataError, match="wants a JSON list"):
        labelled(tmp_path / "b.csv", multi_label=True)
    (tmp_path / "c.csv").write_text('text,label\na,"[""x""]"\nb,"[""y"", ""x""]"\n')
    assert labelled(tmp_path / "c.csv", multi_label=True).split("train").labels == (("x",), ("x", "y"))
    with pytest.raises(SettingsError, match="multi_label"):
        decode(LabelledSettings, {"path": "x", "separator": ","}, where="here")


def test_a_table_without_a_header_is_read_when_told(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('Hi.\tSalut !\n"Go," he said.\tIl dit "va".\n"Open\tOuvre\n')
    settings = PairsSettings(path=str(tmp_path / "a.tsv"), source="1", target="2", header=False, quotes=False, **WHOLE)
    found = read_pairs(settings).split("train")
    assert found.sources == ("Hi.", '"Go," he said.', '"Open') and found.targets[2] == "Ouvre"
    with pytest.raises(DataError, match="no source in 'source'; it has 1, 2"):
        read_pairs(settings.model_copy(update={"source": "source"}))


def test_splits_are_those_of_documents_and_hold_equal_texts_together(tmp_path: Path) -> None:
    rows = [{"text": f"text number {i % 300}", "label": "ab"[i % 2]} for i in range(600)]
    path = jsonl(tmp_path / "a.jsonl", rows)
    found = labelled(path, valid_share=0.2, test_share=0.1)
    parts = {n: found.split(n) for n in ("train", "valid", "test")}
    assert sum(map(len, parts.values())) == 600
    texts = [set(p.texts) for p in parts.values()]
    assert not texts[0] & texts[1] and not texts[0] & texts[2] and not texts[1] & texts[2]
    corpus = read(PathSettings(path=path, valid_share=0.2, test_share=0.1))
    assert {d.text for d in corpus.split("test")} == texts[2]
    assert any("exact duplicates" in n for n in found.notes)


def test_files_of_their_own_take_no_share_and_leaks_are_counted(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"text": str(i), "label": "ab"[i % 2]} for i in range(50)])
    test = jsonl(tmp_path / "t.jsonl", [{"text": t, "label": "b"} for t in ("1", "2", "new")])
    found = labelled(path, test_path=test, valid_share=0.2)
    assert len(found.split("train")) + len(found.split("valid")) == 50 and len(found.split("test")) == 3
    assert any(n.endswith("of 3 texts of test also stand in train") for n in found.notes)
    assert any("more than one label" in n for n in found.notes)
    with pytest.raises(DataError, match="there is no valid split"):
        labelled(path).split("valid")


def test_an_unseen_label_is_an_error_or_counts_as_wrong(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"text": str(i), "label": "ab"[i % 2]} for i in range(4)])
    test = jsonl(tmp_path / "t.jsonl", [{"text": "x", "label": "c"}, {"text": "y", "label": "a"}])
    with pytest.raises(DataError, match=r"1 of 2 rows of test have labels that no train row has: 'c'"):
        labelled(path, test_path=test)
    found = labelled(path, test_path=test, unseen="wrong")
    assert found.split("test").labels == ("c", "a") and "count as wrong" in found.notes[-1]


def test_a_split_without_rows_is_an_error(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}])
    with pytest.raises(DataError, match=r"2 usable rows leave (valid|train) empty"):
        labelled(path, valid_share=0.05)


@given(st.lists(st.tuples(st.text(max_size=5), st.sampled_from(["a", "b", "", " c"])), max_size=8))
def test_every_row_is_kept_or_counted(rows: list[tuple[str, str]]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = jsonl(Path(folder) / "a.jsonl", [
            {"text": "one", "label": "a"}, {"text": "two", "label": "b"}, *({"text": x, "label": y} for x, y in rows)])
        found = labelled(path, bad_rows="skip")
    assert len(found.split("train")) + found.skipped.counts.total() == len(rows) + 2
