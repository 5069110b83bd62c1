"""Parallel: how ranks share a step, applied from outside; the model's code knows nothing of it (after torchtitan).

``ddp`` keeps a whole copy on each rank (Li et al. 2020, arXiv 2006.15704); ``fsdp2`` shards parameters, gradients and
optimizer state block by block (``torch.distributed.fsdp.fully_shard``; Zhao et al. 2023, arXiv 2304.11277). In both,
gradients are summed, never averaged: the loss was already divided by the weight of all ranks, so n ranks equal one.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from cutaway.device import Device
from cutaway.errors import MachineError, SettingsError
from cutaway.models.model import Model, build

Kind = Literal["single", "ddp", "fsdp2"]
M = TypeVar("M", bound=nn.Module)
CPU = torch.device("cpu")
BUCKET_BYTES = 25 << 20  # gradients travel together up to this size, as in torch's own DDP


@dataclass(frozen=True, slots=True)
class Parallel:
    """This process among its peers. Every method is collective: all ranks call it, in the same order."""

    rank: int = 0
    world: int = 1
    kind: Kind = "single"
    device: torch.device = CPU

    def all_sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, on the tensor's own device; the tensor itself is left alone."""
        if self.world == 1:
            return tensor
        total = tensor.to(self.device, copy=True)
        torch.distributed.all_reduce(total)
        return total.to(tensor.device)

    def any(self, flag: bool) -> bool:
        """Whether any rank says so: a Ctrl-C reaches the ranks at different steps, and they must stop at the same."""
        return float(self.all_sum(torch.tensor(float(flag), dtype=torch.float64))) > 0

    def wrap(self, model: M) -> M:
        """Prepare a model for training, in place. Build the optimizer afterwards: ``fsdp2`` replaces the parameters."""
        if self.kind == "fsdp2":
            _shard(model)
        return model

    def unwrap(self, model: Model) -> Model:
        """A whole model on every rank, on the same device: ``model`` itself, but under ``fsdp2`` a copy.

        Generation needs it: ranks write answers of different lengths, and a sharded model reads in step only.
        """
        if self.kind != "fsdp2":
            return model
        plain = build(model.config, head=model.head_spec, compute_dtype=model.compute_dtype).to(model.device)
        with torch.no_grad():
            for (_, whole), part in zip(plain.named_parameters(), model.parameters(), strict=True):
                whole.copy_(_whole(part))
        return plain

    @contextmanager
    def accumulating(self, model: nn.Module, *, last: bool) -> Iterator[None]:
        """Around the forward and backward of one micro-batch; gradients travel after the ``last`` only."""
        if self.kind == "fsdp2":
            from torch.distributed.fsdp import FSDPModule

            assert isinstance(model, FSDPModule)
            model.set_requires_gradient_sync(last)
            model.set_is_last_backward(last)
        with warnings.catch_warnings():
            # a recurrent block gives views of its trace, and nothing of ours changes a block's output in place
            warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
            yield

    def finish(self, model: nn.Module) -> None:
        """After the last backward: every rank's gradient becomes the sum over ranks."""
        if self.kind == "ddp" and self.world > 1:
            _sum_gradients([p for p in model.parameters() if p.requires_grad])

    def grad_norm(self, parameters: Sequence[Tensor]) -> float:
        """The Euclidean norm of the whole gradient, over all ranks' shards; not finite if any part of it is not."""
        gradients = [_local(p.grad) for p in parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients) if gradients else torch.zeros(())
        if self.kind != "fsdp2":
            return float(norm)
        return math.sqrt(float(self.all_sum(norm.double().square())))

    def gathered(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors from shards, on the CPU; ranks other than the first get an empty mapping back."""
        whole = {}
        for name, tensor in tensors.items():
            full = _whole(tensor)
            if self.rank == 0:
                whole[name] = full.detach().cpu()
        return whole

    def scattered(self, tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This rank's shards of whole tensors, laid out as the parameters of the same name in ``like``."""
        if self.kind != "fsdp2":
            return dict(tensors)
        return {name: _part(tensor, like.get(name)) for name, tensor in tensors.items()}


SINGLE = Parallel()


@contextmanager
def launch(kind: Kind, device: Device) -> Iterator[Parallel]:
    """Join the ranks that ``torchrun`` started (gloo on CPU, nccl on CUDA), and leave them at the end.

    Raises SettingsError if ``kind`` and the number of processes do not go together, MachineError if there is no
    accelerator for this rank.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if kind == "single":
        if world > 1:
            raise SettingsError(f"{world} processes were started for a run that is not parallel",
                                way_out="add parallel.kind=ddp or parallel.kind=fsdp2")
        yield SINGLE
        return
    if "RANK" not in os.environ:
        raise SettingsError(f"parallel.kind={kind} needs its processes started together",
                            way_out="torchrun --nproc-per-node 2 -m cutaway run (or resume) ..., or "
                                    "begin a run with parallel.kind=single")
    local, rank = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ["RANK"])
    place = CPU
    if device.kind == "cuda":
        if local >= torch.cuda.device_count():
            raise MachineError(f"rank {rank} has no GPU: this machine has {torch.cuda.device_count()}",
                               way_out="start at most one process a GPU")
        place = torch.device("cuda", local)
        torch.cuda.set_device(place)
    torch.distributed.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield Parallel(rank, world, kind, place)
    finally:
        torch.distributed.destroy_process_group()


def _shard(model: nn.Module) -> None:
    """``fully_shard`` on every block, then on what is left (embedding, norm, head: one group, so they may be tied)."""
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    for blocks in [m for m in model.modules() if isinstance(m, nn.ModuleList)]:
        for block in blocks:
            fully_shard(block)
    # the objective reads the head's weight behind the forward pass: the last group stays whole until its backward
    fully_shard(model, reshard_after_forward=False)
    for method in ("hidden", "logits"):
        if hasattr(model, method):
            register_fsdp_forward_method(model, method)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def _sum_gradients(parameters: Sequence[Tensor]) -> None:
    """All-reduce in buckets of ``BUCKET_BYTES``; a parameter without a gradient here counts as zero."""
    bucket: list[Tensor] = []
    waiting = []
    for i, parameter in enumerate(parameters):
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        bucket.append(parameter.grad)
        if i == len(parameters) - 1 or sum(g.nbytes for g in bucket) >= BUCKET_BYTES:
            flat = torch.cat([g.flatten() for g in bucket])
            waiting.append((torch.distributed.all_reduce(flat, async_op=True), flat, bucket))
            bucket = []
    for work, flat, gradients in waiting:
        assert work is not None
        work.wait()
        for gradient, part in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))


def _local(tensor: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _whole(tensor: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _part(tensor: Tensor, like: Tensor | None) -> Tensor:
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
