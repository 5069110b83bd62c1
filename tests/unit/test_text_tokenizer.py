"""Tokenizer: every kind holds its promises, and every failure says what, where and the way out."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest

from cutaway.errors import TokenizerError
from cutaway.settings import Settings, decode, to_toml
from cutaway.text.tokenizer import (
    CONTROL_TOKENS,
    AnyTokenizerSettings,
    ByteSettings,
    CharSettings,
    SubwordSettings,
    Tokenizer,
    TokenizerSettings,
    load,
    train,
)
from cutaway.text.vocabulary import LONGEST_LEARNED, byte_letters, bytes_of_letters, letters_of

TEXT = ["the cat sat on the mat, and the dog sat on the cat\n" * 20, "naïve café: 12345 + 67 = 12412\n" * 5,
        "She sells sea shells by the shore; the shells she sells are shore shells, surely.\n" * 9]


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return train(SubwordSettings(vocab_size=300), TEXT)


def test_the_byte_alphabet_is_gpt2s() -> None:
    from tokenizers import pre_tokenizers

    assert set(byte_letters()) == set(pre_tokenizers.ByteLevel.alphabet())
    assert bytes_of_letters(letters_of(bytes(range(256)))) == bytes(range(256))
    assert letters_of(b" ") == "Ġ"
    assert bytes_of_letters("漢") is None


def test_control_ids_are_distinct_and_last(bpe: Tokenizer) -> None:
    ids = [bpe.pad_id, bpe.bos_id, bpe.eos_id, *(bpe.turn_id(r) for r in ("user", "assistant", "system")), bpe.end_id]
    assert ids == list(range(bpe.vocab_size - 7, bpe.vocab_size)) == list(bpe.control_ids)
    assert bpe.vocab_size == 300
    assert [bpe.name_of(i) for i in ids] == list(CONTROL_TOKENS)
    with pytest.raises(TokenizerError, match="no role 'tool'; the roles are user"):
        bpe.turn_id("tool")


def test_a_name_shows_unfinished_bytes(bpe: Tokenizer) -> None:
    assert bpe.name_of(bpe.encode("é")[0]) in ("é", r"\xc3")
    assert bpe.name_of(bpe.encode("the")[0]) == "the"


@pytest.mark.parametrize("pattern,pieces", [
    ("gpt2", ["12345", "\n ", " x"]), ("gpt4", ["123", "45", " :\n"]), ("qwen2", ["1", "2", "3", "4", "5", " :\n"])])
def test_patterns_cut_digits_and_lines_as_they_say(pattern: str, pieces: list[str]) -> None:
    text = "12345 :\n  x"
    cutter = train(SubwordSettings(kind="word", vocab_size=263, pattern=pattern), TEXT)._model.pre_tokenizer  # type: ignore[arg-type]
    assert cutter is not None
    words = [bytes_of_letters(word) for word, _ in cutter.pre_tokenize_str(text)]
    assert [p for p in pieces if p.encode() not in words] == []


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram", "word"])
def test_a_vocabulary_the_text_cannot_fill_is_refused_with_both_numbers(kind: str) -> None:
    settings = SubwordSettings(kind=kind, vocab_size=50_000)  # type: ignore[arg-type]
    with pytest.raises(TokenizerError, match=r"vocab_size = 50000 was asked for and .* supports \d+; set"):
        train(settings, TEXT)


def test_the_number_named_is_the_number_that_works() -> None:
    for kind in ("bpe", "wordpiece", "unigram", "word"):
        settings = SubwordSettings(kind=kind, vocab_size=50_000)  # type: ignore[arg-type]
        with pytest.raises(TokenizerError) as caught:
            train(settings, TEXT)
        size = int(str(caught.value).split("supports ")[1].split(";")[0])
        assert train(settings.model_copy(update={"vocab_size": size}), TEXT).vocab_size == size


def test_a_vocabulary_below_the_bytes_is_refused() -> None:
    with pytest.raises(TokenizerError, match=r"256 byte tokens and 7 control tokens; set tokenizer.vocab_size to 263"):
        train(SubwordSettings(vocab_size=262), TEXT)


def test_training_is_deterministic_and_says_what_it_saw() -> None:
    for settings in (SubwordSettings(vocab_size=280), SubwordSettings(kind="unigram", vocab_size=280),
                     SubwordSettings(kind="wordpiece", vocab_size=530), CharSettings()):
        first, second = train(settings, TEXT), train(settings, iter(TEXT))
        assert first == second and hash(first) == hash(second) and first.json == second.json
        assert first.learned_from == {"documents": 3, "bytes": sum(len(t.encode()) for t in TEXT), "all": True}
    part = train(SubwordSettings(vocab_size=270, sample_bytes=100), TEXT)
    assert part.learned_from == {"documents": 1, "bytes": len(TEXT[0]), "all": False}


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_a_word_of_any_length_is_learned_from_in_seconds(kind: str) -> None:
    word = "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=300_000))
    began = time.process_time()
    made = train(SubwordSettings(kind=kind, vocab_size=1000), [word])  # type: ignore[arg-type]
    assert time.process_time() - began < 15  # one such word took a minute, and longer ones the square of that
    assert made.decode(made.encode(word)) == word


def test_words_that_are_not_cut_are_learned_as_ever() -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers, trainers

    texts = [*TEXT, "ab" * (LONGEST_LEARNED // 2), "ba" * (LONGEST_LEARNED // 2)]
    made, plain = train(SubwordSettings(vocab_size=300), texts)._model, Backend(models.BPE())
    assert made.pre_tokenizer is not None
    plain.pre_tokenizer = made.pre_tokenizer
    plain.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=293, min_frequency=2, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    assert json.loads(made.to_str())["model"] == json.loads(plain.to_str())["model"]
    assert json.loads(made.to_str())["pre_tokenizer"] == json.loads(Backend.from_str(
        train(SubwordSettings(kind="word", vocab_size=263), TEXT).json).to_str())["pre_tokenizer"]


def test_chars_are_tokens_and_rare_ones_bytes() -> None:
    chars = train(CharSettings(min_frequency=5), ["é" * 5 + "漢" * 4 + "ab"])
    assert chars.vocab_size == 256 + 1 + 7
    assert [len(chars.encode(c)) for c in "é漢aZ"] == [1, 3, 1, 1]
    assert train(ByteSettings(), ()).vocab_size == 263


def test_lone_surrogates_are_refused(bpe: Tokenizer) -> None:
    for call in (bpe.encode, lambda t: bpe.encode_documents([t])):
        with pytest.raises(TokenizerError, match="not text that UTF-8 can hold; remove"):
            call("a\ud800b")


def test_ids_outside_the_vocabulary_are_refused(bpe: Tokenizer) -> None:
    for wrong in (300, -1, 10**12):
        with pytest.raises(TokenizerError, match="outside the vocabulary of 300"):
            bpe.decode([1, wrong])


def test_no_documents_encode_to_nothing(bpe: Tokenizer) -> None:
    assert bpe.encode_documents([]) == []
    assert [d.tolist() for d in bpe.encode_documents(["", "the", ""])] == [[], bpe.encode("the"), []]


def test_saved_is_loaded_and_damage_is_named(bpe: Tokenizer, tmp_path: Path) -> None:
    bpe.save(tmp_path)
    again = load(tmp_path)
    assert again == bpe and again.kind == "bpe" and again.learned_from == bpe.learned_from
    path = tmp_path / "tokenizer.json"
    good = path.read_bytes()
    path.write_bytes(good.replace(b'"the"', b'"teh"', 1))
    with pytest.raises(TokenizerError, match=r"tokenizer.json: damaged: its sha256 .*; copy it again"):
        load(tmp_path)
    path.write_bytes(good[:-100])
    with pytest.raises(TokenizerError, match=r"tokenizer.json: damaged"):
        load(tmp_path)
    path.unlink()
    with pytest.raises(TokenizerError, match=r"tokenizer.json: no such file; name a folder"):
        load(tmp_path)
    path.write_bytes(good)
    config = tmp_path / "tokenizer_config.json"
    tree = json.loads(config.read_text())
    del tree["cutaway"]
    config.write_text(json.dumps(tree))
    assert load(tmp_path).roles.public  # nothing says that it is ours: it is read as anybody's


def test_a_prefix_that_merges_do_not_have_is_refused(bpe: Tokenizer, tmp_path: Path) -> None:
    """The library would cut letters in two and take the process with it."""
    bpe.save(tmp_path)
    tree = json.loads((tmp_path / "tokenizer.json").read_text())
    tree["model"]["continuing_subword_prefix"] = "\u00a0"
    (tmp_path / "tokenizer.json").write_text(json.dumps(tree))
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del config["cutaway"]  # nothing says that it is ours, nor its sha256
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(TokenizerError, match="do not go on with continuing_subword_prefix"):
        load(tmp_path)


def test_settings_are_a_union_told_apart_by_kind() -> None:
    class Holder(Settings):
        tokenizer: TokenizerSettings = SubwordSettings()

    made = decode(Holder, {"tokenizer": {"kind": "byte"}}, where="test")
    assert made.tokenizer == ByteSettings()
    assert 'kind = "byte"' in to_toml(made)
    with pytest.raises(ValueError, match="vocab_size"):
        decode(Holder, {"tokenizer": {"kind": "byte", "vocab_size": 300}}, where="test")


@pytest.mark.parametrize("settings", [ByteSettings(masks=3), CharSettings(masks=3),
                                      SubwordSettings(vocab_size=300, masks=3)], ids=lambda s: s.kind)
def test_masks_and_spans_stand_behind_the_other_control_tokens(tmp_path: Path, settings: AnyTokenizerSettings) -> None:
    plain, made = train(settings.model_copy(update={"masks": 0}), TEXT), train(settings, TEXT)
    assert made.vocab_size == plain.vocab_size + (0 if isinstance(settings, SubwordSettings) else 4)
    assert made.control_ids[-4:] == (made.mask_id, *made.span_ids) == tuple(range(made.vocab_size))[-4:]
    assert [made.name_of(i) for i in made.span_ids] == ["<|span_0|>", "<|span_1|>", "<|span_2|>"]
    assert made.bytes_of([made.mask_id, *made.span_ids]) == b""
    assert not set(made.encode("<|mask|><|span_0|>")) & set(made.control_ids)
    made.save(tmp_path)
    assert load(tmp_path) == made and load(tmp_path).mask_id == made.mask_id
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["extra_special_tokens"][-4:] == ["<|mask|>", "<|span_0|>", "<|span_1|>", "<|span_2|>"]


def test_a_vocabulary_without_masks_says_how_to_get_them(bpe: Tokenizer) -> None:
    for asked in ("mask_id", "span_ids"):
        with pytest.raises(TokenizerError, match=r"this vocabulary has no <\|.*\|>; learn one with tokenizer.masks"):
            getattr(bpe, asked)
    assert train(ByteSettings(masks=0), ()).digest == train(ByteSettings(), ()).digest
