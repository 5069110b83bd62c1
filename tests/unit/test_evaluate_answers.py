"""Answers, paired change, proxy reward and KL against numbers that can be worked out by hand."""

import math

import pytest
import torch

from cutaway.batch import Batch
from cutaway.errors import DataError
from cutaway.evaluate.answers import Answered, Asked, ask, difference, mcnemar
from cutaway.evaluate.proxy import kl, proxy_reward
from cutaway.generate.request import Sampling
from cutaway.models.model import build
from cutaway.models.transformer import TransformerConfig
from cutaway.records import wilson
from cutaway.text.tokenizer import train
from cutaway.text.vocabulary import ByteSettings
from cutaway.train.judge import ProgramJudge, TextJudge, Verdict
from cutaway.train.reward import Answer

TOKENIZER = train(ByteSettings(), [])
V = TOKENIZER.vocab_size
REQUESTS = [f"Write `f{i}(a)`: Give {i}." for i in range(6)]


def config(**changes):
    return TransformerConfig(**{"vocab_size": V, "hidden_size": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1,
                                "intermediate_size": 32, "context_length": 64, **changes})


def unigram(logits: torch.Tensor):
    """A model whose answer never depends on what it read: constant embeddings, silent blocks."""
    model = build(config(tie_embeddings=False)).eval()
    with torch.no_grad():
        for p in model.backbone.parameters():
            if p.ndim > 1:
                p.zero_()
        model.backbone.embedding.weight.fill_(1.0)
        out = model.hidden(Batch(torch.zeros(1, 1, dtype=torch.long)))[0, 0]
        model.head.weight.copy_(logits[:, None] * out / out.square().sum())
    return model


def always(*tokens: int):
    """A unigram model that says only these tokens, each as likely as the other."""
    logits = torch.full((V,), -1e4)
    logits[list(tokens)] = 0.0
    return unigram(logits)


def test_an_answer_ends_at_the_turn_s_end_or_at_the_limit():
    (x,) = TOKENIZER.encode("x")
    plain = Sampling(temperature=1.0)
    ended = ask(always(TOKENIZER.end_id), TOKENIZER, REQUESTS, ProgramJudge(), max_tokens=8, sampling=plain)
    assert [a.answer for a in ended.items] == [Answer("", (), True)] * 6
    endless = ask(always(x), TOKENIZER, REQUESTS, ProgramJudge(), max_tokens=8, sampling=plain)
    assert [a.answer for a in endless.items] == [Answer("x" * 8, (x,) * 8, False)] * 6
    found = endless.measurements()
    assert set(found) == {"parses", "one_function", "ends", "words", "satisfies"}
    assert (found["parses"].value, found["ends"].value, found["ends"].n) == (1.0, 0.0, 6)
    assert (found["ends"].low, found["ends"].high) == wilson(0, 6)
    assert found["ends"].conditions["stand_in"] is True


def test_a_request_draws_the_same_numbers_whatever_else_is_asked():
    model, sampling = build(config()).eval(), Sampling(temperature=1.0)
    every = ask(model, TOKENIZER, REQUESTS, TextJudge(), max_tokens=8, sampling=sampling)
    some = ask(model, TOKENIZER, REQUESTS[::-2], TextJudge(), max_tokens=8, sampling=sampling)
    assert [a.answer for a in some.items] == [a.answer for a in every.items[::-2]]
    other = ask(model, TOKENIZER, REQUESTS, TextJudge(), max_tokens=8, sampling=sampling, seed=1)
    assert [a.answer for a in other.items] != [a.answer for a in every.items]


def test_a_request_that_does_not_fit_and_an_empty_list_are_refused():
    model, sampling = build(config()), Sampling(temperature=1.0)
    with pytest.raises(DataError, match="and the context is 64"):
        ask(model, TOKENIZER, REQUESTS, TextJudge(), max_tokens=60, sampling=sampling)
    with pytest.raises(DataError, match="no held-out request"):
        ask(model, TOKENIZER, [], TextJudge(), max_tokens=8, sampling=sampling)


