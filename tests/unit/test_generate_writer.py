"""Text in, text out: stop strings byte by byte, and streams that equal whole answers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cutaway.errors import RequestError
from cutaway.generate.engine import Engine
from cutaway.generate.request import Sampling
from cutaway.generate.writer import Options, Writer
from cutaway.models.model import State, build
from cutaway.models.transformer import TransformerConfig
from cutaway.nn.cache import KVCache
from cutaway.text.chat import Message
from cutaway.text.tokenizer import ByteSettings, Tokenizer, train

TOKENIZER: Tokenizer = train(ByteSettings(), [])
CONFIG = TransformerConfig(vocab_size=TOKENIZER.vocab_size, hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=1,
                           intermediate_size=24, context_length=64)


class Reciter:
    """A model that says a fixed sequence of bytes after any prompt of one token, then ends."""

    vocab_size, context_length, reads_source = TOKENIZER.vocab_size, 200, False

    def __init__(self, said: bytes) -> None:
        self.ids = [_id_of(b) for b in said]

    def new_state(self, rows: int, *, capacity: int) -> State:
        shape = (rows, 1, capacity, 1)
        return KVCache([torch.zeros(shape)], [torch.zeros(shape)], torch.zeros(rows, dtype=torch.long))

    def logits(self, tokens: torch.Tensor, state: State, *, counts: torch.Tensor | None = None,
               every: bool = False) -> torch.Tensor:
        assert isinstance(state, KVCache) and not every
        state.advance(tokens.shape[1], counts)
        out = torch.zeros(len(tokens), self.vocab_size)
        for row, length in zip(out, state.lengths.tolist(), strict=True):
            at = length - 2  # bos and one byte of prompt
            row[self.ids[at] if at < len(self.ids) else TOKENIZER.end_id] = 50
        return out


def _id_of(byte: int) -> int:
    return next(i for i in range(TOKENIZER.vocab_size) if TOKENIZER.bytes_of([i]) == bytes([byte]))


def recited(said: bytes, *stop: str) -> tuple[str, str | None, list[str]]:
    writer = Writer(Engine(Reciter(said)), TOKENIZER)
    options = Options(sampling=Sampling(temperature=0), stop=stop)
    whole = writer.complete(["x"], options)[0]
    pieces = [p.text for p in writer.stream([writer.text_ids("x")], options)]
    assert "".join(pieces) == whole.text
    return whole.text, whole.stop, pieces


alphabet = st.text("abé漢", max_size=12)


@settings(max_examples=100, deadline=None)
@given(alphabet, st.lists(st.text("abé漢", min_size=1, max_size=3), max_size=2))
def test_text_ends_before_the_first_stop_string(said: str, stops: list[str]) -> None:
    text, stop, _ = recited(said.encode(), *stops)
    data = said.encode()
    # the earliest end decides what can be known, the earliest beginning what is cut
    ends = [(at + len(s.encode()), at) for s in stops if (at := data.find(s.encode())) >= 0]
    if not ends:
        assert (text, stop) == (said, None)
    else:
        first = min(end for end, _ in ends)
        assert text.encode() == data[: min(at for end, at in ends if end == first)]
        assert stop in stops


def test_what_may_become_a_stop_string_is_held_back() -> None:
    text, stop, pieces = recited(b"one STOX two STOP three", "STOP")
    assert (text, stop) == ("one STOX two ", "STOP")
    assert pieces[:9] == ["o", "n", "e", " ", "", "", "", "STOX", " "]


def test_bytes_that_are_no_text_show_and_characters_wait_until_they_are_whole() -> None:
    assert recited(b"a\xff\xe6\xbc\xa2\xe6")[0] == "a\ufffd漢\ufffd"
    assert recited("漢".encode())[2] == ["", "", "漢", ""]


def test_streamed_is_whole_and_seeds_give_the_same_again() -> None:
    model = build(CONFIG, seed=1)
    writer = Writer(Engine(model), TOKENIZER)
    options = Options(max_tokens=20, seed=5, logprobs=1)
    whole = writer.complete(["ab", "ab", "longer"], options)
    pieces = list(writer.stream([writer.text_ids(p) for p in ("ab", "ab", "longer")], options))
    for i, w in enumerate(whole):
        assert "".join(p.text for p in pieces if p.prompt == i) == w.text
        assert tuple(p.logprob for p in pieces if p.prompt == i) == pytest.approx(w.logprobs)
        assert len(w.alternatives) == len(w.tokens)
    assert whole[0].tokens != whole[1].tokens
    assert writer.complete(["ab"], options.model_copy(update={"seed": 6}))[0].tokens == whole[1].tokens


def test_a_conversation_too_long_names_both_numbers() -> None:
    writer = Writer(Engine(build(CONFIG)), TOKENIZER)
    with pytest.raises(RequestError, match=r"84 tokens .* context of 64"):
        writer.chat([Message("user", "x" * 80)], Options())
    assert writer.chat([Message("user", "hi")], Options(max_tokens=3)).text is not None


@pytest.mark.parametrize("stop", ["", "\udcff"])
def test_a_stop_string_that_cannot_be_found_is_refused(stop: str) -> None:
    with pytest.raises(RequestError, match="stop string"):
        Writer(Engine(build(CONFIG)), TOKENIZER).complete(["x"], Options(stop=(stop,)))


def test_an_empty_prompt_and_another_tokenizer_are_refused() -> None:
    with pytest.raises(RequestError, match="empty"):
        Writer(Engine(build(CONFIG)), TOKENIZER).complete([""], Options())
    small = build(CONFIG.model_copy(update={"vocab_size": 100}))
    with pytest.raises(RequestError, match=r"tokenizer of \d+ ids .* 100"):
        Writer(Engine(small), TOKENIZER)
