"""Somebody else's tokenizer: a folder with tokenizer.json, or with the files that came before it.

What its control tokens do is read off tokenizer_config.json, special_tokens_map.json and what the tokenizer itself puts
around a text. Nothing of it is executed; its chat template runs in the sandbox (``chat``).
"""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cutaway.errors import FOLDER_AGAIN, CutawayError, TokenizerError
from cutaway.text import sentencepiece_file
from cutaway.text.spelling import SPACE
from cutaway.text.tokenizer import Roles, Tokenizer
from cutaway.text.vocabulary import added_token, backend, letters_of, word_pattern

NAMES = ("pad_token", "bos_token", "eos_token", "mask_token", "cls_token", "sep_token", "unk_token")
CUSTOM = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
LARGEST = 64 << 20  # bytes of a tokenizer's file
LONGEST_PIECE = 512  # SentencePiece's own limit is 16 where nothing else is asked for
LARGEST_ID = 1 << 22  # a table of every id is made


def read(folder: Path) -> Tokenizer:
    """The tokenizer of a public folder. Raises TokenizerError for files that are missing, damaged or contradictory."""
    config = _config(folder)
    tree = _tree(folder, config)
    if not (folder / "tokenizer.json").exists():  # older files name their control tokens by custom
        there = {token["content"] for token in tree["added_tokens"]}
        config = {kind: name for kind, name in CUSTOM.items() if name in there} | config
    generation = _json(folder / "generation_config.json") if (folder / "generation_config.json").exists() else {}
    model = _json(folder / "config.json") if (folder / "config.json").exists() else {}
    start = generation.get("decoder_start_token_id", model.get("decoder_start_token_id"))
    ends = generation.get("eos_token_id")
    stops = [ends] if isinstance(ends, int) else ends if isinstance(ends, list) else []
    return made(tree, config, template=_template(folder, config), start=start if isinstance(start, int) else None,
                stops=[s for s in stops if isinstance(s, int)], where=folder)


def made(tree: dict[str, Any], names: Mapping[str, Any], *, template: str = "", start: int | None = None,
         stops: Sequence[int] = (), where: object) -> Tokenizer:
    """A tokenizer.json and the names of its control tokens as our value. ``start`` begins what is written beside a
    source; ``stops`` end a text beside eos."""
    try:
        return _made(tree, names, template, start, stops, where)
    except CutawayError:
        raise
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, OverflowError) as error:
        raise TokenizerError(f"does not describe a tokenizer ({type(error).__name__}: {str(error)[:80]})", where=where,
                             way_out=FOLDER_AGAIN) from None


def _check_prefix(model: Any, where: object) -> None:
    """The library cuts a continuing prefix off the second half of each merge, and takes the process with it where that
    cuts a letter in two. Raises TokenizerError where a merge has another beginning."""
    prefix = model.get("continuing_subword_prefix") if isinstance(model, dict) else None
    if not prefix or model.get("type", "BPE") != "BPE":
        return
    seconds = [merge.partition(" ")[2] if isinstance(merge, str) else merge[1] for merge in model.get("merges") or ()]
    if not isinstance(prefix, str) or not all(second.startswith(prefix) for second in seconds):
        raise TokenizerError(f"its merges do not go on with continuing_subword_prefix {prefix!r}", where=where,
                             way_out=FOLDER_AGAIN)


def _made(tree: dict[str, Any], names: Mapping[str, Any], template: str, start: int | None, stops: Sequence[int],
          where: object) -> Tokenizer:
    tree = {**tree, "padding": None, "truncation": None}
    tree["added_tokens"] = list(tree.get("added_tokens") or [])
    _check_prefix(tree.get("model"), where)
    try:
        whole = backend(tree)
    except Exception as error:  # the library raises Exception itself
        raise TokenizerError(f"tokenizer.json is damaged ({error})", where=where, way_out=FOLDER_AGAIN) from None
    if (highest := max(whole.get_vocab(with_added_tokens=True).values(), default=0)) > LARGEST_ID:
        raise TokenizerError(f"its vocabulary holds the id {highest:,}", where=where, way_out=FOLDER_AGAIN)
    named = {kind: _named(names.get(kind)) for kind in NAMES}
    try:
        begin, finish = _frame(whole)
    except Exception as error:  # likewise
        raise TokenizerError(f"cannot spell a letter ({error})", where=where, way_out=FOLDER_AGAIN) from None
    bos = named["bos_token"] or named["cls_token"] or (begin[0] if begin else None)
    eos = named["eos_token"] or named["sep_token"] or (finish[-1] if finish else bos)
    if eos is None:
        raise TokenizerError("nothing says which token ends a text", where=where,
                             way_out="add eos_token to tokenizer_config.json")
    first = whole.id_to_token(start) if start is not None else None
    pad = named["pad_token"] or eos
    roles = Roles(pad, first or bos or eos, eos, eos, begin, finish, named["mask_token"], template=template,
                  stops=tuple(dict.fromkeys(t for t in map(whole.id_to_token, stops) if t and t != eos)))
    control = {*begin, *finish, roles.pad, roles.bos, eos, *roles.stops, *filter(None, named.values())}
    _declare(tree, whole, control, where)
    return Tokenizer.of_tree(str((tree.get("model") or {}).get("type", "bpe")).lower(), tree, roles)


