"""Examples: what is learned of a conversation, and of a sampled answer."""

from __future__ import annotations

import numpy as np

from cutaway.batch import Example, lay
from cutaway.data.examples import chat, continued
from cutaway.text.chat import Message
from cutaway.text.tokenizer import ByteSettings, train

BYTE = train(ByteSettings(), ())


def learned(example: Example) -> list[int]:
    """The targets that carry weight, after Batch's shift."""
    batch = lay([[example]], pad_id=BYTE.pad_id, width=len(example) - 1)
    assert batch.targets is not None and batch.weights is not None
    return batch.targets[batch.weights > 0].tolist()


def test_of_a_conversation_the_answers_are_learned() -> None:
    talk = [Message("user", "a?"), Message("assistant", "b"), Message("user", "c?"), Message("assistant", "d")]
    assert learned(chat(talk, BYTE)) == [*b"b", BYTE.end_id, *b"d", BYTE.end_id]


def test_of_a_sample_the_sampled_is_learned() -> None:
    example = continued([1, 2, 3], [4, 5])
    assert example.tokens.tolist() == [1, 2, 3, 4, 5] and learned(example) == [4, 5]
    assert example.weights.dtype == np.float32
