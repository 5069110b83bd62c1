"""Documents: every kind of file is read, everything left out is counted and listed, and the split stays put."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import sys
from pathlib import Path

import pytest

from cutaway.data import sources
from cutaway.data.documents import Document, PathSettings, StdinSettings, StdlibSettings, cut, read
from cutaway.errors import DataError


def corpus(path: Path, **settings: object):  # type: ignore[no-untyped-def]
    return read(PathSettings(path=str(path), **settings))  # type: ignore[arg-type]


def whole(path: Path, **settings: object) -> list[Document]:
    """Without shares nothing has to be cut."""
    return list(corpus(path, valid_share=0.0, test_share=0.0, **settings))


def test_the_standard_library_is_read_without_its_tests() -> None:
    found = read(StdlibSettings())
    names = [d.name for d in found]
    assert len(names) > 300 and len(set(names)) == len(names)
    assert "json/decoder.py" in names and "textwrap.py" in names
    parts = {part for name in names for part in Path(name).parts}
    assert not parts & {"test", "tests", "idlelib", "site-packages", "__pycache__"}
    assert all(name.endswith(".py") for name in names)
    assert found.note is None
    assert {found.split_of(d) for d in found} == {"train", "valid", "test"}


def test_every_kind_of_file_gives_its_text(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    rows = ["alpha one", "beta, two\nlines", "gämma"]
    (tmp_path / "a.txt").write_text("plain text")
    (tmp_path / "b.md").write_bytes(b"\xef\xbb\xbf# title\r\n")
    (tmp_path / "c.py").write_text("def f(): pass\n")
    (tmp_path / "d.jsonl").write_text("".join(json.dumps({"text": f"json {r}"}) + "\n" for r in rows) + "\n")
    with (tmp_path / "e.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerows([["id", "text"], *([i, f"csv {r}"] for i, r in enumerate(rows))])
    (tmp_path / "f.tsv").write_text("text\tid\ntsv one\t1\n")
    parquet.write_table(pyarrow.table({"text": [f"parquet {r}" for r in rows]}), tmp_path / "g.parquet")
    (tmp_path / "h.txt.gz").write_bytes(gzip.compress(b"zipped text"))
    (tmp_path / "i.jsonl.gz").write_bytes(gzip.compress(b'{"text": "zipped row"}\n'))
    found = whole(tmp_path)
    assert [d.text for d in found] == [
        "plain text", "# title\r\n", "def f(): pass\n", *(f"json {r}" for r in rows), *(f"csv {r}" for r in rows),
        "tsv one", *(f"parquet {r}" for r in rows), "zipped text", "zipped row"]
    assert [d.name for d in found][:6] == ["a.txt", "b.md", "c.py", "d.jsonl:1", "d.jsonl:2", "d.jsonl:3"]
    assert found[3].source == "d.jsonl"


def test_another_column_can_be_named_and_a_wrong_one_is_refused(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    (tmp_path / "a.jsonl").write_text('{"body": "words"}\n')
    (tmp_path / "b.csv").write_text("body\nother words\n")
    parquet.write_table(pyarrow.table({"body": ["third words"]}), tmp_path / "c.parquet")
    assert [d.text for d in whole(tmp_path, field="body")] == ["words", "other words", "third words"]
    for name in ("a.jsonl", "b.csv", "c.parquet"):
        with pytest.raises(DataError, match=f"{name}: no text in 'bodi'; it has body; set data.field=body"):
            whole(tmp_path / name, field="bodi")
    (tmp_path / "d.csv").write_text("id,story\n1,words\n")
    with pytest.raises(DataError, match=r"it has id, story; set data\.field to the one that holds the text"):
        whole(tmp_path / "d.csv")


def test_one_table_without_the_column_does_not_cost_the_folder(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("words")
    (tmp_path / "b.csv").write_text("id,story\n1,other words\n")
    (tmp_path / "c.jsonl").write_text('{"body": "third words"}\n')
    found = corpus(tmp_path, valid_share=0.0, test_share=0.0)
    assert [d.text for d in found] == ["words"] and dict(found.skipped.counts) == {"without text": 2}
    assert [row[0] for row in found.skipped.listed] == ["b.csv", "c.jsonl"]
    assert "it has body; set data.field=body" in found.skipped.listed[1][2]
    assert "set data.field" in str(found.skipped)
    (tmp_path / "a.txt").unlink()
    with pytest.raises(DataError, match=r"no usable text \(2 without text\); b.csv: .* it has id, story; set data.f"):
        list(corpus(tmp_path))


def test_a_first_row_without_text_does_not_cost_the_others(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"version": 1}\n{"text": "words"}\n{"other": 1}\n')
    found = corpus(tmp_path / "a.jsonl", valid_share=0.0, test_share=0.0)
    assert [d.text for d in found] == ["words"]
    assert [row[0] for row in found.skipped.listed] == ["a.jsonl:1", "a.jsonl:3"]
    (tmp_path / "b.jsonl").write_text('{"version": 1}\n' * 150 + '{"text": "words"}\n')
    with pytest.raises(DataError, match=r"b\.jsonl: no text in 'text'; it has version"):
        list(corpus(tmp_path / "b.jsonl"))


def test_what_cannot_be_used_is_counted_and_listed(tmp_path: Path) -> None:
    (tmp_path / "a_good.txt").write_text("words")
    (tmp_path / "b_empty.txt").write_text("")
    (tmp_path / "c_blank.txt").write_text(" \n\t")
    (tmp_path / "d_twice.txt").write_text("words")
    (tmp_path / "e_latin.txt").write_bytes("café".encode("latin-1"))
    (tmp_path / "f_image.png").write_bytes(b"\x89PNG\x00\x00")
    (tmp_path / "g_cut.txt.gz").write_bytes(gzip.compress(b"words " * 1000)[:-10])
    rows = ('{"text": "row"}', "not json", '{"other": 1}', '{"text": "\\ud800"}', "[" * 100_000)
    (tmp_path / "h_rows.jsonl").write_text("\n".join(rows))
    (tmp_path / "i_table.parquet").write_bytes(b"PAR1 nothing")
    (tmp_path / ".hidden").write_text("secret")
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "j_link.txt").symlink_to(tmp_path / "nowhere")
    (tmp_path / "k_round").symlink_to(tmp_path, target_is_directory=True)
    found = corpus(tmp_path, valid_share=0.0, test_share=0.0)
    assert [d.text for d in found] == ["words", "row"]
    assert dict(found.skipped.counts) == {"hidden": 2, "empty": 2, "duplicate": 1, "undecodable": 4, "binary": 1,
                                          "unreadable": 3, "without text": 1, "linked folder": 1}
    assert found.fingerprint()  # also with a link to nothing
    report = found.skipped.to_dict()
    assert {"name": "e_latin.txt", "reason": "undecodable", "detail": "byte 3 is not UTF-8"} in report["listed"]
    assert {r["name"] for r in report["listed"] if r["reason"] == "unreadable"} == {
        "g_cut.txt.gz", "i_table.parquet", "j_link.txt"}
    assert report["not_listed"] == 0 and len(report["listed"]) == found.skipped.counts.total()
    assert "4 undecodable" in str(found.skipped)
    list(found)
    assert found.skipped.to_dict() == report


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("words")
    (tmp_path / "b.txt").write_text("other")
    (tmp_path / "b.txt").chmod(0)
    found = corpus(tmp_path, valid_share=0.0, test_share=0.0)
    assert len(list(found)) == 1 and found.skipped.counts["unreadable"] == 1


@pytest.mark.parametrize("make,words", [
    (lambda p: None, "no such file or folder; check data.path"),
    (lambda p: p.mkdir(), r"no usable text \(nothing left out\); name a file or folder that holds UTF-8 text"),
    (lambda p: p.write_bytes(b"\0\1\2" * 50), r"no usable text \(1 binary\)"),
    (lambda p: p.write_text("\n"), r"no usable text \(1 empty\)"),
])
def test_nothing_to_read_is_an_error(tmp_path: Path, make, words: str) -> None:  # type: ignore[no-untyped-def]
    make(tmp_path / "there")
    with pytest.raises(DataError, match=f"there: {words}") as caught:
        corpus(tmp_path / "there")
    assert caught.value.exit_code == 3


def test_globs_find_files(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("a.txt", "b.md", "deep/c.txt"):
        (tmp_path / name).write_text(name)
    assert [d.text for d in whole(tmp_path / "**" / "*.txt")] == ["a.txt", "deep/c.txt"]
    with pytest.raises(DataError, match="no such file"):
        whole(tmp_path / "*.rst")


def test_standard_input_is_read_more_than_once(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "".join(f"piped wörds {i}\n\n" for i in range(2000))

    class Stream:
        buffer = io.BytesIO(text.encode())

    sources._spool.cache_clear()
    monkeypatch.setattr(sys, "stdin", Stream())
    found = read(StdinSettings())
    assert "".join(d.text for d in found) == "".join(d.text for d in found) == text
    assert found.fingerprint() is None
    sources._spool.cache_clear()


def test_a_large_file_comes_in_blocks_that_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "BLOCK_BYTES", 1000)
    text = "".join(f"paragraph {i} {'wörd ' * (i % 37)}\n\n" for i in range(400)) + "漢" * 900
    (tmp_path / "big.txt").write_text(text)
    blocks = list(sources.path_pieces(str(tmp_path / "big.txt"), "text"))
    assert "".join(b.text for b in blocks) == text  # type: ignore[union-attr]
    assert max(len(b.text.encode()) for b in blocks) <= 1000  # type: ignore[union-attr]
    at = 0
    for block in blocks:
        size = len(block.text.encode())  # type: ignore[union-attr]
        assert block.name == f"big.txt[{at}:{at + size}]"
        at += size
    (tmp_path / "big.txt.gz").write_bytes(gzip.compress(text.encode()))
    zipped = sources.path_pieces(str(tmp_path / "big.txt.gz"), "text")
    assert "".join(b.text for b in zipped) == text  # type: ignore[union-attr]


def test_a_stream_larger_than_a_block_is_not_held(tmp_path: Path) -> None:
    import tracemalloc

    with (tmp_path / "huge.txt").open("w") as file:
        for i in range(300):
            file.write(f"{i} " + "many words in a line\n" * 5000)  # 31 MB
    tracemalloc.start()
    assert sum(1 for _ in corpus(tmp_path / "huge.txt")) > 30
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


def test_one_file_is_cut_so_that_no_split_is_empty_and_says_so(tmp_path: Path) -> None:
    text = "".join(f"Speaker {i}:\nThe line number {i} of the play.\n\n" for i in range(3000))
    (tmp_path / "play.txt").write_text(text)
    found = corpus(tmp_path / "play.txt")
    documents = list(found)
    assert "".join(d.text for d in documents) == text
    assert found.piece_bytes == 1024 and found.note is not None
    assert found.note.startswith("only 1 document for shares of 0.05: each is cut at paragraphs into pieces")
    splits = [found.split_of(d) for d in documents]
    assert splits.count("valid") >= 2 and splits.count("test") >= 2 and splits.count("train") > 0.8 * len(splits)
    assert all(d.text.endswith("\n\n") for d in documents)
    (tmp_path / "play.txt").write_text(text + "One more line.\n\n")
    grown = {d.digest: found.split_of(d) for d in corpus(tmp_path / "play.txt")}
    kept = [d for d in documents if d.digest in grown]
    assert len(kept) >= len(documents) - 1 and all(grown[d.digest] == found.split_of(d) for d in kept)


def test_too_little_text_for_the_splits_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("just this")
    with pytest.raises(DataError, match=r"leave .* empty; give more text, or set data.valid_share"):
        corpus(tmp_path / "a.txt")
    assert len(whole(tmp_path / "a.txt")) == 1


def test_the_fingerprint_follows_the_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("first")
    before = corpus(tmp_path, valid_share=0.0, test_share=0.0).fingerprint()
    assert before == corpus(tmp_path, valid_share=0.0, test_share=0.0).fingerprint()
    (tmp_path / "b.txt").write_text("second")
    assert before != corpus(tmp_path, valid_share=0.0, test_share=0.0).fingerprint()


def test_a_piece_names_its_bytes() -> None:
    text = "wörd " * 100
    pieces = list(cut(Document(text, "f.txt", "f.txt", ""), 64))
    data = text.encode()
    for piece in pieces:
        start, stop = (int(x) for x in piece.name.removeprefix("f.txt[").removesuffix("]").split(":"))
        assert data[start:stop].decode() == piece.text
