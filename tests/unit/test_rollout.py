"""Rollouts: what is sampled, rewarded and laid into batches, and what it depends on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from cutaway.errors import DataError, ModelError, TrainingError
from cutaway.models.adapter import Lora, adapt
from cutaway.models.learning import low_rank_of
from cutaway.models.model import Model, build, with_head
from cutaway.models.transformer import TransformerConfig
from cutaway.objectives.likelihood import token_logprobs
from cutaway.objectives.policy import GRPO, group_advantages
from cutaway.text.tokenizer import Tokenizer, train
from cutaway.text.vocabulary import ByteSettings
from cutaway.train.reward import Answer, Mixed, ModelReward, prompt
from cutaway.train.rollout import Rollouts, RolloutSettings, Source

TOKENIZER: Tokenizer = train(ByteSettings(), [])
CONFIG = TransformerConfig(vocab_size=TOKENIZER.vocab_size, hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=1,
                           intermediate_size=32, context_length=24, tie_embeddings=False)
PROMPTS = ("a", "bc", "def", "gh", "i")


def policy(seed: int) -> Model:
    """A model that ends an answer about every fifth token."""
    model = build(CONFIG, seed=seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)))
        model.head.weight[TOKENIZER.end_id] *= 4
    return model


def length(requests: Sequence[str], answers: Sequence[Answer]) -> list[float]:
    return [len(r) + 0.5 * len(a.tokens) + 0.1 * a.finished for r, a in zip(requests, answers, strict=True)]


def rollouts(**settings: object) -> Rollouts:
    chosen = {"prompts": 3, "samples": 4, "max_tokens": 8, "rows": 5} | settings
    return Rollouts(policy(0), policy(1), TOKENIZER, PROMPTS, length, RolloutSettings(**chosen), seed=3)


def test_a_rollout_is_a_function_of_its_number_alone() -> None:
    source = rollouts()
    first, again, other = source.sample(4), source.sample(4), source.sample(5)
    assert first.answers == again.answers != other.answers
    assert all(torch.equal(a.advantage, b.advantage) for a, b in zip(first.batches, again.batches, strict=True))
    assert len(set(first.answers)) > 6
    assert {a.finished for r in (first, other) for a in r.answers} == {True, False}


def test_every_prompt_is_asked_once_an_epoch() -> None:
    source = rollouts(prompts=5)
    orders = [tuple(source.sample(n).requests[::4]) for n in range(3)]
    assert all(sorted(order) == sorted(PROMPTS) for order in orders)
    assert len(set(orders)) > 1


def test_ranks_share_one_rollout() -> None:
    whole = rollouts().sample(2)
    parts = [rollouts().sample(2, rank=r, world=2) for r in range(2)]
    assert tuple(a for p in parts for a in p.answers) == whole.answers
    assert tuple(q for p in parts for q in p.requests) == whole.requests
    for name, (value, weight) in whole.statistics.items():
        assert sum(p.statistics[name][0] for p in parts) == pytest.approx(value)
        assert sum(p.statistics[name][1] for p in parts) == weight
    rows = sorted(tuple(row) for b in whole.batches for row in b.advantage[:, 0:1].tolist())
    assert sorted(tuple(row) for p in parts for b in p.batches for row in b.advantage[:, 0:1].tolist()) == rows


def test_a_batch_holds_request_answer_and_end() -> None:
    """Each row is prompt, answer and, only where it came, the end; weights, advantages and log-probabilities fit."""
    source = rollouts(updates=2)
    rollout = source.sample(0)
    gains = group_advantages(torch.tensor(rollout.rewards, dtype=torch.float64), 4).float().tolist()
    wanted = {}
    for request, answer, gain in zip(rollout.requests, rollout.answers, gains, strict=True):
        ids = prompt(request, TOKENIZER)
        said = [*answer.tokens, *([TOKENIZER.end_id] if answer.finished else [])]
        wanted[(*ids, *said)] = (len(ids), gain)
    seen = 0
    for batch in rollout.batches:
        for row, size in enumerate(batch.lengths().tolist()):
            ids = (int(batch.tokens[row, 0]), *batch.targets[row, :size].tolist())
            context, gain = wanted[ids]
            assert batch.weights[row].tolist() == [0.0] * (context - 1) + [1.0] * (size + 1 - context) + [0.0] * (
                len(batch.weights[row]) - size)
            assert batch.advantage[row].tolist() == [gain] * batch.tokens.shape[1]
            seen += 1
        with torch.no_grad():
            torch.testing.assert_close(batch.old_logprob, token_logprobs(source.model, batch), rtol=0, atol=0)
            torch.testing.assert_close(batch.reference_logprob, token_logprobs(source.reference, batch), rtol=0, atol=0)
        metrics = GRPO()(source.model, batch).metrics
        assert float(metrics["clipped_low"][0]) == float(metrics["clipped_high"][0]) == 0
    assert seen == len(rollout.answers) == 12


def test_a_kl_in_the_reward_is_taken_off_before_the_group_is_compared() -> None:
    plain, penalised = rollouts().sample(0), rollouts(kl=0.5).sample(0)
    assert penalised.rewards == plain.rewards  # what is reported stays the reward
    differences = []
    for a, b in zip(plain.batches, penalised.batches, strict=True):
        moved = (b.old_logprob - b.reference_logprob).sum(1)
        differences += list(zip((b.advantage - a.advantage)[:, 0].tolist(), moved.tolist(), strict=True))
    got, moved = np.array(differences).T
    assert abs(got.sum()) < 1e-4
    assert np.corrcoef(got, moved)[0, 1] < -0.5


def test_answers_are_learned_from_again_only_in_order() -> None:
    source = Source(rollouts(updates=3))
    first = source(3)
    assert source.latest is not None and source.latest.number == 1
    assert source(4) is first and source(5) is first
    with pytest.raises(TrainingError, match="multiple of 3"):
        source(1)
    with pytest.raises(TrainingError, match="multiple of 3"):
        Source(rollouts(updates=3))(7)


def test_statistics_count_what_was_sampled() -> None:
    source = replace(rollouts(), judge=lambda requests, answers: [float(a.finished) for a in answers])
    rollout = source.sample(0)
    stats = {name: value / weight for name, (value, weight) in rollout.statistics.items()}
    assert stats["reward"] == pytest.approx(np.mean(rollout.rewards))
    assert stats["finished"] == stats["judge"] == np.mean([a.finished for a in rollout.answers])
    assert stats["answer_tokens"] == np.mean([len(a.tokens) for a in rollout.answers])
    assert stats["group_std"] == pytest.approx(np.reshape(rollout.rewards, (3, 4)).std(1).mean())


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(DataError, match="at least one prompt"):
        replace(rollouts(), prompts=())
    with pytest.raises(DataError, match="an answer of 8 tokens need 32, and the context is 24"):
        replace(rollouts(), prompts=("a", "x" * 20))
    with pytest.raises(TrainingError, match="12 of 12 answers is not finite"):
        replace(rollouts(), reward=lambda requests, answers: [float("nan")] * len(answers)).sample(0)


ANSWERS = tuple(Answer(text, tuple(TOKENIZER.encode(text)), finished)
                for text, finished in (("yes", True), ("no", True), ("perhaps", False), ("yes", False)))
REQUESTS = ("a", "b", "a", "a")


def test_a_model_reward_scores_each_answer_by_itself() -> None:
    reward = ModelReward(with_head(policy(0), "scalar", seed=1), TOKENIZER, rows=3)
    together = reward.scores(REQUESTS, ANSWERS)
    alone = [reward.scores([r], [a])[0] for r, a in zip(REQUESTS, ANSWERS, strict=True)]
    assert together == pytest.approx(alone, rel=1e-5, abs=1e-6)
    assert abs(together[0] - together[3]) > 1e-4  # the end of the turn is part of what is judged


def test_a_calibrated_reward_has_mean_0_and_std_1_and_bounds() -> None:
    raw = ModelReward(with_head(policy(0), "scalar", seed=1), TOKENIZER, unfinished=9.0)
    reward = raw.calibrated(REQUESTS, ANSWERS)
    scores = reward(REQUESTS, ANSWERS)
    assert np.mean(scores) == pytest.approx(0, abs=1e-6)
    assert np.std(scores) == pytest.approx(1, rel=1e-6)
    bounded = replace(reward, bounded=0.5)(REQUESTS, ANSWERS)
    assert bounded == pytest.approx(0.5 * np.tanh(np.array(scores) / 0.5))
    strict = replace(reward, unfinished=-3.0)(REQUESTS, ANSWERS)
    assert strict[:2] == scores[:2] and max(strict[2:]) <= -3.0
    with pytest.raises(TrainingError, match="all alike"):
        raw.calibrated(REQUESTS[:1] * 2, ANSWERS[:1] * 2)


def test_an_answer_beyond_the_reward_models_context_is_refused() -> None:
    reward = ModelReward(with_head(policy(0), "scalar", seed=1), TOKENIZER)
    with pytest.raises(ModelError, match="longer than the context"):
        reward(["a"], [Answer("x" * 30, tuple(TOKENIZER.encode("x" * 30)), True)])


def test_rewards_are_mixed_by_their_weights() -> None:
    def ended(requests: Sequence[str], answers: Sequence[Answer]) -> list[float]:
        return [float(a.finished) for a in answers]

    mixed = Mixed(((2.0, ended), (-0.5, length)))
    wanted = [2 * e - 0.5 * n for e, n in zip(ended(REQUESTS, ANSWERS), length(REQUESTS, ANSWERS), strict=True)]
    assert mixed(REQUESTS, ANSWERS) == pytest.approx(wanted)


def test_what_answers_were_sampled_from_is_scored_without_dropping() -> None:
    source = rollouts(updates=2)
    adapt(source.model, Lora(rank=2, dropout=0.5))
    with torch.no_grad():
        for part in low_rank_of(source.model):
            for up in part.up:
                up.normal_(generator=torch.Generator().manual_seed(1))
    first, again = source.sample(4).batches, source.sample(4).batches
    assert source.model.training
    for a, b in zip(first, again, strict=True):
        assert a.old_logprob is not None and b.old_logprob is not None and torch.equal(a.old_logprob, b.old_logprob)