def answered(outcomes: list[bool], answers: list[Answer] | None = None) -> Answered:
    said = answers or [Answer("", (), True)] * len(outcomes)
    return Answered(tuple(Asked(f"r{i}", a, Verdict(float(o), {"good": o}))
                          for i, (o, a) in enumerate(zip(outcomes, said, strict=True))), {})


def test_the_change_between_stages_is_paired():
    before, after = answered([True] * 10 + [False] * 90), answered([False] * 2 + [True] * 38 + [False] * 60)
    change = difference(before, after, "good")
    assert change.value == pytest.approx(0.28) and (change.conditions["won"], change.conditions["lost"]) == (30, 2)
    up, down = 31 / 102, 3 / 102
    half = 1.96 * math.sqrt((up + down - (up - down) ** 2) / 102)
    assert (change.low, change.high) == pytest.approx((up - down - half, up - down + half))
    assert change.low > 0 and change.conditions["mcnemar_p"] < 1e-6
    with pytest.raises(DataError, match="same requests"):
        difference(before, answered([True]))


def test_mcnemar_is_the_exact_sign_test():
    assert mcnemar(0, 0) == 1.0 and mcnemar(3, 3) == 1.0
    assert mcnemar(5, 0) == pytest.approx(2 / 32)
    assert mcnemar(1, 7) == mcnemar(7, 1) == pytest.approx(2 * 9 / 256)


def test_proxy_reward_is_the_mean_over_requests():
    def length(requests, answers):
        return [float(len(a.text)) for a in answers]

    found = proxy_reward(length, answered([True] * 3, [Answer(t, (), True) for t in ("a", "bb", "cccccc")]))
    assert (found.value, found.n) == (3.0, 3) and found.low <= 3.0 <= found.high


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_kl_of_unigram_models_is_the_sum_over_the_answer_s_tokens(temperature):
    first, second = torch.linspace(-1, 1, V), torch.linspace(2, 0, V)
    said = [Answer("ab", tuple(TOKENIZER.encode("ab")), True), Answer("c", tuple(TOKENIZER.encode("c")), False)]
    found = kl(unigram(first), unigram(second), answered([True, True], said), TOKENIZER, temperature=temperature)
    ratio = (first.double() / temperature).log_softmax(0) - (second.double() / temperature).log_softmax(0)
    ids = [*TOKENIZER.encode("ab"), TOKENIZER.end_id, *TOKENIZER.encode("c")]
    assert found["per_answer"].value == pytest.approx(ratio[ids].sum().item() / 2, rel=1e-4)
    assert found["per_token"].value == pytest.approx(ratio[ids].sum().item() / 4, rel=1e-4)
    same = kl(unigram(first), unigram(first), answered([True, True], said), TOKENIZER)
    assert same["per_answer"].value == 0.0


def test_sampled_kl_comes_near_the_exact_one():
    """One-token answers: the KL of the two distributions over the first token, by sampling and by the sum."""
    ids = TOKENIZER.encode("abcd")
    first, second = torch.full((V,), -1e4), torch.full((V,), -1e4)
    first[ids], second[ids] = torch.tensor([0.0, 1.0, 2.0, 0.5]), torch.tensor([1.0, 1.0, 0.0, 0.0])
    policy, reference = unigram(first), unigram(second)
    requests = [f"{i}" for i in range(400)]
    said = ask(policy, TOKENIZER, requests, TextJudge(), max_tokens=1, sampling=Sampling(temperature=1.0))
    p, q = first.double().log_softmax(0), second.double().log_softmax(0)
    exact = float((p[ids].exp() * (p[ids] - q[ids])).sum())
    found = kl(policy, reference, said, TOKENIZER)["per_answer"]
    assert found.low <= exact <= found.high
