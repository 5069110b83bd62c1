"""Bits per byte against closed forms: a uniform model, a unigram model, and every window against the document whole."""

import gzip
import lzma
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cutaway.batch import Batch
from cutaway.data.documents import Document
from cutaway.errors import DataError
from cutaway.evaluate.bits import bits_per_byte, score, windows
from cutaway.evaluate.compression import compression
from cutaway.evaluate.forgetting import forgetting
from cutaway.evaluate.held import HeldOut, held_out
from cutaway.models.kneser_ney import fit
from cutaway.models.model import Scorer, build
from cutaway.models.ngram import NGramConfig
from cutaway.models.transformer import TransformerConfig
from cutaway.records import digest
from cutaway.text.tokenizer import train
from cutaway.text.vocabulary import ByteSettings

TOKENIZER = train(ByteSettings(), [])
V = TOKENIZER.vocab_size
TEXTS = ("a short one", "x", "Ünïcode and a rather longer one, for several windows of context. " * 3, "y" * 16,
         "z" * 17)
HELD = HeldOut(TEXTS, 9, 999)


def tiny(seed: int = 0, context: int = 16):
    return build(TransformerConfig(vocab_size=V, hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=1,
                                   intermediate_size=32, context_length=context), seed=seed).eval()


def unigram(logits: torch.Tensor):
    """A model whose answer never depends on what it read: constant embeddings, silent blocks."""
    model = build(TransformerConfig(vocab_size=V, hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=1,
                                    intermediate_size=32, context_length=16, tie_embeddings=False)).eval()
    with torch.no_grad():
        for p in model.backbone.parameters():
            if p.ndim > 1:
                p.zero_()
        model.backbone.embedding.weight.fill_(1.0)
        out = model.hidden(Batch(torch.zeros(1, 1, dtype=torch.long)))[0, 0]
        model.head.weight.copy_(logits[:, None] * out / out.square().sum())
    return model


def tokens_of(text: str) -> list[int]:
    return [*TOKENIZER.encode(text), TOKENIZER.eos_id]


def test_a_uniform_model_costs_log2_of_the_vocabulary_for_every_token():
    found = bits_per_byte(unigram(torch.zeros(V)), TOKENIZER, HELD)
    count = sum(len(tokens_of(t)) for t in TEXTS)
    assert found.value == pytest.approx(math.log2(V) * count / sum(len(t.encode()) for t in TEXTS), rel=1e-6)
    assert found.n == len(TEXTS) and found.conditions["tokens"] == count
    assert found.low is not None and found.low < found.value < found.high


def test_a_unigram_model_costs_the_cross_entropy_of_its_distribution():
    logits = torch.linspace(-2, 2, V)
    share = logits.double().log_softmax(0)
    expected = [-sum(share[t].item() for t in tokens_of(text)) for text in TEXTS]
    assert score(unigram(logits), TOKENIZER, HELD).nats == pytest.approx(expected, rel=1e-5)


@given(st.integers(2, 200), st.integers(1, 40), st.data())
def test_windows_predict_every_token_once_behind_enough_context(length, context, data):
    overlap = data.draw(st.integers(0, context - 1))
    tokens = np.arange(length)
    predicted = []
    for example in windows(tokens, context, overlap):
        assert len(example.tokens) <= context + 1
        assert (np.diff(example.tokens) == 1).all()
        learned = np.flatnonzero(example.weights)
        predicted += example.tokens[learned].tolist()
        assert learned[0] - 1 >= min(overlap, example.tokens[learned[0]] - 1)
    assert predicted == list(range(1, length))


def test_windows_equal_each_token_read_alone_behind_the_same_context():
    model, overlap = tiny(), 5
    found = score(model, TOKENIZER, HELD, overlap=overlap, rows=3)
    for text, nats in zip(TEXTS, found.nats, strict=True):
        ids, total, start, end = [TOKENIZER.bos_id, *tokens_of(text)], 0.0, 0, 16
        for t in range(1, len(ids)):
            if t > end:
                start, end = end - overlap, end - overlap + 16
            logits = model(Batch(torch.tensor([ids[start:t]])))[0, -1]
            total -= logits.double().log_softmax(0)[ids[t]].item()
        assert nats == pytest.approx(total, rel=1e-5)


def test_any_language_model_is_scored_by_its_logits():
    class Wrapped:
        def __init__(self, model):
            self.vocab_size, self.context_length = model.vocab_size, model.context_length
            self.new_state, self.logits = model.new_state, model.logits

    model = tiny()
    assert score(Wrapped(model), TOKENIZER, HELD).nats == pytest.approx(score(model, TOKENIZER, HELD).nats, rel=1e-5)


