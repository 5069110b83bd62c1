"""Training speed of recurrent language models: ours beside torch's own nn.LSTM, nn.GRU and nn.RNN, alternated.

The race is that of ``train.py``: a process each, turns in an order that rotates, the ratio is the median over rounds of
ours ÷ theirs in the same round. Two layers, vocabulary 4,096, 32 rows of 256 tokens.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from typing import Any

from train import Contender, start

from cutaway import device, records

SHAPE = {"num_layers": 2, "context": 256, "batch": 32, "vocab_size": 4096, "num_heads": 1, "inner": 1}
TARGET = 1.25


def race(case: dict[str, Any], seconds: float, rounds: int, deadline: float) -> dict[str, Contender]:
    """Both contenders of a case, warmed up and alternated until the rounds or the time are over."""
    racers = {
        name: start(name, f"recurrent_{name}.py", sys.executable, case | {"compiled": False})
        for name in ("ours", "torch")
    }
    paces = {}
    for name, racer in racers.items():
        racer.ask(2)
        racer.answer()
        racer.ask(1)
        paces[name] = 1 / racer.answer()["seconds"]
    for number in range(rounds):
        for name in sorted(racers, reverse=bool(number % 2)):
            racers[name].turn(seconds, paces[name])
        if time.monotonic() > deadline and number >= 2:
            break
    for racer in racers.values():
        racer.end()
    return racers


def figures(racers: dict[str, Contender]) -> dict[str, Any]:
    """Median tokens/s with the quartiles of the rounds, parameters and peak memory of each, and the paired ratio."""
    tokens = SHAPE["batch"] * SHAPE["context"]
    row: dict[str, Any] = {}
    for name, racer in racers.items():
        low, middle, high = statistics.quantiles([r * tokens for r in racer.rates], n=4)
        row[name] = {"tokens_per_second": middle, "low": low, "high": high, "rounds": len(racer.rates)}
        row[name] |= {k: racer.last[k] for k in ("memory", "parameters", "loss")}
    pairs = zip(racers["ours"].rates, racers["torch"].rates, strict=True)
    row["ratio"] = statistics.median(o / t for o, t in pairs)
    return row


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", default="lstm,gru,vanilla")
    parser.add_argument("--widths", default="256,512", help="hidden sizes")
    parser.add_argument("--dtypes", default="bfloat16,float32")
    parser.add_argument("--seconds", type=float, default=2.0, help="a contender's turn in each round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--quick", action="store_true", help="an LSTM of width 256 in both dtypes, within 60 s"
    )
    options = parser.parse_args()
    if options.quick:
        options.cells, options.widths, options.seconds, options.rounds = "lstm", "256", 1.0, 7
    return options


def main() -> None:
    """Run every case; table on the way, one JSON line at the end."""
    options = arguments()
    begun, found = time.monotonic(), {}
    print(f"{'':<24}{'ours':>10}{'torch':>10}  tokens/s{'ours ÷ it':>12}{'memory':>9}")
    for cell in options.cells.split(","):
        for width in map(int, options.widths.split(",")):
            for dtype in options.dtypes.split(","):
                case = {**SHAPE, "cell": cell, "hidden_size": width, "dtype": dtype, "device": "cpu"}
                case["threads"] = device.cores()
                deadline = begun + 20 * (1 + len(found)) if options.quick else begun + 1e9
                row = figures(race(case, options.seconds, options.rounds, deadline))
                found[f"{cell} {width} {dtype}"] = row
                ours, theirs = row["ours"], row["torch"]
                print(
                    f"{cell:<8} {width:>4} {dtype:<9}{ours['tokens_per_second']:>11,.0f}"
                    f"{theirs['tokens_per_second']:>10,.0f}{row['ratio']:>22.2f}"
                    f"{ours['memory'] / theirs['memory']:>9.2f}",
                    flush=True,
                )
    ratios = {name: row["ratio"] for name, row in found.items()}
    print(
        json.dumps(
            {
                "name": "recurrent",
                "figures": found,
                "ratios": ratios,
                "targets": dict.fromkeys(ratios, TARGET),
                "ok": all(r >= TARGET for r in ratios.values()),
                "machine": {"cpu": device.describe(device.pick("cpu")).cpu, "cores": device.cores()},
                "versions": records.environment()["versions"],
            }
        )
    )


if __name__ == "__main__":
    main()
