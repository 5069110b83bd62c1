"""Log-probabilities of continuations by hand: where a text is split, a table of bigrams, batches, what does not fit."""

import math

import numpy as np
import pytest
import torch
from tiny import CONFIGS

from cutaway.batch import Batch
from cutaway.errors import DataError, ModelError
from cutaway.evaluate.loglikelihood import Pair, fitted, loglikelihoods, pair, rolling
from cutaway.models.kneser_ney import fit
from cutaway.models.model import build
from cutaway.models.ngram import NGramConfig
from cutaway.models.transformer import TransformerConfig
from cutaway.text.tokenizer import train
from cutaway.text.vocabulary import ByteSettings, SubwordSettings

BYTES = train(ByteSettings(), [])
WORDS = train(SubwordSettings(kind="bpe", vocab_size=275), ["the cat sat on the mat, the cat sat. " * 40])


class State:
    def __init__(self, last: torch.Tensor) -> None:
        self.last, self.lengths, self.capacity = last, torch.zeros(len(last), dtype=torch.long), 10**6

    def select(self, rows):
        made = State(self.last[rows])
        made.lengths = self.lengths[rows]
        return made


class Bigrams:
    """The logits of what follows depend on the last token alone: ``table (V, V)``."""

    reads_source, context_length = False, 8

    def __init__(self, table: torch.Tensor) -> None:
        self.table, self.vocab_size = table, len(table)

    def new_state(self, rows, *, capacity, sources=None):
        return State(torch.zeros(rows, dtype=torch.long))

    def logits(self, tokens, state, *, counts=None, every=False):
        counts = torch.full((len(tokens),), tokens.shape[1]) if counts is None else counts
        at = (counts - 1).clamp(min=0)
        state.last = torch.where(counts > 0, tokens.gather(1, at[:, None])[:, 0], state.last)
        state.lengths = state.lengths + counts
        return self.table[tokens] if every else self.table[state.last]


def found(model, pairs, **options):
    out = dict(one for part in loglikelihoods(model, pairs, **options) for one in part)
    return [out[i] for i in range(len(pairs))]


def test_bigrams_by_hand():
    model = Bigrams(torch.tensor([[0.0, 0, 0], [0, math.log(2), 0], [0, 0, math.log(6)]]))
    pairs = [Pair((1,), (1, 2)), Pair((0, 1), (1,)), Pair((1,), (0,)), Pair((2, 2, 1), (1, 1, 0, 2))]
    logs = [math.log(0.5 * 0.25), math.log(0.5), math.log(0.25), math.log(0.5 * 0.5 * 0.25 / 3)]
    out = found(model, pairs)
    assert [o.logprob for o in out] == pytest.approx(logs, rel=1e-6)
    assert [o.tokens for o in out] == [2, 1, 1, 4]
    assert [o.greedy for o in out] == [False, True, False, False]


def test_a_continuation_is_greedy_where_every_token_is_the_likeliest():
    model = Bigrams(torch.tensor([[0.0, 5, 0], [0, 0, 5], [5.0, 0, 0]]))
    assert [o.greedy for o in found(model, [Pair((0,), (1, 2, 0)), Pair((0,), (1, 2, 2)), Pair((0,), (0, 1, 2))])
            ] == [True, False, False]


@pytest.mark.parametrize("name", ["tied", "lstm", "gru", "convolution", "vanilla"])
def test_batched_equals_alone_equals_the_whole_text(name):
    model, draw = build(CONFIGS[name], seed=1).eval(), np.random.default_rng(0)
    begin = tuple(draw.integers(3, 48, 3).tolist())
    pairs = [Pair((*begin, *draw.integers(3, 48, n % 7 + 1).tolist()), tuple(draw.integers(3, 48, n % 9 + 1).tolist()))
             for n in range(23)]
    pairs += [Pair(pairs[3].context, (5, 6, 7)), Pair(pairs[3].context, (9,)), pairs[4]]
    together = found(model, pairs)
    for one, likely in zip(pairs, together, strict=True):
        alone, = found(model, [one])
        logits = model(Batch(torch.tensor([[*one.context, *one.continuation[:-1]]])))[0, len(one.context) - 1:]
        wanted = torch.tensor(one.continuation)
        whole = logits.double().log_softmax(-1).gather(-1, wanted[:, None]).sum().item()
        assert likely.logprob == pytest.approx(alone.logprob, rel=1e-5) == pytest.approx(whole, rel=1e-5)
        assert likely.greedy == alone.greedy == bool((logits.argmax(-1) == wanted).all())


def test_what_all_contexts_begin_with_is_read_once_and_changes_nothing(monkeypatch):
    config = TransformerConfig(vocab_size=48, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2,
                               intermediate_size=40, context_length=100)
    model, draw = build(config, seed=1).eval(), np.random.default_rng(0)
    begin = tuple(draw.integers(3, 48, 60).tolist())
    pairs = [Pair((*begin, n), (n, n + 1)) for n in range(5, 15)] + [Pair(begin, (7, 8))]
    together, read = found(model, pairs), []
    monkeypatch.setattr(model, "logits", lambda tokens, state, _own=model.logits, **o: (
        read.append(tokens.numel()), _own(tokens, state, **o))[1])
    again = found(model, pairs)
    assert sum(read) < 60 + 11 * 5
    assert again == together
    for one, likely in zip(pairs, together, strict=True):
        assert likely.logprob == pytest.approx(found(model, [one])[0].logprob, rel=1e-5)


