"""The held-out text on which every stage, and every compressor beside it, is measured: chosen by hash."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cutaway.data.documents import Document
from cutaway.errors import DataError
from cutaway.records import digest

MAX_BYTES = 1_000_000


@dataclass(frozen=True)
class HeldOut:
    """Texts to score, and out of how many they were chosen. ``cut``: the last one was cut at the maximum."""

    texts: tuple[str, ...]
    available_documents: int
    available_bytes: int
    cut: bool = False

    @cached_property
    def bytes(self) -> tuple[int, ...]:
        """UTF-8 bytes of each text."""
        return tuple(len(t.encode()) for t in self.texts)

    @cached_property
    def digest(self) -> str:
        """sha256 of all texts: two scores can be compared where it is equal."""
        return digest("\0".join(self.texts).encode())

    @property
    def conditions(self) -> dict[str, Any]:
        """What a measurement on this text has to say about it."""
        return {"documents": len(self.texts), "bytes": sum(self.bytes), "of_documents": self.available_documents,
                "of_bytes": self.available_bytes, "last_document_cut": self.cut, "text_sha256": self.digest[:16]}


def held_out(documents: Iterable[Document], *, max_bytes: int = MAX_BYTES) -> HeldOut:
    """The documents of smallest digest, up to ``max_bytes`` of UTF-8, in that order; one pass, that much memory.

    The last one is cut where the maximum falls inside it. Raises DataError where there is no text.
    """
    heap: list[tuple[int, str]] = []  # the largest digest on top: it is the first to go
    kept = seen_bytes = seen = 0
    for document in documents:
        size = len(document.text.encode())
        if not size:
            continue
        seen, seen_bytes, kept = seen + 1, seen_bytes + size, kept + size
        heapq.heappush(heap, (-int(document.digest, 16), document.text))
        while kept - len(heap[0][1].encode()) >= max_bytes:
            kept -= len(heapq.heappop(heap)[1].encode())
    if not heap:
        raise DataError("there is no held-out text to measure on",
                        way_out="give more documents, or a larger share to the held-out split")
    texts = [text for _, text in sorted(heap, reverse=True)]
    if kept > max_bytes:
        rest = max_bytes - (kept - len(texts[-1].encode()))
        texts[-1] = texts[-1].encode()[:rest].decode(errors="ignore")
    return HeldOut(tuple(texts), seen, seen_bytes, cut=kept > max_bytes)
