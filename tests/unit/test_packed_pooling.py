"""Several texts in a row: each is read as it is alone, and comes back in the order it was laid."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cutaway.batch import full, whole
from cutaway.errors import DataError
from cutaway.models.convolution import ConvolutionConfig
from cutaway.models.heads import Classes, Pooling, pooled
from cutaway.models.model import Architecture, build
from cutaway.models.recurrent import RecurrentConfig
from cutaway.models.transformer import TransformerConfig

ENCODERS: list[Architecture] = [
    TransformerConfig(shape="encoder", vocab_size=50, hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=2,
                      intermediate_size=48, context_length=64),
    RecurrentConfig(shape="encoder", vocab_size=50, hidden_size=32, num_layers=1),
    ConvolutionConfig(shape="encoder", vocab_size=50, hidden_size=30, embedding_size=16, tie_embeddings=False),
]


def _rows(lengths: list[int]) -> list[np.ndarray[tuple[int], np.dtype[np.int64]]]:
    draw = np.random.default_rng(0)
    return [draw.integers(0, 50, n) for n in lengths]


@pytest.mark.parametrize("config", ENCODERS, ids=lambda c: type(c).__name__)
def test_a_text_in_a_shared_row_is_classified_as_alone(config: Architecture) -> None:
    model = build(config, head=Classes(("a", "b", "c"))).eval()
    rows = _rows([5, 30, 1, 17, 40, 8, 8])
    batch, order = full(rows, pad_id=0, width=64)
    assert len(batch.tokens) < len(rows) and sorted(order) == list(range(len(rows)))
    with torch.no_grad():
        together, alone = model(batch), torch.cat([model(whole([row], pad_id=0)) for row in rows])
    assert torch.allclose(together, alone[order], atol=1e-5)


@pytest.mark.parametrize("how", ["last", "mean", "max"])
def test_each_document_is_pooled_apart_and_learned_from(how: Pooling) -> None:
    hidden = torch.randn(2, 6, 4, requires_grad=True)
    documents = torch.tensor([[0, 0, 1, 1, 1, -1], [0, 1, 2, 2, -1, -1]])
    parts = [hidden[0, :2], hidden[0, 2:5], hidden[1, :1], hidden[1, 1:2], hidden[1, 2:4]]
    one = {"last": lambda x: x[-1], "mean": lambda x: x.mean(0), "max": lambda x: x.amax(0)}[how]
    expected = torch.stack([one(x) for x in parts])
    found = pooled(hidden, documents, how)
    assert torch.allclose(found, expected)
    weight = torch.randn(5, 4)
    ours, theirs = (torch.autograd.grad((x * weight).sum(), hidden)[0] for x in (found, expected))
    assert torch.allclose(ours, theirs)


def test_rows_are_filled_and_too_long_a_text_is_refused() -> None:
    batch, order = full(_rows([3, 3, 3, 3]), pad_id=0, width=7)
    assert batch.tokens.shape == (2, 6) and order == [0, 1, 2, 3]
    assert full(_rows([4, 5]), pad_id=0, width=7)[0].tokens.shape == (2, 5)
    with pytest.raises(DataError, match="8 tokens does not fit 7"):
        full(_rows([8, 2]), pad_id=0, width=7)
