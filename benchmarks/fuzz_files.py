"""Good files of every format that is read here, and who reads each: what ``fuzz.py`` spoils."""

from __future__ import annotations

import base64
import json
import shutil
import struct
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cutaway.data import documents
from cutaway.data.shards import Shards, write_shards
from cutaway.errors import CutawayError
from cutaway.models import pull
from cutaway.models.adapter import Lora, adapt, load_adapter, save_adapter
from cutaway.models.bag import fit_bag
from cutaway.models.bag_folder import load_bag, save_bag
from cutaway.models.convolution import ConvolutionConfig
from cutaway.models.families.family import described
from cutaway.models.folder import family_of, load_model, load_tokenizer, public_tensors, save_model
from cutaway.models.gguf_write import write_gguf
from cutaway.models.heads import Vector
from cutaway.models.kneser_ney import fit
from cutaway.models.model import Model, build
from cutaway.models.ngram import NGramConfig
from cutaway.models.ngram_folder import load_ngram, save_ngram
from cutaway.models.recurrent import RecurrentConfig
from cutaway.models.transformer import TransformerConfig
from cutaway.text.chat import Message, apply_template
from cutaway.text.tokenizer import SubwordSettings, Tokenizer, train
from cutaway.text.vocabulary import byte_letters
from cutaway.train import checkpoint
from cutaway.train.optimizer import OptimizerSettings, build_optimizer

TEMPLATES = ("{% for m in messages %}{{ m['content'] }}{% endfor %}", "{{ messages }}", "{{ ''.__class__.__mro__[1] }}",
             "{{ messages.append(1) }}", "{% for i in range(10**9) %}x{% endfor %}", "{{ 'x' * 10**10 }}",
             "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "{{ cycler.__init__.__globals__ }}",
             "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
             "{% include '/etc/passwd' %}",
             "{{ messages[0]['content'] | map('upper') | list }}", "{{ lipsum() }}", "{{ namespace(x=1).x }}")
SIZES = {"vocab_size": 300, "hidden_size": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2,
         "intermediate_size": 32, "context_length": 32}
TEXTS = ["def add(a, b):\n    return a + b\n"] * 40
ASKED = "def add(a, b): naïve 漢字"
_DECODER = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32, "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True}
_ENCODER = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "max_position_embeddings": 34, "layer_norm_eps": 1e-12, "pad_token_id": 1}
YARN = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 16, "rope_theta": 1e4}
PUBLIC: dict[str, dict[str, Any]] = {
    "llama": {**_DECODER, "architectures": ["LlamaForCausalLM"], "rope_parameters": YARN},
    "mistral": {**_DECODER, "architectures": ["MistralForCausalLM"], "sliding_window": 8},
    "qwen2": {**_DECODER, "architectures": ["Qwen2ForCausalLM"]},
    "qwen3": {**_DECODER, "architectures": ["Qwen3ForCausalLM"], "head_dim": 16},
    "gemma3_text": {**_DECODER, "architectures": ["Gemma3ForCausalLM"], "head_dim": 16, "sliding_window": 8,
                    "layer_types": ["sliding_attention", "full_attention"]},
    "gpt2": {"architectures": ["GPT2LMHeadModel"], "vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 2,
             "n_positions": 32, "layer_norm_epsilon": 1e-5},
    "bert": {**_ENCODER, "architectures": ["BertForMaskedLM"]},
    "roberta": {**_ENCODER, "architectures": ["RobertaForMaskedLM"]},
    "modernbert": {**_ENCODER, "architectures": ["ModernBertForMaskedLM"], "norm_eps": 1e-5, "local_attention": 8},
    "t5": {"architectures": ["T5ForConditionalGeneration"], "vocab_size": 300, "d_model": 32, "d_kv": 16, "d_ff": 32,
           "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2, "n_positions": 32,
           "feed_forward_proj": "gated-gelu", "layer_norm_epsilon": 1e-6}}
OWN = {"recurrent": RecurrentConfig(vocab_size=300, hidden_size=16, num_layers=1, cell="lstm", context_length=32),
       "convolution": ConvolutionConfig(vocab_size=300, hidden_size=16, num_layers=2, kernel_sizes=(3,),
                                        dilations=(1, 2), context_length=32)}


