"""A SentencePiece model file (github.com/google/sentencepiece, sentencepiece_model.proto): pieces, scores and how text
is normalised, read off its protocol buffer with every length checked, as a tokenizer.json."""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cutaway.errors import FILE_AGAIN, TokenizerError
from cutaway.text.spelling import SPACE
from cutaway.text.vocabulary import added_token

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # the types of a piece
UNIGRAM, BPE = 1, 2


@dataclass
class Model:
    """What such a file says."""

    pieces: list[tuple[str, float, int]] = field(default_factory=list)
    kind: int = UNIGRAM
    charsmap: bytes = b""
    dummy_prefix: bool = True
    one_space: bool = True  # runs of spaces are one
    escape: bool = True


def read(path: Path, data: bytes) -> Model:
    """The file's pieces and rules. Raises TokenizerError for a file that is no such model."""
    found = Model()
    try:
        for number, value in _fields(data):
            if number == 1 and isinstance(value, bytes):
                found.pieces.append(_piece(value))
            elif number == 2 and isinstance(value, bytes):
                found.kind = next((v for n, v in _fields(value) if n == 3 and isinstance(v, int)), UNIGRAM)
            elif number == 3 and isinstance(value, bytes):
                _rules(found, value)
    except (ValueError, struct.error, UnicodeDecodeError) as error:
        raise TokenizerError(f"is no SentencePiece model ({error})", where=path, way_out=FILE_AGAIN) from None
    if found.kind not in (UNIGRAM, BPE) or not found.pieces or not found.escape:
        raise TokenizerError("is no SentencePiece model of the kinds unigram and BPE", where=path, way_out=FILE_AGAIN)
    if len({text for text, _, _ in found.pieces}) != len(found.pieces):
        raise TokenizerError("holds a piece twice", where=path, way_out=FILE_AGAIN)
    return found


def _rules(found: Model, data: bytes) -> None:
    for number, value in _fields(data):
        if number == 2 and isinstance(value, bytes):
            found.charsmap = value
        elif number in (3, 4, 5) and isinstance(value, int):
            setattr(found, {3: "dummy_prefix", 4: "one_space", 5: "escape"}[number], bool(value))


def _piece(data: bytes) -> tuple[str, float, int]:
    text, score, kind = "", 0.0, NORMAL
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            text = value.decode()
        elif number == 2 and isinstance(value, bytes):
            score = float(struct.unpack("<f", value)[0])
        elif number == 3 and isinstance(value, int):
            kind = value
    return text, score, kind


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Number and value of each field of a message: a whole number, or bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        length = {1: 8, 5: 4}.get(wire)
        if wire == 2:
            length, at = _varint(data, at)
        if length is None or number == 0 or length > len(data) - at:
            raise ValueError(f"a field of wire type {wire} at byte {at}")
        yield number, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("it ends in the middle of a number")
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
    raise ValueError(f"a number without end at byte {at}")


def _prefix(users: list[Any]) -> dict[str, Any]:
    """A space before every text. What people defined goes through the same steps and must not get one: so none stands
    before a text that is nothing else."""
    if not users:
        return {"type": "Prepend", "prepend": SPACE}
    return {"type": "Replace", "pattern": {"Regex": rf"\A(?!(?:{'|'.join(map(re.escape, users))})\z)(?=[\s\S])"},
            "content": SPACE}


def tree(model: Model) -> dict[str, Any]:
    """The tokenizer.json that gives its ids, as transformers' converter writes it."""
    from cutaway.text.public import merges_of

    kinds = [kind for _, _, kind in model.pieces]
    unknown = kinds.index(UNKNOWN) if UNKNOWN in kinds else None
    # what people defined is found in the text as it is normalised, which has no spaces, before anything else
    added = [added_token(i, text, special=kind != USER) | {"normalized": kind == USER}
             for i, (text, _, kind) in enumerate(model.pieces)
             if kind in (CONTROL, UNKNOWN) or (kind == USER and " " not in text)]
    steps: list[dict[str, Any]] = []
    if model.charsmap:
        steps.append({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(model.charsmap).decode()})
    if model.one_space:
        steps += [{"type": "Replace", "pattern": {"Regex": r"\A +| +\z"}, "content": ""},  # of white space only spaces
                  {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}]
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})
    if model.dummy_prefix:  # even before a text that begins with the mark itself
        steps.append(_prefix([token["content"] for token in added if not token["special"]]))
    space = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "never", "split": model.kind == UNIGRAM}
    shown = {**space, "prepend_scheme": "always" if model.dummy_prefix else "never"}
    if model.kind == UNIGRAM:
        words: dict[str, Any] = {"type": "Unigram", "unk_id": unknown, "byte_fallback": BYTE in kinds,
                                 "vocab": [[text, score] for text, score, _ in model.pieces]}
    else:
        normal = {text: score for text, score, kind in model.pieces if kind == NORMAL}
        words = {"type": "BPE", "dropout": None, "unk_token": None if unknown is None else model.pieces[unknown][0],
                 "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": True,
                 "byte_fallback": BYTE in kinds, "ignore_merges": False,
                 "vocab": {text: i for i, (text, _, _) in enumerate(model.pieces)},
                 "merges": [list(pair) for pair in merges_of(normal)]}
    decoders: list[dict[str, Any]] = [{"type": "ByteFallback"}] if BYTE in kinds else []
    return {"version": "1.0", "added_tokens": added, "normalizer": {"type": "Sequence", "normalizers": steps},
            "pre_tokenizer": space, "post_processor": None, "model": words,
            "decoder": {"type": "Sequence", "decoders": [*decoders, shown]}}
