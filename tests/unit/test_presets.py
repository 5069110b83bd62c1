"""Sizing: every kind and shape meets its budget by exact count, and what cannot is refused."""

from __future__ import annotations

import itertools

import pytest

from cutaway.errors import CutawayError, ModelError, SettingsError
from cutaway.models.model import build
from cutaway.models.presets import sized

KINDS, SHAPES = ("transformer", "recurrent", "convolution"), ("decoder", "encoder", "encoder-decoder")
EVERY = list(itertools.product(KINDS, SHAPES))


@pytest.mark.parametrize(("kind", "shape"), EVERY)
@pytest.mark.parametrize("parameters", [30_000, 100_000, 1_000_000, 50_000_000])
def test_every_kind_and_shape_meets_the_budget(kind: str, shape: str, parameters: int) -> None:
    config = sized(kind, parameters, 512, 128, shape=shape)
    assert config.kind == kind and config.shape == shape
    assert abs(config.cost().blocks - parameters) <= 0.1 * parameters
    assert config == sized(kind, parameters, 512, 128, shape=shape)


@pytest.mark.parametrize(("kind", "shape"), EVERY)
def test_the_count_is_that_of_the_model(kind: str, shape: str) -> None:
    config = sized(kind, 100_000, 300, 64, shape=shape)
    model = build(config)
    assert sum(p.numel() for p in model.parameters()) == config.cost().parameters


def test_options_and_layers_are_kept() -> None:
    gru = sized("recurrent", 200_000, 300, 64, num_layers=3, options={"cell": "gru"})
    assert (gru.num_layers, getattr(gru, "cell", None)) == (3, "gru")
    heads = sized("transformer", 100_000, 300, 64, options={"num_heads": 8, "num_kv_heads": 8})
    assert getattr(heads, "num_heads", None) == 8
    wide = sized("convolution", 100_000, 300, 64, num_layers=2, options={"kernel_sizes": [5]})
    assert getattr(wide, "receptive_field", None) == 1 + 4 + 8


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(ModelError, match="nearest"):
        sized("transformer", 10, 300, 64)
    with pytest.raises(SettingsError, match="did you mean 'recurrent'"):
        sized("recurent", 10_000, 300, 64)
    with pytest.raises(SettingsError, match="decoder"):
        sized("recurrent", 10_000, 300, 64, shape="both")
    with pytest.raises(CutawayError, match="cell"):
        sized("recurrent", 10_000, 300, 64, options={"cel": "gru"})
