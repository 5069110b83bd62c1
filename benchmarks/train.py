"""Training speed: tokens/s, share of the measured peak and peak memory, ours beside peers, alternated in one race.

Every contender is its own process, started once, and told through pipes to run some steps in turn while the others
wait; so drift of a shared machine falls on all of them. The ratio of a case is the median over rounds of
ours ÷ peer in the same round, for the best peer.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cutaway import device, records

HERE = Path(__file__).resolve().parent
SHAPES: dict[str, dict[str, int]] = {
    "S": {
        "num_layers": 4,
        "hidden_size": 128,
        "num_heads": 4,
        "context": 256,
        "batch": 32,
        "vocab_size": 4096,
        "inner": 344,
    },
    "M": {
        "num_layers": 6,
        "hidden_size": 384,
        "num_heads": 6,
        "context": 256,
        "batch": 16,
        "vocab_size": 4096,
        "inner": 1024,
    },
    "L": {
        "num_layers": 12,
        "hidden_size": 768,
        "num_heads": 12,
        "context": 512,
        "batch": 4,
        "vocab_size": 50304,
        "inner": 2048,
    },
}
TARGETS = {"S": 1.5, "M": 1.25, "L": 1.15}
OURS = "cutaway"
PEERS: dict[str, tuple[str, bool]] = {  # name -> (script, compiled)
    "nanogpt eager": ("plain.py", False),
    "nanogpt compiled": ("plain.py", True),
    "llama": ("hf_llama.py", False),
    "llama compiled": ("hf_llama.py", True),
    "llama Trainer": ("hf_trainer.py", False),
    "litgpt": ("lit_gpt.py", False),
}
QUICK = ("nanogpt eager", "nanogpt compiled")


@dataclass
class Contender:
    """One process in the race and what it did in each round."""

    name: str
    process: subprocess.Popen[str]
    log: Any
    rates: list[float] = field(default_factory=list)  # steps per second, one a round
    last: dict[str, Any] = field(default_factory=dict)
    turns: list[dict[str, Any]] = field(default_factory=list)  # all it said of each round

    def ask(self, count: int) -> None:
        """Tell it to run ``count`` steps."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """What it did; its log's last lines if it died."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            tail = " | ".join(self.log.read().strip().splitlines()[-3:])
            raise SystemExit(f"{self.name} stopped: {tail}")
        self.last = json.loads(line)
        return self.last

    def turn(self, seconds: float, pace: float) -> None:
        """About ``seconds`` of steps at ``pace`` steps a second, measured."""
        self.ask(max(1, round(seconds * pace)))
        done = self.answer()
        self.rates.append(done["steps"] / done["seconds"])
        self.turns.append(done)

    def end(self) -> None:
        """Close its pipe: it ends by itself."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.log.close()


def start(name: str, script: str, python: str, case: dict[str, Any]) -> Contender:
    """Start one contender; what it prints goes to a log that is read only if it dies."""
    log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - the contender closes it at its end
    process = subprocess.Popen(
        [python, str(HERE / "peers" / script), json.dumps(case)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        env=os.environ | {"PYTHONWARNINGS": "ignore"},
    )
    return Contender(name, process, log)


Entry = tuple[str, str, dict[str, Any]]  # interpreter, script of peers/, what its case has of its own


def race(
    entries: dict[str, Entry], case: dict[str, Any], seconds: float, rounds: int, deadline: float
) -> list[Contender]:
    """Warm everybody up, one after the other, then alternate; the order turns by one each round."""
    racers = []
    for name, (interpreter, script, own) in entries.items():
        racer = start(name, script, interpreter, case | own)
        racers.append(racer)
        racer.ask(2)  # compiles, and fills the optimizer's state
        racer.answer()
        racer.ask(1)
        print(f"  ready: {name} ({1 / racer.answer()['seconds']:.2f} steps/s)", file=sys.stderr, flush=True)
    paces = [1 / r.last["seconds"] for r in racers]
    for number in range(rounds):
        for i in range(len(racers)):
            which = (i + number) % len(racers)
            racers[which].turn(seconds, paces[which])
        if time.monotonic() > deadline and number >= 2:
            break
    for racer in racers:
        racer.end()
    return racers


def groups(names: Sequence[str], size: str) -> list[list[str]]:
    """Peers that race together: all of them, or few at a time where that many models would not fit the memory."""
    if size != "L":
        return [list(names)]
    together = max(
        1, int(device.memory_bytes() / 7e9) - 1
    )  # up to 5 GB each measured at L, and ours races with each group
    return [list(names[i : i + together]) for i in range(0, len(names), together)]


def flops_per_token(shape: dict[str, int], parameters: int) -> float:
    """Six a parameter (the tied head is multiplied, its look-up is free) and causal attention (PaLM 2022, B)."""
    return 6.0 * parameters + 6.0 * shape["num_layers"] * shape["hidden_size"] * (shape["context"] + 1)


def contest(
    size: str, dtype: str, names: Sequence[str], options: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """Every contender's figures at one size and dtype; ``ratio`` of a peer is ours ÷ peer, paired by round."""
    shape = SHAPES[size]
    case = {**shape, "dtype": dtype, "device": options.device, "threads": device.cores()}
    figures: dict[str, dict[str, float]] = {}
    seconds, rounds = (1.5, 12) if options.quick else (options.seconds, options.rounds)
    for group in groups(names, size):
        entries: dict[str, Entry] = {OURS: (sys.executable, "ours.py", {"compiled": False})}
        entries |= {n: (options.python, PEERS[n][0], {"compiled": PEERS[n][1]}) for n in group}
        racers = race(entries, case, seconds, rounds, options.deadline)
        ours = racers[0]
        for racer in racers:
            row = figure(racer, shape)
            row["ratio"] = statistics.median(o / r for o, r in zip(ours.rates, racer.rates, strict=True))
            if racer is not ours or OURS not in figures:
                figures[racer.name] = row
    return figures