@dataclass(frozen=True)
class Reader:
    """The good file, how it is spoiled (``bytes``, ``json``, ``gguf``, ``zip``, ``template``), and who reads it."""

    path: Path
    how: str
    read: Callable[[Path], object]


def varint(number: int) -> bytes:
    """A whole number as protocol buffers have it."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def field(number: int, value: bytes | int | float) -> bytes:
    """A field of a protocol buffer's message."""
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3) + varint(value)


def sentencepiece(kind: int, *, rules: bool = True,
                  words: Iterable[str] = ("▁", "a", "d", "e", "f", "de", "def", "▁def", "b")) -> bytes:
    """A SentencePiece model: 1 unigram, 2 BPE; with ``rules`` it takes spaces away."""
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), *((f"<0x{b:02X}>", 0.0, 6) for b in range(256)),
              *((word, -float(i), 1) for i, word in enumerate(words))]
    out = b"".join(field(1, field(1, text.encode()) + field(2, score) + field(3, of)) for text, score, of in pieces)
    return out + field(2, field(3, kind)) + field(3, field(3, 1) + field(4, int(rules)) + field(5, 1))


def tiktoken() -> bytes:
    """The bytes and three tokens more."""
    tokens = [bytes([b]) for b in range(256)] + [b"de", b"def", b"ad"]
    return b"".join(base64.b64encode(token) + b" %d\n" % i for i, token in enumerate(tokens))


def llama2c(model: Model) -> bytes:
    """Near enough to a checkpoint of llama2.c for its reader to look at it."""
    c = model.config
    head = struct.pack("<7i", c.hidden_size, c.intermediate_size, c.num_layers, c.num_heads, c.num_kv_heads,
                       c.vocab_size, c.context_length)
    return head + b"".join(t.numpy().tobytes() for t in public_tensors(model).values()) + bytes(
        4 * c.context_length * c.head_size)


def llama2c_tokenizer() -> bytes:
    """A tokenizer of llama2.c: bytes and a few pieces."""
    pieces = [b"<unk>", b"<s>", b"</s>", *(b"<0x%02X>" % b for b in range(256)), b" ", b"a", b"d", b"da"]
    return struct.pack("<i", 10) + b"".join(struct.pack("<fi", -float(i), len(p)) + p for i, p in enumerate(pieces))


def _used(tokenizer: Tokenizer) -> object:
    return tokenizer.decode(tokenizer.encode(ASKED))


def _encoded(path: Path) -> object:
    return _used(load_tokenizer(path))


def _in_folder(path: Path) -> object:
    return load_model(path.parent)


def _folders(root: Path) -> dict[str, Reader]:
    """Model folders: each family's config.json, weights, modules of sentence-transformers, adapters."""
    out: dict[str, Reader] = {}
    for name, public in PUBLIC.items():
        public = {"model_type": name, **public}
        config, head = described(family_of(public, where=root), public, root)
        save_model(root / name, build(config, head=head, seed=1))
        out[f"config.json of {name}"] = Reader(root / name / "config.json", "json", _in_folder)
    for name, config in OWN.items():
        save_model(root / name, build(config, seed=1))
        out[f"config.json of {name}"] = Reader(root / name / "config.json", "json", _in_folder)
    llama, tensors = root / "llama", root / "parts" / "model.safetensors.index.json"
    shutil.copytree(llama, root / "parts")
    (root / "parts" / "model.safetensors").rename(root / "parts" / "part.safetensors")
    tensors.write_text(json.dumps({"weight_map": {"model.norm.weight": "part.safetensors"}}))
    save_model(root / "vectors", build(TransformerConfig(shape="encoder", **SIZES), head=Vector(), seed=1))
    for folder in root.glob("*/cutaway.json"):  # as somebody else's: no digests
        folder.unlink()
    model = load_model(llama)
    save_adapter(root / "adapter", adapt(model, Lora(rank=2)))

    def adapted(path: Path) -> object:
        return load_adapter(path.parent, load_model(llama))

    return out | {
        "safetensors": Reader(llama / "model.safetensors", "bytes", _in_folder),
        "safetensors index": Reader(tensors, "json", _in_folder),
        "modules.json": Reader(root / "vectors" / "modules.json", "json", _in_folder),
        "1_Pooling": Reader(root / "vectors" / "1_Pooling" / "config.json", "json",
                            lambda p: load_model(p.parent.parent)),
        "adapter_config.json": Reader(root / "adapter" / "adapter_config.json", "json", adapted),
        "adapter weights": Reader(root / "adapter" / "adapter_model.safetensors", "bytes", adapted)}


