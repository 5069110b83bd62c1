"""Shards: what is written is read back, reused when it matches, and damage is named in one line."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest

from cutaway.data.documents import Corpus, PathSettings, read
from cutaway.data.shards import Manifest, Shards, read_manifest, write_shards
from cutaway.errors import DataError, RunError
from cutaway.text.tokenizer import ByteSettings, SubwordSettings, Tokenizer, train


def files(folder: Path, count: int = 150) -> Path:
    folder.mkdir()
    for i in range(count):
        (folder / f"{i:03}.txt").write_text(f"document {i} with ünïcode\n" * (1 + i % 4))
    return folder


@pytest.fixture(scope="module")
def byte() -> Tokenizer:
    return train(ByteSettings(), ())


@pytest.fixture
def made(tmp_path: Path, byte: Tokenizer) -> tuple[Corpus, Path, Manifest]:
    corpus = read(PathSettings(path=str(files(tmp_path / "texts"))))
    return corpus, tmp_path / "shards", write_shards(tmp_path / "shards", corpus, byte)


def test_every_document_comes_back_in_its_split(made: tuple[Corpus, Path, Manifest], byte: Tokenizer) -> None:
    corpus, folder, manifest = made
    for split in corpus.wanted:
        shards = Shards.open(folder, split)
        documents = list(corpus.split(split))
        assert len(shards) == len(documents) == manifest.splits[split].documents > 0
        assert shards.bytes == sum(len(d.text.encode()) for d in documents)
        for i, document in enumerate(documents):
            ids = shards.document(i).tolist()
            assert (ids[0], ids[-1]) == (byte.bos_id, byte.eos_id)
            assert byte.bytes_of(ids) == document.text.encode()
            assert (shards.name(i), shards.digest(i)) == (document.name, document.digest)
            start = int(shards.starts[i])
            assert shards.locate(start) == (document.name, 0)
            assert shards.locate(int(shards.starts[i + 1]) - 1) == (document.name, len(ids) - 1)
        with pytest.raises(DataError, match=r"token .* of"):
            shards.locate(len(shards.tokens))
        with pytest.raises(DataError, match=r"document .* of"):
            shards.name(len(shards))


def test_the_manifest_says_what_was_made_from_what(made: tuple[Corpus, Path, Manifest], byte: Tokenizer) -> None:
    corpus, folder, manifest = made
    assert read_manifest(folder) == manifest
    assert manifest.tokenizer == byte.digest and manifest.encoder == "gigatoken" and manifest.dtype == "uint16"
    assert manifest.sources == {f"{i:03}.txt": 1 for i in range(150)}
    assert manifest.note is None and manifest.skipped["counts"] == {}
    assert manifest.settings["path"] == corpus.settings.model_dump()["path"]
    assert sum(s.documents for s in manifest.splits.values()) == 150


def test_any_file_name_can_be_kept(tmp_path: Path, byte: Tokenizer) -> None:
    folder = os.fsencode(files(tmp_path / "texts", 3))
    strange = [b"caf\xe9.txt", b"two\nlines.txt", "漢字 name.txt".encode()]
    for name in strange:
        with open(folder + b"/" + name, "wb") as file:  # noqa: PTH123 (a name that is no text)
            file.write(b"text of " + repr(name).encode())
    corpus = read(PathSettings(path=str(tmp_path / "texts"), valid_share=0.0, test_share=0.0))
    write_shards(tmp_path / "shards", corpus, byte)
    shards = Shards.open(tmp_path / "shards")
    assert {shards.name(i) for i in range(len(shards))} >= {os.fsdecode(n) for n in strange}
    assert {os.fsdecode(n) for n in strange} <= set(read_manifest(tmp_path / "shards").sources)


def test_matching_shards_are_reused_and_others_replaced(
    made: tuple[Corpus, Path, Manifest], byte: Tokenizer, tmp_path: Path
) -> None:
    corpus, folder, manifest = made
    stamp = (folder / "manifest.json").stat().st_mtime_ns
    assert write_shards(folder, corpus, byte) == manifest
    assert (folder / "manifest.json").stat().st_mtime_ns == stamp
    bpe = train(SubwordSettings(vocab_size=270), corpus.split("train"))
    other = write_shards(folder, corpus, bpe)
    assert other.tokenizer == bpe.digest != manifest.tokenizer
    (tmp_path / "texts" / "new.txt").write_text("a new document")
    assert sum(s.documents for s in write_shards(folder, corpus, bpe).splits.values()) == 151
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_both_encoders_write_the_same(made: tuple[Corpus, Path, Manifest], byte: Tokenizer, tmp_path: Path) -> None:
    corpus, _, manifest = made
    slow = Tokenizer(byte.kind, byte.json)
    slow.__dict__["_fast"] = None
    again = write_shards(tmp_path / "slow", corpus, slow)
    assert again.encoder == "tokenizers"
    assert dataclasses.replace(again, encoder="gigatoken") == manifest


@pytest.mark.parametrize("kind", ["tokens", "index", "names"])
@pytest.mark.parametrize("harm", ["flip", "cut", "gone"])
def test_damage_is_named(made: tuple[Corpus, Path, Manifest], kind: str, harm: str) -> None:
    path = made[1] / f"train.{kind}"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes(data if harm == "flip" else data[:-1])
    what = {"flip": "damaged: its sha256", "cut": "damaged: .* bytes", "gone": "cannot be read"}[harm]
    with pytest.raises(DataError, match=rf"train\.{kind}: {what}.*; delete the folder and write the shards again"):
        Shards.open(made[1])


def test_a_damaged_manifest_is_named_and_written_anew(made: tuple[Corpus, Path, Manifest], byte: Tokenizer) -> None:
    corpus, folder, manifest = made
    path = folder / "manifest.json"
    good = path.read_text()
    for bad in (good[:-50], "[]", good.replace('"version": 1', '"version": 9'), good.replace('"eos_id"', '"eosid"')):
        path.write_text(bad)
        with pytest.raises(DataError, match=r"manifest\.json: "):
            Shards.open(folder)
        assert write_shards(folder, corpus, byte) == manifest


def test_an_empty_split_is_an_error(tmp_path: Path, byte: Tokenizer) -> None:
    corpus = read(PathSettings(path=str(files(tmp_path / "texts", 20)), valid_share=0.0, test_share=0.0))
    write_shards(tmp_path / "shards", corpus, byte)
    assert len(Shards.open(tmp_path / "shards")) == 20
    with pytest.raises(DataError, match=r"the valid split is empty; raise data\.valid_share"):
        Shards.open(tmp_path / "shards", "valid")


def test_a_failure_leaves_nothing_behind(tmp_path: Path, byte: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = read(PathSettings(path=str(files(tmp_path / "texts"))))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cutaway.data.shards._Writer.add", full)
    with pytest.raises(RunError, match=r"shards: cannot be written \(No space left on device\); free space"):
        write_shards(tmp_path / "shards", corpus, byte)
    assert [p.name for p in tmp_path.iterdir()] == ["texts"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder_is_named(tmp_path: Path, byte: Tokenizer) -> None:
    corpus = read(PathSettings(path=str(files(tmp_path / "texts"))))
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(RunError, match="cannot be written"):
        write_shards(tmp_path / "locked" / "shards", corpus, byte)


def test_a_large_vocabulary_takes_four_bytes(tmp_path: Path, byte: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = read(PathSettings(path=str(files(tmp_path / "texts"))))
    wide = Tokenizer(byte.kind, byte.json)
    wide.__dict__["vocab_size"] = 70_000
    assert write_shards(tmp_path / "shards", corpus, wide).dtype == "uint32"
    assert Shards.open(tmp_path / "shards").tokens.dtype == np.uint32
