"""Drawing the next token for many rows at once: samplers as frozen values, chained (after gemma's samplers).

Every row has its own settings, so a sampler holds one number a row. A link exists only where a row asks for it: plain
sampling is exp, a sum and a search; greedy is an arg-max. B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cutaway.errors import ModelError
from cutaway.generate.request import Sampling

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_BLOCK = 64  # entries of the vocabulary whose sum is searched first


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele et al. 2014): every bit of the input reaches every bit of the output."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def keys(seeds: Sequence[int]) -> NDArray[np.uint64]:
    """Where each seed's stream begins: hashed, so that neighbouring seeds share nothing."""
    return _mixed(_mixed(np.array(seeds, np.uint64) + _GOLDEN) + _GOLDEN)


def uniforms(streams: NDArray[np.uint64], positions: NDArray[np.int64] | int) -> NDArray[np.float64]:
    """One number in [0, 1) a row, a function of its stream and its position alone (a counter, no state)."""
    step = (np.atleast_1d(positions).astype(np.uint64) + np.uint64(1)) * _GOLDEN  # modulo 2**64
    return (_mixed(streams + step) >> np.uint64(11)).astype(np.float64) * 2.0**-53


class Sampler(Protocol):
    """Logits ``(B, V)`` to logits; ``select`` keeps some rows."""

    def __call__(self, logits: Tensor, seen: Seen | None) -> Tensor: ...
    def select(self, rows: Tensor) -> Sampler: ...


@dataclass(frozen=True, slots=True)
class Seen:
    """Which tokens stand in the prompt or answer, bool ``(B, V)``, and how often in the answer alone, int32 ``(B, V)``:
    kept only for penalties."""

    anywhere: Tensor
    answered: Tensor

    def add(self, tokens: Tensor) -> None:
        """Mark the token just drawn in each row."""
        self.anywhere.scatter_(1, tokens[:, None], True)
        self.answered.scatter_add_(1, tokens[:, None], torch.ones_like(tokens[:, None], dtype=torch.int32))

    def select(self, rows: Tensor) -> Seen:
        """Some rows."""
        return Seen(self.anywhere[rows], self.answered[rows])

    def join(self, other: Seen) -> Seen:
        """These rows, then those of another."""
        return Seen(torch.cat([self.anywhere, other.anywhere]), torch.cat([self.answered, other.answered]))


@dataclass(frozen=True, slots=True)
class Penalties:
    """Repetition, presence and frequency, ``(B, 1)`` each; see ``Sampling``."""

    repetition: Tensor
    presence: Tensor
    frequency: Tensor

    def __call__(self, logits: Tensor, seen: Seen | None) -> Tensor:
        assert seen is not None
        less = torch.where(logits > 0, logits / self.repetition, logits * self.repetition)
        taken = self.presence * (seen.answered > 0) + self.frequency * seen.answered
        return torch.where(seen.anywhere, less, logits) - taken

    def select(self, rows: Tensor) -> Penalties:
        return Penalties(self.repetition[rows], self.presence[rows], self.frequency[rows])


@dataclass(frozen=True, slots=True)
class Bias:
    """Adds ``value (n,)`` to the logits at ``row, token (n,)``."""

    row: Tensor
    token: Tensor
    value: Tensor

    def __call__(self, logits: Tensor, seen: Seen | None) -> Tensor:
        return logits.index_put((self.row, self.token), self.value, accumulate=True)

    def select(self, rows: Tensor) -> Bias:
        found = (rows[:, None] == self.row).nonzero()  # (n, 2): where a row is now, and which of the biases is its
        return Bias(found[:, 0], self.token[found[:, 1]], self.value[found[:, 1]])


@dataclass(frozen=True, slots=True)
class Temperature:
    """Divides by ``value (B, 1)``; 1 stands for greedy rows, whose arg-max it does not move."""

    value: Tensor

    def __call__(self, logits: Tensor, seen: Seen | None) -> Tensor:
        return logits / self.value

    def select(self, rows: Tensor) -> Temperature:
        return Temperature(self.value[rows])