def figure(racer: Contender, shape: dict[str, int]) -> dict[str, float]:
    """Median tokens/s with the quartiles of the rounds, model FLOP/s, peak memory, last loss."""
    rates = [r * shape["batch"] * shape["context"] for r in racer.rates]
    low, middle, high = statistics.quantiles(rates, n=4) if len(rates) > 1 else rates * 3
    flops = flops_per_token(shape, racer.last["parameters"])
    return {
        "tokens_per_second": middle,
        "low": low,
        "high": high,
        "rounds": len(rates),
        "flops_per_second": middle * flops,
        "memory_bytes": racer.last["memory"],
        "parameters": racer.last["parameters"],
        "loss": racer.last["loss"],
    }


def table(title: str, figures: dict[str, dict[str, float]], peak: float) -> None:
    """One case for people."""
    print(f"\n{title}  (measured peak {peak / 1e9:,.0f} GFLOP/s)")
    columns = (
        ("tokens/s", 10),
        ("quartiles", 19),
        ("GFLOP/s", 9),
        ("of peak", 9),
        ("memory", 10),
        ("ours ÷ it", 11),
    )
    print(" " * 20 + "".join(f"{name:>{width}}" for name, width in (*columns, ("loss", 7))))
    for name, f in sorted(figures.items(), key=lambda item: -item[1]["tokens_per_second"]):
        ratio = "" if name == OURS else f"{f['ratio']:.2f}"
        print(
            f"  {name:<18}{f['tokens_per_second']:>10,.0f}{f['low']:>10,.0f}–{f['high']:<8,.0f}"
            f"{f['flops_per_second'] / 1e9:>9,.0f}{100 * f['flops_per_second'] / peak:>7.1f} %"
            f"{f['memory_bytes'] / 2**30:>6.2f} GiB{ratio:>11}{f['loss']:>7.2f}",
            flush=True,
        )


