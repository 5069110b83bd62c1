"""Many adapters, one base: SmolLM2-135M-Instruct answers eight requests at once, two for each of four LoRA adapters of
rank 16 beside all maps of its blocks; beside peft's mixed batches (``adapter_names``), and beside four merged models,
one after another.

What adapters add is drawn, not learned: what it is makes no step faster. Every answer has the same number of tokens,
and those of our float32 are compared with peft's. Alternated in one race, as ``train.py`` does it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from adapt import versions
from train import HERE, race

from cutaway import device, records
from cutaway.models.adapted import open_model, open_tokenizer
from cutaway.models.adapter import Lora, adapt, save_adapter
from cutaway.models.folder import save_model
from cutaway.nn.adapt import LowRank
from cutaway.run.place import model_folder

ADAPTERS, ROWS, PROMPT = 4, 8, 24
OURS, PEER = "cutaway int4", "peft, mixed"
ENTRIES = {OURS: ("ours_beside.py", "mixed int4"), "cutaway int8": ("ours_beside.py", "mixed int8"),
           "cutaway float32": ("ours_beside.py", "mixed float32"),
           "int4, no adapter": ("ours_beside.py", "none int4"), "int4, one adapter": ("ours_beside.py", "one int4"),
           "int4, merged": ("ours_beside.py", "merged int4"), PEER: ("peft_beside.py", "mixed float32")}
TARGETS = {PEER: 1.5, "int4, merged": 1.0}


def lay_out(folder: Path, model: str, tokens: int) -> Path:
    """The base, its adapters and the requests, where every contender finds them."""
    place = model_folder(model)
    base, tokenizer = open_model(place), open_tokenizer(place)
    save_model(folder / "model", base, tokenizer)
    draw = torch.Generator().manual_seed(1)
    made = adapt(base, Lora(rank=16, alpha=32))
    for number in range(ADAPTERS):
        with torch.no_grad():
            for part in made.modules():
                for up in part.up if isinstance(part, LowRank) else ():
                    up.copy_(torch.randn(up.shape, generator=draw) / 200)
        save_adapter(folder / f"adapter{number}", made)
    prompts = torch.randint(100, 40_000, (ROWS, PROMPT), generator=draw).tolist()
    plan = {"model": str(folder / "model"), "tokens": tokens,
            "adapters": {f"adapter{i}": str(folder / f"adapter{i}") for i in range(ADAPTERS)},
            "rows": [{"prompt": p, "adapter": f"adapter{i % ADAPTERS}"} for i, p in enumerate(prompts)]}
    (folder / "plan.json").write_text(json.dumps(plan), "utf-8")
    return folder / "plan.json"


def main() -> None:
    """Table, then one JSON line."""
    own = HERE.parent / ".venv-peers" / "bin" / "python"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct", help="a name that was pulled, or a folder")
    parser.add_argument("--python", default=str(own) if own.exists() else sys.executable)
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--seconds", type=float, default=6.0, help="a contender's turn in each round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="two rounds of short answers")
    options = parser.parse_args()
    if options.quick:
        options.tokens, options.seconds, options.rounds = 16, 1.0, 3
    peers = versions(options.python)
    with tempfile.TemporaryDirectory() as temporary:
        plan = lay_out(Path(temporary), options.model, options.tokens)
        case = {"num_layers": 30, "hidden_size": 576, "num_heads": 9, "context": PROMPT + options.tokens, "batch": ROWS,
                "vocab_size": 49152, "inner": 1536, "dtype": "float32", "device": "cpu", "threads": device.cores(),
                "network": str(plan)}
        entries = {name: (options.python if name == PEER else sys.executable, script, {"work": work})
                   for name, (script, work) in ENTRIES.items()}
        racers = race(entries, case, options.seconds, options.rounds, time.monotonic() + 1e9)
    ours, each = racers[0], ROWS * options.tokens
    figures: dict[str, Any] = {
        r.name: {"tokens_per_second": each * statistics.median(r.rates), "memory_bytes": r.last["memory"],
                 "ratio": statistics.median(o / t for o, t in zip(ours.rates, r.rates, strict=True))} for r in racers}
    for name, f in figures.items():
        print(f"{name:<20}{f['tokens_per_second']:>8.0f} tokens/s {f['memory_bytes'] / 2**30:>6.2f} GiB"
              f"   {OURS} ÷ it {f['ratio']:.2f}", flush=True)
    said = {r.name: r.last["answers"] for r in racers}
    equal = sum(a == b for a, b in zip(said["cutaway float32"], said[PEER], strict=True))
    print(f"{equal} of {ROWS} answers of our float32 are peft's, token for token")
    machine, ratios = device.known(device.pick("cpu")), {name: figures[name]["ratio"] for name in TARGETS}
    print(json.dumps({"name": "adapters", "figures": figures, "equal": equal, "ratios": ratios, "targets": TARGETS,
                      "ok": all(ratios[n] >= t for n, t in TARGETS.items()),
                      "machine": {f: getattr(machine, f) for f in ("device", "cpu", "cores", "gemm_fp32_flops")},
                      "versions": {"peers": peers, **records.environment()["versions"]}}))


if __name__ == "__main__":
    main()
