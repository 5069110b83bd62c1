"""Invariants of every tokenizer kind: any text round-trips, any ids stream byte-exactly, no text is a control token."""

from __future__ import annotations

import heapq
import textwrap
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutaway.text.tokenizer import (
    CONTROL_TOKENS,
    ByteSettings,
    CharSettings,
    SubwordSettings,
    Tokenizer,
    train,
)

KINDS = ("bpe", "bpe-gpt2", "bpe-qwen2", "wordpiece", "unigram", "word", "char", "byte")
FAST = {"bpe", "bpe-gpt2", "bpe-qwen2", "word", "byte"}


@cache
def made(kind: str) -> Tokenizer:
    corpus = [Path(module.__file__).read_text("utf-8") for module in (textwrap, heapq)] + ["naïve 漢字 🙂 café\n" * 3]
    if kind in ("char", "byte"):
        return train(CharSettings() if kind == "char" else ByteSettings(), corpus)
    name, _, pattern = kind.partition("-")
    return train(SubwordSettings(kind=name, vocab_size=700, pattern=pattern or "gpt4"), corpus)  # type: ignore[arg-type]


def pieces() -> st.SearchStrategy[str]:
    """Text made to be awkward: control tokens and their halves, runs, line ends, marks, every plane of Unicode."""
    awkward = [*CONTROL_TOKENS, "<|", "|>", "end|>", "\r\n", "\r", "\n\n", "    ", "\t", "\u2028", "\x00", "\u200d",
               "e\u0301", "漢字", "🙂", "def f(x):\n", "I'LL they're", "1234567", "##a", "↪a", "Ġa", "a" * 200,
               " " * 130]
    plain = st.characters(exclude_categories=["Cs"])
    return st.lists(st.one_of(st.sampled_from(awkward), st.text(plain, max_size=8)), max_size=12).map("".join)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=120, deadline=None)
@given(text=pieces())
def test_every_text_round_trips_without_a_control_token(kind: str, text: str) -> None:
    tokenizer = made(kind)
    ids = tokenizer.encode(text)
    assert tokenizer.bytes_of(ids) == text.encode()
    assert tokenizer.decode(ids) == text
    assert not set(ids) & set(tokenizer.control_ids)
    assert all(0 <= i < tokenizer.vocab_size for i in ids)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_every_sequence_of_ids_streams_byte_exactly(kind: str, data: st.DataObject) -> None:
    tokenizer = made(kind)
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=40))
    assert tokenizer.bytes_of(ids) == b"".join(tokenizer.bytes_of([i]) for i in ids)
    stream = tokenizer.stream()
    shown = [stream.push(i) for i in ids]
    assert "".join(shown) + stream.flush() == tokenizer.decode(ids) == tokenizer.bytes_of(ids).decode(errors="replace")
    assert stream.flush() == ""


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(texts=st.lists(pieces(), max_size=6))
def test_documents_encode_as_single_texts_do(kind: str, texts: list[str]) -> None:
    tokenizer = made(kind)
    assert [d.tolist() for d in tokenizer.encode_documents(texts)] == [tokenizer.encode(t) for t in texts]
    assert tokenizer.agrees(texts) == (kind in FAST)


@pytest.mark.parametrize("kind", KINDS)
def test_every_token_has_bytes_of_its_own(kind: str) -> None:
    tokenizer = made(kind)
    spelled = [tokenizer.bytes_of([i]) for i in range(tokenizer.vocab_size)]
    assert sum(not s for s in spelled) == len(CONTROL_TOKENS)
    assert {bytes([b]) for b in range(256)} <= set(spelled)
