"""A base and its adapters over the wire: models to a client, one engine to the server, rows of one batch."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from lora import drawn, merged
from openai import BadRequestError, NotFoundError
from wired import BYTES, Wired, serving

from cutaway.generate.engine import Engine
from cutaway.generate.request import Sampling
from cutaway.generate.writer import Options, Writer
from cutaway.models.adapted import known_by
from cutaway.models.adapter import CONFIG, Lora, adapt, merge, save_adapter
from cutaway.models.folder import save_model
from cutaway.models.kneser_ney import fit
from cutaway.models.light import for_reading
from cutaway.models.model import Model, build
from cutaway.models.ngram import NGramConfig
from cutaway.models.ngram_folder import save_ngram
from cutaway.models.open import open_writer
from cutaway.models.transformer import TransformerConfig
from cutaway.server.limits import Limits
from cutaway.server.lines import lines

NAMES = ("base", "poems", "law")


def _beside(folder: Path, base: Model, seed: int) -> Path:
    """An adapter that finds its base by the way to it."""
    drawn(folder, base, Lora(rank=4), seed=seed)
    said = json.loads((folder / CONFIG).read_text("utf-8"))
    (folder / CONFIG).write_text(json.dumps(said | {"base_model_name_or_path": "../base"}), "utf-8")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("line")
    config = TransformerConfig(vocab_size=BYTES.vocab_size, hidden_size=64, num_layers=2, num_heads=4, num_kv_heads=2,
                               intermediate_size=96, context_length=128)
    save_model(root / "base", build(config, seed=4), BYTES)
    base = open_writer(root / "base")
    assert isinstance(base, Model)
    return {"base": root / "base", "poems": _beside(root / "poems", base, 1), "law": _beside(root / "law", base, 2)}


@pytest.fixture
def shared(folders: dict[str, Path]) -> Iterator[Wired]:
    with serving(folders, engine_for=Engine) as server:
        yield server


def _alone(folders: dict[str, Path], name: str, words: str) -> str:
    """What the model that a name stands for writes by itself."""
    model = open_writer(folders["base"])
    assert isinstance(model, Model)
    whole = model if name == "base" else merged(folders[name], model)
    return Writer(Engine(for_reading(whole)), BYTES).complete([words], Options(max_tokens=12, sampling=Sampling(
        temperature=0)))[0].text


def test_names_of_one_line_share_an_engine_and_write_what_they_would_alone(
        shared: Wired, folders: dict[str, Path]) -> None:
    client = shared.openai()
    asked = [(name, words) for words in ("hi", "once upon", "x" * 30) for name in NAMES]

    def written(what: tuple[str, str]) -> str:
        name, words = what
        made = client.completions.create(model=name, prompt=words, max_tokens=12, temperature=0)
        assert made.model == name
        return made.choices[0].text

    with ThreadPoolExecutor(len(asked)) as pool:
        found = list(pool.map(written, asked))
    assert found == [_alone(folders, name, words) for name, words in asked]
    assert len({*found[:3]}) == 3
    opened = shared.service.shelf.opened
    assert {*opened} == {*NAMES} and len({id(one.worker) for one in opened.values()}) == 1  # type: ignore[union-attr]


def test_an_adapters_parent_is_its_base(shared: Wired, folders: dict[str, Path]) -> None:
    cards = {card.id: card for card in shared.openai().models.list()}
    assert {name: getattr(card, "parent", None) for name, card in cards.items()} == {
        "base": None, "poems": "base", "law": "base"}
    told = shared.http().get("/metrics").text
    shared.openai().completions.create(model="law", prompt="a", max_tokens=2)
    assert shared.service.shelf.opened["law"].worker.name == "base"  # type: ignore[union-attr]
    assert 'vllm:generation_tokens_total{model_name="law"}' not in told
    assert 'model_name="base"' in shared.http().get("/metrics").text


def test_one_that_cannot_stand_beside_its_base_leaves_the_others(folders: dict[str, Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    narrow = TransformerConfig(vocab_size=BYTES.vocab_size, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2,
                               intermediate_size=96, context_length=128)
    drawn(other, build(narrow), Lora(rank=2), seed=1)
    said = json.loads((other / CONFIG).read_text("utf-8"))
    (other / CONFIG).write_text(json.dumps(said | {"base_model_name_or_path": str(folders["base"])}), "utf-8")
    lost = shutil.copytree(folders["law"], tmp_path / "lost")
    (lost / CONFIG).write_text(json.dumps(said | {"base_model_name_or_path": str(tmp_path / "nowhere")}), "utf-8")
    mute = shutil.copytree(folders["law"], tmp_path / "mute")
    said = json.loads((mute / CONFIG).read_text("utf-8"))
    (mute / CONFIG).write_text(json.dumps(said | {"base_model_name_or_path": str(folders["base"])}), "utf-8")
    (mute / "tokenizer.json").write_text("{no tokenizer", "utf-8")
    with serving(folders | {"other": other, "lost": lost, "mute": mute}, engine_for=Engine) as server:
        client = server.openai()
        for _ in range(2):  # why is remembered
            with pytest.raises(BadRequestError, match=r"other .*learned beside") as refused:
                client.completions.create(model="other", prompt="a", max_tokens=2)
            assert refused.value.code == "model_unsuited" and str(tmp_path) not in str(refused.value)
            for name, why in (("lost", "not on this machine"), ("mute", "damaged")):
                with pytest.raises(BadRequestError, match=f"{name} .*{why}") as refused:
                    client.completions.create(model=name, prompt="a", max_tokens=2)
                assert str(tmp_path) not in str(refused.value)
            for name in NAMES:
                assert client.completions.create(model=name, prompt="a", max_tokens=2).choices[0].text is not None
        with pytest.raises(NotFoundError, match="poem"):
            client.completions.create(model="poem", prompt="a", max_tokens=2)


def test_where_a_base_lies_is_no_clients_business(folders: dict[str, Path], tmp_path: Path) -> None:
    """An adapter that knows its base again, beside another one."""
    base, other = open_writer(folders["base"]), shutil.copytree(folders["base"], tmp_path / "other")
    assert isinstance(base, Model)
    save_adapter(tmp_path / "a", adapt(base, Lora(rank=2)), base=str(other), side=known_by(base, folders["base"]))
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.mul_(1.1)
    save_model(other, merge(base), BYTES)
    with serving({"base": other, "a": tmp_path / "a"}, engine_for=Engine) as server:
        for name, fine in (("a", False), ("base", True)):
            answer = server.http().post("/v1/completions", json={"model": name, "prompt": "a", "max_tokens": 2})
            assert answer.is_success == fine and str(tmp_path) not in answer.text
            assert fine or "learned beside another model" in answer.text


def test_what_counts_is_served_though_adapters_name_it(folders: dict[str, Path], tmp_path: Path) -> None:
    rows = np.array([BYTES.bos_id, *BYTES.encode("a cat sat on a mat"), BYTES.eos_id] * 3)
    config = NGramConfig(vocab_size=BYTES.vocab_size, order=2, bos_id=BYTES.bos_id)
    with warnings.catch_warnings(action="ignore"):
        save_ngram(tmp_path / "counts", fit(rows, np.arange(4) * (len(rows) // 3), config), BYTES)
    law = shutil.copytree(folders["law"], tmp_path / "law")
    said = json.loads((law / CONFIG).read_text("utf-8"))
    (law / CONFIG).write_text(json.dumps(said | {"base_model_name_or_path": "../counts"}), "utf-8")
    with serving({"counts": tmp_path / "counts", "law": law}, engine_for=Engine) as server:
        client = server.openai()
        made = client.completions.create(model="counts", prompt="a", max_tokens=2)
        assert made.choices[0].finish_reason and (made.model_extra or {})["reproducible"] is True  # it only counts
        with pytest.raises(BadRequestError, match="counts, and that can have no adapters"):
            client.completions.create(model="law", prompt="a", max_tokens=2)


def test_adapters_are_served_without_their_base_and_closed_together(folders: dict[str, Path]) -> None:
    names = {name: folders[name] for name in ("poems", "law")}
    with serving(names, engine_for=Engine, limits=Limits(idle_seconds=0.3)) as server:
        client = server.openai()
        with pytest.raises(NotFoundError):
            client.completions.create(model="base", prompt="a", max_tokens=2)
        made = client.completions.create(model="law", prompt="hi", max_tokens=12, temperature=0)
        assert made.choices[0].text == _alone(folders, "law", "hi")
        assert server.settled(lambda: not server.service.shelf.opened)
        again = client.completions.create(model="poems", prompt="hi", max_tokens=12, temperature=0)
        assert again.choices[0].text == _alone(folders, "poems", "hi")


def test_lines_are_made_of_places(folders: dict[str, Path], tmp_path: Path) -> None:
    found = lines(folders | {"alias": folders["base"]})
    assert found["poems"] == found["law"] == found["base"] and found["base"].names == NAMES
    assert found["alias"].names == ("alias",)  # weights of its own, as was asked
    assert lines({"law": folders["law"]})["law"].title == "law"
