"""Tiny models and batches for every objective, shared by the invariants and by the processes that tests start.

A batch is a pure function of (objective, step), with uneven weights, a row without any, and rows of padding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch

from cutaway.batch import Batch, Example, lay_sources, pack, pad
from cutaway.models.architectures import AnyConfig
from cutaway.models.convolution import ConvolutionConfig
from cutaway.models.heads import Classes, Head, TokenHead, VectorHead
from cutaway.models.model import Model, build
from cutaway.models.recurrent import RecurrentConfig
from cutaway.models.transformer import PLAIN, Shape, TransformerConfig, Variant
from cutaway.nn.position import LinearStretch
from cutaway.nn.recurrence import Cell
from cutaway.objectives.classify import Classify
from cutaway.objectives.likelihood import Likelihood, token_logprobs
from cutaway.objectives.objective import Objective
from cutaway.objectives.policy import GRPO, Reinforce
from cutaway.objectives.preference import DPO, Reward, pairs, with_reference

VOCABULARY, CONTEXT, ROWS = 48, 20, 8
SOURCES, MASK = 3, 2  # most tokens of a document's source, and what hides a token


def _config(layers: int, heads: int, kv_heads: int, *, tied: bool) -> TransformerConfig:
    return TransformerConfig(vocab_size=VOCABULARY, hidden_size=32, num_layers=layers, num_heads=heads,
                             num_kv_heads=kv_heads, intermediate_size=40, context_length=CONTEXT, tie_embeddings=tied)


def _convolution(*, gated: bool, tied: bool, kernels: tuple[int, ...]) -> ConvolutionConfig:
    return ConvolutionConfig(vocab_size=VOCABULARY, hidden_size=32, num_layers=3, kernel_sizes=kernels,
                             dilations=(1, 2), gated=gated, tie_embeddings=tied, context_length=CONTEXT)


def _recurrent(cell: Cell, layers: int, *, tied: bool = True) -> RecurrentConfig:
    return RecurrentConfig(vocab_size=VOCABULARY, hidden_size=24, num_layers=layers, cell=cell, context_length=CONTEXT,
                           tie_embeddings=tied)


CONFIGS: dict[str, AnyConfig] = {
    "tied": _config(2, 4, 2, tied=True), "untied": _config(1, 2, 2, tied=False),
    "one-kv-head": _config(3, 4, 1, tied=True), "lstm": _recurrent("lstm", 2),
    "gru": _recurrent("gru", 1, tied=False), "vanilla": _recurrent("vanilla", 2),
    "convolution": _convolution(gated=True, tied=True, kernels=(3,)),
    "convolution-plain": _convolution(gated=False, tied=False, kernels=(4, 1))}


def _shaped(shape: Shape, layers: int, *, tied: bool) -> TransformerConfig:
    return _config(layers, 4, 4, tied=tied).model_copy(update={"shape": shape, "context_length": CONTEXT * SOURCES})


def _beside(config: ConvolutionConfig | RecurrentConfig) -> AnyConfig:
    return config.model_copy(update={"shape": "encoder-decoder", "context_length": CONTEXT * SOURCES})


CONFIGS |= {"encoder-decoder": _shaped("encoder-decoder", 2, tied=True),
            "encoder-decoder-untied": _shaped("encoder-decoder", 1, tied=False),
            "convolution-encoder-decoder": _beside(_convolution(gated=True, tied=True, kernels=(3,))),
            "lstm-encoder-decoder": _beside(_recurrent("lstm", 2))}
# what public families do otherwise, gathered in few models
_AROUND = PLAIN["decoder"].model_copy(update={
    "family": "gemma3_text", "order": "around", "activation": "gelu_tanh", "head_norm": True, "head_dim": 12,
    "window": 5, "local_layers": (0,), "local_theta": 90.0, "score_scale": 0.25, "embedding_scale": 32**0.5,
    "stretch": LinearStretch(factor=2.0)})
_LEARNED = PLAIN["decoder"].model_copy(update={
    "family": "gpt2", "norm": "layer", "norm_bias": True, "gated": False, "activation": "gelu_tanh",
    "inner_bias": True, "attention_biases": "all", "positions": "learned"})
_POST = PLAIN["encoder"].model_copy(update={
    "family": "bert", "norm_bias": True, "order": "post", "first_norm": True, "gated": False, "inner_bias": True,
    "attention_biases": "all", "positions": "learned", "token_types": 2, "transform_bias": True, "head_bias": True,
    "pooler": True, "pooling": "first"})
CONFIGS |= {"around": _config(2, 4, 2, tied=True).model_copy(update={"variant": _AROUND}),
            "learned": _config(2, 4, 4, tied=True).model_copy(update={"variant": _LEARNED})}
ENCODERS = {"encoder": _shaped("encoder", 2, tied=True), "encoder-untied": _shaped("encoder", 1, tied=False),
            "encoder-post": _shaped("encoder", 2, tied=True).model_copy(update={"variant": _POST})}
EVERY = CONFIGS | ENCODERS
# decoders by what they do otherwise, for models larger than these
VARIANTS: dict[str, Variant | None] = {
    "plain": None,
    "grouped by three": None,
    "head norm": Variant(family="qwen3", head_norm=True),
    "around, windows": Variant(family="gemma3_text", order="around", head_norm=True, window=20, local_layers=(0, 2),
                               local_theta=1000.0, activation="gelu_tanh", embedding_scale=8.0),
    "gpt2": Variant(family="gpt2", norm="layer", norm_bias=True, gated=False, activation="gelu_tanh", inner_bias=True,
                    attention_biases="all", positions="learned"),
    "qkv biases": Variant(family="qwen2", attention_biases="qkv"),
}
LENGTH = 96  # of contexts of several pages
DECODERS = {name: config.model_copy(update={"context_length": LENGTH}) for name, config in CONFIGS.items()
            if isinstance(config, TransformerConfig) and config.shape == "decoder"}
DECODERS |= {name: TransformerConfig(vocab_size=VOCABULARY, hidden_size=96, num_layers=3, num_heads=6, num_kv_heads=2,
                                     intermediate_size=64, context_length=LENGTH, variant=variant)
             for name, variant in VARIANTS.items()}


@cache
def decoder(name: str) -> Model:
    """One of ``DECODERS`` whose logits are far from even, and whose norms and biases say something; for reading."""
    model = build(DECODERS[name], seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
            parameter.add_(noise, alpha=0.1).mul_(1.5 if parameter.ndim > 1 else 1)
    return model.eval()


@dataclass(frozen=True)
class Case:
    """An objective, the head it needs, and its global batch at each step."""

    objective: Objective
    batch: Callable[[int], Batch]
    head: Head = "tokens"


def _example(draw: np.random.Generator, length: int, *, context: int | None = None) -> Example:
    weights = (draw.random(length) < 0.7) * draw.uniform(0.1, 2.0, length)
    if context is not None:
        weights = (np.arange(length) >= context).astype(np.float64)
    return Example(draw.integers(3, VOCABULARY, length), weights.astype(np.float32))


def plain(step: int) -> Batch:
    """Whole rows; the last has nothing to learn."""
    draw = np.random.default_rng([step, 1])
    batch = pad([_example(draw, CONTEXT + 1) for _ in range(ROWS)], pad_id=0)
    assert batch.weights is not None
    batch.weights[-1] = 0
    return Batch(batch.tokens, batch.targets, batch.weights)


def packed(step: int) -> Batch:
    """Several examples a row, the last row padding alone."""
    draw = np.random.default_rng([step, 2])
    return pack([_example(draw, int(n)) for n in draw.integers(3, 9, 12)], pad_id=0, length=CONTEXT, rows=ROWS)


def answered(step: int) -> Batch:
    """One answer a row behind three tokens of request, of different lengths, the last row without an answer."""
    draw = np.random.default_rng([step, 3])
    rows = [_example(draw, int(n), context=3) for n in draw.integers(5, CONTEXT, ROWS - 1)]
    return pad([*rows, _example(draw, 4, context=4)], pad_id=0)


def paired(step: int) -> Batch:
    """Chosen and rejected answers of different lengths."""
    draw = np.random.default_rng([step, 4])
    sides = [[_example(draw, int(n), context=3) for n in draw.integers(5, CONTEXT, ROWS)] for _ in range(2)]
    return pairs(sides[0], sides[1], pad_id=0)


def labelled(step: int) -> Batch:
    """Rows of different lengths and their classes."""
    draw = np.random.default_rng([step, 6])
    batch = pad([_example(draw, int(n)) for n in draw.integers(3, CONTEXT, ROWS)], pad_id=0)
    return Batch(batch.tokens, documents=batch.documents, labels=torch.from_numpy(draw.integers(0, 3, ROWS)))


def several(step: int) -> Batch:
    """The same with any number of three classes."""
    batch = labelled(step)
    holds = np.random.default_rng([step, 7]).integers(0, 2, (ROWS, 3)).astype(np.float32)
    return replace(batch, labels=torch.from_numpy(holds))


def _reference() -> Model:
    return build(CONFIGS["tied"], seed=99)


def _compared(step: int) -> Batch:
    return with_reference(_reference(), paired(step))


def _sampled(step: int) -> Batch:
    batch = with_reference(_reference(), answered(step))
    with torch.no_grad():
        old = token_logprobs(build(CONFIGS["tied"], seed=98), batch)
    advantage = torch.from_numpy(np.random.default_rng([step, 5]).normal(size=(ROWS, 1)).astype(np.float32))
    return replace(batch, old_logprob=old, advantage=advantage.expand_as(old).contiguous())


CASES: dict[str, Case] = {
    "likelihood": Case(Likelihood(chunk=7), plain),
    "packed": Case(Likelihood(), packed),
    "answers": Case(Likelihood(), answered),
    "smoothed": Case(Likelihood(chunk=7, label_smoothing=0.1), packed),
    "classes": Case(Classify(label_smoothing=0.1), labelled, head=Classes(("a", "b", "c"))),
    "several": Case(Classify(), several, head=Classes(("a", "b", "c"), multi_label=True)),
    "reward": Case(Reward(), paired, head="scalar"),
    "dpo": Case(DPO(beta=0.3, label_smoothing=0.1), _compared),
    "ipo": Case(DPO(kind="ipo"), _compared),
    "reinforce": Case(Reinforce(kl=0.1), _sampled),
    "grpo": Case(GRPO(kl=0.1), _sampled),
}


# an encoder learns what was hidden from it, or about a whole text, and nothing behind one
COMBINATIONS = [(name, config) for name, case in CASES.items() for config in EVERY
                if config in CONFIGS or isinstance(case.objective, Likelihood) or not isinstance(case.head, str)]


def source_of(tokens: Sequence[int]) -> np.ndarray:
    """What is read beside a document, by its first token alone: its end may be cut off or changed."""
    draw = np.random.default_rng([int(tokens[0]), 8])
    return draw.integers(3, VOCABULARY, draw.integers(1, SOURCES + 1))


def _hidden(tokens: Sequence[int]) -> np.ndarray:
    return np.random.default_rng([*map(int, tokens), 9]).random(len(tokens)) < 0.5


def suited(batch: Batch, config: str) -> Batch:
    """The batch as a model of that configuration reads it: beside a source for each document, or with half of its
    tokens hidden and learned where they stand."""
    if config in CONFIGS and not CONFIGS[config].traits.reads_source:
        return batch
    numbers = torch.zeros_like(batch.tokens) if batch.documents is None else batch.documents
    rows = [[row[own == d] for d in range(int(own.max()) + 1)]
            for row, own in zip(batch.tokens.numpy(), numbers.numpy(), strict=True)]
    if config in CONFIGS:
        source, own = lay_sources([[source_of(d) for d in row] for row in rows], pad_id=0)
        pair = None if batch.pair is None else suited(batch.pair, config)
        return replace(batch, source=source, source_documents=own, pair=pair)
    hidden = torch.zeros_like(batch.tokens, dtype=torch.bool)
    for line, row in zip(hidden, rows, strict=True):
        for d, at in zip(row, np.cumsum([0, *map(len, row)]), strict=False):
            line[at : at + len(d)] = torch.from_numpy(_hidden(d))
    weights = torch.ones(batch.tokens.shape) if batch.weights is None else batch.weights
    return replace(batch, tokens=batch.tokens.masked_fill(hidden, MASK), targets=batch.tokens, weights=weights * hidden)


def case_for(name: str, config: str) -> Case:
    """A case whose batches suit a configuration."""
    case = CASES[name]
    return replace(case, batch=lambda step: suited(case.batch(step), config))


def start(case: Case, config: str = "tied", *, seed: int = 1) -> Model:
    """A fresh model with the head that the case needs; its head is not so small that nothing would move."""
    model = build(EVERY[config], head=case.head, seed=seed)
    if not isinstance(model.head, TokenHead | VectorHead):
        torch.nn.init.normal_(model.head.weight, std=0.1, generator=torch.Generator().manual_seed(seed))
    return model


def batches(case: Case, *, micro: int = 1, rank: int = 0, world: int = 1) -> Callable[[int], Sequence[Batch]]:
    """Step -> the micro-batches of one rank."""
    each = ROWS // world

    def at(step: int) -> Sequence[Batch]:
        return case.batch(step).rows(rank * each, (rank + 1) * each).micro(micro)

    return at