def _named(value: object) -> str | None:
    """A token in a config: its text, or an object that holds it."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def _frame(whole: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What the tokenizer itself puts before and behind a text."""
    plain, framed = (whole.encode("a", add_special_tokens=more).ids for more in (False, True))
    at = next((i for i in range(len(framed) - len(plain) + 1) if framed[i : i + len(plain)] == plain), 0)
    before, behind = framed[:at], framed[at + len(plain) :]
    return tuple(map(whole.id_to_token, before)), tuple(map(whole.id_to_token, behind))


def _declare(tree: dict[str, Any], whole: Any, control: set[str], where: object) -> None:
    """Every control token is one in tokenizer.json too, so that no text can spell it."""
    known = {token["content"]: token for token in tree["added_tokens"]}
    for name in sorted(control):
        number = whole.token_to_id(name)
        if number is None:
            raise TokenizerError(f"its control token {name!r} is not in the vocabulary", where=where,
                                 way_out=FOLDER_AGAIN)
        if name in known:
            known[name]["special"] = True
            continue
        tree["added_tokens"].append(added_token(number, name))
    tree["added_tokens"].sort(key=lambda token: token["id"])


def _config(folder: Path) -> dict[str, Any]:
    """All that is said of control tokens; special_tokens_map.json says what tokenizer_config.json does not."""
    found: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).exists():
            found |= {k: v for k, v in _json(folder / name).items() if v is not None}
    return found


def _template(folder: Path, config: Mapping[str, Any]) -> str:
    """The chat template: of several the one called default."""
    if (folder / "chat_template.jinja").is_file():
        return _text(folder / "chat_template.jinja")
    found = config.get("chat_template")
    if isinstance(found, list):
        found = next((t.get("template") for t in found if isinstance(t, dict) and t.get("name") == "default"), None)
    return found if isinstance(found, str) else ""


