"""Tokenizer: a frozen value over the `tokenizers` library; text in, ids out, and back byte for byte.

Text never becomes a control token: the encoder is built without them. Corpora go through `gigatoken` where it
supports the vocabulary and a sample gives equal ids (some fifty times faster), else through `tokenizers`.
"""

from __future__ import annotations

import codecs
import json
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cutaway.errors import FOLDER_AGAIN, TokenizerError
from cutaway.records import atomic_write, digest
from cutaway.text.spelling import Spelling, spelling_of
from cutaway.text.template import CHAT_TEMPLATE
from cutaway.text.vocabulary import (
    CONTROL_TOKENS,
    MASK_TOKEN,
    AnyTokenizerSettings,
    ByteSettings,
    CharSettings,
    SubwordSettings,
    TokenizerSettings,
    backend,
    control_tokens,
    learn,
    span_token,
)

if TYPE_CHECKING:
    import tokenizers

__all__ = ["CONTROL_TOKENS", "ROLES", "AnyTokenizerSettings", "ByteSettings", "CharSettings", "Decoder",
           "SubwordSettings", "Tokenizer", "TokenizerSettings", "load", "train"]

Flat = tuple[NDArray[np.uint32], NDArray[np.int64]]
ROLES = ("user", "assistant", "system")
# No UTF-8 text holds this byte, so it parts documents in one buffer without a search for a safe separator.
_SEPARATOR = b"\xff"
_SAMPLE_BYTES = 100_000
# What tokenizers disagree on first: spaces, line ends, digits, contractions, scripts, marks, control tokens as text.
_SAMPLE = "  two\n\n\tthree \r\n 1234567 I'LL they're <|bos|> naïve cafe\u0301 Ωmega 漢字 🙂\u200d \u2028 \0 ... ()=>{}"


@dataclass(frozen=True, slots=True)
class Roles:
    """Which control tokens do what, by name. ``begin`` and ``finish`` stand around a text that is read; ``bos`` begins
    what is written behind nothing; ``end`` ends a turn; ``user`` and its like are there in our own template alone."""

    pad: str
    bos: str
    eos: str
    end: str
    begin: tuple[str, ...]
    finish: tuple[str, ...]
    mask: str | None = None
    stops: tuple[str, ...] = ()  # end a text beside eos and end
    template: str = CHAT_TEMPLATE
    public: bool = True  # somebody else's


