"""Learning a task from examples until held-out ones say stop (Prechelt 1998): a caller's loop over ``steps``.

One way for every architecture: any configuration, or a model that was trained before, learns classes, or to write
targets beside sources. The weights kept are those of the best look at the validation part, or the mean of the last
few where that is better (Izmailov 2018, arXiv 1803.05407). Deterministic, unless the budget is in seconds.
"""

from __future__ import annotations

import copy
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from cutaway.batch import Batch, Example, beside
from cutaway.data.buckets import BucketLoader
from cutaway.data.examples import classify, continued, seq2seq
from cutaway.data.order import uniform
from cutaway.errors import DataError
from cutaway.models.heads import Classes
from cutaway.models.model import Architecture, Model, build, with_head
from cutaway.models.reading import fitted, framed_rows, longer, outputs
from cutaway.objectives.classify import Classify
from cutaway.objectives.likelihood import Likelihood
from cutaway.objectives.objective import Objective
from cutaway.settings import Settings
from cutaway.text.tokenizer import Tokenizer
from cutaway.train.loop import steps
from cutaway.train.optimizer import OptimizerSettings, build_optimizer
from cutaway.train.pace import measure_pace
from cutaway.train.schedule import Schedule

Label = str | Sequence[str]
Weights = dict[str, Tensor]


class FitSettings(Settings):
    """How long and how: exactly one of ``epochs``, ``steps`` and ``seconds`` (looks at the validation part included).

    A look comes after every epoch and at the end; after ``patience`` looks without a better one training stops (0:
    never). ``word_dropout`` hides that share of a text's tokens behind the mask, others in every epoch (Iyyer 2015).
    ``average``: the mean of the weights at the last so many looks is taken if it is better than the best look.
    """

    epochs: int | None = Field(default=None, ge=1)
    steps: int | None = Field(default=None, ge=1)
    seconds: float | None = Field(default=None, gt=0)
    rows: int | None = Field(default=32, ge=1)
    tokens: int | None = Field(default=None, ge=1)
    patience: int = Field(default=0, ge=0)
    average: int = Field(default=0, ge=0)
    optimizer: OptimizerSettings = OptimizerSettings(kind="adamw", learning_rate=1e-3, betas=(0.9, 0.98), eps=1e-8)
    schedule: Schedule = Schedule(kind="cosine", warmup=0.05)
    clip: float | None = Field(default=1.0, gt=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    word_dropout: float = Field(default=0.0, ge=0, lt=1)
    too_long: Literal["refuse", "skip", "cut"] = "refuse"

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        if sum(b is not None for b in (self.epochs, self.steps, self.seconds)) != 1:
            raise ValueError("give exactly one of epochs, steps and seconds")
        if (self.rows is None) == (self.tokens is None):
            raise ValueError("give exactly one of rows and tokens")
        return self


@dataclass(frozen=True, slots=True)
class Look:
    """The model after ``step``: the mean training loss since the look before, and ``figures`` of the validation part.
    ``rank`` is larger where it is better."""

    step: int
    loss: float
    figures: dict[str, float]
    rank: tuple[float, ...]
    seconds: float  # since training began


@dataclass(frozen=True, slots=True)
class Fitted:
    """The model with the weights of its ``best`` look, all looks, and what of the examples was not read whole.

    ``valid_unseen``: the validation texts with a label that no text to learn from has; each counts as wrong.
    """

    model: Model
    history: tuple[Look, ...]
    best: Look
    seconds: float
    left_out: tuple[int, ...] = ()
    cut: tuple[int, ...] = ()
    valid_cut: tuple[int, ...] = ()
    valid_left_out: tuple[int, ...] = ()
    valid_unseen: tuple[int, ...] = ()


Judge = Callable[[Model], tuple[dict[str, float], tuple[float, ...]]]


def fit_classifier(start: Architecture | Model, tokenizer: Tokenizer, labelled: Sequence[tuple[str, Label]], *,
                   valid: Sequence[tuple[str, Label]], settings: FitSettings, seed: int = 0) -> Fitted:
    """Learn the classes of ``labelled`` texts: one each, or any number where labels are sequences of names.

    ``start`` is a configuration, or a model whose backbone goes on learning under a new head. The best look has the
    highest accuracy and among equals the likeliest labels; with several labels a text, the likeliest labels. A text of
    ``valid`` with a label that is not learned counts as wrong (``Fitted.valid_unseen``).
    """
    names = label_names(labelled)
    several = not isinstance(labelled[0][1], str)
    head = Classes(names, multi_label=several)
    model = with_head(start, head, seed=seed) if isinstance(start, Model) else build(start, head=head, seed=seed)
    loader = BucketLoader([classify(text, label, tokenizer, names) for text, label in labelled], tokenizer.pad_id,
                          rows=settings.rows, tokens=settings.tokens, seed=seed, limit=model.context_length,
                          too_long=settings.too_long)

    def batch(step: int) -> Batch:
        read = loader.batch(step)
        read = _with_gaps(read, step, tokenizer, settings.word_dropout, seed) if settings.word_dropout else read
        return beside(read, tokenizer.bos_id) if model.reads_source else read

    unseen = _unseen(valid, names)
    judge, valid_cut = _judge_of_classes(valid, unseen, names, tokenizer, model.context_length, settings,
                                         several=several)
    made = fit(model, batch, Classify(settings.label_smoothing), judge, epoch_steps=loader.epoch_steps,
               settings=settings, seed=seed)
    return replace(made, left_out=tuple(loader.left_out), cut=tuple(loader.cut), valid_cut=valid_cut,
                   valid_unseen=unseen)


def fit_seq2seq(start: Architecture | Model, tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]], *,
                valid: Sequence[tuple[str, str]], settings: FitSettings, seed: int = 0) -> Fitted:
    """Learn to write the second text of each pair beside the first. The best look has the likeliest targets.

    A model that reads no source reads it before the target, between beginning and end (``source_prompt``).
    """
    if settings.word_dropout:
        raise DataError("word_dropout hides tokens of texts that are judged, not of pairs", way_out="set it to 0")
    model = start if isinstance(start, Model) else build(start, seed=seed)
    context = model.context_length
    sides = [BucketLoader([_pair_example(*pair, tokenizer, beside=model.reads_source) for pair in part],
                          tokenizer.pad_id, rows=settings.rows, tokens=settings.tokens, seed=seed, limit=context,
                          source_limit=context, too_long=settings.too_long) for part in (pairs, valid)]

    def judge(model: Model) -> tuple[dict[str, float], tuple[float, ...]]:
        model.eval()
        with torch.no_grad():
            batches = (sides[1].batch(step).to(model.device) for step in range(sides[1].epoch_steps))
            losses = [Likelihood()(model, batch) for batch in batches]
        nll = sum(float(loss.total) for loss in losses) / sum(loss.weight for loss in losses)
        return {"nll": nll}, (-nll,)

    made = fit(model, sides[0].batch, Likelihood(label_smoothing=settings.label_smoothing), judge,
               epoch_steps=sides[0].epoch_steps, settings=settings, seed=seed)
    return replace(made, left_out=tuple(sides[0].left_out), cut=tuple(sides[0].cut),
                   valid_cut=tuple(sides[1].cut), valid_left_out=tuple(sides[1].left_out))


