"""``cutaway doctor``: what this machine can do, measured, numbers first; predictions and MFU stand on it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from cutaway.cli.console import Json, note, result, stderr, table

if TYPE_CHECKING:
    from rich.table import Table

    from cutaway.device import Device, Machine


def command(
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    *,
    stored: Annotated[bool, typer.Option("--stored", help="Show the stored measurement if there is one.")] = False,
    json: Json = False,
) -> None:
    """Measure GEMM, memory bandwidth, cores and memory; keep the result for predictions and MFU."""
    from cutaway import device as machines

    where = machines.pick(device)
    machine = machines.stored(where) if stored else None
    if machine is None:
        with stderr().status(f"measuring {where} …"):
            machine = machines.measure(where)
        path = machines.store(machine)
        note(f"stored in {path}")
    dtype = str(machines.compute_dtype("auto", where, machine)).removeprefix("torch.")
    threads = machines.set_threads()
    result({**asdict(machine), "compute_dtype": dtype, "threads": threads, "kernels": _kernels()},
           _shown(machine, where, dtype, threads), json=json)


def _kernels() -> dict[str, object]:
    from cutaway.nn.kernels import built

    found = built()
    return {"compiled": found.library is not None, "reason": found.reason}


def _shown(machine: Machine, where: Device, dtype: str, threads: int) -> Table:
    giga = 1e9
    gain = machine.gemm_bf16_flops / machine.gemm_fp32_flops
    rows = [
        (f"{machine.gemm_fp32_flops / giga:,.0f} GFLOP/s", "matrix product, fp32", "best square GEMM, 256 to 4,096"),
        (f"{machine.gemm_bf16_flops / giga:,.0f} GFLOP/s", "matrix product, bf16",
         f"{gain:.1f} × fp32, so auto computes in {dtype}"),
        (f"{machine.read_bytes_per_s / giga:,.1f} GB/s", "memory read", "one large tensor, summed"),
        (f"{machine.copy_bytes_per_s / giga:,.1f} GB/s", "memory copy", "bytes read + bytes written"),
        (f"{machine.cores} cores", machine.cpu, f"affinity and cgroup quota; torch uses {threads} threads"),
        (f"{machine.memory_bytes / 2**30:,.1f} GiB", "memory", "of the machine or of the cgroup"),
    ]
    kernels = _kernels()
    rows.append(("compiled" if kernels["compiled"] else "plain", "CPU kernels", str(kernels["reason"])))
    if machine.accelerator is not None:
        size = machine.accelerator_memory_bytes or 0
        rows.append((f"{size / 2**30:,.1f} GiB", machine.accelerator, "accelerator memory"))
    title = f"{where} · torch {machine.torch_version} · measured {machine.measured_at}"
    return table(("measured", "what", "how to read it"), rows, title=title)