OURS = Roles("<|pad|>", "<|bos|>", "<|eos|>", "<|end|>", ("<|bos|>",), ("<|eos|>",), MASK_TOKEN, public=False)


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A vocabulary with its rules. ``json`` is the public tokenizer.json; ``learned_from`` says what text it saw."""

    kind: str
    json: str = field(repr=False)
    learned_from: dict[str, Any] = field(default_factory=dict)
    roles: Roles = OURS

    @classmethod
    def of_tree(cls, kind: str, tree: dict[str, Any], roles: Roles) -> Tokenizer:
        """Of a tokenizer.json that was parsed already, and is not changed from now on."""
        made = cls(kind, json.dumps(tree, ensure_ascii=False), {}, roles)
        made.__dict__["_tree"] = tree  # where the cached property looks
        return made

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    @cached_property
    def digest(self) -> str:
        """sha256 of tokenizer.json: equal digests give equal ids."""
        return digest(self.json.encode())

    @cached_property
    def _model(self) -> tokenizers.Tokenizer:
        """The encoder without its control tokens: what is not there cannot be matched in anybody's text."""
        try:
            return backend(without_control(self._tree, self._hidden))
        except Exception as error:  # the library raises Exception itself
            raise TokenizerError(f"tokenizer.json is damaged ({str(error)[:200]})", way_out=FOLDER_AGAIN) from None

    @cached_property
    def _hidden(self) -> dict[str, str]:
        """The control tokens, each by a name that nobody can write: some models find their vocabulary's own entries in
        any text. What stands for the unknown keeps its own."""
        secret, unknown = secrets.token_hex(16), (self._tree.get("model") or {}).get("unk_token")
        return {name: f"\ufdd0{secret}{i}" for name, i in self._control.items() if name != unknown}

    @cached_property
    def _tree(self) -> dict[str, Any]:
        tree: dict[str, Any] = json.loads(self.json)
        return tree

    @cached_property
    def _control(self) -> dict[str, int]:
        return {token["content"]: token["id"] for token in self._tree["added_tokens"] if token.get("special")}

    @cached_property
    def _control_names(self) -> dict[int, str]:
        return {i: name for name, i in self._control.items()}

    @cached_property
    def spelling(self) -> Spelling:
        """How tokens spell bytes."""
        return spelling_of(self._tree)

    @cached_property
    def _table(self) -> list[bytes]:
        """The bytes of every id; a control token has none."""
        table, plain = [b""] * self.vocab_size, {t["content"] for t in self._tree["added_tokens"]}
        hidden = {*self._control, *self._hidden.values()}
        for token, i in self._model.get_vocab(with_added_tokens=True).items():
            if token not in hidden:
                table[i] = self.spelling.bytes_of_added(token) if token in plain else self.spelling.bytes_of(token, i)
        return table

    @cached_property
    def vocab_size(self) -> int:
        """Ids run from 0 to this, control tokens included."""
        return 1 + max(*self._model.get_vocab(with_added_tokens=True).values(), *self._control.values(), -1)

    @property
    def pad_id(self) -> int:
        """Fills a row; never learned."""
        return self._control[self.roles.pad]

    @property
    def bos_id(self) -> int:
        """Begins a document or a conversation, and what is written beside a source."""
        return self._control[self.roles.bos]

    @property
    def eos_id(self) -> int:
        """Ends a document."""
        return self._control[self.roles.eos]

    @property
    def end_id(self) -> int:
        """Ends a turn."""
        return self._control[self.roles.end]

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Every id that ends what is written."""
        names = (self.roles.eos, self.roles.end, *self.roles.stops)
        return tuple(dict.fromkeys(self._control[name] for name in names))

    @cached_property
    def begin_ids(self) -> tuple[int, ...]:
        """Stand before a text that is read or continued."""
        return tuple(self._control[name] for name in self.roles.begin)

    @cached_property
    def finish_ids(self) -> tuple[int, ...]:
        """Stand behind a text that is read whole."""
        return tuple(self._control[name] for name in self.roles.finish)

    @property
    def mask_id(self) -> int:
        """Stands for a token that is to be found. Raises TokenizerError where the vocabulary has none."""
        return self._gap(self.roles.mask or MASK_TOKEN)

    @property
    def span_ids(self) -> tuple[int, ...]:
        """Stand for gaps, the first, the second and so on. Raises TokenizerError where the vocabulary has none."""
        count = sum(span_token(i) in self._control for i in range(len(self._control)))
        return tuple(self._gap(span_token(i)) for i in range(max(1, count)))

    def _gap(self, name: str) -> int:
        if name not in self._control:
            raise TokenizerError(f"this vocabulary has no {name}",
                                 way_out="learn one with tokenizer.masks set to the number of gaps a row may have")
        return self._control[name]

    def turn_id(self, role: str) -> int:
        """The token that begins a turn of ``role``: user, assistant or system."""
        if role not in ROLES:
            raise TokenizerError(f"no role {role!r}", way_out=f"the roles are {', '.join(ROLES)}")
        return self._control[f"<|{role}|>"]

    @property
    def control_ids(self) -> tuple[int, ...]:
        """Every id that no text encodes to."""
        return tuple(self._control.values())

    def encode(self, text: str) -> list[int]:
        """The ids of ``text``; ``<|end|>`` and its like inside are text as any other."""
        model = self._model
        try:
            return list(model.encode(text, add_special_tokens=False).ids)
        except (UnicodeEncodeError, TypeError):
            raise _no_utf8(text) from None
        except Exception as error:  # the library raises Exception itself
            raise _no_token(text, error) from None

    def encode_places(self, text: str, *, first: bool = True) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of ``text`` and the letters of it that each stands for, from one and to the next. ``first``: nothing
        stands before it, which some vocabularies show by a space."""
        if not text:
            return [], []
        model = self._model if first else self._inner
        try:
            found = model.encode(text, add_special_tokens=False)
        except (UnicodeEncodeError, TypeError):
            raise _no_utf8(text) from None
        except Exception as error:  # the library raises Exception itself
            raise _no_token(text, error) from None
        return list(found.ids), list(found.offsets)

    @cached_property
    def _inner(self) -> tokenizers.Tokenizer:
        """The encoder of what stands behind a control token: without the space that some put before a whole text."""
        cut = self._tree.get("pre_tokenizer") or {}
        if cut.get("type") != "Metaspace" or cut.get("prepend_scheme") != "first":
            return self._model
        tree = self._tree | {"pre_tokenizer": cut | {"prepend_scheme": "never"}}
        return backend(without_control(tree, self._hidden))

    @property
    def control_flags(self) -> dict[str, tuple[int, bool, bool]]:
        """Each control token's id, and whether it takes the space before it and behind it."""
        return {token["content"]: (token["id"], bool(token.get("lstrip")), bool(token.get("rstrip")))
                for token in self._tree["added_tokens"] if token.get("special")}

    def encode_documents(self, texts: Iterable[str]) -> list[NDArray[np.uint32]]:
        """The ids of each text, equal to ``encode``, at a corpus's speed."""
        ids, lengths = self.encode_flat(list(texts))
        return np.split(ids, np.cumsum(lengths)[:-1]) if len(lengths) else []

    def encode_flat(self, texts: Sequence[str], *, fast: bool | None = None) -> Flat:
        """All ids one after another, and how many belong to each text; ``fast`` is ``agrees(texts)`` if not given."""
        try:
            data = [text.encode() for text in texts]
        except UnicodeEncodeError as error:
            raise _no_utf8(error.object) from None
        if self._fast is not None and (self.agrees(texts) if fast is None else fast):
            return _encode_joined(self._fast, data)
        try:
            rows = [e.ids for e in self._model.encode_batch_fast(list(texts), add_special_tokens=False)]
        except Exception as error:  # the library raises Exception itself
            raise _no_token("a text", error) from None
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        return np.fromiter((i for row in rows for i in row), np.uint32, int(lengths.sum())), lengths

    @cached_property
    def _fast(self) -> Any | None:
        """gigatoken's encoder if it takes this vocabulary, else None."""
        if self.spelling.name != "bytes":
            return None
        try:
            import gigatoken

            return gigatoken.Tokenizer(self._model)
        except (ImportError, RuntimeError, ValueError, TypeError):
            return None

    def agrees(self, texts: Iterable[str]) -> bool:
        """Whether gigatoken takes this vocabulary and gives the ids of ``tokenizers`` on the head of ``texts``."""
        if self._fast is None:
            return False
        room, sample = _SAMPLE_BYTES, [_SAMPLE]
        for text in texts:
            sample.append(text[:room])
            room -= len(sample[-1])
            if room <= 0:
                break
        ids, _ = _encode_joined(self._fast, [text.encode() for text in sample])
        return [i for text in sample for i in self.encode(text)] == list(map(int, ids))

    def bytes_of(self, ids: Iterable[int]) -> bytes:
        """The bytes of any sequence of ids, exact; control tokens have none."""
        table = self._table
        try:
            return b"".join([table[i] for i in _natural(ids)])
        except IndexError:
            raise TokenizerError(f"an id is outside the vocabulary of {self.vocab_size}",
                                 way_out="use the tokenizer the model was trained with") from None

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the bytes; what is not UTF-8 shows as U+FFFD (``bytes_of`` keeps it exact). Where a vocabulary
        puts a space before every text, a first one is not shown."""
        if self.spelling.name == "words":  # the library knows what to join
            control = {*self.control_ids}
            words: str = self._model.decode([i for i in _natural(ids) if i not in control])
            return words
        text = self.bytes_of(ids).decode(errors="replace")
        return text.removeprefix(" ") if self.spelling.spaced else text

    def name_of(self, token_id: int) -> str:
        """How to show one token: a control token's name, or its text with unfinished bytes written \\xHH."""
        return self._control_names.get(token_id) or self.bytes_of([token_id]).decode(errors="backslashreplace")

    def stream(self) -> Decoder:
        """Decode while ids arrive: the pushes and the flush together are ``decode`` of them all."""
        return Decoder(self)

    def save(self, folder: str | Path) -> None:
        """tokenizer.json and tokenizer_config.json, which transformers' AutoTokenizer reads with equal ids."""
        folder = Path(folder)
        if self.roles.public:
            return self._save_public(folder)
        extra = [t for t in self._control if t not in CONTROL_TOKENS[:3]]
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<|pad|>", "bos_token": "<|bos|>",
            "eos_token": "<|eos|>", "extra_special_tokens": extra, "chat_template": CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": False, "padding_side": "right",
            "cutaway": {"kind": self.kind, "digest": self.digest, "learned_from": self.learned_from},
        }
        atomic_write(folder / "tokenizer.json", self.json)
        atomic_write(folder / "tokenizer_config.json", json.dumps(config, indent=1, ensure_ascii=False) + "\n")

    def _save_public(self, folder: Path) -> None:
        r = self.roles
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": r.pad, "bos_token": r.bos,
                  "eos_token": r.eos, "mask_token": r.mask, "chat_template": r.template or None,
                  "clean_up_tokenization_spaces": False, "padding_side": "right",
                  "cutaway": {"kind": self.kind, "digest": self.digest, "learned_from": self.learned_from,
                              "roles": asdict(r)}}
        atomic_write(folder / "tokenizer.json", self.json)
        atomic_write(folder / "tokenizer_config.json", json.dumps({k: v for k, v in config.items() if v is not None},
                                                                  indent=1, ensure_ascii=False) + "\n")