@dataclass(frozen=True, slots=True)
class Nucleus:
    """Keeps the ``top_k (B, 1)`` likeliest (0: all), then the fewest whose share reaches ``top_p (B, 1)``; ties stay.

    ``depth`` is how many of the likeliest must be sorted to decide both.
    """

    top_k: Tensor
    top_p: Tensor
    depth: int

    def __call__(self, logits: Tensor, seen: Seen | None) -> Tensor:
        depth = min(self.depth, logits.shape[1])
        best = torch.topk(logits, depth, dim=1).values  # (B, depth), descending
        rank = torch.arange(depth, device=logits.device)
        limit = torch.where(self.top_k > 0, self.top_k, depth)
        shares = torch.softmax(best.masked_fill(rank >= limit, -torch.inf), 1)
        before = shares.cumsum(1, dtype=torch.float64) - shares
        wanted = (rank < limit) & ((before < self.top_p) | (self.top_p >= 1))
        last = wanted.sum(1, keepdim=True).clamp(min=1) - 1
        floor = best.gather(1, last).masked_fill((self.top_k == 0) & (self.top_p >= 1), -torch.inf)
        return logits.masked_fill(logits < floor, -torch.inf)

    def select(self, rows: Tensor) -> Nucleus:
        return Nucleus(self.top_k[rows], self.top_p[rows], self.depth)


@dataclass(frozen=True, slots=True)
class MinP:
    """Keeps what has at least ``log_share (B, 1)`` (negative or -inf) of the likeliest token's log-probability."""

    log_share: Tensor

    def __call__(self, logits: Tensor, seen: Seen | None) -> Tensor:
        return logits.masked_fill(logits < logits.amax(1, keepdim=True) + self.log_share, -torch.inf)

    def select(self, rows: Tensor) -> MinP:
        return MinP(self.log_share[rows])


@dataclass(frozen=True, slots=True)
class Chain:
    """The links that some row needs, and which rows are greedy: None is no row, else bool ``(B,)``."""

    links: tuple[Sampler, ...]
    greedy: Tensor | None
    all_greedy: bool

    @property
    def penalises(self) -> bool:
        """Whether it asks what has been said."""
        return any(isinstance(link, Penalties) for link in self.links)

    def __call__(self, logits: Tensor, uniform: Tensor | None, seen: Seen | None = None) -> Tensor:
        """Tokens ``(B,)`` drawn with one uniform number a row, ``(B,)`` float64 (unused where greedy). Raises
        ModelError where a row's logits are not finite."""
        tokens, sound = self.drawn(self.shaped(logits, seen), uniform)
        if not bool(sound.all()):
            raise not_finite()
        return tokens

    def shaped(self, logits: Tensor, seen: Seen | None = None) -> Tensor:
        """The logits ``(B, V)`` that tokens are drawn from; of a greedy row the largest alone counts."""
        for link in self.links:
            logits = link(logits, seen)
        return logits

    def drawn(self, logits: Tensor, uniform: Tensor | None) -> tuple[Tensor, Tensor]:
        """Tokens ``(B,)`` drawn from ``shaped`` logits, and whether each means something, bool ``(B,)``: its row's
        logits are finite. Nothing waits for the device."""
        if self.all_greedy:
            best = logits.argmax(1)  # of NaN, if there is one
            return best, logits.gather(1, best[:, None]).squeeze(1).isfinite()
        assert uniform is not None
        drawn, sound = invert(logits, uniform)
        return drawn if self.greedy is None else torch.where(self.greedy, logits.argmax(1), drawn), sound

    def select(self, rows: Tensor) -> Chain:
        """The chain of some rows."""
        greedy = None if self.greedy is None else self.greedy[rows]
        return Chain(tuple(link.select(rows) for link in self.links), greedy, self.all_greedy)

    def logs(self, logits: Tensor) -> Tensor:
        """Log-probabilities of what was drawn under ``shaped`` logits ``(B, V)``: a greedy row is sure of its own."""
        logs = torch.log_softmax(logits, 1)
        if self.greedy is None:
            return logs
        best = torch.full_like(logs, -torch.inf).scatter_(1, logits.argmax(1, keepdim=True), 0.0)
        return torch.where(self.greedy[:, None], best, logs)


