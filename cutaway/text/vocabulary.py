"""Vocabularies: BPE (Sennrich 2016), WordPiece (Schuster 2012), unigram (Kudo 2018), bytes, characters, words.

Every kind stands on the same 256 byte tokens (GPT-2's byte alphabet), so no text is unknown to any of them: what a
vocabulary lacks is spelled in bytes, and every token has bytes of its own, whatever stands before it.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from cutaway.errors import TokenizerError
from cutaway.settings import Settings
from cutaway.text.unigram import learn_pieces

if TYPE_CHECKING:
    import tokenizers

CONTROL_TOKENS = ("<|pad|>", "<|bos|>", "<|eos|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
MASK_TOKEN = "<|mask|>"
# WordPiece's mark of a continuation. BERT's "##" is also text, so "##a" could be either; an arrow is no byte letter.
CONTINUATION = "↪"
# A word longer than this is cut before the quadratic kinds (wordpiece, unigram) see it.
LONGEST_WORD = 64
# BPE is learned from pieces of a run of text or space longer than this: its cost there grows with its square too.
LONGEST_LEARNED = 1000

_SPACES, _RUNS = re.compile(rf"\s{{{LONGEST_LEARNED + 1}}}"), re.compile(r"\S++|\s++")

Pattern = Literal["gpt2", "gpt4", "qwen2"]
_DIGITS = {"gpt4": r"\p{N}{1,3}", "qwen2": r"\p{N}"}


class SubwordSettings(Settings):
    """A vocabulary of ``vocab_size`` tokens, control tokens and the byte alphabet included.

    ``pattern`` says how text is cut into words first: gpt2 keeps whole numbers and joins a newline to the
    indentation after it, gpt4 takes 1-3 digits and joins punctuation to the newline after it, qwen2 single digits.
    ``sample_bytes`` bounds the text that is learned from; the tokenizer's folder says how much it was.
    ``masks`` adds <|mask|> and that many <|span_i|>, for what learns by filling gaps; 0 adds none of them.
    """

    kind: Literal["bpe", "wordpiece", "unigram", "word"] = "bpe"
    vocab_size: int = Field(4096, gt=0)
    pattern: Pattern = "gpt4"
    min_frequency: int = Field(2, ge=1)
    sample_bytes: int = Field(200_000_000, gt=0)
    masks: int = Field(0, ge=0)


class CharSettings(Settings):
    """The 256 bytes and every other character seen ``min_frequency`` times; rarer ones are spelled in bytes."""

    kind: Literal["char"] = "char"
    min_frequency: int = Field(1, ge=1)
    sample_bytes: int = Field(200_000_000, gt=0)
    masks: int = Field(0, ge=0)


class ByteSettings(Settings):
    """The 256 bytes and nothing to learn."""

    kind: Literal["byte"] = "byte"
    masks: int = Field(0, ge=0)


TokenizerSettings = Annotated[SubwordSettings | CharSettings | ByteSettings, Field(discriminator="kind")]
AnyTokenizerSettings = SubwordSettings | CharSettings | ByteSettings


def span_token(number: int) -> str:
    """The name of the sentinel that stands for gap ``number``."""
    return f"<|span_{number}|>"


def control_tokens(settings: AnyTokenizerSettings) -> tuple[str, ...]:
    """What stands behind the learned vocabulary, in the order of their ids."""
    if not settings.masks:
        return CONTROL_TOKENS
    return (*CONTROL_TOKENS, MASK_TOKEN, *map(span_token, range(settings.masks)))


@cache
def byte_letters() -> tuple[str, ...]:
    """GPT-2's letter for each of the 256 bytes: printable ones stand for themselves, the others move above 255."""
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    moved = itertools.count(0x100)
    return tuple(chr(b) if b in plain else chr(next(moved)) for b in range(256))


def letters_of(data: bytes) -> str:
    """Bytes in the byte alphabet."""
    letters = byte_letters()
    return "".join(letters[b] for b in data)