class Decoder:
    """Text from ids one at a time; a character that is not complete yet is held back."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The text that this id completes, often a character or two, perhaps nothing."""
        return self._utf8.decode(self._tokenizer.bytes_of([token_id]))

    def flush(self) -> str:
        """What is still held back, as U+FFFD; the decoder starts afresh."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest


def without_control(tree: Mapping[str, Any], hidden: Mapping[str, str]) -> dict[str, Any]:
    """A tokenizer.json whose control tokens cannot be met: none of them is added, those of the model's own vocabulary
    have the name in ``hidden``, and no merge makes one."""
    model = dict(tree["model"])
    vocab = model.get("vocab")
    if isinstance(vocab, dict):
        model["vocab"] = {hidden.get(token, token): i for token, i in vocab.items()}
    elif isinstance(vocab, list):
        model["vocab"] = [[hidden.get(token, token), score] for token, score in vocab]
    if model.get("merges"):
        pairs = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
        model["merges"] = [pair for pair in pairs if "".join(pair) not in hidden]
    return {**tree, "model": model, "post_processor": None, "padding": None, "truncation": None,
            "added_tokens": [t for t in tree["added_tokens"] if not t.get("special")]}


def _no_utf8(text: object) -> TokenizerError:
    return TokenizerError(f"{str(text)[:40]!a} is not text that UTF-8 can hold", way_out="remove the lone surrogates")


def _no_token(text: str, error: Exception) -> TokenizerError:
    return TokenizerError(f"this vocabulary cannot spell {text[:40]!a} ({str(error)[:80]})",
                          way_out="use a tokenizer with a token for the unknown")


def _natural(ids: Iterable[int]) -> Iterator[int]:
    for i in ids:
        if i < 0:
            raise IndexError
        yield i


def _encode_joined(fast: Any, data: Sequence[bytes]) -> Flat:
    """One buffer for all documents (a list of them is several times slower); empty ones encode to nothing."""
    import gigatoken

    lengths = np.zeros(len(data), np.int64)
    filled = [i for i, d in enumerate(data) if d]
    if not filled:
        return np.zeros(0, np.uint32), lengths
    layout = fast.encode_batch(gigatoken.BytesSource(_SEPARATOR.join([data[i] for i in filled]), _SEPARATOR)).layout
    offsets = np.asarray(layout.offsets.data)
    if len(offsets) != len(filled) + 1:
        raise TokenizerError(f"gigatoken returned {len(offsets) - 1} documents of {len(filled)}")
    lengths[filled] = np.diff(offsets)
    return np.asarray(layout.content.data)[offsets[0] : offsets[-1]], lengths


def train(settings: AnyTokenizerSettings, documents: Iterable[Any]) -> Tokenizer:
    """A tokenizer learned from documents (or plain strings), at most ``settings.sample_bytes`` of them.

    Deterministic in the text and the settings. Raises TokenizerError when the text does not support the vocabulary.
    """
    limit = None if isinstance(settings, ByteSettings) else settings.sample_bytes
    seen = {"documents": 0, "bytes": 0, "all": True}
    model, control = learn(settings, _texts(documents, limit, seen)), control_tokens(settings)
    from tokenizers import AddedToken

    model.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in control])
    made = Tokenizer(settings.kind, model.to_str(pretty=True) + "\n", seen)
    clash = set(control) & set(made._model.get_vocab())
    if clash:
        raise TokenizerError(f"the text made {sorted(clash)} a token of its own", way_out="use another pattern or kind")
    return made


def _texts(documents: Iterable[Any], limit: int | None, seen: dict[str, Any]) -> Iterator[str]:
    for document in documents if limit is not None else ():
        text = document if isinstance(document, str) else document.text
        if limit is not None and seen["bytes"] >= limit:
            seen["all"] = False
            return
        seen["documents"] += 1
        seen["bytes"] += len(text.encode())
        yield text


def load(folder: str | Path) -> Tokenizer:
    """The tokenizer of a model folder, ours or a public one. Raises TokenizerError naming the file that is missing or
    damaged."""
    folder = Path(folder)
    if not _is_ours(folder):
        from cutaway.text.public import read

        return read(folder)
    parts = []
    for name in ("tokenizer.json", "tokenizer_config.json"):
        try:
            parts.append((folder / name).read_text("utf-8"))
            json.loads(parts[-1])
        except FileNotFoundError:
            raise TokenizerError("no such file", where=folder / name,
                                 way_out="name a folder that holds a tokenizer") from None
        except (OSError, ValueError) as error:
            raise TokenizerError(f"damaged or unreadable ({error})", where=folder / name,
                                 way_out="copy it again or learn it anew") from None
    text, config = parts[0], json.loads(parts[1])
    ours = config.get("cutaway") if isinstance(config, dict) else None
    if not isinstance(ours, dict) or "kind" not in ours:
        raise TokenizerError("damaged: it does not say of what kind it is", where=folder / "tokenizer_config.json",
                             way_out="copy it again or learn it anew")
    if digest(text.encode()) != ours.get("digest"):
        raise TokenizerError("damaged: its sha256 is not the one it was saved with", where=folder / "tokenizer.json",
                             way_out="copy it again or learn it anew")
    roles = ours.get("roles")
    if roles is not None:
        return Tokenizer(ours["kind"], text, ours.get("learned_from", {}), _roles(roles, folder))
    made = Tokenizer(ours["kind"], text, ours.get("learned_from", {}))
    missing = [t for t in CONTROL_TOKENS if t not in made._control]
    if missing:
        raise TokenizerError(f"lacks {', '.join(missing)}", where=folder / "tokenizer.json")
    return made


def _is_ours(folder: Path) -> bool:
    """Whether the folder's tokenizer was saved here, or nothing of one is there that could be read."""
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    except (OSError, ValueError):
        other = ("tokenizer.json", "vocab.json", "vocab.txt", "*.tiktoken", "*.model")
        return not any(path.is_file() for name in other for path in folder.glob(name))
    return isinstance(config, dict) and "cutaway" in config


def _roles(tree: dict[str, Any], folder: Path) -> Roles:
    try:
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in tree.items()}
        return Roles(**given)
    except TypeError as error:
        raise TokenizerError(f"damaged: its roles are {error}", where=folder / "tokenizer_config.json",
                             way_out="copy it again") from None
