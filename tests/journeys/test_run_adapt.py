"""As a person types: a model that exists is adapted in every way, opened, exported and gone on with."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from adapted_base import DPO, GRPO, small, write_base
from run_corpus import Crash, Trap, write_corpus
from safetensors.torch import load_file

from cutaway.batch import Batch
from cutaway.cli.main import main
from cutaway.errors import ModelError
from cutaway.models.adapted import base_name, open_model
from cutaway.models.folder import load_model
from cutaway.records import read_journal
from cutaway.run.folder import Run
from cutaway.run.pipeline import resume, start
from cutaway.run.recipe import load
from cutaway.run.work import Interrupted

CLOCKS = {"seconds", "tokens_per_second"}
PARTIAL = 'finetune.adapt={kind="partial", names=["blocks.1.", "backbone.norm"]}'
# recipe, words, the model that it ends with
KINDS: dict[str, tuple[str, list[str], str]] = {
    "lora": ("smollm2-lora", [], "finetuned"), "partial": ("smollm2-partial", [PARTIAL], "finetuned"),
    "full": ("smollm2-full", [], "finetuned"), "dpo": ("smollm2-dpo", DPO, "aligned"),
    "grpo": ("smollm2-grpo", GRPO, "aligned")}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("adapt")
    write_corpus(here / "corpus")
    write_base(here / "base")
    return here


def typed(place: Path, kind: str, *more: str) -> list[str]:
    recipe, own, _ = KINDS[kind]
    return [recipe, *small(place / "corpus", place / "base", *own, *more)]


def logits(folder: Path) -> torch.Tensor:
    tokens = torch.randint(3, 200, (2, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        out: torch.Tensor = open_model(folder).eval()(Batch(tokens))
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_exists_is_adapted(kind: str, place: Path, monkeypatch: pytest.MonkeyPatch,
                                        capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(place)
    last = KINDS[kind][2]
    assert main(["run", *typed(place, kind, f"name={kind}"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out.strip().split("\n")[-1])
    assert {"base.satisfies", f"{last}.satisfies", f"{last}.forgetting", f"{last}.change"} <= set(told["figures"])
    assert not any(name.startswith("random") for name in told["figures"])
    assert "pretrain" not in told["stages"] and not (place / "runs" / kind / "models" / "base").exists()
    folder = place / "runs" / kind / "models" / last
    before, after = logits(place / "base"), logits(folder)
    assert (before - after).abs().max() > 1e-4
    assert (folder / "adapter_config.json").exists() == (kind not in ("partial", "full"))
    assert main(["export", str(folder), "--to", "safetensors", "--quantize", "f32", "--out", f"out-{kind}"]) == 0
    with torch.no_grad():  # merged equals unmerged
        tokens = torch.randint(3, 200, (2, 24), generator=torch.Generator().manual_seed(0))
        assert (load_model(place / f"out-{kind}").eval()(Batch(tokens)) - after).abs().max() < 1e-5
    capsys.readouterr()
    assert main(["generate", str(folder), "def ", "--max-tokens", "4", "--temperature", "0"]) == 0
    assert main(["show", kind]) == 0
    assert "waiting" not in capsys.readouterr().out
    report = (place / "runs" / kind / "report.md").read_text()
    assert "base, a model that was there before, was fine-tuned" in report and "Not evaluated" not in report
    assert ("What alignment did" in report) == (last == "aligned")


def stopped(place: Path, name: str, words: list[str], traps: list[Trap]) -> Run:
    """A run stopped at every trap and then finished."""
    run = Run(place / "runs" / name)
    begin: Callable[[Trap], object] = lambda trap: start(load(words[0], [*words[1:], f"name={name}"]),  # noqa: E731
                                                         place / "runs", trap)
    for trap in traps:
        with pytest.raises(Crash if trap.how == "crash" else Interrupted):
            begin(trap)
        begin = lambda trap: resume(run, trap)  # noqa: E731
    resume(run, Trap())
    return run


@pytest.mark.parametrize("kind", ["lora", "partial", "dpo", "grpo"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_stopped_equals_never_stopped(kind: str, dtype: str, place: Path) -> None:
    words = typed(place, kind, f"dtype={dtype}")
    words += ["finetune.adapt.dropout=0.1"] if kind != "partial" else []
    words += ["align.adapt.dropout=0.1"] if kind in ("dpo", "grpo") else []
    whole = start(load(words[0], [*words[1:], f"name=whole-{kind}-{dtype}"]), place / "runs", Trap())
    traps = [Trap("finetune", 3, "SIGINT"), Trap("finetune", 2, "crash")]
    traps += [Trap("align", 3, "crash"), Trap("align", 1, "SIGTERM")] if kind in ("dpo", "grpo") else []
    again = stopped(place, f"stopped-{kind}-{dtype}", words, traps)
    logs = [[{k: v for k, v in row.items() if k not in CLOCKS} for row in read_journal(r.folder / "log.jsonl")]
            for r in (whole, again)]
    assert logs[0] == logs[1]
    for name in ("finetuned", "aligned") if kind in ("dpo", "grpo") else ("finetuned",):
        ours, theirs = (load_file(next(r.model(name).glob("*.safetensors"))) for r in (whole, again))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_a_checkpoint_keeps_what_learns_and_a_reference_to_the_rest(place: Path) -> None:
    words = typed(place, "lora", "name=kept", "checkpoint.keep=1")
    with pytest.raises(Interrupted):
        start(load(words[0], words[1:]), place / "runs", Trap("finetune", 3, "SIGINT"))
    [folder] = (place / "runs" / "kept" / "checkpoints" / "finetune").iterdir()
    assert {p.name for p in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors",
                                                  "optimizer.safetensors", "resume.json"}
    assert json.loads((folder / "resume.json").read_text())["base"] == "../../../../../base"
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "../../../../../base"


@pytest.mark.parametrize(("setting", "said"), [
    ("model.path=smolm2-135m-instruct", "did you mean 'smollm2-135m-instruct'?"),
    ("model.path=nowhere", "no run 'nowhere'"),
    ("model.context_length=4096", "is more than the model's own, 256"),
    ('finetune.adapt={kind="partial", names=["blocks.7."]}', "no parameter's name holds 'blocks.7.'"),
    ('finetune.adapt.targets=["q_porj"]', "did you mean 'q_proj'?"),
    ('finetune.adapt.targets=["lm_head"]', "lm_head can have no adapter: embedding and head are one tied matrix"),
    ('finetune.adapt.targets=["embed_tokens"]', "embed_tokens can have no adapter"),
    ('tokenizer={kind="bpe", vocab_size=300}', "brings its tokenizer"),
    ("align.kind=dpo", "align"),
    ("parallel.kind=fsdp2", "there is ddp"),
])
def test_what_cannot_be_adapted_is_refused_before_the_run(setting: str, said: str, place: Path,
                                                          monkeypatch: pytest.MonkeyPatch,
                                                          capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("CUTAWAY_MODELS", str(place / "none"))
    assert main(["run", *typed(place, "lora", "name=refused", setting)]) != 0
    lines = [x for x in capsys.readouterr().err.split("\n") if x.startswith("cutaway: error:")]
    assert len(lines) == 1 and said in lines[0]
    assert not (place / "runs" / "refused").exists()


def test_another_base_is_refused(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(place / "base", tmp_path / "base")
    words = ["smollm2-lora", *small(place / "corpus", tmp_path / "base", "name=moved")]
    with pytest.raises(Interrupted):
        start(load(words[0], words[1:]), tmp_path / "runs", Trap("finetune", 3, "SIGINT"))
    run = Run(tmp_path / "runs" / "moved")
    shutil.rmtree(tmp_path / "base")
    write_base(tmp_path / "base", seed=6)
    assert main(["resume", str(run.folder)]) != 0
    assert "the model that it began with has changed" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "base")
    shutil.copytree(place / "base", tmp_path / "base")
    resume(run, Trap())
    shutil.rmtree(tmp_path / "base")
    write_base(tmp_path / "base", seed=6)
    assert main(["generate", str(run.model("finetuned")), "def "]) != 0
    assert "was learned beside another model" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "base")
    assert main(["generate", str(run.model("finetuned")), "def "]) != 0
    assert "is not on this machine" in capsys.readouterr().err


def test_adapters_can_be_gone_on_with(place: Path, tmp_path: Path) -> None:
    first = typed(place, "lora", "name=first")
    start(load(first[0], first[1:]), tmp_path / "runs", Trap())
    words = small(place / "corpus", tmp_path / "runs" / "first" / "models" / "finetuned", "name=second")
    second = start(load("smollm2-lora", words), tmp_path / "runs", Trap())
    told = json.loads((second.model("finetuned") / "adapter_config.json").read_text())
    assert told["base_model_name_or_path"] == base_name(place / "base", second.model("finetuned")) and told["r"] == 16
    assert not Path(told["base_model_name_or_path"]).is_absolute()
    before = tmp_path / "runs" / "first" / "models" / "finetuned"
    for setting, said in {"rank=8": "of rank 16, and adapt.rank is 8", "alpha=64": "of scale 2, and adapt.alpha = 64",
                          "rooted=true": "of scale 2, and adapt.alpha = 32 makes it 8",
                          'targets=["q_proj"]': "k_proj, and adapt.targets asks for none"}.items():
        asked = small(place / "corpus", before, "name=third", f"finetune.adapt.{setting}")
        with pytest.raises(ModelError, match=re.escape(said)):
            start(load("smollm2-lora", asked), tmp_path / "runs", Trap())
        assert not (tmp_path / "runs" / "third").exists()
    assert (logits(second.model("finetuned")) - logits(before)).abs().max() > 1e-5


def test_conversations_and_preferences_of_ones_own(place: Path, monkeypatch: pytest.MonkeyPatch,
                                                   capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(place)
    rows = [{"messages": [{"role": "user", "content": f"Add {i} to {j}."},
                          {"role": "assistant", "content": f"It is {i + j}."}]} for i in range(12) for j in range(12)]
    rows += [{"messages": [{"role": "system", "content": "x"}]}, {"messages": [{"role": "user"}]}]
    (place / "talk.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (place / "pairs.jsonl").write_text("".join(json.dumps(
        {"prompt": f"Add {i} to 2.", "chosen": f"It is {i + 2}.", "rejected": "no" * (300 if i == 3 else 2)}) + "\n"
        for i in range(20)))
    own = [w for w in DPO if not w.startswith("preferences")]
    words = [w for w in small(place / "corpus", place / "base", *own) if not w.startswith("data.path")]
    more = ["data.kind=conversations", "data.path=talk.jsonl", "preferences.path=pairs.jsonl", "name=own"]
    assert main(["run", "smollm2-dpo", *words, *more]) == 0
    err = capsys.readouterr().err
    assert "1 longer than the context of 200" in err and "as they were given" in err
    assert "left out of evaluate.text: " in err
    assert "1 not a list of messages" in err and "1 not one question and its answer" in err
    told = [json.loads(x) for x in (place / "runs" / "own" / "preferences.jsonl").read_text().splitlines()]
    assert len(told) == 19 and {r["judge"] for r in told} == {"pairs.jsonl"} and not told[0]["stand_in"]
    assert main(["run", "smollm2-dpo", *words, *more[:2], "preferences.path=none.jsonl", "name=none"]) != 0
    assert "none.jsonl: is no jsonl, csv or parquet file" in capsys.readouterr().err
