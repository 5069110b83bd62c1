"""Stage 6, alignment: GRPO against a reward with a KL to the fine-tuned model, or DPO on pairs."""

from __future__ import annotations

from collections.abc import Sequence

from cutaway.batch import Batch
from cutaway.models.learning import Beginning
from cutaway.objectives.policy import GRPO
from cutaway.objectives.preference import DPO, with_reference
from cutaway.run.finish import finish
from cutaway.run.learner import Learner, learner
from cutaway.run.preferences import read_preferences
from cutaway.run.recipe import DPOStage, GRPOStage
from cutaway.run.stage_reward import pairs_of
from cutaway.run.training import Job, length, train
from cutaway.run.work import Work
from cutaway.train.judge import Graded, Satisfaction
from cutaway.train.reward import ModelReward, Reward, prompt
from cutaway.train.rollout import Rollouts, Source

STAGE, MODEL = "align", "aligned"


def reward_of(work: Work, bounded: float = 0.0, unfinished: float = -1.0) -> ModelReward:
    """The reward model in units of the fine-tuned model's own spread on held-out requests."""
    held = [p for p in read_preferences(work.run) if p.held_out]
    requests = [p.request for p in held for _ in p.answers]
    answers = [a for p in held for a in p.answers]
    raw = ModelReward(work.load("reward"), work.tokenizer, bounded=bounded, unfinished=unfinished)
    return raw.calibrated(requests, answers)


def align_stage(work: Work) -> None:
    """Train the aligned model, starting from the fine-tuned one, or from the first where nothing was fine-tuned."""
    settings = work.recipe.align
    assert settings is not None
    learns = learner(work, work.recipe.tuned, settings.adapt)
    job = _grpo(work, learns, settings) if isinstance(settings, GRPOStage) else _dpo(work, learns, settings)
    finish(work, job, train(work, job, length(work, job, settings.budget)), MODEL)


def _grpo(work: Work, learns: Learner, settings: GRPOStage) -> Job:
    prompts = tuple(work.fitting(work.text.train, settings.rollouts.max_tokens))
    by_judge = settings.reward == "judge"
    reward: Reward = Graded(work.judge) if by_judge else reward_of(work, settings.bounded, settings.unfinished)
    rollouts = Rollouts(learns.model, Beginning(learns.model), work.tokenizer, prompts, reward, settings.rollouts,
                        seed=work.recipe.seed, judge=Satisfaction(work.judge))
    source = Source(rollouts, rank=work.parallel.rank, world=work.parallel.world)

    def facts() -> dict[str, float]:
        assert source.latest is not None
        return work.summed(source.latest.statistics)

    return Job(STAGE, learns.model, source, GRPO(settings.clip_ratio, settings.clip_ratio_high, settings.kl), settings,
               facts=facts, stride=settings.rollouts.updates, whole=True, learner=learns,
               passes=learns.passes + (2.0 if by_judge else 3.0),  # sampling, the reference, the reward
               step_tokens=settings.rollouts.prompts * settings.rollouts.samples * _typical(work, settings, prompts))


def _typical(work: Work, settings: GRPOStage, prompts: Sequence[str]) -> int:
    """Tokens of a request and its answer on average, by the answers to the judge's requests; where none were ranked,
    at most."""
    if work.recipe.preferences is None:
        own = sum(len(prompt(p, work.tokenizer)) for p in prompts[:100]) / len(prompts[:100])
        return round(own) + settings.rollouts.max_tokens
    lengths = [len(prompt(p.request, work.tokenizer)) + min(len(a.tokens), settings.rollouts.max_tokens)
               for p in read_preferences(work.run) for a in p.answers]
    return round(sum(lengths) / max(1, len(lengths)))


def _dpo(work: Work, learns: Learner, settings: DPOStage) -> Job:
    learned = pairs_of(work, read_preferences(work.run), held_out=False)
    rank, world = work.parallel.rank, work.parallel.world
    # a sharded model cannot be put back to what it was: there the reference is a model of its own
    reference = work.load(work.recipe.tuned) if work.parallel.kind == "fsdp2" else Beginning(learns.model)

    def batches(step: int) -> Sequence[Batch]:
        parts = learned.batch(step, settings.rows, rank=rank, world=world).micro(settings.micro)
        return [with_reference(reference, p.to(work.device.torch)) for p in parts]

    return Job(STAGE, learns.model, batches, DPO(settings.beta, settings.label_smoothing, settings.loss), settings,
               learner=learns, step_tokens=learned.mean_tokens(settings.rows), passes=learns.passes + 1.0)