@pytest.mark.filterwarnings("ignore:the discounts of")
@pytest.mark.parametrize(("context", "overlap"), [(1 << 20, None), (16, 5), (16, 0), (2, 1)])
def test_a_model_that_scores_documents_is_asked_directly_and_to_the_same_end(context, overlap):
    rows = [[TOKENIZER.bos_id, *tokens_of(text)] for text in TEXTS]
    config = NGramConfig(vocab_size=V, order=4, bos_id=TOKENIZER.bos_id, context_length=context)
    model = fit(np.concatenate(rows), np.cumsum([0, *map(len, rows)]), config)

    class Slow:
        vocab_size, context_length, new_state, logits = V, context, model.new_state, model.logits

    assert isinstance(model, Scorer) and not isinstance(Slow(), Scorer)
    direct, slow = score(model, TOKENIZER, HELD, overlap=overlap), score(Slow(), TOKENIZER, HELD, overlap=overlap)
    assert direct.nats == pytest.approx(slow.nats, rel=1e-5)
    assert direct.conditions == slow.conditions and (direct.tokens == slow.tokens).all()


def test_more_rows_at_once_change_nothing():
    model = tiny()
    assert score(model, TOKENIZER, HELD, rows=1).nats == pytest.approx(score(model, TOKENIZER, HELD).nats, rel=1e-5)


def test_overlap_must_leave_something_to_predict():
    with pytest.raises(DataError, match="choose 0 to 15"):
        score(tiny(), TOKENIZER, HELD, overlap=16)


def test_one_document_has_no_interval():
    found = bits_per_byte(tiny(), TOKENIZER, HeldOut(("alone",), 1, 5))
    assert (found.n, found.low, found.high) == (1, None, None)


def test_forgetting_is_the_paired_difference():
    before, after = score(unigram(torch.zeros(V)), TOKENIZER, HELD), score(tiny(), TOKENIZER, HELD)
    lost = forgetting(before, after)
    assert lost.value == pytest.approx(after.measurement().value - before.measurement().value, abs=1e-9)
    assert lost.low <= lost.value <= lost.high
    same = forgetting(before, before)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_scores_of_different_text_or_windows_cannot_be_compared():
    model = tiny()
    before = score(model, TOKENIZER, HELD)
    with pytest.raises(DataError, match="text_sha256"):
        forgetting(before, score(model, TOKENIZER, HeldOut(TEXTS[:2], 9, 999)))
    with pytest.raises(DataError, match="overlap is 4 and 0"):
        forgetting(before, score(model, TOKENIZER, HELD, overlap=0))


def documents(count: int) -> list[Document]:
    texts = [f"document {i} é " * (1 + i % 7) for i in range(count)]
    return [Document(t, str(i), "s", digest(t.encode())) for i, t in enumerate(texts)]


@given(st.integers(1, 40), st.integers(1, 3000), st.randoms())
def test_held_out_text_is_the_same_whatever_the_order_and_never_more_than_asked(count, most, chance):
    given_ = documents(count)
    chosen = held_out(given_, max_bytes=most)
    ordered = sorted(given_, key=lambda d: d.digest)
    assert all(d.text.startswith(t) for d, t in zip(ordered, chosen.texts, strict=False))
    size, full = sum(chosen.bytes), sum(len(d.text.encode()) for d in given_)
    assert min(most, full) - 1 <= size <= most and chosen.cut == (full > size and chosen.texts[-1] not in
                                                                  {d.text for d in given_})
    chance.shuffle(given_)
    assert held_out(given_, max_bytes=most) == chosen
    assert chosen.conditions["of_documents"] == count and chosen.conditions["of_bytes"] == full


def test_no_held_out_text_is_an_error():
    with pytest.raises(DataError, match="no held-out text"):
        held_out([Document("", "n", "s", "0")])


def test_compressors_read_the_same_bytes_as_one_stream():
    data = "".join(TEXTS).encode()
    found = compression(HELD)
    assert found["gzip -9"].value == 8 * len(gzip.compress(data, 9, mtime=0)) / len(data)
    assert found["xz -9"].value == 8 * len(lzma.compress(data, preset=9)) / len(data)
    assert found["xz -9e"].value <= found["xz -9"].value
    assert found["gzip -9"].conditions["text_sha256"] == HELD.conditions["text_sha256"]
