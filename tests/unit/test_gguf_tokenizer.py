"""Tokenizers in GGUF's metadata: SentencePiece's BPE and unigram and WordPiece, read with the ids of their libraries
and written so that they are read back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cutaway.batch import Batch
from cutaway.errors import ModelError
from cutaway.models.folder import load_model, load_tokenizer
from cutaway.models.gguf_write import write_gguf
from cutaway.models.heads import Vector
from cutaway.models.model import build
from cutaway.models.open import open_embedder
from cutaway.models.transformer import PLAIN, TransformerConfig
from cutaway.text.tokenizer import Tokenizer, load

gguf = pytest.importorskip("gguf")
SIZES: dict[str, Any] = {"vocab_size": 320, "hidden_size": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2,
                         "intermediate_size": 32, "context_length": 64}
CORPUS = ["The quick brown fox jumps over 13 lazy dogs.", "naïve café 漢字 🙂 Ωmega", "a  b   c"] * 30
TEXTS = ["", " ", "  two  ", "\n\n x\t", "I'LL they're 123 ½", "naïve cafe\u0301 漢字 🙂", "العربية", "x" * 40,
         "\x01\x7f", "The quick fox", " lead", "▁under", "ﬁ Å"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "def", "add", "##d", "a", "b", "##s", "(", ")", ",", "cafe"]
BERT = PLAIN["encoder"].model_copy(update={
    "family": "bert", "norm_bias": True, "order": "post", "first_norm": True, "gated": False, "inner_bias": True,
    "attention_biases": "all", "positions": "learned", "token_types": 2, "transform_bias": True, "head_bias": True,
    "pooler": True, "pooling": "first"})


def learned(folder: Path, **how: Any) -> Any:
    library = pytest.importorskip("sentencepiece")
    (folder / "corpus.txt").write_text("\n".join(CORPUS))
    library.SentencePieceTrainer.train(input=str(folder / "corpus.txt"), model_prefix=str(folder / "tokenizer"),
                                       vocab_size=310, hard_vocab_limit=False, byte_fallback=True, minloglevel=2, **how)
    return library.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


def types_of(pieces: Any) -> list[int]:
    return [2 if pieces.is_unknown(i) else 3 if pieces.is_control(i) else 6 if pieces.is_byte(i) else 1
            for i in range(pieces.get_piece_size())]


def write(path: Path, pieces: Any, kind: str, fill: Callable[[Any], None]) -> None:
    """A file of nothing but a vocabulary, as llama.cpp's converter writes it."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre("default")
    count = range(pieces.get_piece_size())
    writer.add_token_list([pieces.id_to_piece(i) for i in count])
    writer.add_token_scores([pieces.get_score(i) for i in count])
    writer.add_token_types(types_of(pieces))
    fill(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_s_bpe(prefix: bool, tmp_path: Path) -> None:
    pieces = learned(tmp_path, model_type="bpe", normalization_rule_name="identity", remove_extra_whitespaces=False,
                     add_dummy_prefix=prefix)
    write(tmp_path / "m.gguf", pieces, "llama", lambda w: w.add_add_space_prefix(prefix))
    found = load_tokenizer(tmp_path / "m.gguf")
    for text in TEXTS:
        assert found.encode(text) == pieces.encode(text), text
        if "▁" not in text:  # which is a space to SentencePiece
            assert found.bytes_of(found.encode(text)) == (b" " * prefix + text.encode() if text else b""), text
    assert found.begin_ids == (pieces.bos_id(),) and found.finish_ids == ()  # as llama.cpp has it where nothing is said
    assert found.eos_id == pieces.eos_id()


def test_what_stands_around_a_text_is_said(tmp_path: Path) -> None:
    pieces = learned(tmp_path, model_type="bpe", normalization_rule_name="identity", remove_extra_whitespaces=False)

    def fill(writer: Any) -> None:
        writer.add_add_bos_token(False)
        writer.add_add_eos_token(True)

    write(tmp_path / "m.gguf", pieces, "llama", fill)
    found = load_tokenizer(tmp_path / "m.gguf")
    assert found.begin_ids == () and found.finish_ids == (pieces.eos_id(),)


def test_sentencepiece_s_unigram(tmp_path: Path) -> None:
    pieces = learned(tmp_path, model_type="unigram")
    from cutaway.text import sentencepiece_file

    path = tmp_path / "tokenizer.model"
    charsmap = sentencepiece_file.read(path, path.read_bytes()).charsmap
    assert charsmap

    def fill(writer: Any) -> None:
        writer.add_add_space_prefix(True)
        writer.add_remove_extra_whitespaces(True)
        writer.add_precompiled_charsmap(charsmap)

    write(tmp_path / "m.gguf", pieces, "t5", fill)
    found = load_tokenizer(tmp_path / "m.gguf")
    for text in TEXTS:
        assert found.encode(text) == pieces.encode(text), text
    assert found.begin_ids == () and len(found.finish_ids) == 1


def round_trip(tokenizer: Tokenizer, folder: Path) -> Tokenizer:
    write_gguf(folder / "m.gguf", build(TransformerConfig(**SIZES), seed=1), tokenizer, kind="f32")
    return load_tokenizer(folder / "m.gguf")


@pytest.mark.parametrize("users", [[], ["<sep>", "▁▁", "\n\n"]])
@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_s_bpe_out_and_in(prefix: bool, users: list[str], tmp_path: Path) -> None:
    pieces = learned(tmp_path, model_type="bpe", normalization_rule_name="identity", remove_extra_whitespaces=False,
                     add_dummy_prefix=prefix, user_defined_symbols=users)
    ours = load(tmp_path)
    found = round_trip(ours, tmp_path)
    for text in [*TEXTS, "a<sep>b", "a\n\n\nb", "a    b", "<sep>  x"]:
        if prefix and text in (" ", "  two  "):
            continue  # a text of such a token alone, and one of spaces
        assert found.encode(text) == ours.encode(text) == pieces.encode(text), text
        assert found.decode(found.encode(text)) == pieces.decode(pieces.encode(text)), text
    assert (found.bos_id, found.eos_id, found.begin_ids) == (ours.bos_id, ours.eos_id, ours.begin_ids)


@pytest.mark.parametrize("how", [{"model_type": "unigram"}, {"model_type": "bpe"},
                                 {"model_type": "bpe", "normalization_rule_name": "identity"}])
def test_rules_that_llama_cpp_lacks_are_refused(how: dict[str, str], tmp_path: Path) -> None:
    learned(tmp_path, **how)
    with pytest.raises(ModelError, match="no place in GGUF"):
        round_trip(load(tmp_path), tmp_path)


def test_merges_that_are_not_sentencepiece_s_are_refused(tmp_path: Path) -> None:
    learned(tmp_path, model_type="bpe", normalization_rule_name="identity", remove_extra_whitespaces=False)
    ours = load(tmp_path)
    tree = json.loads(ours.json)
    tree["model"]["merges"] = tree["model"]["merges"][:-40]
    with pytest.raises(ModelError, match="whose merges are not those of SentencePiece"):
        round_trip(Tokenizer(ours.kind, json.dumps(tree), {}, ours.roles), tmp_path)


@pytest.fixture
def words(tmp_path: Path) -> Tokenizer:
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True, **{
        f"{n}_token": f"[{n.upper()}]" for n in ("pad", "unk", "cls", "sep", "mask")}}))
    return load(tmp_path)


