"""Classes, pairs and smoothed targets: the losses are the formulas of their papers, and misuse is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny import CONFIGS, labelled, packed, paired, several
from torch import Tensor

from cutaway.batch import Batch
from cutaway.errors import ModelError, SettingsError, TrainingError
from cutaway.models.heads import Classes, Head, Vector
from cutaway.models.model import Model, build
from cutaway.nn import ops
from cutaway.objectives.classify import Classify
from cutaway.objectives.contrast import Contrast
from cutaway.objectives.likelihood import Likelihood
from cutaway.train.loop import steps
from cutaway.train.optimizer import OptimizerSettings, build_optimizer
from cutaway.train.schedule import Schedule

ABC = Classes(("a", "b", "c"))


def made(head: Head, *, seed: int = 0) -> Model:
    model = build(CONFIGS["tied"], head=head, seed=seed)
    for parameter in model.head.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(seed))
    return model


def gradients(model: Model, total: Tensor) -> Tensor:
    model.zero_grad()
    total.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def pairs_of(batch: Batch) -> Batch:
    """Two sides that are read whole."""
    def read(side: Batch) -> Batch:
        return Batch(side.tokens, documents=side.documents)

    assert batch.pair is not None
    return replace(read(batch), pair=read(batch.pair))


@pytest.mark.parametrize("smooth", [0.0, 0.2])
def test_one_class_is_cross_entropy(smooth: float) -> None:
    model, batch = made(ABC), labelled(0)
    assert batch.labels is not None
    loss = Classify(label_smoothing=smooth)(model, batch)
    logs = torch.log_softmax(model(batch).double(), 1)
    goal = F.one_hot(batch.labels, 3) * (1 - smooth) + smooth / 3
    assert loss.total.item() == pytest.approx(-(goal * logs).sum().item(), rel=1e-5)
    assert loss.weight == Classify().weight(batch) == len(batch.tokens)
    value, count = loss.metrics["accuracy"]
    assert float(value) == int((logs.argmax(1) == batch.labels).sum()) and count == len(batch.tokens)


def test_several_classes_are_binary_cross_entropies() -> None:
    model, batch = made(replace(ABC, multi_label=True)), several(0)
    assert batch.labels is not None
    loss = Classify()(model, batch)
    p = torch.sigmoid(model(batch).double())
    expected = -(batch.labels * p.log() + (1 - batch.labels) * (1 - p).log()).sum()
    assert loss.total.item() == pytest.approx(expected.item(), rel=1e-5)
    value, count = loss.metrics["accuracy"]
    assert float(value) == int(((p > 0.5) == (batch.labels > 0)).sum()) and count == batch.labels.numel()


def test_labels_that_do_not_go_with_the_head_are_refused() -> None:
    with pytest.raises(ModelError, match="no head of classes"):
        Classify()(made("tokens"), labelled(0))
    with pytest.raises(TrainingError, match="without labels"):
        Classify()(made(ABC), packed(0))
    for head, batch in ((ABC, several(0)), (replace(ABC, multi_label=True), labelled(0)),
                        (Classes(("a", "b")), labelled(0))):
        with pytest.raises(TrainingError, match=r"labels of shape .* do not go with \d classes"):
            Classify()(made(head), batch)
    for wrong in (Classify, Likelihood):
        with pytest.raises(SettingsError, match="label_smoothing must be"):
            wrong(label_smoothing=1.0)


@pytest.mark.parametrize("symmetric", [False, True])
def test_contrast_is_info_nce(symmetric: bool) -> None:
    model, batch = made(Vector()), pairs_of(paired(0))
    assert batch.pair is not None
    loss = Contrast(temperature=0.1, symmetric=symmetric)(model, batch)
    first, second = model(batch).double(), model(batch.pair).double()
    scores = first @ second.T / 0.1
    forth = -torch.log_softmax(scores, 1).diagonal().sum()
    back = -torch.log_softmax(scores, 0).diagonal().sum()
    assert loss.total.item() == pytest.approx(((forth + back) / 2 if symmetric else forth).item(), rel=1e-5)
    assert float(loss.metrics["accuracy"][0]) == int((scores.argmax(1) == torch.arange(len(scores))).sum())


def test_widths_add_the_loss_of_each_prefix() -> None:
    model, batch = made(Vector()), pairs_of(paired(0))
    assert batch.pair is not None
    first, second = model(batch), model(batch.pair)
    expected = sum(F.cross_entropy(F.normalize(first[:, :w]) @ F.normalize(second[:, :w]).T / 0.1,
                                   torch.arange(len(first)), reduction="sum").item() for w in (32, 8, 16))
    loss = Contrast(temperature=0.1, symmetric=False, widths=(8, 16))(model, batch)
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    with pytest.raises(SettingsError, match=r"widths \[8, 32\] must lie between 0 and the vectors' 32"):
        Contrast(widths=(8, 32))(model, batch)


def test_a_chunk_bounds_memory_and_changes_nothing() -> None:
    model, batch = made(Vector()), pairs_of(paired(1))
    whole = gradients(model, Contrast()(model, batch).total)
    for chunk in (1, 3, 8):
        loss = Contrast(chunk=chunk)(model, batch)
        assert (gradients(model, loss.total) - whole).norm() < 1e-5 * whole.norm()


def test_contrast_refuses_parts_of_a_step() -> None:
    model, batch = made(Vector()), pairs_of(paired(0))
    optimizer = build_optimizer(model, OptimizerSettings())
    with pytest.raises(TrainingError, match="Contrast compares all rows of a step, and they came in 2 micro-batches"):
        next(steps(model, lambda _: batch.micro(2), Contrast(), optimizer, schedule=Schedule(), total=1))
    assert next(steps(model, lambda _: [batch], Contrast(), optimizer, schedule=Schedule(), total=1)).weight == 8
    with pytest.raises(TrainingError, match="one pair alone"):
        Contrast()(model, batch.rows(0, 1))
    with pytest.raises(TrainingError, match="needs a partner"):
        Contrast()(model, replace(batch, pair=None))
    with pytest.raises(ModelError, match="no head of vectors"):
        Contrast()(made("tokens"), batch)
    for wrong in ({"temperature": 0.0}, {"chunk": 0}):
        with pytest.raises(SettingsError):
            Contrast(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk", [5, 100])
def test_smoothed_targets_are_torchs(dtype: torch.dtype, chunk: int) -> None:
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 9, 16, generator=draw).to(dtype).requires_grad_()
    weight = torch.randn(40, 16, generator=draw).requires_grad_()
    targets, weights = torch.randint(0, 40, (2, 9), generator=draw), torch.rand(2, 9, generator=draw)
    weights[0, :5] = 0
    total = ops.linear_cross_entropy(hidden.flatten(0, 1), weight, targets.flatten(), weights.flatten(), chunk=chunk,
                                     smoothing=0.1)
    found = torch.autograd.grad(total, [hidden, weight])
    logits = (hidden @ weight.to(dtype).T).float().flatten(0, 1)
    each = F.cross_entropy(logits, targets.flatten(), reduction="none", label_smoothing=0.1)
    expected = (each * weights.flatten()).sum()
    near = 1e-5 if dtype == torch.float32 else 2e-2
    assert total.item() == pytest.approx(expected.item(), rel=near)
    for a, b in zip(found, torch.autograd.grad(expected, [hidden, weight]), strict=True):
        assert float((a.float() - b.float()).norm() / b.float().norm()) < near