def fit(model: Model, batch: Callable[[int], Batch], objective: Objective, judge: Judge, *, epoch_steps: int,
        settings: FitSettings, seed: int = 0) -> Fitted:
    """Train ``model`` in place on ``batch(step)``, looking with ``judge``, and leave it with the best weights."""
    began = time.perf_counter()
    history: list[Look] = []
    best: tuple[Look, Weights] | None = None
    last: deque[Weights] = deque(maxlen=settings.average or 1)
    for look in looks(model, batch, objective, judge, epoch_steps=epoch_steps, settings=settings, seed=seed):
        history.append(look)
        last.append(_weights(model))
        if best is None or look.rank > best[0].rank:
            best = look, last[-1]
        elif settings.patience and history.index(best[0]) + settings.patience < len(history):
            break
    assert best is not None
    if settings.average > 1 and len(last) > 1:
        best = max(best, _mean_look(model, list(last), judge, history[-1]), key=lambda found: found[0].rank)
    _put(model, best[1])
    return Fitted(model.eval(), tuple(history), best[0], time.perf_counter() - began)


def looks(model: Model, batch: Callable[[int], Batch], objective: Objective, judge: Judge, *, epoch_steps: int,
          settings: FitSettings, seed: int = 0) -> Iterator[Look]:
    """Train, and yield after every epoch and at the end; the model has the weights of that moment."""
    began = time.perf_counter()
    total = _total(model, batch, objective, judge, epoch_steps, settings)
    optimizer = build_optimizer(model, settings.optimizer)
    loss = weight = 0.0
    for step in steps(model, lambda number: [batch(number)], objective, optimizer, schedule=settings.schedule,
                      total=total, clip=settings.clip, seed=seed):
        if not step.skipped:
            loss, weight = loss + step.loss * step.weight, weight + step.weight
        if step.number % epoch_steps == 0 or step.number == total:
            figures, rank = judge(model)
            yield Look(step.number, loss / max(weight, 1e-12), figures, rank, time.perf_counter() - began)
            loss = weight = 0.0


def label_names(labelled: Sequence[tuple[str, Label]]) -> tuple[str, ...]:
    """Every label there is, sorted. Raises DataError where some texts have one label and others a sequence of them."""
    if not labelled or len({isinstance(label, str) for _, label in labelled}) > 1:
        raise DataError("texts need labels of one kind: a name each, or a sequence of names each")
    return tuple(sorted({name for _, label in labelled for name in ([label] if isinstance(label, str) else label)}))


