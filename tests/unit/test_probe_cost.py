"""Context and cost: each token sees exactly what it may, curves are paired, and bytes are what was predicted."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cutaway.errors import DataError
from cutaway.models.model import build
from cutaway.models.presets import sized
from cutaway.probe.context import Windows, context_used, loss_by_context, nats_seeing, windows
from cutaway.probe.scaling import doubling, memory_by_length, read_by_length, train_by_length

KINDS = ("transformer", "recurrent", "convolution")
DOCUMENTS = [np.arange(3, 40) % 29, np.arange(5), (np.arange(30) * 7) % 29]


def test_windows_are_whole_and_inside_their_document() -> None:
    text = windows(DOCUMENTS, np.arange(30), context=8, count=1000)
    assert len(text.rows) == (37 - 8) + (30 - 8) and text.short == 1
    joined = [d.tolist() for d in DOCUMENTS]
    for row, owner in zip(text.rows.tolist(), text.documents.tolist(), strict=True):
        assert any(joined[owner][i : i + 9] == row for i in range(len(joined[owner])))
    assert text.bytes.tolist() == text.rows[:, -1].tolist()
    assert len(windows(DOCUMENTS, np.arange(30), context=8, count=10).rows) == 10
    with pytest.raises(DataError, match="no document"):
        windows(DOCUMENTS, np.arange(30), context=40, count=1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_sees_exactly_so_many(kind: str) -> None:
    model = build(sized(kind, 20_000, 30, 16), seed=3).eval()
    text = windows(DOCUMENTS, np.ones(30), context=8, count=20)
    changed = text.rows.copy()
    changed[:, :5] = (changed[:, :5] + 1) % 30  # further away than the last three
    other = Windows(changed, text.bytes, text.documents, 0)
    assert np.array_equal(nats_seeing(model, text, 3), nats_seeing(model, other, 3))
    assert not np.allclose(nats_seeing(model, text, 8), nats_seeing(model, other, 8), atol=1e-6)
    with torch.inference_mode():  # the same as the plain way, token by token of its own
        state = model.new_state(1, capacity=4)
        alone = model.logits(torch.from_numpy(text.rows[7:8, -5:-1]), state).log_softmax(-1)[0, text.rows[7, -1]]
    assert nats_seeing(model, text, 4)[7] == pytest.approx(-float(alone), abs=1e-5)
    with pytest.raises(DataError, match="context"):
        nats_seeing(model, text, 9)


def test_loss_is_a_ratio_of_sums_and_gains_are_paired() -> None:
    model = build(sized("transformer", 20_000, 30, 16), seed=3).eval()
    text = windows(DOCUMENTS, np.arange(1, 31), context=8, count=40)
    one, two = loss_by_context(model, text, [1, 8], name="it")
    nats = [nats_seeing(model, text, c).sum() for c in (1, 8)]
    assert one.value == pytest.approx(nats[0] / math.log(2) / text.bytes.sum())
    assert two.conditions["gain"] == pytest.approx(one.value - two.value)
    assert one.low is not None and one.high is not None and one.low <= one.value <= one.high and one.n == 40
    plain = loss_by_context(model, text, [1], units="nats per token")[0]
    assert plain.value == pytest.approx(nats[0] / 40)
    assert context_used([one]) == 1
    with pytest.raises(DataError, match="choose"):
        loss_by_context(model, text, [1], units="bits")


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_carried_are_what_the_configuration_says(kind: str) -> None:
    model = build(sized(kind, 20_000, 30, 64)).eval()
    for m in memory_by_length(model, [2, 16, 64], name=kind):
        assert m.value == m.conditions["predicted"] > 0


def test_times_are_medians_with_their_spread() -> None:
    config = sized("recurrent", 20_000, 30, 64)
    found = read_by_length(build(config).eval(), [4, 8], name="r", repeats=2)
    found += train_by_length(config, [4], name="r", tokens=16, repeats=2)
    assert [m.name.split("_")[0] for m in found] == ["prefill", "decode", "prefill", "decode", "train"]
    for m in found:
        assert m.low is not None and m.high is not None and 0 < m.low <= m.value <= m.high
    assert found[-1].conditions["rows"] == 4
    assert doubling(4, 33) == [4, 8, 16, 32]