def available(python: str) -> tuple[list[str], dict[str, str]]:
    """Peers that the environment can run, and its versions."""
    probe = (
        "import json; from importlib.metadata import version, PackageNotFoundError as E\nv = {}\n"
        "for n in ('torch', 'transformers', 'accelerate', 'litgpt'):\n"
        "    try: v[n] = version(n)\n    except E: pass\nprint(json.dumps(v))"
    )
    found: dict[str, str] = json.loads(
        subprocess.run([python, "-c", probe], capture_output=True, text=True, check=True).stdout
    )
    needs = {
        "plain.py": {"torch"},
        "hf_llama.py": {"transformers"},
        "hf_trainer.py": {"transformers", "accelerate"},
        "lit_gpt.py": {"litgpt"},
    }
    return [n for n, (script, _) in PEERS.items() if needs[script] <= found.keys()], found


def judged(ratios: dict[str, float], memory: dict[str, float]) -> tuple[dict[str, float], bool]:
    """The targets of the cases that ran, and whether all are reached in speed and in memory."""
    targets = {case: TARGETS[case.split()[0]] for case in ratios}
    return targets, all(ratios[c] >= t for c, t in targets.items()) and all(m <= 1 for m in memory.values())


def arguments() -> argparse.Namespace:
    """The command line; a peers' environment made by ``make bench-peers`` is found by itself."""
    own = HERE.parent / ".venv-peers" / "bin" / "python"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default="S,M,L", help="of S, M, L")
    parser.add_argument("--dtypes", default="bfloat16,float32")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--peers", default="", help=f"of {', '.join(PEERS)}; default all that are installed")
    parser.add_argument(
        "--python", default=str(own) if own.exists() else sys.executable, help="interpreter of the peers"
    )
    parser.add_argument("--seconds", type=float, default=4.0, help="a contender's turn in each round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--quick", action="store_true", help="S in bfloat16 against the plain loop, within 60 s"
    )
    options = parser.parse_args()
    options.deadline = time.monotonic() + (45 if options.quick else 1e9)
    if options.quick:
        options.sizes, options.dtypes = "S", "bfloat16"
    return options


def main() -> None:
    """Run every case; table on the way, one JSON line at the end."""
    options = arguments()
    machine = device.known(device.pick(options.device))
    found, versions = available(options.python)
    wanted = [n.strip() for n in options.peers.split(",") if n.strip()] or list(
        QUICK if options.quick else PEERS
    )
    if unknown := [n for n in wanted if n not in PEERS]:
        raise SystemExit(f"no peer is called {unknown[0]!r}; there are: {', '.join(PEERS)}")
    missing = [n for n in wanted if n not in found]
    if missing:
        print(f"not installed, so not raced: {', '.join(missing)} (run `make bench-peers`)")
    figures: dict[str, Any] = {}
    ratios, memory = {}, {}
    peaks = {"float32": machine.gemm_fp32_flops, "bfloat16": machine.gemm_bf16_flops}
    for size in options.sizes.split(","):
        for dtype in options.dtypes.split(","):
            name = f"{size} {dtype}"
            print(f"{name}:", file=sys.stderr)
            figures[name] = contest(size, dtype, [n for n in wanted if n in found], options)
            for f in figures[name].values():
                f["share_of_peak"] = f["flops_per_second"] / peaks[dtype]
            table(name, figures[name], peaks[dtype])
            peers = {n: f for n, f in figures[name].items() if n != OURS}
            ratios[name] = min(f["ratio"] for f in peers.values())
            memory[name] = figures[name][OURS]["memory_bytes"] / min(
                f["memory_bytes"] for f in peers.values()
            )
    targets, ok = judged(ratios, memory)
    print(
        "\n"
        + "\n".join(
            f"{c}: {r:.2f}x the best peer (wanted {targets[c]}x), {memory[c]:.2f}x the memory of the leanest"
            for c, r in ratios.items()
        )
    )
    print(
        json.dumps(
            {
                "name": "train",
                "figures": figures,
                "ratios": ratios,
                "targets": targets,
                "ok": ok and not missing,
                "memory": memory,
                "missing": missing,
                "machine": {
                    f: getattr(machine, f)
                    for f in ("device", "cpu", "cores", "accelerator", "gemm_fp32_flops", "gemm_bf16_flops")
                },
                "versions": {"peers": versions, **records.environment()["versions"]},
            }
        )
    )


if __name__ == "__main__":
    main()
