"""Answers under rules: whatever is chosen among what is allowed is a whole document that its schema holds, in time."""

from __future__ import annotations

import json
import random
import re
import time
from functools import cache
from itertools import pairwise
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cutaway.errors import RequestError
from cutaway.generate.closing import Closer, Place
from cutaway.generate.constrain import Rules, grammar, json_object, json_schema, regex
from cutaway.generate.request import Constraint
from cutaway.generate.schema import _Measure, checked_schema, growth
from cutaway.generate.spelled import Spelled, spelled
from cutaway.text.public import made
from cutaway.text.tokenizer import ByteSettings, SubwordSettings, Tokenizer, train

TEXT = ['{"name": "Ada", "age": 36, "tags": ["red", "green"], "sub": {"x": 1.5, "y": null}}\n' * 30,
        '[{"a":true,"b":[]},{"a":false,"b":[[1],[2]]}]\n' * 30, "naïve café: the cat sat on the mat; 12345 + 67\n" * 20]


@cache
def tokenizer(kind: str) -> Tokenizer:
    """A small one of each way to spell bytes."""
    if kind == "byte":
        return train(ByteSettings(), TEXT)
    if kind == "sentencepiece":
        return sentencepiece()
    size = {"wordpiece": 550, "word": 290}.get(kind, 330)
    return train(SubwordSettings(kind=kind, vocab_size=size), TEXT)  # type: ignore[arg-type]


