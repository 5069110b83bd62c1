"""What of a model learns, and what it was before: the rest is never there twice, and no number changes for it."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny import batches, case_for, start

from cutaway.batch import Batch
from cutaway.data.documents import ReferenceSettings, read
from cutaway.models.adapter import Full, Lora, Partial, adapt, merge
from cutaway.models.learning import Beginning, copied, learned_of, settled
from cutaway.models.light import for_sampling
from cutaway.models.model import Model
from cutaway.nn import ops
from cutaway.objectives.likelihood import token_logprobs
from cutaway.objectives.preference import with_reference
from cutaway.train.loop import steps
from cutaway.train.optimizer import OptimizerSettings, build_optimizer
from cutaway.train.schedule import Schedule

KINDS = {"lora": Lora(rank=3), "partial": Partial(names=("blocks.1.", "backbone.norm")), "full": Full()}
TOKENS = torch.randint(3, 48, (3, 18), generator=torch.Generator().manual_seed(0))


def made(kind: str, dtype: torch.dtype) -> Model:
    model = start(case_for("likelihood", "tied"), "tied")
    model.compute_dtype = dtype
    return adapt(model, KINDS[kind], seed=3)


def learn(model: Model) -> None:
    case = case_for("likelihood", "tied")
    optimizer = build_optimizer(model, OptimizerSettings(kind="adamw", learning_rate=0.02))
    list(steps(model, batches(case), case.objective, optimizer, schedule=Schedule(), total=3))


@torch.no_grad()
def logits(model: Model) -> torch.Tensor:
    out: torch.Tensor = model.eval()(Batch(TOKENS))
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_settled_and_for_sampling_change_no_number(kind: str, dtype: torch.dtype) -> None:
    model = made(kind, dtype)
    learn(model)
    before = logits(model)
    assert torch.equal(logits(for_sampling(model)), before)
    assert torch.equal(logits(settled(model)), before)
    assert torch.equal(logits(for_sampling(model)), before)


@pytest.mark.parametrize("kind", KINDS)
def test_the_beginning_is_what_the_model_was(kind: str) -> None:
    model = settled(made(kind, torch.bfloat16))
    alone, beginning, batch = copy.deepcopy(model), Beginning(model), case_for("answers", "tied").batch(0)
    learn(model)
    after, kept = logits(model), {n: p.detach().clone() for n, p in model.named_parameters()}
    assert not torch.equal(after, logits(alone))
    found, wanted = with_reference(beginning, batch), with_reference(alone, batch)
    assert found.reference_logprob is not None and wanted.reference_logprob is not None
    assert torch.equal(found.reference_logprob, wanted.reference_logprob)
    assert torch.equal(logits(model), after)
    assert all(torch.equal(p, kept[n]) for n, p in model.named_parameters())
    with pytest.raises(ZeroDivisionError), beginning():
        raise ZeroDivisionError
    assert torch.equal(logits(model), after)
    frozen = sum(p.nbytes for p in model.parameters() if not p.requires_grad)
    held = sum(v.nbytes for v in beginning.kept.values())
    assert held == (0 if kind == "lora" else sum(p.nbytes for p in learned_of(model).values())) and frozen >= 0


def test_adapters_that_were_there_before_are_the_beginning_too() -> None:
    model = made("lora", torch.float32)
    learn(model)
    before, beginning = logits(model), Beginning(model)
    learn(model)
    assert not torch.equal(logits(model), before)
    with beginning() as was:
        assert torch.equal(logits(was), before)


def test_a_copy_shares_what_does_not_learn() -> None:
    model = made("lora", torch.float32)
    other = copied(model)
    pairs = list(zip(model.named_parameters(), other.named_parameters(), strict=True))
    assert all((a is b) != a.requires_grad for (_, a), (_, b) in pairs)
    learn(other)
    assert not torch.equal(logits(other), logits(model))


def test_what_is_settled_cannot_be_merged() -> None:
    with pytest.raises(AssertionError, match="lost the digits"):
        merge(settled(made("lora", torch.bfloat16)))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_of_a_frozen_head_have_the_same_gradient(temperature: float) -> None:
    draw = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(3, 5, 8, generator=draw), torch.randn(11, 8, generator=draw)
    targets, factors = torch.randint(11, (3, 5), generator=draw), torch.randn(3, 5, generator=draw)
    kept, found = torch.rand(3, 5, generator=draw) < 0.7, []
    for frozen in (False, True):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_(not frozen)
        logs = ops.linear_logprobs(h, w, targets, kept, temperature=temperature, chunk=4)
        (logs * factors).sum().backward()
        found.append((logs.detach(), h.grad))
        wanted = torch.log_softmax(h.detach() @ weight.T / temperature, -1).gather(-1, targets[..., None])[..., 0]
        torch.testing.assert_close(logs, wanted * kept)
    torch.testing.assert_close(found[0], found[1])


def test_a_model_whose_head_is_frozen_still_learns_from_answers() -> None:
    model, batch = made("lora", torch.float32), case_for("answers", "tied").batch(0)
    token_logprobs(model, batch).sum().backward()
    assert all(p.grad is not None for p in learned_of(model).values())


def test_the_language_reference_is_prose_in_many_topics() -> None:
    corpus = read(ReferenceSettings(valid_share=0.0, test_share=0.0))
    documents = list(corpus)
    assert len(documents) > 50 and sum(len(d.text) for d in documents) > 300_000
    assert any("assert" in d.name for d in documents) and set(corpus.skipped.counts) <= {"duplicate"}
