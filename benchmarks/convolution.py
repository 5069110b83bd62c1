"""Speed of training convolutional networks beside plain PyTorch ones of the same shape, built on ``nn.Conv1d``.

A gated causal language model (kernel 3, dilations 1, 2, 4, 8) at two sizes, and Kim's sentence classifier on batches of
50 sentences of 20 and of 60 words. Raced as ``train.py`` races: one process a contender, alternated, ratios paired by
round. Wanted: language model >= 1.25x the best peer, classifier >= 1.5x.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from train import Contender, start

from cutaway import device, records

OURS = "cutaway"
TCN = {OURS: ("ours_convolution.py", False), "conv1d": ("plain_tcn.py", False), "compiled": ("plain_tcn.py", True)}
KIM = {OURS: ("ours_kim.py", False), "conv1d": ("plain_kim.py", False), "compiled": ("plain_kim.py", True)}
LM = {"num_layers": 4, "hidden_size": 128, "context": 256, "batch": 32, "vocab_size": 4096}
SENTENCES = {"num_layers": 1, "hidden_size": 300, "context": 20, "batch": 50, "vocab_size": 20_000}
CASES: dict[str, tuple[dict[str, tuple[str, bool]], dict[str, int], float]] = {
    "lm S": (TCN, LM, 1.25),
    "lm M": (TCN, LM | {"num_layers": 6, "hidden_size": 384, "batch": 16}, 1.25),
    "kim 20 words": (KIM, SENTENCES, 1.5),
    "kim 60 words": (KIM, SENTENCES | {"context": 60}, 1.5),
}


def race(entries: dict[str, tuple[str, bool]], case: dict[str, Any], seconds: float, rounds: int) -> list[Contender]:
    """Everybody warmed up, then alternated; the order turns by one each round."""
    racers = []
    for name, (script, compiled) in entries.items():
        racer = start(name, script, sys.executable, case | {"compiled": compiled})
        racers.append(racer)
        for count in (3, 5):  # compiles, and fills the optimizer's state; then a first pace
            racer.ask(count)
            racer.last = racer.answer()
    paces = [r.last["steps"] / r.last["seconds"] for r in racers]
    for number in range(rounds):
        for i in range(len(racers)):
            which = (i + number) % len(racers)
            racers[which].turn(seconds, paces[which])
    for racer in racers:
        racer.end()
    return racers


def figures(racers: Sequence[Contender], words: int) -> dict[str, dict[str, float]]:
    """Median words a second with quartiles, the paired ratio ours / peer, peak memory."""
    out = {}
    for racer in racers:
        low, middle, high = statistics.quantiles([r * words for r in racer.rates], n=4)
        ratio = statistics.median(o / r for o, r in zip(racers[0].rates, racer.rates, strict=True))
        out[racer.name] = {"words_per_second": middle, "low": low, "high": high, "ratio": ratio,
                           "memory": racer.last["memory"], "parameters": racer.last["parameters"]}
    return out


def main() -> None:
    """A table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--dtypes", default="bfloat16,float32")
    parser.add_argument("--seconds", type=float, default=2.0, help="of one turn")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--quick", action="store_true", help="the smallest of each kind, in bfloat16, eager")
    options = parser.parse_args()
    names, dtypes = options.cases.split(","), options.dtypes.split(",")
    if options.quick:
        names, dtypes = ["lm S", "kim 20 words"], ["bfloat16"]
    found, ratios, targets = {}, {}, {}
    print(f"{'':<26}{'contender':<12}{'words/s':>10}{'quartiles':>20}{'ours ÷ it':>11}{'MiB':>7}")
    for key, name, dtype in ((f"{n} {d}", n, d) for n in names for d in dtypes):
        entries, shape, target = CASES[name]
        entries = {n: e for n, e in entries.items() if not (options.quick and e[1])}
        case = {**shape, "num_heads": 1, "inner": 1, "dtype": dtype, "device": "cpu", "threads": device.cores()}
        seconds, rounds = (1.0, 4) if options.quick else (options.seconds, options.rounds)
        found[key] = figures(race(entries, case, seconds, rounds), shape["batch"] * shape["context"])
        for n, row in found[key].items():
            between = f"{row['low']:,.0f}–{row['high']:,.0f}"
            print(f"{key:<26}{n:<12}{row['words_per_second']:>10,.0f}{between:>20}{row['ratio']:>11.2f}"
                  f"{row['memory'] / 2**20:>7.0f}", flush=True)
        ratios[key], targets[key] = min(row["ratio"] for n, row in found[key].items() if n != OURS), target
    print(json.dumps({"name": "convolution", "figures": found, "ratios": ratios, "targets": targets,
                      "ok": all(ratios[k] >= targets[k] for k in ratios),
                      "machine": asdict(device.known(device.pick("cpu"))),
                      "versions": records.environment()["versions"]}))


if __name__ == "__main__":
    main()
