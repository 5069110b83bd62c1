"""Damaged, missing or foreign files, full and read-only disks, poisoned losses: one line that names the file and the
way out, and what was good before is good afterwards."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import drive
import pytest
import tiny
import torch
from harm import flip, read_only, small_disk
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from cutaway.data.documents import PathSettings, read
from cutaway.data.shards import Shards, write_shards
from cutaway.errors import (
    CheckpointError,
    CutawayError,
    DataError,
    ModelError,
    RunError,
    TokenizerError,
    TrainingError,
)
from cutaway.models.folder import load_model, load_tokenizer, save_model
from cutaway.models.model import Model, build
from cutaway.models.transformer import TransformerConfig
from cutaway.text.tokenizer import ByteSettings, CharSettings, Tokenizer, train
from cutaway.train import checkpoint
from cutaway.train.loop import steps
from cutaway.train.optimizer import Optimizer, OptimizerSettings, build_optimizer
from cutaway.train.schedule import Schedule

FILES = ("model.safetensors", "optimizer.safetensors", "resume.json", "config.json", "cutaway.json", "tokenizer.json")


@pytest.fixture(scope="module")
def byte() -> Tokenizer:
    return train(ByteSettings(), ())


def state(tokenizer: Tokenizer) -> tuple[Model, Optimizer]:
    config = TransformerConfig(vocab_size=tokenizer.vocab_size, hidden_size=16, num_layers=1, num_heads=2,
                               num_kv_heads=1, intermediate_size=24, context_length=tiny.CONTEXT)
    model = build(config, seed=3)
    optimizer = build_optimizer(model, OptimizerSettings())
    case = tiny.CASES["likelihood"]
    for _ in steps(model, tiny.batches(case), case.objective, optimizer, schedule=Schedule(), total=1):
        pass
    return model, optimizer


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory, byte: Tokenizer) -> Path:
    """Checkpoints of steps 2, 4 and 10."""
    folder, (model, optimizer) = tmp_path_factory.mktemp("three"), state(byte)
    for step in (2, 4, 10):
        checkpoint.save(folder, step=step, model=model, optimizer=optimizer, resume={"step": step}, tokenizer=byte,
                        metric=abs(step - 4.0))
    return folder


@pytest.fixture
def damaged(three: Path, tmp_path: Path) -> Path:
    """The same, to be damaged."""
    return Path(shutil.copytree(three, tmp_path / "run"))


def one_line(error: CutawayError, *words: object) -> None:
    assert "\n" not in str(error)
    for word in words:
        assert str(word) in str(error), str(error)


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=6)
@given(at=st.integers(min_value=0, max_value=10**7), cut=st.booleans())
def test_a_flipped_bit_or_a_cut_is_found_and_the_good_one_named(three: Path, name: str, at: int, cut: bool) -> None:
    path = three / "step-10" / name
    whole = path.read_bytes()
    try:
        if cut:
            path.write_bytes(whole[: at % len(whole)])
        else:
            flip(path, at)
        with pytest.raises(CheckpointError) as caught:
            checkpoint.latest(three)
        one_line(caught.value, path, "step-4 is good: delete step-10")
        said: list[str] = []
        found = checkpoint.latest(three, note=said.append)
        assert found is not None and found.step == 4 and len(said) == 1
        assert str(path) in said[0] and "going on from step-4" in said[0]
    finally:
        path.write_bytes(whole)
    assert checkpoint.verify(three / "step-10").resume == {"step": 10}


def test_a_missing_file_is_named(damaged: Path) -> None:
    (damaged / "step-10" / "optimizer.safetensors").unlink()
    flip(damaged / "step-4" / "model.safetensors", 77)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.latest(damaged)
    one_line(caught.value, "optimizer.safetensors: missing", "step-2 is good: delete step-10")


def test_when_all_are_damaged_nothing_begins_anew_unseen(damaged: Path) -> None:
    for name in ("step-2", "step-4", "step-10"):
        flip(damaged / name / "model.safetensors", 12345)
    with pytest.raises(CheckpointError, match="no older checkpoint is good"):
        checkpoint.latest(damaged, note=lambda _: None)
    assert checkpoint.latest(damaged / "nothing here") is None


def test_another_tokenizer_or_model_is_refused(three: Path, byte: Tokenizer) -> None:
    model, optimizer = state(byte)
    other = train(CharSettings(), ["abc"])
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(three / "step-10", model=model, optimizer=optimizer, tokenizer=other)
    one_line(caught.value, three / "step-10", byte.digest[:12], other.digest[:12],
             "resume with the run's own tokenizer")
    before = {n: p.clone() for n, p in tiny.start(tiny.CASES["packed"]).named_parameters()}
    small = tiny.start(tiny.CASES["packed"])
    with pytest.raises(CheckpointError, match=f"made by another model: vocab_size is {byte.vocab_size} there and 48"):
        checkpoint.load(three / "step-10", model=small)
    assert all(torch.equal(p, before[n]) for n, p in small.named_parameters())


def test_a_checkpoint_is_a_model_folder(three: Path, byte: Tokenizer) -> None:
    loaded, (model, _) = load_model(three / "step-4", tokenizer=byte), state(byte)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
    assert load_tokenizer(three / "step-4") == byte


def test_the_newest_and_the_best_are_kept(damaged: Path) -> None:
    assert [p.name for p in checkpoint.prune(damaged, keep=1)] == ["step-2"]
    assert [p.name for p in checkpoint.prune(damaged, keep=1, best=False)] == ["step-4"]
    assert [p.name for p in damaged.iterdir()] == ["step-10"]


def test_what_a_killed_process_left_is_cleared_and_said(damaged: Path) -> None:
    (damaged / ".step-12.x7.partial").mkdir()
    (damaged / ".step-12.x7.partial" / "model.safetensors").write_bytes(b"half")
    (damaged / "step-10").rename(damaged / ".step-10.replaced")
    assert checkpoint.verify(damaged / "step-4").step == 4
    said: list[str] = []
    checkpoint.clean(damaged, note=said.append)
    assert len(said) == 2 and "step-10: put back" in said[0] and ".step-12.x7.partial: removed" in said[1]
    assert sorted(p.name for p in damaged.iterdir()) == ["step-10", "step-2", "step-4"]
    assert checkpoint.verify(damaged / "step-10").step == 10


def test_saving_a_step_again_replaces_it(damaged: Path, byte: Tokenizer) -> None:
    flip(damaged / "step-10" / "model.safetensors", 99)
    model, optimizer = state(byte)
    checkpoint.save(damaged, step=10, model=model, optimizer=optimizer, resume={"again": True}, tokenizer=byte)
    found = checkpoint.latest(damaged)
    assert found is not None and (found.step, found.resume) == (10, {"again": True})


def test_a_damaged_shard_or_tokenizer_is_named(tmp_path: Path, byte: Tokenizer) -> None:
    (tmp_path / "texts").mkdir()
    for i in range(40):
        (tmp_path / "texts" / f"{i}.txt").write_text(f"a text of its own, number {i}\n" * 3)
    corpus = read(PathSettings(path=str(tmp_path / "texts")))
    for damage in (lambda p: flip(p, 800), lambda p: p.write_bytes(p.read_bytes()[:-1])):
        shutil.rmtree(tmp_path / "shards", ignore_errors=True)
        write_shards(tmp_path / "shards", corpus, byte)
        damage(tmp_path / "shards" / "train.tokens")
        with pytest.raises(DataError) as caught:
            Shards.open(tmp_path / "shards")
        one_line(caught.value, tmp_path / "shards" / "train.tokens", "damaged")
    model, _ = state(byte)
    save_model(tmp_path / "model", model, byte)
    path = tmp_path / "model" / "tokenizer.json"
    path.write_text(path.read_text().replace("ByteLevel", "Bytelevel", 1))
    with pytest.raises(TokenizerError) as damaged_tokenizer:
        load_tokenizer(tmp_path / "model")
    one_line(damaged_tokenizer.value, "tokenizer.json")
    flip(tmp_path / "model" / "model.safetensors", 9999)
    with pytest.raises(ModelError) as damaged_model:
        load_model(tmp_path / "model")
    one_line(damaged_model.value, "model.safetensors", "damaged")


@pytest.mark.parametrize("failing", ["fsync", "rename", "mkdir"])
def test_a_disk_that_fills_up_at_any_moment_costs_only_the_new_checkpoint(
        damaged: Path, byte: Tokenizer, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    """Every call that can meet a full disk is made to, one after the other."""
    model, optimizer = state(byte)
    calls, limit = 0, 0
    real = getattr(os, failing)

    def full(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == limit:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments, **options)

    monkeypatch.setattr(os, failing, full)
    while calls >= limit:  # until there is no call left to fail
        calls, limit = 0, limit + 1
        try:
            checkpoint.save(damaged, step=12, model=model, optimizer=optimizer, resume={}, tokenizer=byte)
        except RunError as error:
            one_line(error, damaged / "step-12", "No space left on device", "step-10 is intact", "free space")
        if (damaged / "step-12").exists():  # the failure was too late, or none of ours
            checkpoint.verify(damaged / "step-12")
            shutil.rmtree(damaged / "step-12")
        assert sorted(p.name for p in damaged.iterdir()) == ["step-10", "step-2", "step-4"]
        assert checkpoint.verify(damaged / "step-10").step == 10
    assert limit > 1 and calls == limit - 1


def test_a_disk_that_is_really_full(tmp_path: Path, byte: Tokenizer) -> None:
    model, optimizer = state(byte)
    with small_disk(tmp_path / "disk", "200k"):
        saved = 0
        with pytest.raises(RunError) as caught:
            for step in range(1, 50):
                checkpoint.save(tmp_path / "disk", step=step, model=model, optimizer=optimizer, resume={},
                                tokenizer=byte)
                saved = step
        one_line(caught.value, f"step-{saved + 1}", "No space left on device", f"step-{saved} is intact")
        assert saved >= 1
        found = checkpoint.latest(tmp_path / "disk")
        assert found is not None and found.step == saved
        assert not list((tmp_path / "disk").glob(".*")), "what could not be finished must not keep the space"


def test_a_folder_that_cannot_be_written(tmp_path: Path, byte: Tokenizer) -> None:
    model, optimizer = state(byte)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError) as caught:
        checkpoint.save(tmp_path / "file", step=1, model=model, optimizer=optimizer, resume={}, tokenizer=byte)
    one_line(caught.value, tmp_path / "file" / "step-1", "cannot be written", "make the folder writable")


def test_a_read_only_folder(three: Path, byte: Tokenizer) -> None:
    model, optimizer = state(byte)
    with read_only(three), pytest.raises(RunError) as caught:
        checkpoint.save(three, step=11, model=model, optimizer=optimizer, resume={}, tokenizer=byte)
    one_line(caught.value, three / "step-11", "cannot be written", "step-10 is intact", "make the folder writable")
    found = checkpoint.latest(three)
    assert found is not None and found.step == 10


def test_a_poisoned_step_is_skipped_and_resumed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert drive.drive(tmp_path / "alone", 6, bad=(2, 4)) == 0
    assert "step 3 skipped\nstep 4\nstep 5 skipped\nstep 6\n" in capsys.readouterr().out
    for total in (3, 6):  # stopped right behind the skipped step
        assert drive.drive(tmp_path / "cut", total, bad=(2, 4)) == 0
    alone, cut = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("alone", "cut"))
    assert all(torch.equal(alone[n], cut[n]) and bool(alone[n].isfinite().all()) for n in alone)


def test_poison_without_end_stops_the_run_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = drive.main([str(tmp_path), "9", "0", "3", "4", "5", "6", "7", "8"])
    said = capsys.readouterr().err
    assert code == TrainingError.exit_code and said.count("\n") == 1
    assert "3 steps in a row" in said and "lower the learning rate" in said
    found = checkpoint.latest(tmp_path)
    assert found is not None
    weights = load_model(found.folder).state_dict()
    assert all(bool(t.isfinite().all()) for t in weights.values())