def sentencepiece() -> Tokenizer:
    """Unigram with marks for spaces, and bytes for what it lacks."""
    import tokenizers

    backend = tokenizers.Tokenizer(tokenizers.models.Unigram())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = tokenizers.decoders.Sequence([tokenizers.decoders.ByteFallback(),
                                                    tokenizers.decoders.Metaspace(prepend_scheme="always")])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    backend.train_from_iterator(TEXT, tokenizers.trainers.UnigramTrainer(
        vocab_size=400, special_tokens=special, unk_token="<unk>", show_progress=False))
    tree = json.loads(backend.to_str())
    tree["model"]["byte_fallback"] = True
    tree["added_tokens"] = [t for t in tree["added_tokens"] if not t["content"].startswith("<0x")]
    return made(tree, {"eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}, where="here")


KINDS = ("byte", "bpe", "wordpiece", "unigram", "word", "sentencepiece")


def allowed(constraint: Constraint) -> list[int]:
    """The ids that may come next."""
    mask = constraint.mask()
    assert mask is not None
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()


def written(rules: Rules, max_tokens: int, draw: random.Random) -> tuple[bytes, bool, int]:
    """An answer of tokens drawn among the allowed, whether it is complete, and how many it took."""
    words, answer, out = rules.vocabulary, rules.begin(max_tokens), b""
    for count in range(max_tokens):
        if answer.done:
            return out, True, count
        token = draw.choice(allowed(answer))
        answer.accept(token)
        if token in words.stop_ids:
            assert answer.done
            return out, True, count
        out += words.bytes_of(token)
    return out, answer.complete, max_tokens  # type: ignore[attr-defined]


SCHEMA = {"type": "object", "required": ["name", "age"], "additionalProperties": False, "properties": {
    "name": {"type": "string"}, "age": {"type": "integer"}, "tags": {"type": "array", "items": {"enum": ["red", "é"]}},
    "sub": {"type": "object", "properties": {"x": {"type": "number"}, "y": {"type": ["string", "null"]}},
            "required": ["x", "y"]}}}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_vocabulary_writes_a_schema_by_its_bytes(kind: str) -> None:
    rules = json_schema(SCHEMA, tokenizer(kind))
    assert rules.growth.certain and rules.end == b'{"name":"","age":0}' and rules.least is not None
    for seed in range(8):
        data, complete, _ = written(rules, rules.least + 12 * seed, random.Random(seed))
        assert complete
        jsonschema.validate(json.loads(data), SCHEMA)


@pytest.mark.parametrize(("pattern", "end"), [
    ("ab", "ab"), ("ab$", "ab"), ("^ab", "ab"), ("hello there", "hello there"), (r"[a-z]+@[a-z]+\.com", "a@a.com"),
    ("foo.*bar", "foo]bar"), (r"\d{3}-\d{4}", "000-0000"), ("(cat|dog) food", "cat food"), ("é漢", "é漢"),
    ('x"y', 'x"y'), (r"a\\b", "a\\b")])
def test_a_pattern_that_may_begin_anywhere_is_ended(pattern: str, end: str) -> None:
    """No byte before it is nearer to its end than another; from the middle of a string, too."""
    schema = {"type": "object", "properties": {"x": {"type": "string", "pattern": pattern}}, "required": ["x"]}
    rules = json_schema(schema, tokenizer("byte"))
    assert rules.end is not None and json.loads(rules.end) == {"x": end} and rules.least is not None
    for seed in range(4):
        data, complete, _ = written(rules, rules.least + 9 * seed, random.Random(seed))
        assert complete
        assert re.search(pattern, json.loads(data)["x"])


@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_of_every_id_are_the_tokenizers(kind: str) -> None:
    found = Spelled(tokenizer(kind))
    control = {*tokenizer(kind).control_ids}
    for i in range(tokenizer(kind).vocab_size):
        assert found.bytes_of(i) == (b"" if i in control else tokenizer(kind).bytes_of([i])) or found.bytes_of(i) == b""
        assert found.is_text(i) == bool(found.bytes_of(i)) and not (found.is_text(i) and i in control)
    for text in ('{"a": [1, "é"]}', " the cat"):
        ids = found.tokens(text.encode())
        assert ids is not None and b"".join(map(found.bytes_of, ids)) == text.encode()


PLAIN = st.sampled_from([{"type": "string"}, {"type": "integer"}, {"type": "number"}, {"type": "boolean"},
                         {"type": "null"}, {"type": "string", "minLength": 3, "maxLength": 6},
                         {"type": "integer", "minimum": 17, "maximum": 1234},
                         {"type": "number", "exclusiveMinimum": -2.5, "maximum": 3},
                         {"enum": ["short", "a much longer one", 3, None, [1, {"a": "é"}]]}, {"const": {"k": [True]}},
                         {"type": ["integer", "string"]}, {"type": "string", "format": "date"}, {}])
NAMES = st.sampled_from(["a", "b", "name", "größe", 'q"uote', "x y"])


def _object(inside: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def build(parts: dict[str, Any], must: list[str], rest: Any) -> dict[str, Any]:
        tree = {"type": "object", "properties": parts, "required": [m for m in must if m in parts]}
        return tree if rest is None else {**tree, "additionalProperties": rest}

    return st.builds(build, st.dictionaries(NAMES, inside, max_size=4), st.lists(NAMES, unique=True),
                     st.one_of(st.none(), st.just(False), inside))


def _array(inside: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.builds(lambda part, least, more: {"type": "array", "items": part, "minItems": least,
                                                "maxItems": least + more}, inside, st.integers(0, 3), st.integers(0, 4))


SCHEMAS = st.recursive(PLAIN, lambda inside: st.one_of(
    _object(inside), _array(inside), st.lists(inside, min_size=1, max_size=3).map(lambda parts: {"anyOf": parts})),
    max_leaves=8)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(SCHEMAS, st.integers(0, 60), st.integers(0, 2**32), st.sampled_from(["byte", "bpe", "sentencepiece"]))
def test_any_choice_among_the_allowed_is_a_valid_document_within_the_limit(schema: Any, room: int, seed: int,
                                                                           kind: str) -> None:
    rules = json_schema(schema, tokenizer(kind))
    assert rules.least is not None
    data, complete, count = written(rules, rules.least + room, random.Random(seed))
    assert complete and count <= rules.least + room
    jsonschema.validate(json.loads(data), schema)
    assert not re.search(rb"\n[ ]*\n|[ ]{9}|\t", re.sub(rb'"(?:[^"\\]|\\.)*"', b'""', data))  # bounded white space


RECURSIVE = {"$defs": {"tree": {"type": "object", "properties": {"left": {"$ref": "#/$defs/tree"}, "value": {
    "type": "string"}, "right": {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}]}}, "required": ["value"]}},
    "$ref": "#/$defs/tree"}


@pytest.mark.parametrize("room", [0, 5, 40, 150])
def test_recursion_closes_in_time(room: int) -> None:
    rules = json_schema(RECURSIVE, tokenizer("bpe"))
    assert rules.growth.certain and rules.least is not None
    for seed in range(10):
        data, complete, _ = written(rules, rules.least + room, random.Random(seed))
        assert complete
        jsonschema.validate(json.loads(data), RECURSIVE)


def greedy(rules: Rules, max_tokens: int, wanted: bytes) -> tuple[bytes, bool]:
    """An answer that takes a token of ``wanted`` bytes wherever it may: the worst that a model can want."""
    answer, out = rules.begin(max_tokens), b""
    for _ in range(max_tokens):
        if answer.done:
            break
        token = max(allowed(answer), key=lambda t: (sum(b in wanted for b in rules.vocabulary.bytes_of(t)), -t))
        answer.accept(token)
        out += rules.vocabulary.bytes_of(token)
    return out, answer.complete  # type: ignore[attr-defined]


@pytest.mark.parametrize("wanted", [b"[", b"{", b'"', b" \n", b",", b"9", b"a", b"\\u"])
@pytest.mark.parametrize("schema", [{"type": "object"}, RECURSIVE, SCHEMA])
def test_a_model_that_only_ever_opens_is_closed_in_time(schema: Any, wanted: bytes) -> None:
    rules = json_schema(schema, tokenizer("bpe"))
    for max_tokens in (rules.least or 0, 33, 120):
        data, complete = greedy(rules, max_tokens, wanted)
        assert complete
        jsonschema.validate(json.loads(data), schema)


def test_one_token_less_than_the_shortest_document_is_refused_with_both_numbers() -> None:
    rules = json_schema(SCHEMA, tokenizer("byte"))
    assert rules.least == len(rules.end or b"")
    with pytest.raises(RequestError, match=f"takes {rules.least} tokens, and max_tokens is {rules.least - 1}; raise"):
        rules.begin(rules.least - 1)


def test_a_choice_is_free_as_long_as_it_can_be_finished() -> None:
    rules = regex("(yes|no|maybe)", tokenizer("bpe"))
    found = {written(rules, 5, random.Random(seed))[0] for seed in range(60)}
    assert found == {b"yes", b"no", b"maybe"}
    two = {written(rules, 2, random.Random(seed))[0] for seed in range(40)}
    assert b"no" in two and b"maybe" not in two
    lengths = {len(written(regex("[a-z]{3,9}", tokenizer("byte")), 9, random.Random(seed))[0]) for seed in range(80)}
    assert lengths >= {3, 6, 9}


def test_what_a_constraint_cannot_promise_is_never_called_complete() -> None:
    rules = regex("(ab|c{40})+d", tokenizer("byte"))
    assert not rules.growth.certain
    for seed in range(20):
        data, complete, _ = written(rules, 30, random.Random(seed))
        assert complete == bool(re.fullmatch(rb"(ab|c{40})+d", data))


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["[a-c]{3,9}", "(yes|no|maybe)", r"\d{4}-\d{2}-\d{2}", "a*b+", "é{2}(漢|字)?"]),
       st.integers(0, 30), st.integers(0, 999), st.sampled_from(["byte", "bpe", "sentencepiece"]))
