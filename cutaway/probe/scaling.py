"""Speed and memory against length: a training step, a prompt read, the next token, and the bytes carried behind it.

Bytes are counted in the state itself and predicted from the configuration; times are medians over repeats.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cutaway.batch import Batch
from cutaway.models.model import LanguageModel, Model, State, build
from cutaway.objectives.likelihood import Likelihood
from cutaway.records import Measurement
from cutaway.train.loop import steps
from cutaway.train.optimizer import OptimizerSettings, build_optimizer
from cutaway.train.schedule import Schedule

REPEATS, WARM, DECODED = 5, 1, 16


def state_bytes(state: State) -> int:
    """Bytes of every number a state carries: its floating-point tensors, each storage once."""
    numbers = [t.untyped_storage() for t in _tensors(state) if t.is_floating_point()]
    return sum({s.data_ptr(): s.nbytes() for s in numbers}.values())


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif hasattr(value, "__dict__"):
        yield from _tensors(list(vars(value).values()))
    elif hasattr(type(value), "__slots__"):
        yield from _tensors([getattr(value, name) for name in type(value).__slots__])


def memory_by_length(model: Model, lengths: Sequence[int], *, name: str = "") -> list[Measurement]:
    """Bytes carried behind so many tokens of one row, measured in the state; ``conditions`` hold what the
    configuration predicted."""
    each = torch.empty(0, dtype=model.compute_dtype).element_size()
    out = []
    for length in lengths:
        with torch.inference_mode():
            state = model.new_state(1, capacity=length)
            model.logits(torch.zeros((1, length), dtype=torch.long), state)
        predicted = model.config.cost().state_bytes(length, each)
        out.append(Measurement("state_bytes", float(state_bytes(state)), "bytes", 1, conditions={
            "architecture": name, "length": length, "predicted": predicted, "bytes_each": each}))
    return out


def read_by_length(model: LanguageModel, lengths: Sequence[int], *, name: str = "", seed: int = 0,
                   repeats: int = REPEATS) -> list[Measurement]:
    """Seconds a token to read a prompt of each length, and seconds for one token more behind it (one row)."""
    draw, out = np.random.default_rng(seed), []
    for length in lengths:
        prompt = torch.from_numpy(draw.integers(0, model.vocab_size, (1, length)))
        more = min(DECODED, length - 1)
        with torch.inference_mode():
            def _read(prompt: Tensor = prompt, length: int = length) -> None:
                model.logits(prompt, model.new_state(1, capacity=length))

            reading = _timed(_read, repeats)
            writing = _decoding(model, prompt, more, repeats)
        conditions = {"architecture": name, "length": length, "rows": 1}
        out.append(_seconds("prefill_seconds_per_token", [s / length for s in reading], conditions))
        out.append(_seconds("decode_seconds_per_token", writing, conditions))
    return out


def _decoding(model: LanguageModel, prompt: Tensor, more: int, repeats: int) -> list[float]:
    """Seconds of each of the last ``more`` tokens of the prompt read one by one behind the rest."""
    took = []
    for _ in range(max(1, repeats // 2) + WARM):
        state = model.new_state(1, capacity=prompt.shape[1])
        model.logits(prompt[:, :-more], state)
        for at in range(prompt.shape[1] - more, prompt.shape[1]):
            began = time.perf_counter()
            model.logits(prompt[:, at:at + 1], state)
            took.append(time.perf_counter() - began)
    return took[WARM * more:]


def train_by_length(config: Any, lengths: Sequence[int], *, name: str = "", tokens: int = 2048, seed: int = 0,
                    dtype: torch.dtype = torch.float32, repeats: int = REPEATS) -> list[Measurement]:
    """Seconds a token of a whole training step (forward, backward, update) on rows of each length, about ``tokens`` a
    step whatever the length."""
    out = []
    for length in lengths:
        rows = max(1, tokens // length)
        model = build(config, seed=seed, compute_dtype=dtype)
        whole = torch.from_numpy(np.random.default_rng(seed).integers(0, config.vocab_size, (rows, length + 1)))
        batch = Batch(whole[:, :-1].contiguous(), whole[:, 1:].contiguous(), torch.ones(rows, length))
        took = _stepping(model, batch, repeats)
        out.append(_seconds("train_seconds_per_token", [s / (rows * length) for s in took],
                            {"architecture": name, "length": length, "rows": rows}))
    return out


def _stepping(model: Model, batch: Batch, repeats: int) -> list[float]:
    loop = steps(model, lambda _: [batch], Likelihood(), build_optimizer(model, OptimizerSettings()),
                 schedule=Schedule(kind="constant"), total=WARM + repeats)
    return [s.seconds for s in loop][WARM:]


def _timed(work: Callable[[], None], repeats: int) -> list[float]:
    took = []
    for _ in range(WARM + repeats):
        began = time.perf_counter()
        work()
        took.append(time.perf_counter() - began)
    return took[WARM:]


def _seconds(name: str, took: Sequence[float], conditions: dict[str, Any]) -> Measurement:
    """The median, and the middle half of all repeats as its spread."""
    low, high = (float(q) for q in np.quantile(took, (0.25, 0.75)))
    return Measurement(name, median(took), "s", len(took), low, high, {**conditions, "interval": "quartiles"})


def doubling(first: int, last: int) -> list[int]:
    """``first``, twice that, and so on up to ``last``."""
    return list(itertools.takewhile(lambda n: n <= last, (first * 2**i for i in range(64))))
