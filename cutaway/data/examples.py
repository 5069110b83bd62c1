"""Examples: one function for each shape of thing that is learned from, all to the one ``Example``.

Weights say what is learned: an answer, but not its request. ``Batch`` shifts; nothing is shifted here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cutaway.batch import Example
from cutaway.text.chat import Message, render
from cutaway.text.tokenizer import Tokenizer


def chat(messages: Sequence[Message], tokenizer: Tokenizer) -> Example:
    """A conversation, of which the assistant's turns and their ends are learned."""
    ids, weights = render(messages, tokenizer)
    return Example(np.array(ids, np.int64), np.array(weights, np.float32))


def continued(prompt: Sequence[int], answer: Sequence[int]) -> Example:
    """Ids that were given and ids that were sampled after them; only those are learned (policies, preferences)."""
    weights = np.concatenate((np.zeros(len(prompt), np.float32), np.ones(len(answer), np.float32)))
    return Example(np.array([*prompt, *answer], np.int64), weights)