def _tokenizers(root: Path, tokenizer: Tokenizer) -> dict[str, Reader]:
    """Tokenizers of every public form, each in a folder of its own."""
    end = json.dumps({"eos_token": "<|eos|>", "bos_token": "<|bos|>", "chat_template": TEMPLATES[0]})
    over = {str(300 + i): {"content": name, "special": True} for i, name in enumerate(("<|bos|>", "<|eos|>"))}
    merges = b"#version: 0.2\nd e\nde f\n"
    vocab = {letter: i for i, letter in enumerate((*byte_letters(), "de", "def", "</s>"))}
    words = "\n".join(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "def", "add", "##d", "a", "b", "##s", "("))
    folders: dict[str, dict[str, bytes]] = {
        "json": {"tokenizer.json": tokenizer.json.encode(), "tokenizer_config.json": end.encode(),
                 "special_tokens_map.json": b'{"pad_token": {"content": "<|pad|>"}}',
                 "generation_config.json": b'{"eos_token_id": [260, 261], "decoder_start_token_id": 259}'},
        "unigram": {"tokenizer.model": sentencepiece(1)}, "bpe": {"tokenizer.model": sentencepiece(2)},
        "ranks": {"x.tiktoken": tiktoken(), "tokenizer_config.json": json.dumps(
            {**json.loads(end), "added_tokens_decoder": over}).encode()},
        "pairs": {"vocab.json": json.dumps(vocab).encode(), "merges.txt": merges,
                  "tokenizer_config.json": b'{"eos_token": "</s>"}'},
        "words": {"vocab.txt": words.encode(), "tokenizer_config.json": json.dumps(
            {f"{n}_token": f"[{n.upper()}]" for n in ("pad", "unk", "cls", "sep", "mask")}).encode()}}
    for name, inside in folders.items():
        (root / name).mkdir()
        for file, data in inside.items():
            (root / name / file).write_bytes(data)

    def of(path: Path) -> object:
        return _encoded(path.parent)

    asked = {"tokenizer.json": ("json", "json"), "tokenizer_config.json": ("json", "json"),
             "special_tokens_map.json": ("json", "json"), "generation_config.json": ("json", "json"),
             "unigram/tokenizer.model": ("unigram", "bytes"), "bpe/tokenizer.model": ("bpe", "bytes"),
             "x.tiktoken": ("ranks", "bytes"), "vocab.json": ("pairs", "json"), "merges.txt": ("pairs", "bytes"),
             "vocab.txt": ("words", "bytes")}
    return {name: Reader(root / folder / Path(name).name, how, of) for name, (folder, how) in asked.items()}