def _tree(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    if (folder / "tokenizer.json").exists():
        return _json(folder / "tokenizer.json")
    if (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        vocab, merges = _json(folder / "vocab.json"), _text(folder / "merges.txt").split("\n")
        return byte_level(vocab, [m for m in merges if m and not m.startswith("#version")], where=folder)
    if (folder / "vocab.txt").exists():
        return word_pieces(_text(folder / "vocab.txt").splitlines(), lower=config.get("do_lower_case", True))
    for path in sorted(folder.glob("*.tiktoken")):
        return with_added(ranked(_text(path), where=path), config)
    for path in sorted(folder.glob("*.model")):
        return sentencepiece_file.tree(sentencepiece_file.read(path, _read(path)))
    raise TokenizerError("holds no tokenizer.json, vocab.json with merges.txt, vocab.txt, *.tiktoken or *.model",
                         where=folder, way_out="name a folder that holds a tokenizer")


def ranked(text: str, *, where: object) -> dict[str, Any]:
    """A tokenizer.json of tiktoken's ranks: a line a token, its bytes in base64 and its number."""
    ranks: dict[bytes, int] = {}
    for line in filter(None, text.split("\n")):
        try:
            token, number = line.split(" ")
            ranks[base64.b64decode(token, validate=True)] = int(number)
        except ValueError:
            raise TokenizerError(f"a line of it is {line[:40]!r}", where=where, way_out=FOLDER_AGAIN) from None
    if len(set(ranks.values())) != len(ranks) or any(bytes([b]) not in ranks for b in range(256)):
        raise TokenizerError("lacks a byte, or gives a number twice", where=where, way_out=FOLDER_AGAIN)
    merges = [pair for token in sorted(ranks, key=lambda t: ranks[t]) if len(token) > 1
              for pair in [_joined(token, ranks)] if pair is not None]
    vocab = {letters_of(token): number for token, number in ranks.items()}
    return byte_level(vocab, [f"{letters_of(a)} {letters_of(b)}" for a, b in merges], pattern=word_pattern("gpt4"),
                      where=where)


def _joined(token: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes] | None:
    """The two that a token was made of: what is left when only tokens of lower rank are joined. None for one that no
    merge makes."""
    parts, limit = [token[i : i + 1] for i in range(len(token))], ranks[token]
    while len(parts) > 2:
        found = min(((ranks.get(a + b, limit), i) for i, (a, b) in enumerate(itertools.pairwise(parts))))
        if found[0] >= limit:
            return None
        parts[found[1] : found[1] + 2] = [parts[found[1]] + parts[found[1] + 1]]
    return (parts[0], parts[1]) if len(parts) == 2 else None


def with_added(tree: dict[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """With the tokens that a tokenizer_config.json adds by their numbers."""
    added = config.get("added_tokens_decoder")
    for number, token in (added if isinstance(added, Mapping) else {}).items():
        if isinstance(token, Mapping) and str(number).isdecimal() and isinstance(token.get("content"), str):
            tree["added_tokens"].append(added_token(int(number), token["content"],
                                                    special=bool(token.get("special", True))))
    return tree


def byte_level(vocab: Mapping[str, int], merges: Sequence[str], *, pattern: str | None = None, digits: bool = False,
               where: object) -> dict[str, Any]:
    """A tokenizer.json of byte-level BPE. ``pattern`` cuts text into words first (GPT-2's where None); ``digits``: each
    digit stands alone."""
    pairs = [m.split(" ") for m in merges]
    wrong = next((m for m, pair in zip(merges, pairs, strict=True) if len(pair) != 2 or pair[0] + pair[1] not in vocab),
                 None)
    if wrong is not None:
        raise TokenizerError(f"the merge {wrong!r} makes no token of the vocabulary", where=where, way_out=FOLDER_AGAIN)
    steps: list[dict[str, Any]] = [{"type": "Digits", "individual_digits": True}] if digits else []
    if pattern is not None:
        steps.append({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False})
    steps.append({"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": pattern is None})
    return {"version": "1.0", "added_tokens": [], "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}, "post_processor": None,
            "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                      "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                      "ignore_merges": False, "vocab": dict(vocab), "merges": pairs}}


def sentence_pieces(vocab: Mapping[str, int], merges: Sequence[Sequence[str]], *, bos: str) -> dict[str, Any]:
    """A tokenizer.json of SentencePiece's BPE as Llama 2 has it: a space before every text, ``bos`` before that, and
    what no piece spells in bytes."""
    added = [added_token(vocab[name], name) for name in ("<unk>", "<s>", "</s>")]
    text = {"Sequence": {"id": "A", "type_id": 0}}
    start = {"SpecialToken": {"id": bos, "type_id": 0}}
    return {"version": "1.0", "added_tokens": added, "pre_tokenizer": None,
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Prepend", "prepend": SPACE},
                {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]},
            "post_processor": {"type": "TemplateProcessing", "single": [start, text], "pair": [start, text, text],
                               "special_tokens": {bos: {"id": bos, "ids": [vocab[bos]], "tokens": [bos]}}},
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"},
                {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
            "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
                      "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
                      "vocab": dict(vocab), "merges": [list(pair) for pair in merges]}}


def merges_of(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """The merges of pieces with scores: every way to put a piece together from two others, the best piece first and of
    one piece the pair whose parts are best, as SentencePiece would have joined them. Raises TokenizerError for a piece
    so long that nobody learned it: looking at its parts takes time with the square of that."""
    if (longest := max(map(len, scores), default=0)) > LONGEST_PIECE:
        raise TokenizerError(f"its vocabulary holds a piece of {longest:,} letters", way_out=FOLDER_AGAIN)
    found = [(scores[piece], scores[piece[:cut]] + scores[piece[cut:]], piece[:cut], piece[cut:])
             for piece in scores for cut in range(1, len(piece)) if piece[:cut] in scores and piece[cut:] in scores]
    return [(first, second) for *_, first, second in sorted(found, key=lambda f: (-f[0], -f[1]))]


def word_pieces(tokens: Sequence[str], *, lower: bool) -> dict[str, Any]:
    """A tokenizer.json of BERT's WordPiece."""
    vocab = {token: i for i, token in enumerate(tokens)}
    cls, sep = ({"SpecialToken": {"id": name, "type_id": 0}} for name in ("[CLS]", "[SEP]"))
    text = {"Sequence": {"id": "A", "type_id": 0}}
    both = [cls, text, sep, {"Sequence": {"id": "B", "type_id": 1}}, {"SpecialToken": {"id": "[SEP]", "type_id": 1}}]
    special = {name: {"id": name, "ids": [vocab.get(name, 0)], "tokens": [name]} for name in ("[CLS]", "[SEP]")}
    added = [added_token(vocab[name], name) for name in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if name in vocab]
    return {"version": "1.0", "added_tokens": added,
            "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
                           "strip_accents": None, "lowercase": lower},
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": {"type": "TemplateProcessing", "single": [cls, text, sep], "pair": both,
                               "special_tokens": special},
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
            "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                      "max_input_chars_per_word": 100, "vocab": vocab}}


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > LARGEST:
            raise TokenizerError(f"of {path.stat().st_size:,} bytes is no tokenizer's file", where=path,
                                 way_out=FOLDER_AGAIN)
        return path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"cannot be read ({error.strerror or error})", where=path, way_out=FOLDER_AGAIN) from None


def _text(path: Path) -> str:
    try:
        return _read(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"damaged or unreadable ({error})", where=path, way_out=FOLDER_AGAIN) from None


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"damaged or unreadable ({error})", where=path, way_out=FOLDER_AGAIN) from None
    if not isinstance(value, dict):
        raise TokenizerError("holds no object", where=path, way_out=FOLDER_AGAIN)
    return value
