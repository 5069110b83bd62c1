"""Convolutions equal PyTorch's own, forward and gradient: the causal one ``conv1d``, Kim's network a plain one."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cutaway.batch import Batch
from cutaway.models.convolution import ConvolutionConfig
from cutaway.models.heads import Classes
from cutaway.models.model import build
from cutaway.nn import convolution, filters, kernels
from cutaway.nn.convolution import ConvolutionStack, Layout, taps

WIDTH = 7


def _close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= tolerance * max(1.0, float(theirs.detach().abs().max()))


def _same_slopes(ours: Tensor, theirs: Tensor, by: Sequence[Tensor], slope: Tensor | None = None) -> None:
    for mine, wanted in zip(torch.autograd.grad(ours, by, slope), torch.autograd.grad(theirs, by, slope), strict=True):
        _close(mine, wanted)


@pytest.mark.parametrize("steps", [1, 5, 40])
@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (2, 1), (3, 1), (3, 4), (5, 16)])
def test_causal_convolution_is_torchs(kernel: int, dilation: int, steps: int) -> None:
    x = torch.randn(3, steps, WIDTH, requires_grad=True)
    weight = torch.randn(11, WIDTH, kernel, requires_grad=True)
    slope = torch.randn(3, steps, 11)
    offsets = Layout(WIDTH, (kernel,), (dilation,), 1e-5, causal=True).offsets(0)
    ours = F.linear(taps(x, offsets), weight.permute(0, 2, 1).reshape(11, -1))
    theirs = F.conv1d(F.pad(x.transpose(1, 2), ((kernel - 1) * dilation, 0)), weight, dilation=dilation).transpose(1, 2)
    _close(ours, theirs)
    _same_slopes(ours, theirs, (x, weight), slope)


def _plain(stack: ConvolutionStack, tokens: Tensor, config: ConvolutionConfig) -> Tensor:
    """The decoder as one would write it with ``conv1d``."""
    x = F.embedding(tokens, stack.embedding.weight)
    for i, block in enumerate(stack.blocks):
        kernel, dilation = config.kernels[i], config.steps[i]
        h = F.rms_norm(x, (WIDTH,), block.norm.weight, config.norm_eps).transpose(1, 2)
        weight = block.convolution.weight.view(-1, kernel, WIDTH).permute(0, 2, 1)
        h = F.conv1d(F.pad(h, ((kernel - 1) * dilation, 0)), weight, dilation=dilation)
        h = F.glu(h, 1) if config.gated else F.relu(h)
        x = x + h.transpose(1, 2) @ block.out.weight.T
    return F.rms_norm(x, (WIDTH,), stack.norm.weight, config.norm_eps)


@pytest.mark.parametrize("gated", [True, False])
def test_the_language_model_is_a_plain_one(gated: bool) -> None:
    config = ConvolutionConfig(vocab_size=20, hidden_size=WIDTH, num_layers=4, kernel_sizes=(3, 2), gated=gated)
    model = build(config, seed=3)
    tokens = torch.randint(0, 20, (2, 30))
    ours, theirs = model.hidden(Batch(tokens)), _plain(model.backbone.stack, tokens, config)
    _close(ours, theirs)
    _same_slopes(ours, theirs, list(model.parameters()), torch.randn_like(ours))


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("length", [2, 5, 12])
@pytest.mark.parametrize("each", [3, 16])
def test_kims_network_is_a_plain_one(length: int, each: int, kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not kernel:
        monkeypatch.setattr(filters, "library_for", lambda *tensors: None)
    config = ConvolutionConfig(vocab_size=20, hidden_size=3 * each, shape="encoder", embedding_size=WIDTH,
                               tie_embeddings=False)
    model = build(config, head=Classes(("a", "b")), seed=3).eval()
    with torch.no_grad():
        model.backbone.bias.normal_(std=0.2)
        model.head.weight.normal_()
    words, labels = torch.randint(0, 20, (4, length)), torch.tensor([0, 1, 1, 0])

    def plain() -> Tensor:
        x, largest = F.embedding(words, model.backbone.embedding.weight).transpose(1, 2), []
        for i, (width, weight) in enumerate(zip(config.kernel_sizes, model.backbone.filters, strict=True)):
            bias = model.backbone.bias[each * i : each * (i + 1)]
            found = F.conv1d(F.pad(x, ((width - 1) // 2, width // 2)), weight.view(each, width, WIDTH).permute(0, 2, 1),
                             bias)
            largest.append(F.relu(found).amax(2))
        return F.linear(torch.cat(largest, 1), model.head.weight, model.head.bias)

    ours, theirs = model(Batch(words)), plain()
    _close(ours, theirs)
    _same_slopes(F.cross_entropy(ours, labels), F.cross_entropy(theirs, labels), list(model.parameters()))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("width", [3, 16, 45])
def test_the_kernel_is_its_plain_twin(width: int, dtype: torch.dtype, tolerance: float,
                                      monkeypatch: pytest.MonkeyPatch) -> None:
    if kernels.built().library is None:
        pytest.skip(kernels.status())
    ids = torch.tensor([[0] * 9, [0, 0, 1, 1, 1, 1, 2, -1, -1]])
    for documents in (None, ids, ids.int()[:, ::1]):
        for offsets in ((-4, -2, 0), (-1, 0, 1, 2), (-20, -3), (5,)):
            x = torch.randn(2, 9, width).to(dtype).requires_grad_()
            slope = torch.randn(2, 9, width * len(offsets)).to(dtype)
            ours = taps(x, offsets, documents)
            (mine,) = torch.autograd.grad(ours, x, slope)
            with monkeypatch.context() as patch:
                patch.setattr(convolution, "library_for", lambda *tensors: None)
                theirs = taps(x, offsets, documents)
                (wanted,) = torch.autograd.grad(theirs, x, slope)
            assert torch.equal(ours, theirs)
            _close(mine.float(), wanted.float(), tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize(("size", "each"), [(5, 3), (32, 21)])
def test_the_largest_answers_are_their_plain_twin(size: int, each: int, dtype: torch.dtype, tolerance: float,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    if kernels.built().library is None:
        pytest.skip(kernels.status())
    ids, widths = torch.tensor([[0] * 9, [0, 0, 1, 1, 1, 1, 2, -1, -1]]), (1, 2, 5)
    weights = [torch.randn(each, width * size, requires_grad=True) for width in widths]
    words, slope = torch.randn(2, 9, size, requires_grad=True), torch.randn(2, 3 * each)
    slope[:, ::3] = 0
    for documents in (None, ids):
        found = []
        for on in (True, False):
            with monkeypatch.context() as patch:
                if not on:
                    patch.setattr(filters, "library_for", lambda *tensors: None)
                top = filters.largest(words, weights, widths, documents, dtype=dtype)
                found.append([top, *torch.autograd.grad(top, [words, *weights], slope)])
        for ours, theirs in zip(*found, strict=True):
            _close(ours.detach(), theirs.detach(), tolerance)
    words.data[0, 3, 0] = torch.nan
    assert filters.largest(words, weights, widths, None, dtype=dtype)[0].isnan().all()


@pytest.mark.parametrize(("size", "each", "widths"), [(5, 3, (1, 2, 5)), (32, 40, (3, 4, 5)), (50, 33, (2,))])
def test_answers_that_are_only_read(size: int, each: int, widths: tuple[int, ...]) -> None:
    """Against the answers themselves, of the same rounded words and filters, in float32; a document is read alone."""
    if kernels.built().library is None:
        pytest.skip(kernels.status())
    long = torch.arange(90) // 40  # documents of more words than the kernel's tile
    ids = torch.stack([torch.zeros(90).long(), torch.where(long > 1, -1, long), torch.full((90,), -1)])
    weights, table = [torch.randn(each, width * size) for width in widths], torch.randn(11, size)
    tokens = torch.randint(11, ids.shape)
    words, rounded = table[tokens].bfloat16().float(), [w.bfloat16().float() for w in weights]
    for documents, wanted in ((None, 3), (ids, 4)):
        said = filters.answers(words, rounded, widths, documents, dtype=torch.float32)
        top = filters.read(tokens, table, weights, widths, documents)
        assert top is not None and top.shape == (wanted, each * len(widths))
        if documents is None:
            _close(top, said.max(1).values, 1e-5)
            continue
        _close(top[:3], torch.stack([said[0].amax(0), said[1, :40].amax(0), said[1, 40:80].amax(0)]), 1e-5)
        assert (top[3] == -torch.inf).all()  # padding alone
        alone = filters.read(tokens[1:2, 40:80], table, weights, widths, None)
        assert alone is not None and torch.equal(alone[0], top[2])
    with pytest.raises(IndexError, match="vocabulary of 11"):
        filters.read(torch.tensor([[11]]), table, weights, widths, None)