def _ours(root: Path, model: Model, tokenizer: Tokenizer) -> dict[str, Reader]:
    """What only we write: checkpoints, shards, n-gram models, bags of words."""
    optimizer = build_optimizer(model, OptimizerSettings(kind="adamw"))
    step = checkpoint.save(root / "checkpoints", step=1, model=model, optimizer=optimizer, resume={"position": 3})
    (root / "text.txt").write_text("\n\n".join(f"line {i} of a text" for i in range(200)))
    write_shards(root / "shards", documents.read(documents.PathSettings(
        path=str(root / "text.txt"), valid_share=0, test_share=0)), tokenizer)
    ids = np.array([tokenizer.bos_id, *tokenizer.encode("def add"), tokenizer.eos_id] * 9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a text so short has odd discounts
        gram = fit(ids, np.arange(0, len(ids) + 1, len(ids) // 9),
                   NGramConfig(vocab_size=tokenizer.vocab_size, order=2, bos_id=tokenizer.bos_id))
    save_ngram(root / "ngram", gram, tokenizer)
    save_bag(root / "bag", fit_bag(["rain and wind", "bread and salt"] * 20, ["weather", "food"] * 20))

    def restored(path: Path) -> object:
        blank = build(model.config, seed=2)
        return checkpoint.load(path.parent, model=blank, optimizer=build_optimizer(blank, OptimizerSettings(
            kind="adamw")))

    def opened(path: Path) -> object:
        found = Shards.open(path.parent, verify=path.name == "manifest.json")
        return [(found.name(i), found.document(i).sum()) for i in range(min(len(found), 3))]

    return {
        "checkpoint resume.json": Reader(step / "resume.json", "json", restored),
        "checkpoint optimizer": Reader(step / "optimizer.safetensors", "bytes", restored),
        "shards manifest": Reader(root / "shards" / "manifest.json", "json", opened),
        "n-gram config.json": Reader(root / "ngram" / "config.json", "json", lambda p: load_ngram(p.parent)),
        "bag config.json": Reader(root / "bag" / "config.json", "json", lambda p: load_bag(p.parent))}


def readers(root: Path) -> dict[str, Reader]:
    """Every reader by its name, with a good file for it in ``root``."""
    torch.set_num_threads(1)
    tokenizer = train(SubwordSettings(vocab_size=275), TEXTS)
    model = build(TransformerConfig(**SIZES), seed=1)
    write_gguf(root / "m.gguf", model, tokenizer, kind="q8_0")
    (root / "pieces").mkdir()
    (root / "pieces" / "tokenizer.model").write_bytes(sentencepiece(2, rules=False))
    write_gguf(root / "pieces.gguf", model, load_tokenizer(root / "pieces"), kind="q4_0")
    (root / "m.bin").write_bytes(llama2c(model))
    (root / "tok.bin").write_bytes(llama2c_tokenizer())
    (root / "template.jinja").write_text(TEMPLATES[0])
    for name in ("folders", "tokenizers", "ours"):
        (root / name).mkdir()
    with zipfile.ZipFile(root / "model.zip", "w") as made:
        made.writestr("config.json", "{}")

    def unpacked(path: Path) -> object:
        with tempfile.TemporaryDirectory() as folder, path.open("rb") as file:
            before = {*root.rglob("evil*"), *Path(tempfile.gettempdir()).glob("evil.json")}
            pull.unpack(file, Path(folder) / "in")
            if {*root.rglob("evil*"), *Path(tempfile.gettempdir()).glob("evil.json")} - before:
                raise AssertionError("an archive led out of its folder")
        return None

    def templated(path: Path) -> object:
        return apply_template([Message("user", "Hi")], path.read_text(errors="replace"))

    found = {**_folders(root / "folders"), **_tokenizers(root / "tokenizers", tokenizer),
             **_ours(root / "ours", model, tokenizer)}
    public = {**PUBLIC["bert"], "model_type": "bert", "architectures": ["BertModel"]}
    config, _ = described(family_of(public, where=root), public, root)
    write_gguf(root / "bert.gguf", build(config, head=Vector("mean"), seed=1),
               load_tokenizer(root / "tokenizers" / "words"), kind="f16")
    public = {**PUBLIC["gemma3_text"], "model_type": "gemma3_text", "query_pre_attn_scalar": 16}
    config, head = described(family_of(public, where=root), public, root)
    write_gguf(root / "gemma.gguf", build(config, head=head, seed=1), load_tokenizer(root / "pieces"), kind="q8_0")

    def both(path: Path) -> object:
        """Each by itself: a model that is refused does not hide what its tokenizer does."""
        refused: CutawayError | None = None
        try:
            load_model(path)
        except CutawayError as error:
            refused = error
        _encoded(path)
        if refused is not None:
            raise refused
        return None

    return {
        **{f"gguf values: {name}": Reader(root / f"{name}.gguf", "gguf", both)
           for name in ("m", "pieces", "gemma", "bert")},
        "gguf of an encoder": Reader(root / "bert.gguf", "bytes", lambda p: (_encoded(p), load_model(p))),
        "gguf model": Reader(root / "m.gguf", "bytes", load_model),
        "gguf tokenizer": Reader(root / "m.gguf", "bytes", _encoded),
        "gguf of pieces": Reader(root / "pieces.gguf", "bytes", lambda p: (_encoded(p), load_model(p))),
        "llama2.c": Reader(root / "m.bin", "bytes", load_model),
        "llama2.c tokenizer": Reader(root / "tok.bin", "bytes", _encoded),
        "archive": Reader(root / "model.zip", "zip", unpacked),
        "chat template": Reader(root / "template.jinja", "template", templated),
        **found}