@cache
def _bytes_by_letter() -> dict[str, int]:
    return {letter: byte for byte, letter in enumerate(byte_letters())}


def bytes_of_letters(token: str) -> bytes | None:
    """The bytes that a token of the byte alphabet stands for; None if it has a letter of no byte."""
    table = _bytes_by_letter()
    try:
        return bytes([table[letter] for letter in token])
    except KeyError:
        return None


def learn(settings: AnyTokenizerSettings, texts: Iterable[str]) -> tokenizers.Tokenizer:
    """A ``tokenizers`` object without control tokens, learned from ``texts``.

    Raises TokenizerError when the text does not support the vocabulary asked for, naming both numbers.
    """
    if isinstance(settings, ByteSettings):
        return _whole_words((), _cutter(None))
    if isinstance(settings, CharSettings):
        counts = Counter(itertools.chain.from_iterable(texts))
        seen = sorted(c for c, n in counts.items() if n >= settings.min_frequency and ord(c) > 0x7F)
        return _whole_words([c.encode() for c in seen], _cutter("char"))
    control = len(control_tokens(settings))
    wanted = settings.vocab_size - control
    least = 512 if settings.kind == "wordpiece" else 256
    if wanted < least:
        raise TokenizerError(f"vocab_size = {settings.vocab_size} is less than the {least} byte tokens and "
                             f"{control} control tokens",
                             way_out=f"set tokenizer.vocab_size to {least + control} or more")
    learned = _LEARN[settings.kind](settings, texts, wanted)
    got = learned.get_vocab_size()
    if got != wanted:
        raise TokenizerError(f"vocab_size = {settings.vocab_size} was asked for and the training text supports "
                             f"{got + control}",
                             way_out="set tokenizer.vocab_size to that, lower min_frequency, or give more text")
    return learned


