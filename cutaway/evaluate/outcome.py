"""A task's items answered by a model: log-probabilities of choices, nats of texts, or what the model writes.

Outcomes come in batches as they are done, so that the caller can show how far it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cutaway.errors import DataError, SettingsError
from cutaway.evaluate.bits import window_nats
from cutaway.evaluate.items import Item
from cutaway.evaluate.loglikelihood import Likely, Pair, fitted, loglikelihoods, pair, rolling
from cutaway.evaluate.task import AnyTask, Asked, Continuation, Generation, MultipleChoice, Perplexity
from cutaway.generate.engine import Engine
from cutaway.generate.request import Sampling
from cutaway.generate.writer import Options, Writer
from cutaway.models.model import LanguageModel
from cutaway.text.chat import Message, render
from cutaway.text.tokenizer import Tokenizer

PLACES = 1 << 15  # tokens that are written and read at once: bounds the memory of their keys and values


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of item number ``item``: the log-probability of each of its answers in nats, over ``tokens``, or the
    ``text`` that was written. ``cut``: tokens of its prompt that did not fit; ``left_out``: why it has no answer."""

    item: int
    logprobs: tuple[float, ...] = ()
    tokens: tuple[int, ...] = ()
    greedy: bool | None = None
    text: str | None = None
    cut: int = 0
    left_out: str | None = None


def context_of(model: LanguageModel, task: AnyTask) -> int:
    """How many tokens the model may look at. Raises SettingsError for more than it can."""
    if task.context is not None and task.context > model.context_length:
        raise SettingsError(f"context = {task.context} is more than the model's {model.context_length}",
                            where=f"task {task.name}", way_out="set it lower, or leave it out")
    return task.context or model.context_length


def outcomes(model: LanguageModel, tokenizer: Tokenizer, task: AnyTask, items: Sequence[Item]
             ) -> Iterator[list[Outcome]]:
    """Every item once, in batches. Raises DataError for an item that is too long where the task says so, ModelError for
    a model that cannot answer, SettingsError for a context that it does not have."""
    context = context_of(model, task)
    match task:
        case Perplexity():
            yield from _read(model, tokenizer, items, context)
        case Generation():
            yield from _written(model, tokenizer, task, items, context)
        case MultipleChoice() | Continuation():
            yield from _scored(model, tokenizer, task, items, context)


def _read(model: LanguageModel, tokenizer: Tokenizer, items: Sequence[Item], context: int) -> Iterator[list[Outcome]]:
    rows = [np.concatenate([[tokenizer.bos_id], ids]).astype(np.int64)
            for ids in tokenizer.encode_documents([item.answers[0] for item in items])]
    pieces = [(i, window) for i, row in enumerate(rows) for window in rolling(row, context)]
    nats, left = np.zeros(len(rows)), np.bincount(np.array([i for i, _ in pieces], np.int64), minlength=len(rows))
    if not left.all():
        raise DataError("a text of no token", where=items[int(np.argmin(left))].name)
    for owners, costs in window_nats(model, pieces, pad_id=tokenizer.pad_id):
        np.add.at(nats, owners, costs)
        np.subtract.at(left, owners, 1)
        yield [Outcome(i, (-float(nats[i]),), (len(rows[i]) - 1,)) for i in np.unique(owners).tolist() if not left[i]]


def _too_long(task: Asked, item: Item, needs: int, room: int) -> Outcome | None:
    """None where the item may be cut, or an outcome without an answer. Raises DataError where it may not."""
    if task.too_long == "error":
        raise DataError(f"{needs} tokens, and the context is {room}", where=item.name,
                        way_out="set too_long to cut or leave_out, or context to more")
    return None if task.too_long == "cut" else Outcome(-1, left_out=f"{needs} tokens, the context is {room}")


def _scored(model: LanguageModel, tokenizer: Tokenizer, task: MultipleChoice | Continuation, items: Sequence[Item],
            context: int) -> Iterator[list[Outcome]]:
    pairs: list[Pair] = []
    owners: list[int] = []
    gone: list[Outcome] = []
    for i, item in enumerate(items):
        mine = _pairs(tokenizer, task, item, context)
        if isinstance(mine, Outcome):
            gone.append(Outcome(i, left_out=mine.left_out))
        else:
            pairs += mine
            owners += [i] * len(mine)
    if gone:
        yield gone
    found: dict[int, dict[int, Likely]] = {}
    firsts = {i: at for at, i in reversed(list(enumerate(owners)))}
    for part in loglikelihoods(model, pairs, greedy=isinstance(task, Continuation)):
        done = []
        for at, likely in part:
            i = owners[at]
            mine_ = found.setdefault(i, {})
            mine_[at - firsts[i]] = likely
            if len(mine_) == len(items[i].answers):
                done.append(_outcome(i, [mine_[k] for k in range(len(mine_))], pairs[firsts[i]:firsts[i] + len(mine_)]))
        yield done


def _outcome(item: int, likely: Sequence[Likely], pairs: Sequence[Pair]) -> Outcome:
    return Outcome(item, tuple(one.logprob for one in likely), tuple(one.tokens for one in likely),
                   likely[0].greedy if len(likely) == 1 else None, cut=max(p.cut for p in pairs))


def _pairs(tokenizer: Tokenizer, task: MultipleChoice | Continuation, item: Item,
           context: int) -> list[Pair] | Outcome:
    try:
        pairs = [pair(tokenizer, item.prompt, task.delimiter + answer) for answer in item.answers]
        needs = max(len(p.context) + len(p.continuation) - 1 for p in pairs)
        if needs > context and (gone := _too_long(task, item, needs, context)) is not None:
            return gone
        return [fitted(p, context) for p in pairs]
    except DataError as error:
        raise DataError(error.what, where=error.where or item.name, way_out=error.way_out) from None


def _written(model: LanguageModel, tokenizer: Tokenizer, task: Generation, items: Sequence[Item],
             context: int) -> Iterator[list[Outcome]]:
    room = context - task.max_tokens
    if room < 1:
        raise SettingsError(f"max_tokens = {task.max_tokens} leaves no room for a prompt in a context of {context}",
                            where=f"task {task.name}", way_out="set max_tokens lower")
    prompts: dict[int, tuple[tuple[int, ...], int]] = {}
    gone = []
    for i, item in enumerate(items):
        ids = _prompt(tokenizer, item, chat=task.chat)
        outcome = None if len(ids) <= room else _too_long(task, item, len(ids) + task.max_tokens, context)
        if outcome is not None:
            gone.append(Outcome(i, left_out=outcome.left_out))
        else:
            prompts[i] = ids[-room:], max(0, len(ids) - room)
    if gone:
        yield gone
    order = sorted(prompts, key=lambda i: -len(prompts[i][0]))
    options = Options(max_tokens=task.max_tokens, sampling=Sampling(temperature=0), stop=task.stop)
    while order:
        rows = max(1, PLACES // (len(prompts[order[0]][0]) + task.max_tokens))
        some, order = order[:rows], order[rows:]
        texts = Writer(Engine(model, max_rows=rows), tokenizer).write([prompts[i][0] for i in some], options)
        yield [Outcome(i, tokens=(len(w.tokens),), text=w.text, cut=prompts[i][1])
               for i, w in zip(some, texts, strict=True)]


def _prompt(tokenizer: Tokenizer, item: Item, *, chat: bool) -> tuple[int, ...]:
    if chat:
        return tuple(render([Message("user", item.prompt)], tokenizer, add_generation_prompt=True).ids)
    return (*tokenizer.begin_ids, *tokenizer.encode(item.prompt)) or (tokenizer.bos_id,)
