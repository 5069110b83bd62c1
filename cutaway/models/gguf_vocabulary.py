"""A tokenizer as GGUF's metadata: the way back of ``gguf_tokenizer``.

llama.cpp cuts text its own way, by the kind it is told; a tokenizer that none of its kinds equals is refused.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from cutaway.errors import ModelError
from cutaway.text.public import merges_of
from cutaway.text.spelling import SPACE
from cutaway.text.tokenizer import Tokenizer
from cutaway.text.vocabulary import word_pattern

if TYPE_CHECKING:
    import gguf

_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_WAY_OUT = ("byte-level BPE cut as by GPT-2, SmolLM, Llama 3 or Qwen 2, SentencePiece's BPE and BERT's WordPiece are "
            "supported")


def describe_tokens(writer: gguf.GGUFWriter, tokenizer: Tokenizer, vocab_size: int) -> None:
    """Write a tokenizer's vocabulary, rules, control tokens and template. Raises ModelError for one that llama.cpp
    would read otherwise."""
    tree = json.loads(tokenizer.json)
    kind = tree["model"].get("type")
    known = {"bytes": _byte_level, "spaces": _pieces, "words": _words}[tokenizer.spelling.name]
    wanted = "WordPiece" if tokenizer.spelling.name == "words" else "BPE"
    if kind != wanted:
        raise _no_place(tokenizer)
    tokens, types = _table(tree, vocab_size)
    known(writer, tokenizer, tree, tokens, types)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    _roles(writer, tokenizer, tree)
    if tokenizer.roles.template:
        writer.add_chat_template(tokenizer.roles.template)


def _no_place(tokenizer: Tokenizer, why: str = "that cuts words its own way") -> ModelError:
    return ModelError(f"a tokenizer of the kind {tokenizer.kind!r} {why} has no place in GGUF", way_out=_WAY_OUT)


def _table(tree: dict[str, Any], vocab_size: int) -> tuple[list[str], list[int]]:
    """The name and the type of every id; ids that nothing has are unused."""
    tokens, types = [f"<unused{i}>" for i in range(vocab_size)], [_UNUSED] * vocab_size
    for token, number in tree["model"]["vocab"].items():
        tokens[number], types[number] = token, _NORMAL
    for added in tree["added_tokens"]:
        tokens[added["id"]], types[added["id"]] = added["content"], _CONTROL if added.get("special") else _USER
    return tokens, types


def _roles(writer: gguf.GGUFWriter, tokenizer: Tokenizer, tree: dict[str, Any]) -> None:
    writer.add_bos_token_id(tokenizer.bos_id)
    writer.add_eos_token_id(tokenizer.eos_id)
    writer.add_pad_token_id(tokenizer.pad_id)
    if tree["model"]["type"] == "WordPiece":  # what stands around a text has names of its own there
        writer.add_sep_token_id(tokenizer.eos_id)
        writer.add_unk_token_id(tree["model"]["vocab"][tree["model"]["unk_token"]])
        if tokenizer.roles.mask:
            writer.add_mask_token_id(tokenizer.mask_id)
        writer.add_add_sep_token(bool(tokenizer.finish_ids))
    else:
        writer.add_eot_token_id(tokenizer.end_id)
        writer.add_add_eos_token(_closed(tokenizer))
    if tokenizer.begin_ids not in ((), (tokenizer.bos_id,)):
        raise _no_place(tokenizer, "with other tokens before a text than its bos")
    writer.add_add_bos_token(bool(tokenizer.begin_ids))


def _closed(tokenizer: Tokenizer) -> bool:
    """Whether eos stands behind every text that is read: of somebody else's. Ours stands behind whole documents, and
    what llama.cpp reads is continued."""
    if tokenizer.roles.public and tokenizer.finish_ids not in ((), (tokenizer.eos_id,)):
        raise _no_place(tokenizer, "with other tokens behind a text than its eos")
    return tokenizer.roles.public and bool(tokenizer.finish_ids)


def _byte_level(writer: gguf.GGUFWriter, tokenizer: Tokenizer, tree: dict[str, Any], tokens: list[str],
                types: list[int]) -> None:
    before = _before(tree)
    if before is None:
        raise _no_place(tokenizer)
    # llama.cpp takes a known word whole where Llama 3 does, and there alone
    if bool(tree["model"].get("ignore_merges")) != (before == "llama-bpe") and not _reached(tree):
        raise _no_place(tokenizer, "with words that its merges do not make")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(before)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in tree["model"]["merges"]])
    writer.add_add_space_prefix(False)


def _reached(tree: dict[str, Any]) -> bool:
    """Whether merges alone make every token of the vocabulary: then it is the same whether a word is taken whole."""
    from tokenizers import Tokenizer as Backend

    plain = {**tree, "added_tokens": [], "post_processor": None, "model": {**tree["model"], "ignore_merges": False}}
    model = Backend.from_str(json.dumps(plain)).model
    control = {token["content"] for token in tree["added_tokens"]}
    return all(len(model.tokenize(token)) == 1 for token in tree["model"]["vocab"] if token not in control)


def _before(tree: dict[str, Any]) -> str | None:
    """llama.cpp's name of how a tokenizer.json cuts text into words, or None where it has none."""
    steps = tree.get("pre_tokenizer") or {}
    parts = steps.get("pretokenizers") or [steps]
    kinds = [part.get("type") for part in parts]
    normal = (tree.get("normalizer") or {}).get("type")
    if parts[-1].get("add_prefix_space") or normal not in (None, "NFC"):
        return None
    if normal == "NFC" and kinds != ["Split", "ByteLevel"]:  # Qwen's own, which llama.cpp leaves out
        return None
    if kinds == ["ByteLevel"]:
        return "gpt-2" if parts[0].get("use_regex", True) else None
    if kinds == ["Digits", "ByteLevel"]:
        return "smollm" if parts[0].get("individual_digits") and parts[1].get("use_regex", True) else None
    if kinds != ["Split", "ByteLevel"] or parts[1].get("use_regex", True):
        return None
    regex = str((parts[0].get("pattern") or {}).get("Regex"))
    return {word_pattern("gpt4"): "llama-bpe", word_pattern("qwen2"): "qwen2"}.get(regex)


