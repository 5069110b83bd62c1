"""Freshly compiled kernels beside plain PyTorch, in a process of its own: ``-m cutaway.models.selftest LIBRARY``.

A compiler may be wrong, or make what this processor does not have; then the library is not used, and a crash is this
process's alone. Small models of every kind learn and read on both paths. It prints what differs and exits with 1.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from cutaway.batch import Batch
from cutaway.models.architectures import AnyConfig
from cutaway.models.convolution import ConvolutionConfig
from cutaway.models.heads import Classes, Head, TokenHead
from cutaway.models.light import Precision, for_reading
from cutaway.models.model import Model, build
from cutaway.models.recurrent import RecurrentConfig
from cutaway.models.transformer import PLAIN, TransformerConfig
from cutaway.nn import ops
from cutaway.nn.kernels import instead, without
from cutaway.nn.linear import packs
from cutaway.nn.paged import PAGE, PagedStack, Reading

VOCABULARY, ROWS, STEPS = 70, 3, 37
SIZES: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 64, "num_layers": 2, "context_length": 96}
HEADS: dict[str, Any] = {"num_heads": 4, "num_kv_heads": 2, "intermediate_size": 80}
EVEN = HEADS | {"num_kv_heads": 4}
LEARNS: dict[str, AnyConfig] = {
    "decoder": TransformerConfig(**SIZES, **HEADS),
    "encoder": TransformerConfig(**SIZES, **EVEN, shape="encoder"),
    "encoder-decoder": TransformerConfig(**SIZES, **EVEN, shape="encoder-decoder"),
    "plain feed-forward": TransformerConfig(
        **SIZES, **EVEN, variant=PLAIN["decoder"].model_copy(update={
            "family": "gpt2", "norm": "layer", "norm_bias": True, "gated": False, "activation": "gelu_tanh",
            "inner_bias": True, "attention_biases": "all", "positions": "learned"})),
    "lstm": RecurrentConfig(**SIZES, cell="lstm"),
    "gru": RecurrentConfig(**SIZES, cell="gru"),
    "convolution": ConvolutionConfig(**SIZES, embedding_size=64),
    "filters": ConvolutionConfig(vocab_size=VOCABULARY, hidden_size=48, embedding_size=20, shape="encoder",
                                 tie_embeddings=False)}
READS = TransformerConfig(**SIZES | {"hidden_size": 144}, num_heads=3, num_kv_heads=1, intermediate_size=80)  # wider
# of the largest: how far sums in another order, and weights and inputs of fewer bits, may be from PyTorch's float32
NEAR: dict[Precision, float] = {"float32": 2e-5, "bfloat16": 6e-2, "int8": 8e-2, "int4": 0.3}


def batch(*, source: bool) -> Batch:
    """Rows of one length, with what follows each token."""
    draw = torch.Generator().manual_seed(1)
    tokens, targets, beside = (torch.randint(VOCABULARY, (ROWS, STEPS), generator=draw) for _ in range(3))
    return Batch(tokens, targets, source=beside if source else None)


def learned(model: Model, given: Batch) -> list[Tensor]:
    """The loss of a model and the gradient of each of its parameters."""
    model.zero_grad()
    if isinstance(model.head, TokenHead):
        assert given.targets is not None
        hidden, targets = model.hidden(given).flatten(0, 1), given.targets.flatten()
        loss = ops.linear_cross_entropy(hidden, model.head.weight, targets, torch.ones(len(hidden)), chunk=50)
    else:
        loss = model(given).square().sum()
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def paged(model: Model, tokens: list[int]) -> Tensor:
    """Logits behind every token of a prompt ``(T, V)``, which is read in two pieces over pages."""
    pages = model.new_pages(4)
    assert isinstance(pages, PagedStack), "its weights are laid out"
    pieces = [(tokens[: PAGE + 3], 0), (tokens[PAGE + 3 :], PAGE + 3)]
    return torch.cat([model.read(Reading.of([(piece, start, (2, 0, 1))], range(len(piece))), pages)
                      for piece, start in pieces])


def differences(library: ctypes.CDLL) -> Iterator[str]:
    """What comes out otherwise than by plain PyTorch."""
    for name, config in LEARNS.items():
        head: Head = "tokens" if config.traits.generates or config.kind == "transformer" else Classes(("a", "b"))
        model, given = build(config, head=head, seed=2).eval(), batch(source=config.traits.reads_source)
        with instead(library):
            found = learned(model, given)
        with without():
            wanted = learned(model, given)
        yield from _apart(name, found, wanted, NEAR["float32"])
    model, prompt = build(READS, seed=2).eval(), batch(source=False).tokens[:1]
    with without(), torch.inference_mode():
        plain = model(Batch(prompt))[0]
    for precision, near in NEAR.items():
        with instead(library), torch.inference_mode():
            if packs(torch.zeros(1, 2), precision) is None:
                continue
            read = paged(for_reading(model, precision), prompt[0].tolist())
        yield from _apart(f"reading in {precision}", [read], [plain], near)


def _apart(name: str, found: list[Tensor], wanted: list[Tensor], near: float) -> Iterator[str]:
    far = max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-3)) for a, b in zip(found, wanted, strict=True))
    if not far <= near:  # nor where it is no number
        yield f"{name}: {far:.2g} of the largest away, and {near:.2g} is allowed"


if __name__ == "__main__":
    sys.exit("\n".join(differences(ctypes.CDLL(sys.argv[1]))) or None)  # a text is said, and is exit code 1
