"""Token healing: the answer gives back the prompt's own bytes, whatever it draws, and then is free."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutaway.errors import RequestError
from cutaway.generate.healing import Beginning, healed
from cutaway.generate.spelled import spelled
from cutaway.text.tokenizer import SubwordSettings, Tokenizer, train

TEXT = ["see http://there and http://here: the cat, the other cats\n" * 30]
TOKENIZER: Tokenizer = train(SubwordSettings(vocab_size=285), TEXT)
WORDS = spelled(TOKENIZER)


@given(st.text("http:/ecas ", min_size=1, max_size=12), st.integers(1, 4), st.integers(0, 999))
def test_what_is_read_and_what_an_answer_begins_with_are_the_prompt(text: str, most: int, seed: int) -> None:
    prompt = [TOKENIZER.bos_id, *TOKENIZER.encode(text)]
    found = healed(prompt, WORDS, most=most)
    assert TOKENIZER.bytes_of(found.tokens) + found.begins == text.encode()
    assert found.tokens[0] == TOKENIZER.bos_id and len(prompt) - len(found.tokens) <= most
    draw, out = random.Random(seed), b""
    least = len(WORDS.tokens(found.begins) or ())
    answer = Beginning(WORDS, found.begins).begin(max(1, least))
    for _ in range(least):
        mask = answer.mask()
        if mask is None:
            break
        token = draw.choice(WORDS.ids(mask))
        answer.accept(token)
        out += WORDS.bytes_of(token)
    assert answer.mask() is None and out.startswith(found.begins) and not answer.done


def test_a_prompt_that_ends_between_words_of_its_own_is_healed() -> None:
    merged = max((i for i in range(TOKENIZER.vocab_size) if WORDS.is_text(i)), key=lambda i: len(WORDS.bytes_of(i)))
    data = WORDS.bytes_of(merged)
    found = healed([TOKENIZER.bos_id, *TOKENIZER.encode(data[:-1].decode())], WORDS, most=8)
    mask = Beginning(WORDS, found.begins).begin(9).mask()
    assert found.tokens == (TOKENIZER.bos_id,) and mask is not None and merged in WORDS.ids(mask)


def test_nothing_is_taken_back_where_no_longer_token_is_or_a_control_token_stands() -> None:
    assert healed([TOKENIZER.bos_id], WORDS).begins == b""
    assert healed([*TOKENIZER.encode("the"), TOKENIZER.end_id], WORDS, most=3).begins == b""
    assert Beginning(WORDS, b"").begin(1).mask() is None


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(RequestError, match="takes 1 tokens, and max_tokens is 0"):
        Beginning(WORDS, b"h").begin(0)
    answer = Beginning(WORDS, b"ht").begin(4)
    for token in (TOKENIZER.eos_id, WORDS.id_of(b"x")):
        with pytest.raises(RequestError, match="does not go on with"):
            answer.accept(token if token is not None else -1)


def test_the_ids_that_begin_with_bytes_are_all_of_them() -> None:
    for data in (b"h", b" ", b"the", b"\xff"):
        every = [i for i in range(TOKENIZER.vocab_size) if WORDS.is_text(i) and WORDS.bytes_of(i).startswith(data)]
        assert sorted(WORDS.starting(data)) == every
    assert np.array_equal(WORDS.of([3, 40]), WORDS.only(3) | WORDS.only(40))
