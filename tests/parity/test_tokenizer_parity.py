"""Parity with transformers: the saved folder is read by AutoTokenizer with equal ids, text and chat."""

from __future__ import annotations

import heapq
import textwrap
from pathlib import Path
from typing import Any

import pytest

from cutaway.text.chat import Message, apply_template, render
from cutaway.text.tokenizer import ByteSettings, CharSettings, SubwordSettings, Tokenizer, load, train

CORPUS = [Path(module.__file__).read_text("utf-8") for module in (textwrap, heapq)]
SETTINGS = [SubwordSettings(vocab_size=700), SubwordSettings(vocab_size=600, pattern="gpt2"),
            SubwordSettings(kind="wordpiece", vocab_size=700), SubwordSettings(kind="unigram", vocab_size=500),
            SubwordSettings(kind="word", vocab_size=600), CharSettings(), ByteSettings()]
TEXTS = ["", " ", "def f(x):\n    return 12345 # naïve 漢字 🙂\r\n\n\n", "a" * 150, "## a ↪b Ġc", CORPUS[1][:2000]]


@pytest.fixture(scope="module", params=SETTINGS, ids=lambda s: f"{s.kind}-{getattr(s, 'pattern', '')}")
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    train(request.param, CORPUS).save(folder)
    return load(folder), AutoTokenizer.from_pretrained(folder)


def test_ids_and_text_are_equal(pair: tuple[Tokenizer, Any]) -> None:
    ours, theirs = pair
    for text in TEXTS:
        ids = ours.encode(text)
        assert theirs(text, add_special_tokens=False)["input_ids"] == theirs(text)["input_ids"] == ids
        assert theirs.decode(ids) == text == ours.decode(ids)
    assert len(theirs) == ours.vocab_size
    assert (theirs.pad_token_id, theirs.bos_token_id, theirs.eos_token_id) == (ours.pad_id, ours.bos_id, ours.eos_id)


def test_chat_is_equal(pair: tuple[Tokenizer, Any]) -> None:
    ours, theirs = pair
    talks = [[Message("user", t), Message("assistant", u)] for t in TEXTS for u in TEXTS[:3]]
    talks.append([Message("system", "  two \n"), Message("user", "x\n"), Message("assistant", " y")])
    for talk in talks:
        rows = [{"role": m.role, "content": m.content} for m in talk]
        for prompt in (False, True):
            ids, weights = render(talk, ours, add_generation_prompt=prompt)
            text = theirs.apply_chat_template(rows, tokenize=False, add_generation_prompt=prompt)
            assert text == apply_template(talk, add_generation_prompt=prompt)
            chatted = theirs.apply_chat_template(rows, add_generation_prompt=prompt, return_dict=True)["input_ids"]
            assert chatted == ids and len(weights) == len(ids)
