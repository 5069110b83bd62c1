"""Small labelled texts made by rule, so that what a classifier must find is known."""

from __future__ import annotations

import random

_OF = {"weather": "rain snow sun cloud storm wind", "food": "bread soup rice apple cheese salt",
       "travel": "train plane ticket hotel road map"}
_FILL = ["the", "a", "is", "there", "some", "very", "today", "we", "had", "near", "good", "and", "but", "not"]


def labelled(count: int, seed: int = 0, classes: int = 3) -> tuple[list[str], list[str]]:
    """Texts of filler words with one or two words of their class, some of another's (noise)."""
    draw = random.Random(seed)
    names = sorted(_OF)[:classes]
    texts, labels = [], []
    for i in range(count):
        label = names[i % classes]
        words = draw.choices(_FILL, k=draw.randint(4, 9)) + draw.choices(_OF[label].split(), k=2)
        words += draw.choices(_OF[draw.choice(names)].split(), k=1)
        draw.shuffle(words)
        texts.append(" ".join(words).capitalize() + draw.choice(".!?"))
        labels.append(label)
    return texts, labels


def several(count: int, seed: int = 0) -> tuple[list[str], list[tuple[str, ...]]]:
    """Texts with none, one or two labels: each label's word stands in the text or not."""
    draw = random.Random(seed)
    texts, labels = [], []
    for _ in range(count):
        given = tuple(n for n in sorted(_OF) if draw.random() < 0.4)
        words = draw.choices(_FILL, k=6) + [draw.choice(_OF[n].split()) for n in given]
        draw.shuffle(words)
        texts.append(" ".join(words))
        labels.append(given)
    return texts, labels
