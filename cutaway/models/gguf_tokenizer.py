"""The tokenizer in a GGUF file's metadata: byte-level BPE, SentencePiece's BPE and unigram, or WordPiece.

As llama.cpp reads it (src/llama-vocab.cpp), with the defaults that it has for each kind.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cutaway.errors import FILE_AGAIN, ModelError
from cutaway.models.gguf_file import GGUF
from cutaway.text import public, sentencepiece_file
from cutaway.text.sentencepiece_file import BPE, BYTE, CONTROL, UNIGRAM, UNKNOWN, USER
from cutaway.text.spelling import SPACE
from cutaway.text.tokenizer import Tokenizer
from cutaway.text.vocabulary import added_token, word_pattern

# how text is cut first: the pattern, whether each digit stands alone, whether a known word is taken whole
_PATTERNS = {"default": ("gpt2", False, False), "gpt-2": ("gpt2", False, False), "smollm": ("gpt2", True, False),
             "llama-bpe": ("gpt4", False, True), "llama3": ("gpt4", False, True), "llama-v3": ("gpt4", False, True),
             "qwen2": ("qwen2", False, False), "deepseek-r1-qwen": ("qwen2", False, False)}
# whether bos, eos and sep stand around a text where the file does not say
_FRAMES = {"gpt2": (False, False, False), "llama": (True, False, False), "t5": (False, True, False),
           "bert": (True, False, True)}
_KEYS = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "sep": "seperator", "mask": "mask"}
# control tokens where the file does not name them
_NAMED = {"llama": {"bos": 1, "eos": 2, "unk": 0}, "t5": {"eos": 1, "unk": 2, "pad": 0},
          "bert": {"bos": 101, "unk": 100, "sep": 102, "pad": 0, "mask": 103}}


def tokenizer(file: GGUF) -> Tokenizer:
    """The tokenizer in a file's metadata. Raises ModelError for a kind that is unknown, or a damaged vocabulary."""
    said = file.metadata
    kind, before = said.get("tokenizer.ggml.model"), said.get("tokenizer.ggml.pre", "default")
    if not isinstance(kind, str) or not isinstance(before, str) or kind not in _FRAMES or (
            kind == "gpt2" and before not in _PATTERNS):
        raise ModelError(f"its tokenizer is of the kind {kind!r}, {before!r}", where=file.path,
                         way_out=f"supported are llama, t5, bert, and gpt2 with {', '.join(_PATTERNS)}; or give the "
                                 "folder with the model's tokenizer.json")
    tokens, types = _vocabulary(file, kind)
    tree = {"gpt2": _byte_level, "llama": _pieces, "t5": _pieces, "bert": _words}[kind](file, tokens, types)
    names = {f"{role}_token": tokens[number] for role, number in _roles(file, kind, len(tokens))}
    tree["post_processor"] = _frame(file, kind, names, tokens)
    ends = [file.whole(key, below=1 << 32) for role in ("eot", "eom")
            if (key := f"tokenizer.ggml.{role}_token_id") in said]
    return public.made(tree, names, template=file.text("tokenizer.chat_template", ""), where=file.path,
                       stops=[number for number in ends if number < len(tokens)])


def _vocabulary(file: GGUF, kind: str) -> tuple[list[str], list[int]]:
    """Tokens, those of WordPiece with BERT's mark, and the type of each."""
    tokens, key = file.metadata.get("tokenizer.ggml.tokens"), "tokenizer.ggml.token_type"
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise ModelError("its vocabulary is damaged: tokens lack", where=file.path, way_out=FILE_AGAIN)
    types = file.numbers(key, len(tokens))[: len(tokens)] if key in file.metadata else [1] * len(tokens)
    if kind == "bert":
        tokens = [t if of == CONTROL else t.removeprefix(SPACE) if t.startswith(SPACE) else f"##{t}"
                  for t, of in zip(tokens, types, strict=True)]
    elif kind != "gpt2":  # spaces of what people defined were written out
        tokens = [t.replace(" ", SPACE) if of == USER else t for t, of in zip(tokens, types, strict=True)]
    if len(set(tokens)) != len(tokens):
        raise ModelError("its vocabulary is damaged: a token is there twice", where=file.path, way_out=FILE_AGAIN)
    return tokens, types


