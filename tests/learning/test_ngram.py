"""An n-gram model learns from counts alone: longer contexts predict held-out text better, and more text too."""

from __future__ import annotations

import numpy as np
import pytest

from cutaway.evaluate.bits import bits_per_byte
from cutaway.evaluate.compression import compression
from cutaway.evaluate.held import HeldOut
from cutaway.models.kneser_ney import fit
from cutaway.models.ngram import NGram, NGramConfig
from cutaway.text.tokenizer import ByteSettings, train

pytestmark = pytest.mark.filterwarnings("ignore:the discounts of")
TOKENIZER = train(ByteSettings(), [])


def sentences(count: int, seed: int) -> list[str]:
    """A small language: agreement inside, frequent and rare words."""
    draw = np.random.default_rng(seed)
    nouns = ["cat", "dog", "boat", "river", "teacher", "garden", "letter", "lamp", "winter", "window"]
    verbs = ["sees", "likes", "carries", "follows", "paints", "hears"]
    weights = 1 / np.arange(1, 11)
    out = []
    for _ in range(count):
        a, b = draw.choice(nouns, 2, p=weights / weights.sum())
        many = draw.random() < 0.4
        out.append(f"{'all' if many else 'every'} {a}{'s' if many else ''} "
                   f"{(v := draw.choice(verbs))[: len(v) - 1] if many else draw.choice(verbs)} the {b}. ")
    return ["".join(out[i : i + 5]) for i in range(0, count, 5)]


def fitted(texts: list[str], order: int) -> NGram:
    rows = [[TOKENIZER.bos_id, *TOKENIZER.encode(t), TOKENIZER.eos_id] for t in texts]
    config = NGramConfig(vocab_size=TOKENIZER.vocab_size, order=order, bos_id=TOKENIZER.bos_id)
    return fit(np.concatenate(rows), np.cumsum([0, *map(len, rows)]), config)


def test_context_and_text_are_worth_bits() -> None:
    learned, held = sentences(2000, 0), HeldOut(tuple(sentences(200, 1)), 40, 0)
    bits = {order: bits_per_byte(fitted(learned, order), TOKENIZER, held) for order in (1, 2, 3, 6)}
    values = [bits[order].value for order in (1, 2, 3, 6)]
    assert values == sorted(values, reverse=True)
    one, six = bits[1], bits[6]
    assert six.high is not None and one.low is not None and six.high < one.low
    assert 3.5 < one.value < 4.5 and six.value < 0.8  # letters alone; a language of some 0.6 bits a letter
    assert six.value < compression(held)["xz -9e"].value
    assert six.value < bits_per_byte(fitted(learned[:20], 6), TOKENIZER, held).value
