"""What is asked of the engine and what comes back: frozen values, checked before any work is done.

The names are the field's (transformers' GenerationConfig, vLLM's SamplingParams).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat, NonNegativeInt, field_validator

from cutaway.errors import CutawayError, ModelError, RequestError
from cutaway.settings import Settings, nearest

FinishReason = Literal["stop", "length"]
SEEDS = 2**64
COLDEST = 1e-6


class Sampling(Settings):
    """How the next token is drawn, applied in this order.

    ``repetition_penalty`` (Keskar et al. 2019, arXiv 1909.05858) divides positive and multiplies negative logits of
    tokens in the prompt or the answer; ``presence_penalty`` is taken off the logits of tokens in the answer, and
    ``frequency_penalty`` for each time they stand there; ``logit_bias`` adds numbers to the logits of some ids; then
    ``temperature`` (0 is arg-max), ``top_k``, ``top_p`` (Holtzman et al. 2020, arXiv 1904.09751) and ``min_p`` (a share
    of the likeliest token's probability, arXiv 2407.01082).
    """

    temperature: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    top_k: int | None = Field(default=None, ge=1)
    top_p: float = Field(default=1.0, gt=0, le=1)
    min_p: float = Field(default=0.0, ge=0, le=1)
    repetition_penalty: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    presence_penalty: float = Field(default=0.0, allow_inf_nan=False)
    frequency_penalty: float = Field(default=0.0, allow_inf_nan=False)
    logit_bias: tuple[tuple[NonNegativeInt, FiniteFloat], ...] = ()

    @field_validator("temperature")
    @classmethod
    def _divides(cls, value: float) -> float:
        if 0 < value < COLDEST:
            raise ValueError(f"must be 0 (arg-max) or at least {COLDEST}, below which float32 overflows")
        return value


class Constraint(Protocol):
    """What one answer may still become. It changes with every token of that answer, so no two share one."""

    def mask(self) -> NDArray[np.uint32] | None:
        """A bit for each id, lowest first, ``(ceil(V / 32),)``: 1 may come next. None: everything may. Ids beyond its
        end may not. Raises RequestError where the rules turn out too large to follow; that ends this answer alone."""

    def accept(self, token: int) -> None:
        """``token`` came next. Raises RequestError if it was not allowed."""

    @property
    def done(self) -> bool:
        """The document is complete and nothing but an end may follow: the answer ends with the token accepted last."""


class Grammar(Protocol):
    """What every answer to a request must be: it never changes, and begins a constraint for each answer."""

    def begin(self, max_tokens: int, *, vocab_size: int | None = None) -> Constraint:
        """For one answer of at most that many tokens, with masks for a model of ``vocab_size`` ids. Raises
        RequestError, with both numbers, if no answer is that short."""


@dataclass(frozen=True, slots=True)
class Request:
    """Continue ``tokens`` by at most ``max_tokens`` ("fit": whatever the context has room for), beside a ``source`` for
    a model that reads one (then ``tokens`` begin the target).

    The random numbers depend on ``seed`` and the position alone. Any of ``stop_ids`` ends the answer and is its last
    token. Of the three kinds of log-probabilities None gives none, 0 the token's own, n also those of the n likeliest:
    ``logprobs`` of the answer under the model alone; ``sampler_logprobs`` of the answer under what it was drawn from,
    behind penalties, temperature and what top-k, top-p, min-p and a ``constraint`` leave out; ``prompt_logprobs`` of
    the prompt's tokens but the first, under the model alone, all of which are then read anew. An ``adapter`` is one of
    those that the model has been given (``models.beside``), by name.
    """

    tokens: tuple[int, ...]
    max_tokens: int | Literal["fit"]
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    stop_ids: tuple[int, ...] = ()
    logprobs: int | None = None
    source: tuple[int, ...] | None = None
    sampler_logprobs: int | None = None
    prompt_logprobs: int | None = None
    constraint: Constraint | None = None
    adapter: str | None = None

    def checked(self, *, vocab_size: int, context_length: int, reads_source: bool = False,
                adapters: Sequence[str] = (), name: str = "request") -> Request:
        """The same request with a number for "fit". Raises RequestError for what cannot be served."""
        if self.adapter is not None and self.adapter not in adapters:
            near = nearest(self.adapter, adapters)
            raise RequestError(f"this model has no adapter {self.adapter!r}", where=name,
                               way_out=f"did you mean {near!r}?" if near else f"it has {', '.join(adapters) or 'none'}")
        self._check_source(context_length, reads_source, name)
        room = context_length - len(self.tokens)
        if not self.tokens:
            raise RequestError("a prompt needs at least one token", where=name, way_out="begin with the bos token")
        for what, ids in (("prompt", self.tokens), ("source", self.source or self.tokens)):
            if not 0 <= min(ids) <= max(ids) < vocab_size:
                raise RequestError(f"token {_outside(ids, vocab_size)} is outside the vocabulary of {vocab_size}",
                                   where=name, way_out=f"encode the {what} with the model's own tokenizer")
        biased = tuple(token for token, _ in self.sampling.logit_bias)
        if biased and max(biased) >= vocab_size:
            raise RequestError(f"logit_bias names token {max(biased)}, outside the vocabulary of {vocab_size}",
                               where=name)
        if room < 1:
            raise RequestError(f"a prompt of {len(self.tokens)} tokens leaves no room in a context of {context_length}",
                               where=name, way_out=f"shorten the prompt to {context_length - 1} tokens at most")
        wanted = room if self.max_tokens == "fit" else self.max_tokens
        if wanted < 1:
            raise RequestError(f"max_tokens must be at least 1, got {wanted}", where=name)
        if wanted > room:
            raise RequestError(f"a prompt of {len(self.tokens)} tokens and max_tokens {wanted} need "
                               f"{len(self.tokens) + wanted}, and the context is {context_length}", where=name,
                               way_out=f"lower max_tokens to {room}, or shorten the prompt")
        if not 0 <= self.seed < SEEDS:
            raise RequestError(f"a seed must lie between 0 and 2**64 - 1, got {self.seed}", where=name)
        for what in ("logprobs", "sampler_logprobs", "prompt_logprobs"):
            count = getattr(self, what)
            if count is not None and not 0 <= count <= vocab_size:
                raise RequestError(f"{what} must lie between 0 and the vocabulary's {vocab_size}, got {count}",
                                   where=name)
        return replace(self, max_tokens=wanted)

    def _check_source(self, context_length: int, reads_source: bool, name: str) -> None:
        if self.source is None:
            if reads_source:
                raise RequestError("this model writes beside a source, and the request has none", where=name,
                                   way_out="give every request of the call a source")
            return
        if not reads_source:
            raise RequestError("this model reads no source, and the request has one", where=name,
                               way_out="put the text into the prompt, or use an encoder-decoder")
        if not self.source:
            raise RequestError("the source is empty", where=name, way_out="give at least one token")
        if len(self.source) > context_length:
            raise RequestError(f"a source of {len(self.source)} tokens does not fit a context of {context_length}",
                               where=name, way_out=f"shorten it to {context_length} tokens at most")


def _outside(tokens: tuple[int, ...], vocab_size: int) -> int:
    return next(t for t in tokens if not 0 <= t < vocab_size)


@dataclass(frozen=True, slots=True)
class Alternative:
    """One of the likeliest tokens at a position."""

    token: int
    logprob: float


@dataclass(frozen=True, slots=True)
class Scores:
    """Log-probabilities of tokens one behind another, and the likeliest at each place if they were asked for."""

    logprobs: tuple[float, ...]
    alternatives: tuple[tuple[Alternative, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """An answer. ``tokens`` includes the stop id that ended it. ``logprobs`` are of the chosen tokens under the model's
    own distribution: temperature 1, no penalty, nothing left out; empty if they were not asked for. ``sampler`` are
    those of what they were drawn from, ``prompt`` those of the prompt's tokens but the first, under the model's own."""

    tokens: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[float, ...] = ()
    alternatives: tuple[tuple[Alternative, ...], ...] = ()
    sampler: Scores | None = None
    prompt: Scores | None = None


class StepFailed(ModelError):
    """A step of the model failed by what is no error of ours, its ``__cause__``: all that were running ended in it."""


@dataclass(frozen=True, slots=True)
class Event:
    """One token of one request, the moment it exists; ``finish`` stands on its last.

    ``logprob`` and ``alternatives`` are the model's own, ``sampler_*`` those of what the token was drawn from. On a
    request's first event, ``cached`` counts tokens of the prompt that had been read for another, and ``prompt`` has
    what was asked of it. A request that failed ends in an event with an ``error``, which has no token (-1).
    """

    request: int
    token: int
    finish: FinishReason | None = None
    logprob: float | None = None
    alternatives: tuple[Alternative, ...] = ()
    sampler_logprob: float | None = None
    sampler_alternatives: tuple[Alternative, ...] = ()
    cached: int = 0
    prompt: Scores | None = None
    error: CutawayError | None = None
