"""What learns of a model: nothing changes before it does, merged equals beside, and peft reads and writes the same."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import CONFIGS, batches, case_for, start, suited

from cutaway.batch import Batch
from cutaway.errors import ModelError
from cutaway.models.adapted import known_by, line_of, open_model, open_tokenizer
from cutaway.models.adapter import Full, Lora, Partial, adapt, load_adapter, merge, save_adapter
from cutaway.models.folder import save_model
from cutaway.models.model import Model, build
from cutaway.models.open import open_language_model
from cutaway.train.loop import steps
from cutaway.train.optimizer import OptimizerSettings, build_optimizer
from cutaway.train.schedule import Schedule

PLAIN = ["tied", "untied", "one-kv-head", "around"]


def learned(config: str, settings: Lora | Partial, *, total: int = 4) -> tuple[Model, Model]:
    """A model before and after a few steps of what learns of it."""
    case = case_for("likelihood", config)
    before = start(case, config)
    after = adapt(copy.deepcopy(before), settings, seed=3)
    loop = steps(after, batches(case), case.objective,
                 build_optimizer(after, OptimizerSettings(kind="adamw", learning_rate=0.02)), schedule=Schedule(),
                 total=total)
    assert len(list(loop)) == total
    return before, after


def logits(model: Model, config: str) -> torch.Tensor:
    tokens = torch.randint(3, 48, (3, 18), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        out: torch.Tensor = model.eval()(suited(Batch(tokens), config))
    return out


@pytest.mark.parametrize("config", PLAIN)
def test_an_adapter_changes_nothing_before_it_learns_and_only_it_learns(config: str) -> None:
    settings = Lora(rank=3)
    before = start(case_for("likelihood", config), config)
    assert torch.equal(logits(adapt(copy.deepcopy(before), settings), config), logits(before, config))
    old, new = learned(config, settings)
    assert (logits(old, config) - logits(new, config)).abs().max() > 1e-3
    names = [n for n, p in new.named_parameters() if p.requires_grad]
    assert names and all(".down." in n or ".up." in n for n in names)
    base = {n.replace(".base.weight", ".weight").replace(".base.bias", ".bias"): p for n, p in new.named_parameters()}
    assert all(torch.equal(p, base[n]) for n, p in old.named_parameters())


@pytest.mark.parametrize("config", PLAIN)
def test_merged_equals_beside(config: str) -> None:
    _, new = learned(config, Lora(rank=3, alpha=5.0, rooted=True))
    wanted = logits(new, config)
    flat = merge(copy.deepcopy(new))
    assert (logits(flat, config) - wanted).abs().max() < 1e-5
    assert {n for n, _ in flat.named_parameters()} == {n for n, _ in build(CONFIGS[config]).named_parameters()}
    assert all(p.requires_grad for p in flat.parameters())


@pytest.mark.parametrize("config", ["tied", "around"])
@pytest.mark.parametrize("targets", [(), ("q_proj", "v_proj"), ("gate_proj",)])
def test_saved_and_loaded_it_is_the_same(config: str, targets: tuple[str, ...], tmp_path: Path) -> None:
    old, new = learned(config, Lora(rank=3, targets=targets))
    save_adapter(tmp_path / "a", new)
    found = load_adapter(tmp_path / "a", copy.deepcopy(old))
    assert (logits(found, config) - logits(new, config)).abs().max() < 1e-6
    told = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert told["r"] == 3 and (not targets or told["target_modules"] == sorted(targets))
    save_adapter(tmp_path / "a", found)  # replaced


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of its own use of transformers
def test_peft_reads_ours_and_we_read_peft_s(tmp_path: Path) -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    old, new = learned("tied", Lora(rank=3, targets=("q_proj", "v_proj", "down_proj")))
    save_model(tmp_path / "base", old)
    save_adapter(tmp_path / "a", new, base=str(tmp_path / "base"))
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "a").eval()
    tokens = torch.randint(3, 48, (3, 18), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (theirs(tokens).logits - new.eval()(Batch(tokens))).abs().max() < 1e-5
    made = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base"), peft.LoraConfig(
        r=4, lora_alpha=7, target_modules=["k_proj", "up_proj", "o_proj"], use_rslora=True))
    with torch.no_grad():
        for name, p in made.named_parameters():
            if "lora_B" in name:
                p.copy_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    made.save_pretrained(tmp_path / "theirs")
    with torch.no_grad():
        wanted = made.eval()(tokens).logits
        assert (load_adapter(tmp_path / "theirs", copy.deepcopy(old)).eval()(Batch(tokens)) - wanted).abs().max() < 1e-5


def test_parts_learn() -> None:
    old, new = learned("untied", Partial(names=("blocks.0.feedforward", "norm")))
    moved = {n for n, p in new.named_parameters() if not torch.equal(p, dict(old.named_parameters())[n])}
    assert moved and all("blocks.0.feedforward" in n or "norm" in n for n in moved)
    assert all(p.requires_grad for p in adapt(new, Full()).parameters())


def test_what_cannot_be_adapted_is_refused(tmp_path: Path) -> None:
    model = build(CONFIGS["tied"], seed=1)
    for settings, said in ((Lora(targets=("q_porj",)), "did you mean 'q_proj'"),
                           (Partial(names=("zzz",)), "holds 'zzz'")):
        with pytest.raises(ModelError, match=said):
            adapt(copy.deepcopy(model), settings)
    with pytest.raises(ModelError, match="another way than peft's"):
        adapt(build(CONFIGS["learned"], seed=1), Lora())
    with pytest.raises(ModelError, match="no linear map of a recurrent model can have an adapter"):
        adapt(build(CONFIGS["lstm"], seed=1), Lora())
    with pytest.raises(ModelError, match="has no adapters"):
        save_adapter(tmp_path / "a", model)
    with pytest.raises(ModelError, match="has an adapter already"):
        adapt(adapt(copy.deepcopy(model), Lora()), Lora())


@pytest.mark.parametrize(("change", "said"), [
    ({"peft_type": "IA3"}, "of the kind 'IA3'"), ({"use_dora": True}, "use_dora is true"),
    ({"modules_to_save": ["embed_tokens"]}, "modules_to_save"), ({"rank_pattern": {"q_proj": 4}}, "rank_pattern")])
def test_another_adapter_is_refused(change: dict[str, object], said: str, tmp_path: Path) -> None:
    old, new = learned("tied", Lora(rank=3), total=1)
    save_adapter(tmp_path / "a", new)
    told = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(told | change))
    with pytest.raises(ModelError, match=said):
        load_adapter(tmp_path / "a", old)


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    old, new = learned("tied", Lora(rank=3), total=1)
    save_adapter(tmp_path / "a", new)
    path = tmp_path / "a" / "adapter_model.safetensors"
    good = load_file(path)
    name = min(good)
    for tensors, said in (({k: v for k, v in good.items() if k != name}, "one half"),
                          (good | {name: good[name][:, :-1].contiguous()}, "beside"),
                          (good | {"base_model.model.extra.lora_A.weight": torch.zeros(3, 3)}, "no place for")):
        save_file(tensors, path)
        with pytest.raises(ModelError, match=said):
            load_adapter(tmp_path / "a", copy.deepcopy(old))
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(ModelError, match="damaged"):
        load_adapter(tmp_path / "a", copy.deepcopy(old))


@pytest.mark.parametrize("names", [["a"], ["b", "a"], ["b", "c", "b"]])
def test_adapters_that_stand_beside_themselves_are_refused(names: list[str], tmp_path: Path) -> None:
    for folder, base in zip("abc", names, strict=False):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "adapter_config.json").write_text(json.dumps(
            {"peft_type": "LORA", "base_model_name_or_path": str(tmp_path / folder / ".." / base)}))
    for read in (open_model, open_tokenizer, lambda place: open_language_model(place, precision="stored"),
                 lambda place: list(line_of(place))):
        with pytest.raises(ModelError, match=r"stands beside it itself; write the place of the model"):
            read(tmp_path / "a")


def test_adapters_beside_adapters(tmp_path: Path) -> None:
    model = start(case_for("likelihood", "tied"), "tied")
    save_model(tmp_path / "base", model)
    for name, base in (("one", "base"), ("two", "one")):
        adapt(model, Lora(rank=2), seed=len(name))
        with torch.no_grad():
            for part in model.parameters():
                if part.requires_grad:
                    part.add_(0.02)
        save_adapter(tmp_path / name, model, base=str(tmp_path / base))
        wanted = logits(model, "tied")
        assert torch.allclose(logits(open_model(tmp_path / name), "tied"), wanted, atol=1e-6)
        model = merge(model)
    assert [place.name for place in line_of(tmp_path / "two")] == ["two", "one", "base"]


@pytest.mark.parametrize(("change", "learned_in", "opened_in", "same"), [
    (1.0, "float32", "float32", True), (1.0, "float32", "bfloat16", True), (1.0, "bfloat16", "float32", True),
    (1.0, "float32", "float16", True), (1.01, "float32", "float32", False), (1.00001, "float32", "float32", False),
    (1.01, "float32", "bfloat16", False), (1.01, "bfloat16", "bfloat16", False)])
def test_a_base_is_known_as_near_as_it_is_stored(change: float, learned_in: str, opened_in: str, same: bool,
                                                 tmp_path: Path) -> None:
    base, model = tmp_path / "base", start(case_for("likelihood", "tied"), "tied")
    save_model(base, model, dtype=getattr(torch, learned_in))
    learns = adapt(open_model(base), Lora(rank=2))
    save_adapter(tmp_path / "a", learns, base=str(base), side=known_by(learns, base))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(change)
    save_model(base, model, dtype=getattr(torch, opened_in))
    if same:
        assert open_model(tmp_path / "a")
        return
    with pytest.raises(ModelError, match="was learned beside another model"):
        open_model(tmp_path / "a")