def chain(samplings: Sequence[Sampling], *, vocab_size: int, device: torch.device) -> Chain:
    """The chain of a batch of rows with differing settings."""
    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device)[:, None]

    greedy = [s.temperature == 0 for s in samplings]
    mixed = torch.tensor(greedy, device=device) if any(greedy) else None
    links: list[Sampler] = []
    if any(penalised(s) for s in samplings):
        links.append(Penalties(column([s.repetition_penalty for s in samplings]),
                               column([s.presence_penalty for s in samplings]),
                               column([s.frequency_penalty for s in samplings])))
    biases = [(row, token, value) for row, s in enumerate(samplings) for token, value in s.logit_bias]
    if biases:
        places = torch.tensor([(row, token) for row, token, _ in biases], device=device)
        links.append(Bias(places[:, 0], places[:, 1], column([value for *_, value in biases])[:, 0]))
    if all(greedy):
        return Chain(tuple(links), mixed, True)
    if any(s.temperature not in (0, 1) for s in samplings):
        links.append(Temperature(column([s.temperature or 1.0 for s in samplings])))
    ks = [0 if s.top_k is None or s.top_k >= vocab_size else s.top_k for s in samplings]
    ps = [s.top_p for s in samplings]
    if any(k or p < 1 for k, p in zip(ks, ps, strict=True)):
        depth = max((k or vocab_size) if k or p < 1 else 1 for k, p in zip(ks, ps, strict=True))
        links.append(Nucleus(torch.tensor(ks, device=device)[:, None], column(ps), depth))
    if any(s.min_p > 0 for s in samplings):
        links.append(MinP(column([s.min_p for s in samplings]).log()))
    return Chain(tuple(links), mixed, False)


def penalised(sampling: Sampling) -> bool:
    """Whether what has been said before changes what may be said."""
    return sampling.repetition_penalty != 1 or bool(sampling.presence_penalty or sampling.frequency_penalty)


def invert(logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens ``(B,)`` where the cumulative distribution of ``logits (B, V)`` passes ``uniform (B,)`` float64, and which
    rows have one, bool ``(B,)``: with NaN or infinity among its logits a row has any token.

    In two steps, a block of the vocabulary and then a place in it, so that the long sum is one vectorised pass; the
    search is in float64, and a token of probability 0 is never drawn.
    """
    mass = torch.softmax(logits, 1)
    rest = -mass.shape[1] % _BLOCK
    blocks = (F.pad(mass, (0, rest)) if rest else mass).view(len(mass), -1, _BLOCK)
    sums = blocks.sum(2)
    sound = sums.isfinite().all(1)
    lost = ~sound[:, None]  # a search among NaN finds what is no place
    outer, left = _search(sums.masked_fill(lost, 1.0), uniform)
    inner = blocks.gather(1, outer[:, None, None].expand(-1, 1, _BLOCK)).squeeze(1)
    place, _ = _search(inner.masked_fill(lost, 1.0), left)
    return (outer * _BLOCK + place).clamp(max=mass.shape[1] - 1), sound


def refuse_unless_finite(values: Tensor) -> None:
    """Raises ModelError where one is NaN or infinite."""
    if not bool(values.isfinite().all()):
        raise not_finite()


def not_finite() -> ModelError:
    """What a row without a distribution ends in."""
    return ModelError("the model's logits are not finite",
                      way_out="its weights are damaged or its training diverged: take an earlier checkpoint")


def _search(mass: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Index ``(B,)`` where the running sum of ``mass (B, n)`` passes ``uniform`` of it, and how far into that entry."""
    total = mass.cumsum(1, dtype=torch.float64)
    end = total[:, -1]
    wanted = torch.minimum(uniform * end, torch.nextafter(end, torch.zeros_like(end)))[:, None]
    at = torch.searchsorted(total, wanted, right=True)
    here = mass.gather(1, at).double()
    into = (wanted - (total.gather(1, at) - here)) / here
    return at.squeeze(1), into.squeeze(1).clamp(0, 1 - 2**-53)
