"""Adapting SmolLM2-135M-Instruct: steps/s and peak memory of LoRA fine-tuning, DPO and GRPO, ours beside TRL + PEFT.

The same conversations in the same order, the same adapters, AdamW and clipping; bf16 autocast for the peer, as it is
TRL's own default, and without its gradient checkpointing, which only makes it slower. Each lays its batches as it does
for its users: ours packs conversations of different lengths, TRL pads them. Of GRPO every answer has the same number of
new tokens. Alternated in one race, as ``train.py`` does it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from train import HERE, race

from cutaway import device, records
from cutaway.data.conversations import Conversation, make
from cutaway.data.documents import StdlibSettings, read
from cutaway.models.adapted import open_model, open_tokenizer
from cutaway.models.folder import save_model
from cutaway.run.place import model_folder
from cutaway.text.tokenizer import Tokenizer
from cutaway.train.reward import prompt

TARGET = 1.5
WORKS: dict[str, dict[str, int]] = {"lora": {"batch": 8}, "dpo": {"batch": 4},
                                    "grpo": {"batch": 2, "samples": 8, "max_tokens": 48}}
LONGEST = 384  # tokens of a conversation
OURS, PEER = "cutaway", "trl + peft"


def rows_of(conversations: tuple[Conversation, ...], tokenizer: Tokenizer, count: int) -> list[dict[str, Any]]:
    """Requests and answers as ids; what is rejected is the answer to another request."""
    rows = []
    for one, other in itertools.pairwise(conversations):
        row = {"request": one.request, "prompt": prompt(one.request, tokenizer),
               "answer": [*tokenizer.encode(one.answer), tokenizer.end_id],
               "rejected": [*tokenizer.encode(other.answer), tokenizer.end_id]}
        if len(row["prompt"]) + max(len(row["answer"]), len(row["rejected"])) <= LONGEST:
            rows.append(row)
    return rows[:: max(1, len(rows) // count)][:count]


def contest(work: str, folder: Path, rows: list[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """Both contenders' figures at one kind of work."""
    plan = {"model": str(folder / "model"), "rows": rows, "rank": options.rank, "alpha": 2 * options.rank,
            "dtype": options.peer_dtype, **WORKS[work]}
    (folder / f"{work}.json").write_text(json.dumps(plan), "utf-8")
    case = {"num_layers": 30, "hidden_size": 576, "num_heads": 9, "context": LONGEST, "batch": WORKS[work]["batch"],
            "vocab_size": 49152, "inner": 1536, "dtype": options.dtype, "device": "cpu", "threads": device.cores(),
            "work": work, "network": str(folder / f"{work}.json")}
    entries = {OURS: (sys.executable, "ours_adapt.py", {}), PEER: (options.python, "trl_adapt.py", {})}
    racers = race(entries, case, options.seconds, options.rounds, options.deadline)
    ours = racers[0]
    return {r.name: {"steps_per_second": statistics.median(r.rates), "rounds": len(r.rates),
                     "memory_bytes": r.last["memory"], "loss": r.last.get("loss", 0.0),
                     "ratio": statistics.median(o / t for o, t in zip(ours.rates, r.rates, strict=True))}
            for r in racers}


def versions(python: str) -> dict[str, str]:
    """Of the peer's environment."""
    told = ("import json\nfrom importlib.metadata import version\n"
            "print(json.dumps({n: version(n) for n in ('torch', 'transformers', 'peft', 'trl')}))")
    done = subprocess.run([python, "-c", told], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit("trl and peft are not installed there: run `make bench-peers`, or name --python")
    found: dict[str, str] = json.loads(done.stdout)
    return found


def arguments() -> argparse.Namespace:
    """The command line; a peers' environment made by ``make bench-peers`` is found by itself."""
    own = HERE.parent / ".venv-peers" / "bin" / "python"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct", help="a name that was pulled, or a folder")
    parser.add_argument("--works", default="lora,dpo,grpo")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--peer-dtype", default="float32", choices=("float32", "bfloat16"), help="its weights'")
    parser.add_argument("--dtype", default=str(device.compute_dtype("auto", device.pick("cpu"))).removeprefix("torch."),
                        choices=("float32", "bfloat16"), help="of both's arithmetic; default: the faster here")
    parser.add_argument("--python", default=str(own) if own.exists() else sys.executable)
    parser.add_argument("--seconds", type=float, default=20.0, help="a contender's turn in each round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="a few steps of each")
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.rounds = 1.0, 3
    options.deadline = time.monotonic() + 1e9
    return options


def main() -> None:
    """Run every kind of work; table on the way, one JSON line at the end."""
    options = arguments()
    peers = versions(options.python)
    place = model_folder(options.model)
    tokenizer = open_tokenizer(place)
    made = make(read(StdlibSettings()).split("train"), "functions", limit=2000)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_model(folder / "model", open_model(place), tokenizer)
        rows = rows_of(made.items, tokenizer, 512)
        for work in options.works.split(","):
            figures[work] = contest(work, folder, rows, options)
            print(f"\n{work}: {json.dumps(WORKS[work])}")
            for name, f in figures[work].items():
                print(f"  {name:<12}{f['steps_per_second']:>9.3f} steps/s {f['memory_bytes'] / 2**30:>6.2f} GiB"
                      f"  ours ÷ it {f['ratio']:.2f}", flush=True)
    ratios = {work: f[PEER]["ratio"] for work, f in figures.items()}
    machine = device.known(device.pick("cpu"))
    print(json.dumps({
        "name": "adapt", "figures": figures, "ratios": ratios, "targets": dict.fromkeys(ratios, TARGET),
        "ok": all(r >= TARGET for r in ratios.values()),
        "memory": {w: f[OURS]["memory_bytes"] / f[PEER]["memory_bytes"] for w, f in figures.items()},
        "machine": {f: getattr(machine, f) for f in ("device", "cpu", "cores", "gemm_fp32_flops", "gemm_bf16_flops")},
        "versions": {"peers": peers, **records.environment()["versions"]}}))


if __name__ == "__main__":
    main()
