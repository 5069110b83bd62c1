"""Examples: one function for each shape of thing that is learned from, all to the one ``Example``.

Weights say what is learned: an answer, but not its request. ``Batch`` shifts; nothing is shifted here. What is judged
whole and not continued is a ``Labelled`` or a ``Pair``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cutaway.batch import Example
from cutaway.errors import DataError
from cutaway.settings import nearest
from cutaway.text.chat import Message, render
from cutaway.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Labelled:
    """A text's ``tokens (T,)`` and its class: a number, or ``(C,)`` of 0 and 1 where several may hold."""

    tokens: NDArray[np.int64]
    label: int | NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two texts that belong together: ``first (T,)`` and ``second (S,)`` are to lie near each other."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]


def chat(messages: Sequence[Message], tokenizer: Tokenizer) -> Example:
    """A conversation, of which the assistant's turns and their ends are learned."""
    ids, weights = render(messages, tokenizer)
    return Example(np.array(ids, np.int64), np.array(weights, np.float32))


def continued(prompt: Sequence[int], answer: Sequence[int]) -> Example:
    """Ids that were given and ids that were sampled after them; only those are learned (policies, preferences)."""
    weights = np.concatenate((np.zeros(len(prompt), np.float32), np.ones(len(answer), np.float32)))
    return Example(np.array([*prompt, *answer], np.int64), weights)


def lm(text: str, tokenizer: Tokenizer) -> Example:
    """A text from beginning to end, all of it learned."""
    return written(tokenizer.encode(text), tokenizer)


def seq2seq(source: str, target: str, tokenizer: Tokenizer) -> Example:
    """A text that is read, up to its end, and one that is written beside it from beginning to end."""
    return written(tokenizer.encode(target), tokenizer, source=tokenizer.encode(source))


def prefix(text: str, tokenizer: Tokenizer, *, share: float = 0.5) -> Example:
    """A text in two: the first ``share`` of its tokens is read, the rest written (Raffel 2020's prefix LM)."""
    if not 0 <= share <= 1:
        raise DataError(f"a share of {share} cannot be read", way_out="give a number from 0 to 1")
    ids = tokenizer.encode(text)
    cut = round(share * len(ids))
    return written(ids[cut:], tokenizer, source=ids[:cut])


def written(ids: Sequence[int], tokenizer: Tokenizer, *, source: Sequence[int] | None = None) -> Example:
    """Ids between beginning and end, learned but for the beginning; beside ``source`` and its end where one is read."""
    tokens = np.array([tokenizer.bos_id, *ids, tokenizer.eos_id], np.int64)
    weights = np.ones(len(tokens), np.float32)
    weights[0] = 0
    read = None if source is None else np.array([*source, tokenizer.eos_id], np.int64)
    return Example(tokens, weights, read)


def framed(text: str, tokenizer: Tokenizer) -> NDArray[np.int64]:
    """The ids of a text that is judged whole, between beginning and end."""
    return np.array([*tokenizer.begin_ids, *tokenizer.encode(text), *tokenizer.finish_ids], np.int64)


def classify(text: str, label: str | Sequence[str], tokenizer: Tokenizer, labels: Sequence[str]) -> Labelled:
    """A text and its class among ``labels``; a sequence of them, perhaps empty, where any number may hold."""
    tokens = framed(text, tokenizer)
    if isinstance(label, str):
        return Labelled(tokens, _number(label, labels))
    holds = np.zeros(len(labels), np.float32)
    holds[[_number(each, labels) for each in label]] = 1
    return Labelled(tokens, holds)


def pair(first: str, second: str, tokenizer: Tokenizer) -> Pair:
    """Two texts that belong together."""
    return Pair(framed(first, tokenizer), framed(second, tokenizer))


def _number(label: str, labels: Sequence[str]) -> int:
    if label not in labels:
        near = nearest(label, labels)
        raise DataError(f"no class is called {label!r}", way_out=f"did you mean {near!r}?" if near else
                        f"the classes are {', '.join(labels[:20])}")
    return labels.index(label)