def _cutter(pattern: str | None) -> tokenizers.pre_tokenizers.PreTokenizer:
    """Text to words in the byte alphabet; the spellings are those that gigatoken knows."""
    from tokenizers import Regex, pre_tokenizers

    if pattern in ("gpt2", None):
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is not None)
    regex = r"[\s\S]" if pattern == "char" else word_pattern(pattern)
    split = pre_tokenizers.Split(Regex(regex), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def word_pattern(pattern: str) -> str:
    """The regular expression that cuts text into words, of gpt4 (Llama 3's too) or qwen2."""
    return (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + _DIGITS[pattern]
            + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def added_token(number: int, name: str, *, special: bool = True) -> dict[str, object]:
    """An entry of tokenizer.json's ``added_tokens``: found in a text as it stands."""
    return {"id": number, "content": name, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
            "special": special}


def _short_runs(texts: Iterable[str]) -> Iterator[str]:
    """The texts, those with a run longer than LONGEST_LEARNED in parts. A second look at every word by ``tokenizers``
    would cost half as much as learning; this one costs a tenth."""
    for text in texts:
        if not _SPACES.search(text) and max(map(len, text.split()), default=0) <= LONGEST_LEARNED:
            yield text
            continue
        at = 0
        for run in _RUNS.finditer(text):
            for end in range(run.start() + LONGEST_LEARNED, run.end(), LONGEST_LEARNED):
                yield text[at:end]
                at = end
        yield text[at:]


def _short_words(pattern: str) -> tokenizers.pre_tokenizers.PreTokenizer:
    """The same with words cut at LONGEST_WORD bytes, for the kinds whose time grows with the word's square."""
    from tokenizers import Regex, pre_tokenizers

    cut = pre_tokenizers.Split(Regex(rf"[\s\S]{{1,{LONGEST_WORD}}}"), "isolated")
    return pre_tokenizers.Sequence([_cutter(pattern), cut])


def _whole_words(words: Iterable[bytes], cutter: tokenizers.pre_tokenizers.PreTokenizer) -> tokenizers.Tokenizer:
    """A vocabulary of whole words over the bytes: BPE without merges takes a known word whole and spells any other."""
    from tokenizers import Tokenizer, decoders, models

    vocabulary = {letter: i for i, letter in enumerate(byte_letters())}
    for word in words:
        vocabulary.setdefault(letters_of(word), len(vocabulary))
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    made.pre_tokenizer, made.decoder = cutter, decoders.ByteLevel()
    return made


def _learn_bpe(settings: SubwordSettings, texts: Iterable[str], wanted: int) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = _cutter(settings.pattern), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=wanted, min_frequency=settings.min_frequency, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator(_short_runs(texts), trainer)
    return made


def _learn_unigram(settings: SubwordSettings, texts: Iterable[str], wanted: int) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer, decoders, models

    words: Counter[str] = Counter()
    for _ in _counting(texts, words, _short_words(settings.pattern)):
        pass
    pieces = learn_pieces(words, byte_letters(), wanted, min_frequency=settings.min_frequency)
    made = Tokenizer(models.Unigram(list(pieces.items()), unk_id=None, byte_fallback=False))
    made.pre_tokenizer, made.decoder = _short_words(settings.pattern), decoders.ByteLevel()
    return made


def _learn_word(settings: SubwordSettings, texts: Iterable[str], wanted: int) -> tokenizers.Tokenizer:
    counts: Counter[str] = Counter()
    for _ in _counting(texts, counts, _cutter(settings.pattern)):
        pass
    common = sorted((w for w, n in counts.items() if n >= settings.min_frequency and len(w) > 1),
                    key=lambda w: (-counts[w], w))
    words = (w for w in map(bytes_of_letters, common[: wanted - 256]) if w is not None)
    return _whole_words(words, _cutter(settings.pattern))


def _learn_wordpiece(settings: SubwordSettings, texts: Iterable[str], wanted: int) -> tokenizers.Tokenizer:
    """Pieces are BPE's tokens, the most frequent as they stand first in a word or inside it.

    The library's own WordPiece trainer is BPE with a prefix too, but breaks ties in a random order.
    """
    from tokenizers import Tokenizer, decoders, models

    words: Counter[str] = Counter()
    cutter = _short_words(settings.pattern)
    bpe = _learn_bpe(settings, _counting(texts, words, cutter), wanted)
    counts: Counter[str] = Counter()
    for word, times in words.items():
        for i, token in enumerate(bpe.model.tokenize(word)):
            counts[CONTINUATION * (i > 0) + token.value] += times
    letters = byte_letters()
    vocabulary = {t: i for i, t in enumerate((*letters, *(CONTINUATION + c for c in letters)))}
    common = [t for t, n in counts.items() if n >= settings.min_frequency and t not in vocabulary]
    for piece in sorted(common, key=lambda t: (-counts[t], t))[: wanted - len(vocabulary)]:
        vocabulary[piece] = len(vocabulary)
    # No unknown can occur; if one ever did, a missing unknown token is an error rather than a wrong token.
    made = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="<unknown>", continuing_subword_prefix=CONTINUATION,
                                      max_input_chars_per_word=LONGEST_WORD))
    made.pre_tokenizer = cutter
    made.decoder = decoders.Sequence([decoders.Replace(CONTINUATION, ""), decoders.ByteLevel()])
    return made


def _counting(texts: Iterable[str], counts: Counter[str],
              cutter: tokenizers.pre_tokenizers.PreTokenizer) -> Iterator[str]:
    """The texts as they come, while their words are counted."""
    for text in texts:
        counts.update(word for word, _ in cutter.pre_tokenize_str(text))
        yield text


_LEARN = {"bpe": _learn_bpe, "wordpiece": _learn_wordpiece, "unigram": _learn_unigram, "word": _learn_word}


def backend(tree: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """The library's own. Raises what it raises: Exception itself."""
    from pydantic_core import to_json
    from tokenizers import Tokenizer as Backend

    return Backend.from_str(to_json(tree).decode())  # json takes six times as long
