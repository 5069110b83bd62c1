"""Stage 6, alignment: GRPO against the reward model with a KL to the fine-tuned model, or DPO on the same pairs."""

from __future__ import annotations

from collections.abc import Sequence

from cutaway.batch import Batch
from cutaway.models.model import Model
from cutaway.objectives.policy import GRPO
from cutaway.objectives.preference import DPO, with_reference
from cutaway.run.finish import finish
from cutaway.run.preferences import read_preferences
from cutaway.run.recipe import DPOStage, GRPOStage
from cutaway.run.stage_reward import pairs_of
from cutaway.run.training import Job, length, train
from cutaway.run.work import Work
from cutaway.train.judge import Satisfaction
from cutaway.train.reward import ModelReward, prompt
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
    """Train the aligned model, starting from the fine-tuned one."""
    settings = work.recipe.align
    model = work.load("finetuned")
    job = _grpo(work, model, settings) if isinstance(settings, GRPOStage) else _dpo(work, model, settings)
    finish(work, job, train(work, job, length(work, job, settings.budget)), MODEL)


def _grpo(work: Work, model: Model, settings: GRPOStage) -> Job:
    prompts = tuple(work.fitting(work.text.train, settings.rollouts.max_tokens))
    rollouts = Rollouts(model, work.load("finetuned"), work.tokenizer, prompts,
                        reward_of(work, settings.bounded, settings.unfinished), settings.rollouts,
                        seed=work.recipe.seed, judge=Satisfaction(work.judge))
    source = Source(rollouts, rank=work.parallel.rank, world=work.parallel.world)

    def facts() -> dict[str, float]:
        assert source.latest is not None
        return work.summed(source.latest.statistics)

    return Job(STAGE, model, source, GRPO(settings.clip_ratio, settings.clip_ratio_high, settings.kl), settings,
               facts=facts, stride=settings.rollouts.updates, whole=True,
               passes=6.0,  # sampling, the reference, the reward, and three for learning
               step_tokens=settings.rollouts.prompts * settings.rollouts.samples * _typical(work, settings))


def _typical(work: Work, settings: GRPOStage) -> int:
    """Tokens of a request and its answer on average, by the fine-tuned model's answers to the judge's requests."""
    lengths = [len(prompt(p.request, work.tokenizer)) + min(len(a.tokens), settings.rollouts.max_tokens)
               for p in read_preferences(work.run) for a in p.answers]
    return round(sum(lengths) / max(1, len(lengths)))


def _dpo(work: Work, model: Model, settings: DPOStage) -> Job:
    learned = pairs_of(work, read_preferences(work.run), held_out=False)
    reference, rank, world = work.load("finetuned"), work.parallel.rank, work.parallel.world

    def batches(step: int) -> Sequence[Batch]:
        parts = learned.batch(step, settings.rows, rank=rank, world=world).micro(settings.micro)
        return [with_reference(reference, p.to(work.device.torch)) for p in parts]

    return Job(STAGE, model, batches, DPO(settings.beta, settings.label_smoothing, settings.loss), settings,
               step_tokens=learned.mean_tokens(settings.rows), passes=4.0)