@pytest.mark.parametrize("vector", [Vector("mean"), Vector("first", unit=False), Vector("last")])
def test_an_encoder_out_and_in(vector: Vector, words: Tokenizer, tmp_path: Path) -> None:
    config = TransformerConfig(**SIZES, shape="encoder", variant=BERT)
    model = build(config, head=vector, seed=1).eval()
    write_gguf(tmp_path / "m.gguf", model, words, kind="f32")
    found, tokenizer = load_model(tmp_path / "m.gguf").eval(), load_tokenizer(tmp_path / "m.gguf")
    assert found.config == config and found.head_spec == vector
    rows = Batch(torch.randint(0, 320, (3, 20), generator=torch.Generator().manual_seed(0)),
                 documents=torch.zeros(3, 20, dtype=torch.long))
    with torch.no_grad():
        assert (found(rows) - model(rows)).abs().max() < 1e-6
    for text in ["def add(a, b)", "ADDS café 漢", "zz add"]:
        assert tokenizer.encode(text) == words.encode(text)
    assert (tokenizer.begin_ids, tokenizer.finish_ids, tokenizer.mask_id) == (
        words.begin_ids, words.finish_ids, words.mask_id)
    assert open_embedder(tmp_path / "m.gguf").vectors(["def add"]).shape == (1, 32)


def test_encoders_that_llama_cpp_lacks_are_refused(words: Tokenizer, tmp_path: Path) -> None:
    config = TransformerConfig(**SIZES, shape="encoder", variant=BERT)
    for head, of, said in ((Vector("max"), config, "pool tokens by max"), ("tokens", config, "a head of tokens"),
                           (Vector("mean"), TransformerConfig(**SIZES, shape="encoder"), "family modernbert")):
        with pytest.raises(ModelError, match=said):
            write_gguf(tmp_path / "m.gguf", build(of, head=head, seed=1), words, kind="f32")
