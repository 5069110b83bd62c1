"""What one rank does in test_parallel: ``torchrun --nproc-per-node 2 tests/ranks.py FOLDER``.

Every case is trained with ``ddp`` and ``fsdp2``; the first rank writes steps, weights and optimizer state to FOLDER.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import tiny
import torch
from safetensors.torch import save_file

from cutaway.device import Device
from cutaway.models.model import Model
from cutaway.train import checkpoint
from cutaway.train.loop import steps
from cutaway.train.optimizer import Optimizer, OptimizerSettings, build_optimizer
from cutaway.train.parallel import SINGLE, Kind, Parallel, launch
from cutaway.train.schedule import Schedule

TOTAL, CUT = 5, 2
# the sign of a gradient that is noise decides nothing under this eps: what is compared is the sum over ranks
ADAMW = OptimizerSettings(kind="adamw", eps=1e-6)
MUON = OptimizerSettings(kind="muon", eps=1e-6)
PLANS = {**{name: (name, "tied", ADAMW) for name in tiny.CASES},
         **{f"likelihood-{c}": ("likelihood", c, ADAMW) for c in tiny.EVERY},
         "packed-sources": ("packed", "encoder-decoder", ADAMW),
         "muon": ("likelihood", "tied", MUON), "muon-bfloat16": ("likelihood", "tied", MUON),
         "bfloat16": ("packed", "tied", ADAMW)}
KINDS: tuple[Kind, ...] = ("ddp", "fsdp2")


def begin(plan: str, parallel: Parallel) -> tuple[Model, Optimizer]:
    """A fresh model and its optimizer on this rank."""
    name, config, settings = PLANS[plan]
    fresh = tiny.start(tiny.CASES[name], config)
    fresh.compute_dtype = torch.bfloat16 if plan == "bfloat16" else torch.float32
    model = parallel.wrap(fresh)
    return model, build_optimizer(model, settings)


def go(plan: str, model: Model, optimizer: Optimizer, parallel: Parallel = SINGLE, *, start: int = 0,
       total: int = TOTAL) -> list[dict[str, Any]]:
    """Train, and give what each step said."""
    case = tiny.case_for(*PLANS[plan][:2])
    batches = tiny.batches(case, micro=2, rank=parallel.rank, world=parallel.world)
    # Muon orthogonalises in bfloat16, where the last bit of a sum of gradients moves entries by 2^-8 of their size
    exact = patch.object(torch.Tensor, "bfloat16", torch.Tensor.float) if plan == "muon" else nullcontext()
    with exact:
        return [asdict(step) for step in steps(model, batches, case.objective, optimizer, schedule=Schedule(),
                                               total=total, start=start, clip=0.5, parallel=parallel)]


def write(folder: Path, said: list[dict[str, Any]], model: Model, optimizer: Optimizer, parallel: Parallel) -> None:
    """The outcome, whole, from the first rank."""
    tensors = parallel.gathered({**dict(model.named_parameters()), **optimizer.tensors()})
    plain = parallel.unwrap(model)
    if parallel.rank == 0:
        assert all(torch.equal(tensors[n], p.detach().cpu()) for n, p in plain.named_parameters())
        folder.mkdir(parents=True)
        save_file({n: t.clone() for n, t in tensors.items()}, folder / "tensors.safetensors")
        (folder / "steps.json").write_text(json.dumps(said))


def everything(root: Path, parallel: Parallel) -> None:
    """All plans, and a run that changes its world size in both directions."""
    for plan in PLANS:
        state = begin(plan, parallel)
        write(root / parallel.kind / plan, go(plan, *state, parallel), *state, parallel)
    state = begin("muon", parallel)
    checkpoint.load(root / "one" / f"step-{CUT}", model=state[0], optimizer=state[1], parallel=parallel)
    write(root / parallel.kind / "from-one", go("muon", *state, parallel, start=CUT), *state, parallel)
    state = begin("muon", parallel)
    go("muon", *state, parallel, total=CUT)
    checkpoint.save(root / f"two-{parallel.kind}", step=CUT, model=state[0], optimizer=state[1], resume={"tokens": 1},
                    parallel=parallel)
    assert parallel.any(parallel.rank == 1) and not parallel.any(False)


if __name__ == "__main__":
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    with launch("ddp", Device("cpu")) as ranks:
        for kind in KINDS:
            everything(Path(sys.argv[1]), replace(ranks, kind=kind))
    sys.stderr.flush()
    os._exit(0)  # as cutaway/__main__.py does: gloo's threads now and then abort the interpreter's own way out
