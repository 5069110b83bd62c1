"""How a vocabulary's tokens spell bytes: in GPT-2's byte alphabet, in SentencePiece's with a mark for a space, or as
WordPiece's words and their continuations."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from cutaway.errors import TokenizerError
from cutaway.text.vocabulary import CONTINUATION, bytes_of_letters

SPACE = "▁"  # SentencePiece's
_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True)
class Spelling:
    """``spaced``: a text begins with a space that nobody wrote. ``mark`` is what continues a word of WordPiece."""

    name: Literal["bytes", "spaces", "words"]
    spaced: bool = False
    mark: str = "##"

    def bytes_of(self, token: str, number: int) -> bytes:
        """What a token stands for. Raises TokenizerError for one that has no bytes."""
        if self.name == "words":
            return token.removeprefix(self.mark).encode() if token.startswith(self.mark) else f" {token}".encode()
        if self.name == "spaces":
            byte = _BYTE.fullmatch(token)
            return bytes([int(byte[1], 16)]) if byte else token.replace(SPACE, " ").encode()
        data = bytes_of_letters(token.removeprefix(CONTINUATION))
        if data is None:
            raise TokenizerError(f"token {number} ({token!r}) has no bytes of its own",
                                 way_out="a byte alphabet, SentencePiece's spaces and WordPiece are supported")
        return data

    def bytes_of_added(self, token: str) -> bytes:
        """What an added token stands for: its text, in which SentencePiece writes spaces with its mark."""
        return (token.replace(SPACE, " ") if self.name == "spaces" else token).encode()


def spelling_of(tree: Mapping[str, Any]) -> Spelling:
    """What a tokenizer.json says of it."""
    kinds = _parts(tree.get("decoder")) + _parts(tree.get("pre_tokenizer")) + _parts(tree.get("normalizer"))
    named = {part.get("type") for part in kinds}
    model = tree.get("model") or {}
    if model.get("type") == "WordPiece" and model.get("continuing_subword_prefix", "##") != CONTINUATION:
        return Spelling("words", spaced=True, mark=str(model.get("continuing_subword_prefix", "##")))
    spaces = named & {"Metaspace", "ByteFallback"} or SPACE in json.dumps(kinds, ensure_ascii=False)
    if "ByteLevel" in named or not spaces:
        return Spelling("bytes")
    metaspace = [part for part in kinds if part.get("type") == "Metaspace"]
    schemes = {part.get("prepend_scheme", "always" if part.get("add_prefix_space", True) else "never")
               for part in metaspace}
    return Spelling("spaces", spaced=bool(schemes & {"always", "first"}) or bool(named & {"Prepend", "Strip"}))


def _parts(tree: Any) -> list[dict[str, Any]]:
    """The steps of a part that may be a sequence of them."""
    if not isinstance(tree, dict):
        return []
    inside = tree.get("decoders") or tree.get("pretokenizers") or tree.get("normalizers")
    return [part for each in inside for part in _parts(each)] if isinstance(inside, list) else [tree]
