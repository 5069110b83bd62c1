"""Speed of the other architectures: training and reading of encoders, encoder-decoders, LSTM and Kim's CNN, ours beside
transformers' ModernBERT, BERT and T5, JoeyNMT and plain PyTorch, alternated in one race as in ``train.py``.

Everybody reads the same texts. The unit is what a step holds: tokens, pairs or sentences a second.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train import Contender, Entry, race

from cutaway import device, records

HERE = Path(__file__).resolve().parent
OURS = "cutaway"
TRAIN, READ = 1.25, 1.5  # wanted: x the best peer
SIZES: dict[str, Any] = {"num_layers": 6, "hidden_size": 256, "num_heads": 4, "inner": 688, "vocab_size": 8192,
                         "compiled": False}


@dataclass(frozen=True)
class Contest:
    """One race: what everybody's case has, who takes part, the unit of a step, and the ratio that is wanted.

    ``dtypes`` are raced apart; where ``own_dtype`` ours takes bfloat16 and every peer runs in each of them.
    """

    case: dict[str, Any]
    peers: dict[str, tuple[str, dict[str, Any]]]  # name -> script, what its case has of its own
    unit: str
    each: int  # units of a step
    wanted: float
    own_dtype: bool = False


BERTS = {"ModernBERT": ("hf_encoder.py", {"network": "modernbert"}), "BERT": ("hf_encoder.py", {"network": "bert"})}


def _trained(context: int, batch: int) -> Contest:
    kinds = {"": {}, " eager": {"attention": "eager"}, " compiled": {"compiled": True}}
    peers = {name + kind: (script, own | more) for name, (script, own) in BERTS.items() for kind, more in kinds.items()}
    return Contest(SIZES | {"work": "masked", "context": context, "batch": batch}, peers, "tokens", context * batch,
                   TRAIN)


CNN = {"network": "cnn", "num_layers": 1, "hidden_size": 300, "inner": 128, "context": 64}
CONTESTS = {
    "encoder T=128": _trained(128, 32),
    "encoder T=256": _trained(256, 32),
    "encoder-decoder": Contest(
        SIZES | {"work": "translate", "num_layers": 4, "context": 64, "batch": 64},
        {"T5 v1.1": ("hf_t5.py", {}), "T5 v1.1 eager": ("hf_t5.py", {"attention": "eager"}),
         "T5 v1.1 compiled": ("hf_t5.py", {"compiled": True}), "JoeyNMT": ("joey.py", {})}, "pairs", 64, TRAIN),
    "LSTM": Contest(
        SIZES | {"work": "language", "network": "lstm", "num_layers": 2, "context": 128, "batch": 32},
        {"nn.LSTM": ("torch_lstm.py", {})}, "tokens", 128 * 32, TRAIN),
    "CNN": Contest(
        SIZES | CNN | {"work": "train-classes", "batch": 64},
        {"plain torch": ("torch_cnn.py", {}), "plain torch compiled": ("torch_cnn.py", {"compiled": True})},
        "sentences", 64, TRAIN),
    "encoder reading 64": Contest(SIZES | {"work": "classify", "context": 64, "batch": 64}, BERTS, "sentences", 64,
                                  READ, own_dtype=True),
    "encoder reading 1": Contest(SIZES | {"work": "classify", "context": 64, "batch": 1}, BERTS, "sentences", 1, READ,
                                 own_dtype=True),
    "CNN reading 64": Contest(SIZES | CNN | {"work": "classify", "batch": 64}, {"plain torch": ("torch_cnn.py", {})},
                              "sentences", 64, READ, own_dtype=True),
}
QUICK = ("encoder T=128", "encoder reading 64")


def entries(contest: Contest, dtype: str, options: argparse.Namespace) -> dict[str, Entry]:
    """Who races: ours, and every peer that was not left out."""
    out: dict[str, Entry] = {OURS: (sys.executable, "ours_shapes.py", {"dtype": dtype})}
    for name, (script, own) in contest.peers.items():
        if script in options.absent or (options.quick and {"compiled", "attention"} & own.keys()):
            continue
        for kind in ("bfloat16", "float32") if contest.own_dtype else (dtype,):
            label = f"{name} {kind}" if contest.own_dtype else name
            out[label] = (options.python, script, {"dtype": kind} | own)
    return out


def figure(racer: Contender, ours: Contender, each: int) -> dict[str, float]:
    """Median units a second with the quartiles of the rounds, ours ÷ it paired by round, memory, parameters."""
    rates = [r * each for r in racer.rates]
    low, middle, high = statistics.quantiles(rates, n=4) if len(rates) > 1 else rates * 3
    ratio = statistics.median(o / r for o, r in zip(ours.rates, racer.rates, strict=True))
    return {"per_second": middle, "low": low, "high": high, "rounds": len(rates), "ratio": ratio,
            "memory_bytes": racer.last["memory"], "parameters": racer.last["parameters"], "loss": racer.last["loss"]}


def table(title: str, unit: str, figures: dict[str, dict[str, float]]) -> None:
    """One contest for people."""
    print(f"\n{title}: {unit} a second")
    for name, f in sorted(figures.items(), key=lambda item: -item[1]["per_second"]):
        ratio = "" if name == OURS else f"ours ÷ it {f['ratio']:.2f}"
        print(f"  {name:<22}{f['per_second']:>10,.0f}  {f['low']:>9,.0f}–{f['high']:<9,.0f}"
              f"{f['memory_bytes'] / 2**30:>6.2f} GiB  {f['parameters'] / 1e6:>5.1f} M  loss {f['loss']:<7.2f}{ratio}",
              flush=True)


def missing(python: str) -> tuple[set[str], dict[str, str]]:
    """Scripts whose library the peers' environment lacks, and the versions of what it has."""
    probe = ("import json; from importlib.metadata import version, PackageNotFoundError as E\nv = {}\n"
             "for n in ('torch', 'transformers', 'joeynmt'):\n"
             "    try: v[n] = version(n)\n    except E: pass\nprint(json.dumps(v))")
    done = subprocess.run([python, "-c", probe], capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    needs = {"hf_encoder.py": "transformers", "hf_t5.py": "transformers", "joey.py": "joeynmt"}
    return {script for script, library in needs.items() if library not in found}, found


def arguments() -> argparse.Namespace:
    """The command line; a peers' environment made by ``make bench-peers`` is found by itself."""
    own = HERE.parent / ".venv-peers" / "bin" / "python"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contests", default="", help=f"of {', '.join(CONTESTS)}; default all")
    parser.add_argument("--dtypes", default="bfloat16,float32", help="of the training")
    parser.add_argument("--python", default=str(own) if own.exists() else sys.executable,
                        help="interpreter of the peers")
    parser.add_argument("--seconds", type=float, default=2.0, help="a contender's turn in each round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--without", default="", help="kinds of peers to leave out: eager, compiled")
    parser.add_argument("--quick", action="store_true", help="two contests in bfloat16, within 60 s")
    options = parser.parse_args()
    options.deadline = time.monotonic() + (40 if options.quick else 1e9)
    if options.quick:
        options.dtypes, options.rounds, options.seconds = "bfloat16", 5, 1.0
    return options


def main() -> None:
    """Run every contest; tables on the way, one JSON line at the end."""
    options = arguments()
    machine = device.known(device.pick("cpu"))
    own = str(device.compute_dtype("auto", device.pick("cpu"))).removeprefix("torch.")
    options.absent, versions = missing(options.python)
    wanted = [n.strip() for n in options.contests.split(",") if n.strip()] or list(QUICK if options.quick else CONTESTS)
    if unknown := [n for n in wanted if n not in CONTESTS]:
        raise SystemExit(f"no contest is called {unknown[0]!r}; there are: {', '.join(CONTESTS)}")
    if options.absent:
        print(f"not installed, so not raced: {', '.join(sorted(options.absent))} (run `make bench-peers`)")
    figures: dict[str, Any] = {}
    ratios, targets = {}, {}
    for name in wanted:
        contest = CONTESTS[name]
        for dtype in ["bfloat16"] if contest.own_dtype else options.dtypes.split(","):
            title = name if contest.own_dtype else f"{name} {dtype}"
            print(f"{title}:", file=sys.stderr)
            racing = {n: e for n, e in entries(contest, dtype, options).items()
                      if not any(w and w in n for w in options.without.split(","))}
            case = contest.case | {"device": "cpu", "threads": device.cores()}
            racers = race(racing, case, options.seconds, options.rounds, options.deadline)
            figures[title] = {r.name: figure(r, racers[0], contest.each) for r in racers}
            table(title, contest.unit, figures[title])
            ratios[title] = min(f["ratio"] for n, f in figures[title].items() if n != OURS)
            targets[title] = contest.wanted
    print("\n" + "\n".join(f"{c}: {r:.2f}x the best peer (wanted {targets[c]}x)" for c, r in ratios.items()))
    print(json.dumps({"name": "architectures", "figures": figures, "ratios": ratios, "targets": targets,
                      "trains_in": own, "ok": not options.absent and all(ratios[c] >= t for c, t in targets.items()),
                      "missing": sorted(options.absent),
                      "machine": {f: getattr(machine, f) for f in ("device", "cpu", "cores", "gemm_fp32_flops",
                                                                   "gemm_bf16_flops")},
                      "versions": {"peers": versions, **records.environment()["versions"]}}))


if __name__ == "__main__":
    main()