def test_expressions_match_whole(pattern: str, room: int, seed: int, kind: str) -> None:
    rules = regex(pattern, tokenizer(kind))
    assert rules.least is not None
    data, complete, _ = written(rules, rules.least + room, random.Random(seed))
    assert complete and re.fullmatch(pattern, data.decode())


def test_a_grammar_is_followed_and_may_end_where_it_accepts() -> None:
    rules = grammar('start: expr\nexpr: NUM | "(" expr "+" expr ")"\nNUM: /[0-9]{1,3}/\n', tokenizer("bpe"))
    assert rules.end is not None and len(rules.end) == 1
    answer = rules.begin(20)
    first = next(t for t in allowed(answer) if rules.vocabulary.bytes_of(t) == b"7")
    answer.accept(first)
    assert set(rules.vocabulary.stop_ids) <= set(allowed(answer)) and not answer.done
    answer.accept(rules.vocabulary.stop_ids[0])
    assert answer.done
    for seed in range(6):
        data, complete, _ = written(rules, 40, random.Random(seed))
        assert not complete or (re.fullmatch(rb"[0-9()+]+", data) and data.count(b"(") == data.count(b")"))


def test_each_answer_has_a_constraint_of_its_own_and_no_control_token_is_ever_text() -> None:
    rules = json_object(tokenizer("bpe"))
    one, two = rules.begin(50), rules.begin(50)
    one.accept(next(t for t in allowed(one) if rules.vocabulary.bytes_of(t) == b"{"))
    assert allowed(one) != allowed(two)
    for token in tokenizer("bpe").control_ids:
        with pytest.raises(RequestError, match="does not follow the rules"):
            rules.begin(50).accept(token)
    with pytest.raises(RequestError, match="does not follow the rules"):
        two.accept(10**6)
    mask = rules.begin(50).mask()
    assert mask is not None and mask.shape == (-(-tokenizer("bpe").vocab_size // 32),) and mask.dtype == np.uint32
    size = tokenizer("bpe").vocab_size
    padded = rules.begin(50, vocab_size=size + 100).mask()
    assert padded is not None and padded.shape == (-(-(size + 100) // 32),)
    assert np.array_equal(padded[: len(mask)], mask) and not padded[len(mask):].any()
    with pytest.raises(RequestError, match=f"of {size} ids does not fit a model of {size - 1}"):
        rules.begin(50, vocab_size=size - 1)


@pytest.mark.parametrize("schema,said", [
    ({"type": "object", "uniqueItems": True}, "JSON schema: the keyword 'uniqueItems' is not honoured"),
    ({"properties": {"a": {"not": {}}}}, "JSON schema.properties.a: the keyword 'not' is not honoured"),
    ({"x-guidance": {"lenient": True}}, "the keyword 'x-guidance' is not honoured"),
    ({"minProperties": 2}, "the keyword 'minProperties' is not honoured"),
    ({"enum": ["x" * 70_000]}, "bytes are more than 65,536"),
    ({"$ref": "http://example.com/a"}, "is outside of this schema"),
    ({"$ref": "#/$defs/none"}, "none"),
    ({"type": "banana"}, "Invalid type: banana"),
    ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
    ({"type": "array", "minItems": 3, "maxItems": 1}, "nsatisfiable"),
    ([], "is an object, not list"), ({"properties": {"a": 3}}, "properties.a: a schema is an object or true or false"),
    ({"type": "string", "minLength": 10**6}, "too long"),
    ({"type": "null", "required": 5}, "JSON schema: required must be a list"),
    ({"type": "null", "required": [5]}, "required must be a list of texts"), ({"type": 5}, "type must be a text or"),
    ({"type": "null", "pattern": 5}, "pattern must be a text"), ({"type": "null", "minItems": True}, "a whole number"),
    ({"type": "null", "$defs": {"a": {"enum": 5}}}, "JSON schema.$defs.a: enum must be a list"),
    ({"type": "null", "minLength": 10**40}, "minLength must be from 0 to 2,147,483,648"),
    ({"properties": {"a": {"type": []}}}, "properties.a: type must name one type"),
    ({"required": ["a", "b", "a"]}, "a name stands twice in required"),
    ({"type": "null", "$defs": {"a": {"minLength": -1}}}, "minLength must be from 0"),
    ({"const": {"required": 5}, "$defs": {"a": {"$ref": "#/const"}}}, "'#/const' names what is no schema"),
    ({"properties": {f"p{i}": {} for i in range(1600)}}, "parts are more than 1,500"),
    ({"$defs": {"a": {"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}, "required": ["a"]}},
      "$ref": "#/$defs/a"}, "JSON schema"),
])
def test_a_schema_that_is_not_honoured_is_refused_with_the_reason(schema: Any, said: str) -> None:
    with pytest.raises(RequestError, match=re.escape(said)):
        json_schema(schema, tokenizer("byte"))


@pytest.mark.parametrize("turn", [1, -1, 0])
def test_a_chain_of_references_is_measured_to_its_end(turn: int) -> None:
    names = [f"d{i}" for i in range(460)][:: turn or 1]
    if not turn:
        random.Random(1).shuffle(names)
    chain: dict[str, Any] = {name: {"anyOf": [{"type": "array", "items": {"$ref": f"#/$defs/{then}"}, "minItems": 1},
                                             {"$ref": f"#/$defs/{then}"}]}
                             for name, then in pairwise(names)}
    chain = {name: chain.get(name, {"type": "null"}) for name in sorted(names)}
    began = time.process_time()
    found = growth({"$ref": f"#/$defs/{names[0]}", "$defs": chain})
    assert time.process_time() - began < 2 and found.choice < 100
    assert _Measure.of({"$ref": f"#/$defs/{names[0]}", "$defs": chain}).shortest({"$ref": f"#/$defs/{names[0]}"}) == 4


def test_a_schema_is_measured_in_no_more_than_its_size() -> None:
    """Each part once a round, whatever stands above it."""
    deep: dict[str, Any] = {"type": "null"}
    for _ in range(14):
        six = {str(i): deep for i in range(6)}
        deep = {"type": "object", "properties": six, "required": [*six]}
    began = time.process_time()
    _Measure.of({}).shortest(deep)
    zigzag = {f"d{i}": {"anyOf": [{"type": "array", "items": {"$ref": f"#/$defs/d{(i + 100) % 400}"}, "minItems": 1},
                                  {"$ref": f"#/$defs/d{(i * 7 + 1) % 400}"}]} for i in range(400)}
    zigzag["d0"] = {"enum": [f"value {i}" for i in range(300)]}
    assert growth({"$ref": "#/$defs/d1", "$defs": zigzag}).choice < 10_000
    assert time.process_time() - began < 2


def test_depth_is_bounded() -> None:
    deep: dict[str, Any] = {"type": "null"}
    for _ in range(20):
        deep = {"items": deep}
    assert checked_schema(deep) == deep
    for _ in range(20):
        deep = {"items": deep}
    with pytest.raises(RequestError, match="deeper than 32"):
        checked_schema(deep)


@pytest.mark.parametrize("pattern", ["(a{1,1000}){1,1000}", "(.*a){20}", "((a{1,99}){1,99}){1,99}", ".*a.{30}",
                                     r"(\p{L}{1,200}){1,200}", "(a|aa)+(b|bb)+(c|cc)+x"])
def test_a_bomb_compiles_in_time_or_is_refused(pattern: str) -> None:
    try:
        rules = regex(pattern, tokenizer("byte"))
    except RequestError as error:
        assert "compile" in str(error) or "too" in str(error)
        return
    answer = rules.begin(200)
    for _ in range(60):
        try:
            answer.accept(allowed(answer)[0])
        except RequestError:
            return


@pytest.mark.parametrize("call,said", [
    (lambda t: regex("a" * 3000, t), "3,000 bytes, and it may have 1 to 2,048"), (lambda t: regex("((", t), "regex"),
    (lambda t: regex("", t), "0 bytes"), (lambda t: grammar("start: <|end|>", t), "a special token is not honoured"),
    (lambda t: grammar('start: "a" <[3]>', t), "a special token"), (lambda t: grammar("begin: ", t), "grammar"),
    (lambda t: grammar('start: a\na[stop="b"]: /.*/', t), "stop, suffix"),
    (lambda t: grammar('%llguidance {}\nstart: "a"', t), "%llguidance"),
    (lambda t: grammar("start: @other", t), "another"),
])
def test_what_a_pattern_or_grammar_may_not_say_is_refused(call: Any, said: str) -> None:
    with pytest.raises(RequestError, match=re.escape(said)):
        call(tokenizer("byte"))


def test_a_less_than_sign_in_quotes_is_text() -> None:
    assert grammar('start: "<b>" /<[a-z]+>/ // <comment>\n', tokenizer("byte")).end is not None


def test_a_vocabulary_that_cannot_write_the_answer_is_refused() -> None:
    import tokenizers

    vocab = {"[UNK]": 0, "a": 1, "##b": 2, "[SEP]": 3}
    words = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token="[UNK]"))
    words.add_special_tokens(["[UNK]", "[SEP]"])
    words.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    bert = made(json.loads(words.to_str()), {"eos_token": "[SEP]", "unk_token": "[UNK]"}, where="here")
    with pytest.raises(RequestError, match="does not say where spaces stand"):
        regex("a", bert)
    scores = [("<unk>", 0.0), ("▁a", -1.0), ("b", -2.0), ("</s>", 0.0)]
    pieces = tokenizers.Tokenizer(tokenizers.models.Unigram(scores, 0))
    pieces.add_special_tokens(["<unk>", "</s>"])
    pieces.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    pieces.decoder = tokenizers.decoders.Metaspace()
    few = made(json.loads(pieces.to_str()), {"eos_token": "</s>", "unk_token": "<unk>"}, where="here")
    assert regex(" ab+", few).least == 2
    with pytest.raises(RequestError, match="no token for"):
        json_object(few)
    with pytest.raises(RequestError, match="cannot spell"):
        regex("b{3}c", few)


def test_a_vocabulary_is_prepared_once() -> None:
    assert spelled(tokenizer("bpe")) is spelled(tokenizer("bpe"))


@given(st.binary(max_size=30))
def test_places_in_json_never_fail_on_anything(data: bytes) -> None:
    split = len(data) // 2
    assert Place().after(data) == Place().after(data[:split]).after(data[split:])


def test_the_shortest_end_passes_long_names_and_branches_by() -> None:
    schema = {"anyOf": [{"type": "object", "properties": {"long" * 9: {"type": "string"}}, "required": ["long" * 9]},
                        {"enum": ["abcdefghijk", "abc"]}, {"type": "array", "items": {"type": "null"}, "minItems": 2}]}
    assert json_schema(schema, tokenizer("byte")).end == b'"abc"'
    many = {f"optional{i}": {"type": "string"} for i in range(40)} | {"must": {"type": "boolean"}}
    found = json_schema({"type": "object", "properties": many, "required": ["must"]}, tokenizer("byte")).end
    assert found == b'{"must":true}'
    assert growth(schema).certain and Closer(True).most < 1000