def _byte_level(file: GGUF, tokens: list[str], types: list[int]) -> dict[str, Any]:
    merges = file.metadata.get("tokenizer.ggml.merges")
    if not isinstance(merges, list) or not all(isinstance(merge, str) for merge in merges):
        raise ModelError("its vocabulary is damaged: merges lack", where=file.path, way_out=FILE_AGAIN)
    pattern, digits, whole = _PATTERNS[file.metadata.get("tokenizer.ggml.pre", "default")]
    tree = public.byte_level({t: i for i, t in enumerate(tokens)}, merges,
                             pattern=None if pattern == "gpt2" else word_pattern(pattern), digits=digits,
                             where=file.path)
    tree["model"]["ignore_merges"] = whole
    tree["added_tokens"] = [added_token(i, tokens[i], special=of == CONTROL) for i, of in enumerate(types)
                            if of in (CONTROL, USER)]
    return tree


def _pieces(file: GGUF, tokens: list[str], types: list[int]) -> dict[str, Any]:
    said, kind = file.metadata, BPE if file.metadata["tokenizer.ggml.model"] == "llama" else UNIGRAM
    scores, rules = file.numbers("tokenizer.ggml.scores", len(tokens), float), "tokenizer.ggml.precompiled_charsmap"
    charsmap = file.numbers(rules, 0) if rules in said else []
    model = sentencepiece_file.Model(
        [(t, float(s), of) for t, s, of in zip(tokens, scores, types, strict=False)], kind,
        charsmap=bytes(c & 0xFF for c in charsmap) if kind == UNIGRAM else b"",
        dummy_prefix=file.flag("tokenizer.ggml.add_space_prefix", kind == BPE),
        one_space=kind == UNIGRAM and file.flag("tokenizer.ggml.remove_extra_whitespaces", False))
    if UNKNOWN not in types and BYTE not in types:
        raise ModelError("its vocabulary is damaged: it has neither bytes nor an unknown token", where=file.path,
                         way_out=FILE_AGAIN)
    return sentencepiece_file.tree(model)


def _words(file: GGUF, tokens: list[str], types: list[int]) -> dict[str, Any]:
    lower = file.flag("tokenizer.ggml.normalizer.lowercase", True)
    tree = public.word_pieces(tokens, lower=lower)
    tree["normalizer"]["strip_accents"] = file.flag("tokenizer.ggml.normalizer.strip_accents", lower)
    tree["added_tokens"] = [added_token(i, tokens[i], special=of == CONTROL) for i, of in enumerate(types)
                            if of in (CONTROL, USER)]
    unknown = dict(_roles(file, "bert", len(tokens))).get("unk")
    if unknown is not None:
        tree["model"]["unk_token"] = tokens[unknown]
    return tree


def _frame(file: GGUF, kind: str, names: dict[str, str], tokens: list[str]) -> dict[str, Any] | None:
    """What stands around a text."""
    asked = {role: file.flag(f"tokenizer.ggml.add_{role}_token", plain)
             for role, plain in zip(("bos", "eos", "sep"), _FRAMES[kind], strict=True)}
    before, behind = ([names[f"{role}_token"] for role in roles if asked[role] and f"{role}_token" in names]
                      for roles in (("bos",), ("eos", "sep")))
    if not before and not behind:
        return None
    single = [*_special(before), {"Sequence": {"id": "A", "type_id": 0}}, *_special(behind)]
    second = [{"Sequence": {"id": "B", "type_id": 1}}, *_special(behind)]
    return {"type": "TemplateProcessing", "single": single, "pair": [*single, *second], "special_tokens": {
        name: {"id": name, "ids": [tokens.index(name)], "tokens": [name]} for name in {*before, *behind}}}


def _special(names: list[str]) -> list[dict[str, Any]]:
    return [{"SpecialToken": {"id": name, "type_id": 0}} for name in names]


def _roles(file: GGUF, kind: str, count: int) -> Iterator[tuple[str, int]]:
    for role, key in _KEYS.items():
        number = file.metadata.get(f"tokenizer.ggml.{key}_token_id")
        named = _NAMED.get(kind, {}).get(role)
        if number is None and named is not None and named < count:
            yield role, named
        elif isinstance(number, int) and not isinstance(number, bool) and 0 <= number < count:
            yield role, number
        elif number is not None:
            raise ModelError(f"its {role} token {number!r} is not in its vocabulary of {count}", where=file.path,
                             way_out=FILE_AGAIN)
