"""What a general-purpose compressor makes of the same text: the figure a language model has to beat (gzip, xz)."""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Callable

from cutaway.evaluate.held import HeldOut
from cutaway.records import Measurement

_COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip -9": lambda data: gzip.compress(data, 9, mtime=0),
    "xz -9": lambda data: lzma.compress(data, preset=9),
    "xz -9e": lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME),
}


def compression(text: HeldOut) -> dict[str, Measurement]:
    """Bits per byte of ``gzip -9``, ``xz -9`` and ``xz -9e`` over all texts in one stream, headers included.

    One stream lets a compressor learn from each text for the next, which a model that starts every document afresh
    cannot. A compressor that knows nothing beforehand gains from more text, so the figure belongs to these bytes.
    """
    data = "".join(text.texts).encode()
    conditions = {**text.conditions, "one_stream": True}
    return {name: Measurement(name, 8 * len(compress(data)) / len(data), "bits per byte", len(text.texts),
                              conditions=conditions)
            for name, compress in _COMPRESSORS.items()}
