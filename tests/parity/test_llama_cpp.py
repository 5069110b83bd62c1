"""llama.cpp reads what we export: the same ids, logits and greedy text. Needs ``llama-cpp-python``."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cutaway.batch import Batch
from cutaway.models.folder import load_model, load_tokenizer
from cutaway.models.gguf_write import write_gguf
from cutaway.models.heads import Vector
from cutaway.models.model import Model, build
from cutaway.models.transformer import PLAIN, TransformerConfig, Variant
from cutaway.nn.position import LinearStretch, Llama3Stretch, YarnStretch
from cutaway.text.chat import Message, render
from cutaway.text.tokenizer import SubwordSettings, Tokenizer, load, train

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # of ctypes' own
SIZES: dict[str, Any] = {"vocab_size": 300, "hidden_size": 64, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2,
                         "intermediate_size": 96, "context_length": 64, "rope_theta": 500.0}
TEXTS = ["def add(a, b):\n    return a + b\n"] * 40
TORTURE = ["", " ", "  two  ", "\n\n x\t", "I'LL they're 1234567 ½", "naïve cafe\u0301 漢字 🙂\u200d", "العربية हिन्दी",
           "a\u0300\u0301\u0302", "x" * 50, "\x01\x7f", "def add(a, b):\n    return a + b"]


def of(**changes: object) -> Variant:
    return PLAIN["decoder"].model_copy(update=changes)


GEMMA = of(family="gemma3_text", order="around", activation="gelu_tanh", head_norm=True, head_dim=32, window=8,
           embedding_scale=8.0, local_layers=(0, 1, 2, 3, 4), local_theta=1e4, score_scale=32**-0.5)
MODELS = {
    "llama": TransformerConfig(**SIZES), "untied": TransformerConfig(**SIZES, tie_embeddings=False),
    "linear": TransformerConfig(**SIZES, variant=of(stretch=LinearStretch(factor=2.0))),
    "yarn": TransformerConfig(**SIZES, variant=of(stretch=YarnStretch(
        factor=4.0, original=16, attention=math.log(4) / 10 + 1))),
    "llama3": TransformerConfig(**SIZES, variant=of(stretch=Llama3Stretch(factor=8.0, low=1.0, high=4.0, original=32))),
    "qwen2": TransformerConfig(**SIZES, variant=of(family="qwen2", attention_biases="qkv")),
    "qwen2 yarn": TransformerConfig(**SIZES, variant=of(family="qwen2", attention_biases="qkv", stretch=YarnStretch(
        factor=2.0, original=32, attention=1.5))),
    "qwen3": TransformerConfig(**SIZES, variant=of(family="qwen3", head_norm=True, head_dim=32)),
    "gemma3": TransformerConfig(**{**SIZES, "num_layers": 6}, variant=GEMMA),
    "gemma3 linear": TransformerConfig(**{**SIZES, "num_layers": 6}, variant=GEMMA.model_copy(
        update={"stretch": LinearStretch(factor=8.0)})),
    "gemma3 of a pattern": TransformerConfig(**{**SIZES, "num_layers": 4}, variant=GEMMA.model_copy(
        update={"local_layers": (1, 3)})),
    "gemma3 without windows": TransformerConfig(**SIZES, variant=GEMMA.model_copy(
        update={"local_layers": (), "window": None, "local_theta": None})),
    "gpt2": TransformerConfig(**{**SIZES, "num_kv_heads": 4}, variant=of(
        family="gpt2", norm="layer", norm_bias=True, gated=False, activation="gelu_tanh", inner_bias=True,
        attention_biases="all", positions="learned"))}


def rough(config: TransformerConfig, head: Any = "tokens") -> Model:
    model = build(config, head=head, seed=3)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    return model.eval()


def theirs(path: Path, **more: Any) -> Any:
    # sums in float32 all through, as ours are
    return llama_cpp.Llama(str(path), **{"n_ctx": 64, **more}, logits_all=True, n_threads=1, verbose=False, type_k=0,
                           type_v=0, flash_attn=False)


def logits_of(there: Any, tokens: list[int]) -> torch.Tensor:
    there.reset()
    there.eval(tokens)
    return torch.from_numpy(np.array(there.scores[: len(tokens)]))


def logits(model: Model, tokens: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(Batch(torch.tensor([tokens])))[0]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train(SubwordSettings(vocab_size=275, pattern="gpt2"), TEXTS)


@pytest.mark.parametrize("name", MODELS)
def test_logits(name: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = rough(MODELS[name])
    write_gguf(tmp_path / "m.gguf", model, tokenizer, kind="f32")
    tokens = torch.randint(0, 275, (48,), generator=torch.Generator().manual_seed(1)).tolist()
    ours, there = logits(model, tokens), logits_of(theirs(tmp_path / "m.gguf"), tokens)
    apart = (ours - there).abs().max() / ours.abs().max()
    # gelu is a table of float16 numbers there
    assert ours.std() > 0.3 and apart < (5e-3 if name[0] == "g" else 2e-5), float(apart)


@pytest.mark.parametrize(("kind", "most"), [("f16", 2e-3), ("bf16", 0.02), ("q8_0", 0.05), ("q4_0", 0.05)])
def test_kinds(kind: str, most: float, tokenizer: Tokenizer, tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", rough(MODELS["llama"]), tokenizer, kind=kind)
    tokens = list(range(40))
    ours = logits(load_model(tmp_path / "m.gguf").eval(), tokens)
    apart = (ours - logits_of(theirs(tmp_path / "m.gguf"), tokens)).std() / ours.std()
    assert apart < most, float(apart)  # activations are rounded to eight bits there beside quantised weights


def ids_of(there: Any, text: str, *, framed: bool = False) -> list[int]:
    found: list[int] = there.tokenize(text.encode(), add_bos=framed, special=False)
    return found


@pytest.mark.parametrize("pattern", ["gpt2", "gpt4", "qwen2"])
def test_ids_of_byte_level_bpe(pattern: Any, tmp_path: Path) -> None:
    made = train(SubwordSettings(vocab_size=290, pattern=pattern), [*TEXTS, "naïve 1234567 they're\n\n  two"] * 3)
    write_gguf(tmp_path / "m.gguf", rough(MODELS["llama"]), made, kind="f32")
    there, again = theirs(tmp_path / "m.gguf"), load_tokenizer(tmp_path / "m.gguf")
    for text in TORTURE:
        assert ids_of(there, text) == made.encode(text) == again.encode(text), text
    assert ids_of(there, "def", framed=True)[0] == made.bos_id
    assert json.loads(made.json)["model"]["type"] == "BPE" and there.token_eos() == made.eos_id


@pytest.mark.parametrize("users", [[], ["<sep>", "\n\n", "[x]"]])
@pytest.mark.parametrize("prefix", [True, False])
def test_ids_of_sentencepiece(prefix: bool, users: list[str], tmp_path: Path) -> None:
    library = pytest.importorskip("sentencepiece")
    (tmp_path / "corpus.txt").write_text("\n".join([*TEXTS[:3], "naïve 漢字 a b c", "the quick brown fox  jumps"] * 30))
    library.SentencePieceTrainer.train(
        input=str(tmp_path / "corpus.txt"), model_prefix=str(tmp_path / "tokenizer"), vocab_size=300, model_type="bpe",
        byte_fallback=True, minloglevel=2, normalization_rule_name="identity", remove_extra_whitespaces=False,
        add_dummy_prefix=prefix, user_defined_symbols=users)
    reference = library.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    ours = load(tmp_path)
    write_gguf(tmp_path / "m.gguf", rough(MODELS["llama"]), ours, kind="f32")
    there, again = theirs(tmp_path / "m.gguf"), load_tokenizer(tmp_path / "m.gguf")
    for text in [*TORTURE, "the quick fox jumps", "a<sep>", "a\n\nb", " lead", "▁under"]:
        wanted = reference.encode(text)
        assert ours.encode(text) == again.encode(text) == wanted, text
        if "<sep>" not in text and "\n\n" not in text:  # behind such a token llama.cpp puts one more space
            assert ids_of(there, text) == wanted, text


def test_vectors_of_an_encoder(tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "def", "add", "##d", "a", "b", "##s", "(", ")", ",", "漢"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True, **{
        f"{n}_token": f"[{n.upper()}]" for n in ("pad", "unk", "cls", "sep", "mask")}}))
    bert = PLAIN["encoder"].model_copy(update={
        "family": "bert", "norm_bias": True, "order": "post", "first_norm": True, "gated": False, "inner_bias": True,
        "attention_biases": "all", "positions": "learned", "token_types": 2, "transform_bias": True, "head_bias": True,
        "pooler": True, "pooling": "first"})
    config = TransformerConfig(**{**SIZES, "num_kv_heads": 4, "rope_theta": 1e4}, shape="encoder", variant=bert)
    model, tokenizer = rough(config, Vector("mean", unit=True)), load(tmp_path)
    write_gguf(tmp_path / "m.gguf", model, tokenizer, kind="f32")
    there = llama_cpp.Llama(str(tmp_path / "m.gguf"), embedding=True, n_ctx=64, n_threads=1, verbose=False)
    again, same = load_tokenizer(tmp_path / "m.gguf"), load_model(tmp_path / "m.gguf").eval()
    for text in ["def add(a, b)", "ADDS añé 漢x", "zz add", "a  b\n"]:
        ids = [*tokenizer.begin_ids, *tokenizer.encode(text), *tokenizer.finish_ids]
        assert ids_of(there, text, framed=True) == ids and again.encode(text) == tokenizer.encode(text), text
        with torch.no_grad():
            rows = Batch(torch.tensor([ids]), documents=torch.zeros(1, len(ids), dtype=torch.long))
            ours, ours_again = model(rows)[0], same(rows)[0]
        vector = torch.tensor(there.embed(text, normalize=True))
        assert (ours - ours_again).abs().max() < 1e-6 and (ours.flatten() - vector).abs().max() < 5e-3


needs_model = pytest.mark.skipif(not (Path(os.environ.get("CUTAWAY_MODELS") or "-") / "smollm2-135m-instruct").is_dir(),
                                 reason="CUTAWAY_MODELS holds no smollm2-135m-instruct")


@needs_model
@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_0"])
def test_smollm2_writes_the_same(kind: str, tmp_path: Path) -> None:
    (source,) = (Path(os.environ["CUTAWAY_MODELS"]) / "smollm2-135m-instruct").glob("*.gguf")
    tokenizer = load_tokenizer(source)
    write_gguf(tmp_path / "m.gguf", load_model(source), tokenizer, kind=kind)
    model, there = load_model(tmp_path / "m.gguf").eval(), theirs(tmp_path / "m.gguf", n_ctx=256)
    asked = [Message("user", "Name three colours of the rainbow.")]
    ids = render(asked, tokenizer, add_generation_prompt=True).ids
    by_template = there.tokenize(b"<|im_start|>", add_bos=False, special=True)
    assert ids[0] == by_template[0]
    ours, other = logits(model, ids), logits_of(there, ids)
    assert (ours - other).std() / ours.std() < {"f16": 2e-3, "q8_0": 0.06, "q4_0": 0.06}[kind]
    written: dict[str, list[int]] = {"ours": [], "theirs": []}
    for name, step in (("ours", lambda row: logits(model, row)), ("theirs", lambda row: logits_of(there, row))):
        row = list(ids)
        for _ in range(16):
            row.append(int(step(row)[-1].argmax()))
        written[name] = row[len(ids) :]
    assert written["ours"] == written["theirs"] or kind == "q4_0"
