"""Forgetting: what a later stage lost of the first one's skill, in bits per byte on the same text (the alignment tax
of InstructGPT, arXiv 2203.02155)."""

from __future__ import annotations

import math

import numpy as np

from cutaway.errors import DataError
from cutaway.evaluate.bits import Scores, interval
from cutaway.records import Measurement


def forgetting(before: Scores, after: Scores, *, name: str = "forgetting") -> Measurement:
    """Bits per byte ``after`` less ``before``: positive is forgetting (of a task's own answers, negative is a gain).
    The interval resamples documents, each with both its scores, so that what is common to both (hard documents) drops
    out.

    Raises DataError where the two were not taken on the same text through the same tokenizer.
    """
    for key in ("text_sha256", "tokenizer_sha256", "context", "overlap"):
        if before.conditions[key] != after.conditions[key]:
            raise DataError(f"scores cannot be compared: {key} is {before.conditions[key]} and {after.conditions[key]}",
                            way_out="score both models on the same held-out text")
    assert np.array_equal(before.bytes, after.bytes)
    lost = (after.nats - before.nats) / math.log(2)
    low, high = interval(lost, before.bytes)
    return Measurement(name, float(lost.sum()) / int(before.bytes.sum()), "bits per byte", len(lost), low, high,
                       {**after.conditions, "paired": True})