def source_prompt(source: str, tokenizer: Tokenizer) -> list[int]:
    """How a model that reads no source is asked to write beside one: the source between beginning and end."""
    return [tokenizer.bos_id, *tokenizer.encode(source), tokenizer.eos_id]


def _pair_example(source: str, target: str, tokenizer: Tokenizer, *, beside: bool) -> Example:
    if beside:
        return seq2seq(source, target, tokenizer)
    return continued(source_prompt(source, tokenizer), [*tokenizer.encode(target), tokenizer.eos_id])


def _total(model: Model, batch: Callable[[int], Batch], objective: Objective, judge: Judge, epoch_steps: int,
           settings: FitSettings) -> int:
    """The number of steps that the budget holds."""
    if settings.steps is not None:
        return settings.steps
    if settings.seconds is None:
        return epoch_steps * (settings.epochs or 0)
    pace = measure_pace(model, lambda number: [batch(number)], objective, optimizer=settings.optimizer,
                        schedule=settings.schedule, clip=settings.clip, seconds=settings.seconds)
    began = time.perf_counter()
    judge(model)
    look = time.perf_counter() - began
    left = settings.seconds - pace.spent - 2 * look  # this look and the last one
    return max(1, int(left / (pace.each + look / epoch_steps)))


def _unseen(valid: Sequence[tuple[str, Label]], names: tuple[str, ...]) -> tuple[int, ...]:
    """The numbers of the texts with a label that is not learned. Raises DataError if that is every one of them."""
    if not valid:
        raise DataError("there is no validation part to look at", way_out="hold some of the examples out")
    known = set(names)
    lost = [{label} - known if isinstance(label, str) else set(label) - known for _, label in valid]
    if all(lost):
        raise DataError(f"no text of the validation part has labels that are learned: no class is called "
                        f"{min(lost[0])!r}", way_out="hold out texts whose labels others have too")
    return tuple(i for i, labels in enumerate(lost) if labels)


def _judge_of_classes(valid: Sequence[tuple[str, Label]], unseen: tuple[int, ...], names: tuple[str, ...],
                      tokenizer: Tokenizer, context: int, settings: FitSettings, *,
                      several: bool) -> tuple[Judge, tuple[int, ...]]:
    """What looks at the validation part, and which of its texts it reads cut.

    ``unseen`` texts are wrong whatever the model says, so they are not read; their likelihood would be none.
    """
    framed = framed_rows([text for text, _ in valid], tokenizer)
    how: Literal["refuse", "cut"] = "refuse" if settings.too_long == "refuse" else "cut"
    fits = [row for parts in fitted(framed, context, too_long=how) for row in parts]
    seen = sorted({*range(len(valid))} - {*unseen})
    rows = [fits[i] for i in seen]
    wanted = np.array([classify("", valid[i][1], tokenizer, names).label for i in seen])

    def judge(model: Model) -> tuple[dict[str, float], tuple[float, ...]]:
        logits = torch.from_numpy(outputs(model, rows, pad_id=tokenizer.pad_id, bos_id=tokenizer.bos_id))
        goal = torch.from_numpy(wanted)
        if several:
            nll = torch.nn.functional.binary_cross_entropy_with_logits(logits, goal.double(), reduction="sum")
            right = float(((logits > 0) == (goal > 0)).double().mean())
        else:
            nll = torch.nn.functional.cross_entropy(logits, goal, reduction="sum")
            right = float((logits.argmax(1) == goal).double().mean())
        right, each = right * (len(rows) / len(valid)), float(nll) / len(rows)
        return {"accuracy": right, "nll": each}, (-each,) if several else (right, -each)

    return judge, tuple(longer(framed, context))


def _with_gaps(batch: Batch, step: int, tokenizer: Tokenizer, share: float, seed: int) -> Batch:
    """``share`` of the tokens hidden behind the mask, a function of (seed, step, place)."""
    tokens = batch.tokens.numpy()
    drawn = uniform(step * 2**20 + np.arange(len(tokens)), tokens.shape[1], seed=seed)
    gone = (drawn < share) & ~np.isin(tokens, tokenizer.control_ids)
    return replace(batch, tokens=torch.from_numpy(np.where(gone, tokenizer.mask_id, tokens)))


def _weights(model: Model) -> Weights:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def _put(model: Model, weights: Weights) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])


def _mean_look(model: Model, weights: Sequence[Weights], judge: Judge, last: Look) -> tuple[Look, Weights]:
    mean = {name: torch.stack([w[name].double() for w in weights]).mean(0).to(weights[0][name].dtype)
            for name in weights[0]}
    trial = copy.deepcopy(model)
    _put(trial, mean)
    figures, rank = judge(trial)
    return replace(last, figures=figures, rank=rank), mean