def test_few_logits_at_once_change_nothing(monkeypatch):
    model, draw = build(CONFIGS["tied"], seed=1).eval(), np.random.default_rng(0)
    pairs = [Pair((1, 2, n), tuple(draw.integers(3, 48, n % 12 + 1).tolist())) for n in range(3, 20)]
    wanted = found(model, pairs)
    monkeypatch.setattr("cutaway.evaluate.loglikelihood.LOGITS", 3 * 48)
    monkeypatch.setattr("cutaway.evaluate.loglikelihood.PLACES", 7)
    for one, other in zip(found(model, pairs), wanted, strict=True):
        assert one.logprob == pytest.approx(other.logprob, rel=1e-5) and one.greedy == other.greedy


def test_many_pairs_behind_one_context_come_part_by_part():
    model, draw = build(CONFIGS["tied"], seed=1).eval(), np.random.default_rng(0)
    pairs = [Pair((1,), tuple(draw.integers(3, 48, n % 12 + 1).tolist())) for n in range(1500)]
    parts = []
    for part in loglikelihoods(model, pairs):
        assert not torch.is_inference_mode_enabled()
        parts.append([i for i, _ in part])
    assert sorted(i for part in parts for i in part) == list(range(1500))
    assert len(parts) > 2
    assert all(len(part) * max(len(pairs[i].continuation) for i in part) <= 4096 for part in parts)


@pytest.mark.filterwarnings("ignore:the discounts of")
def test_an_ngram_model_is_asked_directly_and_to_the_same_end():
    rows = [[BYTES.bos_id, *BYTES.encode(t), BYTES.eos_id] for t in ("the cat sat", "on the mat", "a cat")]
    config = NGramConfig(vocab_size=BYTES.vocab_size, order=4, bos_id=BYTES.bos_id, context_length=100)
    model = fit(np.concatenate(rows), np.cumsum([0, *map(len, rows)]), config)
    pairs = [pair(BYTES, "the cat", " sat"), pair(BYTES, "", "a"), pair(BYTES, "the ", "dog")]
    direct, slow = found(model, pairs, greedy=False), found(model, pairs)
    assert [d.logprob for d in direct] == pytest.approx([s.logprob for s in slow], rel=1e-5)
    assert [d.greedy for d in direct] == [None] * 3 and slow[0].greedy is True


def test_a_number_that_is_none_and_a_model_that_reads_sources_are_refused():
    with pytest.raises(ModelError, match="gives no number"):
        found(Bigrams(torch.full((3, 3), math.nan)), [Pair((1,), (1,))])
    model = Bigrams(torch.zeros(3, 3))
    model.reads_source = True
    with pytest.raises(ModelError, match="encoder-decoder"):
        found(model, [Pair((1,), (1,))])


def ids(text: str) -> tuple[int, ...]:
    return tuple(WORDS.encode(text))


def test_a_text_is_encoded_whole_and_split_behind_its_context():
    assert pair(WORDS, "the cat", " sat") == ((WORDS.bos_id, *ids("the cat")), ids(" sat"), 0)
    # white space at the context's end belongs to what follows
    assert pair(WORDS, "the cat ", "sat") == pair(WORDS, "the cat", " sat")
    assert pair(WORDS, "the cat \n ", "sat") == pair(WORDS, "the cat", " \n sat")


def test_behind_nothing_stands_bos():
    assert pair(WORDS, "", "the cat") == ((WORDS.bos_id,), ids("the cat"), 0)
    assert pair(WORDS, "  ", "the") == ((WORDS.bos_id,), ids("  the"), 0)


def test_a_token_across_the_border_is_predicted_as_the_whole_text_has_it():
    assert len(ids("the cat")) < len(ids("the ca"))  # nothing is left behind as many ids as the context has by itself
    with pytest.raises(DataError, match="'t' has no token of its own"):
        pair(WORDS, "the ca", "t")
    context, continuation, _ = pair(WORDS, "th", "e cat sat")
    assert (*context, *continuation) == (WORDS.bos_id, *ids("the cat sat")) and len(context) == 1 + len(ids("th"))


def test_what_is_too_long_loses_its_beginning():
    assert fitted(Pair((1, 2, 3), (4, 5)), 4) == Pair((1, 2, 3), (4, 5))  # the last token is not read
    assert fitted(Pair((1, 2, 3), (4, 5)), 3) == Pair((2, 3), (4, 5), 1)
    assert fitted(Pair((1, 2, 3), (4, 5)), 2) == Pair((3,), (4, 5), 2)
    with pytest.raises(DataError, match="an answer of 2 tokens does not fit a context of 1"):
        fitted(Pair((1,), (4, 5)), 1)


def windows(count: int, context: int) -> list[tuple[list[int], list[int]]]:
    """(tokens read, tokens predicted) of each window, of bos (0) and ``count`` tokens."""
    return [(e.tokens[:-1].tolist(), e.tokens[e.weights > 0].tolist()) for e in rolling(np.arange(count + 1), context)]


def test_rolling_windows_by_hand():
    assert windows(3, 4) == [([0, 1, 2], [1, 2, 3])]
    assert windows(4, 4) == [([0, 1, 2, 3], [1, 2, 3, 4])]
    assert windows(10, 4) == [([0, 1, 2, 3], [1, 2, 3, 4]), ([4, 5, 6, 7], [5, 6, 7, 8]), ([6, 7, 8, 9], [9, 10])]


@pytest.mark.parametrize("count", range(1, 30))
def test_rolling_windows_are_those_of_the_harness(count):
    """``get_rolling_token_windows(tokens, prefix, context, context_len=1)`` of lm-evaluation-harness 0.4, written out:
    a window's input and what is predicted of it."""
    for context in range(2, 12):
        tokens, out, done = list(range(1, count + 1)), [], min(context, count)
        out.append(([0, *tokens[:done - 1]], tokens[:done]))
        while done < count:
            size = min(count - done, context)
            end = done + size
            out.append((tokens[end - context - 1:end - 1], tokens[end - size:end]))
            done = end
        assert windows(count, context) == out