def _pieces(writer: gguf.GGUFWriter, tokenizer: Tokenizer, tree: dict[str, Any], tokens: list[str],
            types: list[int]) -> None:
    """SentencePiece's BPE: a piece's score is the rank of the first merge that makes it. llama.cpp joins any two
    pieces that make a third, so every such pair must be a merge and those of one piece must stand together."""
    model, prefix = tree["model"], _prefixed(tree)
    pairs = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    scores: dict[str, float] = {}
    for rank, pair in enumerate(pairs):
        scores.setdefault("".join(pair), -float(rank))
    spelled = [f"<0x{b:02X}>" for b in range(256)]
    bytes_there = model.get("byte_fallback") and all(token in model["vocab"] for token in spelled)
    if prefix is None or not bytes_there:
        raise _no_place(tokenizer, "that normalises text its own way, or spells no bytes,")
    for token in spelled:
        types[model["vocab"][token]] = _BYTE
    if (unknown := model["vocab"].get(model.get("unk_token"))) is not None:
        types[unknown] = _UNKNOWN
    normal = [token for token, of in zip(tokens, types, strict=True) if of == _NORMAL]
    ranked = {token: scores.get(token, -float(len(pairs))) for token in normal}
    ranks = [scores["".join(pair)] for pair in pairs]
    if set(merges_of(ranked)) != set(pairs) or ranks != sorted(ranks, reverse=True):
        raise _no_place(tokenizer, "whose merges are not those of SentencePiece")
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_scores([ranked.get(token, 0.0) for token in tokens])
    writer.add_add_space_prefix(prefix)
    for i, of in enumerate(types):
        if of == _USER:
            tokens[i] = tokens[i].replace(SPACE, " ")
    if unknown is not None:
        writer.add_unk_token_id(unknown)


def _prefixed(tree: dict[str, Any]) -> bool | None:
    """Whether a space stands before every text; None for rules that llama.cpp does not have."""
    normal = tree.get("normalizer") or {}
    steps = normal.get("normalizers", [normal] if normal else [])
    cut = tree.get("pre_tokenizer") or {}
    mark = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prefixes = [step for step in steps if step != mark]
    plain = cut.get("type") is None or (cut.get("type") == "Metaspace" and cut.get("prepend_scheme") == "never"
                                        and not cut.get("split", True)) or (
        cut.get("type") == "Split" and cut.get("pattern") == {"String": " "})  # Gemma's: no space is left there
    if not plain or len(steps) - len(prefixes) != 1 or len(prefixes) > 1:
        return None
    if not prefixes:
        return False
    first = prefixes[0]
    begins = str((first.get("pattern") or {}).get("Regex", "")).startswith("\\A(?!")
    known = first == {"type": "Prepend", "prepend": SPACE} or (begins and first.get("content") == SPACE)
    return True if known else None


def _words(writer: gguf.GGUFWriter, tokenizer: Tokenizer, tree: dict[str, Any], tokens: list[str],
           types: list[int]) -> None:
    """BERT's: a word's first piece has a mark there, and the others none."""
    normal, cut = tree.get("normalizer") or {}, tree.get("pre_tokenizer") or {}
    lower = bool(normal.get("lowercase"))
    strips = lower if normal.get("strip_accents") is None else bool(normal["strip_accents"])
    if (normal.get("type"), cut.get("type"), tokenizer.spelling.mark) != ("BertNormalizer", "BertPreTokenizer", "##"):
        raise _no_place(tokenizer)
    if not normal.get("clean_text", True) or not normal.get("handle_chinese_chars", True):
        raise _no_place(tokenizer, "that normalises text its own way")
    for i, (token, of) in enumerate(zip(tokens, types, strict=True)):
        if of == _NORMAL:
            tokens[i] = token.removeprefix("##") if token.startswith("##") else SPACE + token
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_bool("tokenizer.ggml.normalizer.lowercase", lower)
    writer.add_bool("tokenizer.ggml.normalizer.strip_accents", strips)
