"""Tables: every kind of file gives the same rows, a bad row is named or counted, equal texts never straddle splits."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutaway.data.documents import PathSettings, read
from cutaway.data.table import LabelledSettings, PairsSettings, read_labelled, read_pairs
from cutaway.errors import DataError, SettingsError
from cutaway.settings import decode, override

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
    ({"text": "\ud800", "label": "a"}, "lone surrogates in the text"),
    ({"text": "x", "label": "\ud800"}, "lone surrogates in the label"),
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
    with pytest.raises(DataError, match=r"e.csv: is empty; give a file with a header and rows"):
        labelled(tmp_path / "e.csv")


@pytest.mark.parametrize("line", ["\n", "\r\n", "\r"])
def test_one_undecodable_row_costs_one_row(tmp_path: Path, line: str) -> None:
    rows = [f'"text {i}{line}goes on",{"ab"[i % 2]}{line}'.encode() for i in range(3000)]
    rows[1500] = rows[1500].replace(b"goes", b"g\xe9s")
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf" + f"text,label{line}".encode() + b"".join(rows))
    with pytest.raises(DataError, match=r"a.csv:3002: cannot be used: undecodable \(byte 1 of a line is not UTF-8\)"):
        labelled(tmp_path / "a.csv")
    found = labelled(tmp_path / "a.csv", bad_rows="skip")
    assert len(found.split("train")) == 2999 and found.notes[-1] == "left out: 1 undecodable"
    assert found.split("train").names[1499:1501] == ("a.csv:3000", "a.csv:3004")
    assert found.split("train").texts[1500] == f"text 1501{line}goes on"


def test_a_stray_quote_is_named_where_it_opens_and_every_line_it_took_is_counted(tmp_path: Path) -> None:
    rows = [f"text {i},{'ab'[i % 2]}\n" for i in range(200)]
    open_at = [*rows[:49], '"' + rows[49], *rows[50:]]
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(open_at))
    wanted = (r"a.csv:51: .*in a broken quote \(a stray quote in the record of lines 51 to 201: "
              r".*set data.quotes=false to take quotes as they stand, or set data.bad_rows")
    with pytest.raises(DataError, match=wanted):
        labelled(tmp_path / "a.csv")
    found = labelled(tmp_path / "a.csv", bad_rows="skip")
    assert len(found.split("train")) == 49 and found.notes[-1] == "left out: 151 in a broken quote"
    assert [name for name, _, _ in found.skipped.listed] == [f"a.csv:{n}" for n in range(51, 202)]
    assert len(labelled(tmp_path / "a.csv", quotes=False).split("train")) == 200
    (tmp_path / "b.csv").write_text("text,label\n" + "".join([*open_at[:59], '"' + rows[59], *rows[60:]]))
    found = labelled(tmp_path / "b.csv", bad_rows="skip")
    assert len(found.split("train")) == 189 and found.notes[-1] == "left out: 11 in a broken quote"
    (tmp_path / "c.csv").write_text("text,label\n" + "".join([*open_at[:59], 'end",a\n', *rows[60:]]))
    assert [n for n in labelled(tmp_path / "c.csv").notes if "several lines" in n] == [
        "1 texts of several lines, the longest of 11 at c.csv:51; where stray quotes made one of many, "
        "set data.quotes=false"]
    (tmp_path / "d.csv").write_text('text,"label\na,b\n')
    with pytest.raises(DataError, match=r"d.csv:1: .*the header: a stray quote.*as they stand$"):
        labelled(tmp_path / "d.csv", bad_rows="skip")


def test_a_lost_file_is_no_bad_row(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match=r"a.parquet: cannot be used: unreadable .*; restore the file$"):
        labelled(tmp_path / "a.parquet", bad_rows="skip")
    rows = {"b.csv": "text,label\nx,a\n", "c.jsonl": '{"text": "x", "label": "a"}\n'}
    for name, encoding in itertools.product(rows, ("utf-16", "utf-16-le")):
        (tmp_path / name).write_text(rows[name], encoding)
        with pytest.raises(DataError, match=rf"{name}: .*UTF-16 or no text at all\); write the file as UTF-8$"):
            labelled(tmp_path / name, bad_rows="skip")
    (tmp_path / "d.csv").write_bytes("tëxt,label\nx,a\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"d.csv:1: .*the header: byte 1 .*; write the file as UTF-8$"):
        labelled(tmp_path / "d.csv", bad_rows="skip")


def test_a_path_that_is_no_file_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="a folder, not a file of rows; name one file in it"):
        labelled(tmp_path)

    def refuse(self: Path, *_: object, **__: object) -> object:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "stat", refuse)  # root may search every folder
    with pytest.raises(DataError, match=r"a.csv: cannot be read .*Permission denied.*; check its permissions"):
        labelled("/locked/a.csv")
    with pytest.raises(DataError, match=r"a.txt: cannot be read .*Permission denied.*; check its permissions"):
        read(PathSettings(path="/locked/a.txt"))


@pytest.mark.parametrize(("name", "advice"), [
    ("labels", "data.label=labels"), (" label", """'data.label=" label"'"""), ("my label", "'data.label=my label'")])
def test_advice_can_be_pasted(tmp_path: Path, name: str, advice: str) -> None:
    (tmp_path / "a.csv").write_text(f"text,{name}\nx,a\n")
    with pytest.raises(DataError) as error:
        labelled(tmp_path / "a.csv")
    given = str(error.value).partition("; set ")[2]
    assert given == advice and override({}, shlex.split(given)) == {"data": {"label": name}}


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
    path = jsonl(tmp_path / "e.jsonl", [{"text": y, "label": y} for y in ("pos", "pos ", " pos", "neg")])
    found = labelled(path)
    assert found.split("train").classes == ("neg", "pos")
    assert found.notes == ("2 labels have white space around them, which does not count",)


def test_one_label_says_in_which_part(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"text": str(i), "label": "neg"} for i in range(3)])
    test = jsonl(tmp_path / "t.jsonl", [{"text": "x", "label": "pos"}])
    with pytest.raises(DataError, match=r"every row of train \(of 3\) has the label 'neg'; others stand only in test"):
        labelled(path, test_path=test)


def test_several_labels_a_row(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"text": "a", "label": ["y", "x"]}, {"text": "b", "label": []}])
    assert labelled(path, multi_label=True).split("train").labels == (("x", "y"), ())
    (tmp_path / "b.csv").write_text("text,label\na,x; y\nb,z\nc,\n")
    found = labelled(tmp_path / "b.csv", multi_label=True, separator=";")
    assert found.split("train").labels == (("x", "y"), ("z",), ()) and found.notes == ()
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
    path = jsonl(tmp_path / "b.jsonl", [{"text": "same", "label": "xy"[i % 2]} for i in range(200)])
    with pytest.raises(DataError, match=r"200 usable rows of only 1 different text leave .*; give more different t"):
        labelled(path, valid_share=0.05)


@given(st.lists(st.tuples(st.text(max_size=5), st.sampled_from(["a", "b", "", " c"])), max_size=8))
def test_every_row_is_kept_or_counted(rows: list[tuple[str, str]]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = jsonl(Path(folder) / "a.jsonl", [
            {"text": "one", "label": "a"}, {"text": "two", "label": "b"}, *({"text": x, "label": y} for x, y in rows)])
        found = labelled(path, bad_rows="skip")
    assert len(found.split("train")) + found.skipped.counts.total() == len(rows) + 2
