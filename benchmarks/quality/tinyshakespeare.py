"""Quality at nanoGPT's CPU configuration: characters of tinyshakespeare, 4 layers, width 128, context 64, 2,000 steps.

nanoGPT's README gives 1.88 nats per character of validation text for this size and budget; ours must be below it.
Validation is the last tenth of the text, all of it, in windows of 64 characters that each start without context, which
is what nanoGPT's random crops average over. Needs CUTAWAY_DATA with tinyshakespeare/input.txt.gz in it.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cutaway import device, records
from cutaway.batch import Batch
from cutaway.models.model import Model, build
from cutaway.models.transformer import TransformerConfig
from cutaway.objectives.likelihood import Likelihood
from cutaway.text.tokenizer import CharSettings, train
from cutaway.train.loop import steps
from cutaway.train.optimizer import OptimizerSettings, build_optimizer
from cutaway.train.schedule import Schedule

THEIRS = 1.88
CONTEXT, ROWS, STEPS = 64, 12, 2000


def windows(tokens: NDArray[np.int64], starts: NDArray[np.int64]) -> Batch:
    """Rows of CONTEXT tokens and what follows each."""
    rows = torch.from_numpy(tokens[starts[:, None] + np.arange(CONTEXT + 1)])
    return Batch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())


def validation(model: Model, tokens: NDArray[np.int64]) -> float:
    """Nats per character over every window of the validation text."""
    starts = np.arange(0, len(tokens) - CONTEXT - 1, CONTEXT)
    objective, total, weight = Likelihood(), 0.0, 0.0
    model.eval()
    with torch.inference_mode():
        for at in range(0, len(starts), 256):
            loss = objective(model, windows(tokens, starts[at : at + 256]))
            total, weight = total + float(loss.total), weight + loss.weight
    return total / weight


def learn(tokens: NDArray[np.int64], vocab_size: int, seed: int, dtype: torch.dtype) -> Model:
    """One model from its seed; every step draws ROWS random windows."""
    config = TransformerConfig(
        vocab_size=vocab_size,
        hidden_size=128,
        num_layers=4,
        num_heads=4,
        num_kv_heads=4,
        intermediate_size=344,
        context_length=CONTEXT,
    )
    model = build(config, seed=seed, compute_dtype=dtype)
    optimizer = build_optimizer(
        model, OptimizerSettings(kind="muon", learning_rate=0.02, matrix_learning_rate=0.02)
    )

    def batches(step: int) -> list[Batch]:
        draw = np.random.default_rng([seed, step])
        return [windows(tokens, draw.integers(0, len(tokens) - CONTEXT - 1, ROWS))]

    for step in steps(model, batches, Likelihood(), optimizer, schedule=Schedule(), total=STEPS):
        if step.number % 250 == 0:
            print(f"  seed {seed}, step {step.number}: {step.loss:.3f}", file=sys.stderr, flush=True)
    return model


def main() -> None:
    """Three seeds (one with --quick), a table, one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--quick", action="store_true", help="the first seed alone")
    options = parser.parse_args()
    path = Path(os.environ.get("CUTAWAY_DATA", "")) / "tinyshakespeare" / "input.txt.gz"
    if not path.is_file():
        raise SystemExit(
            f"{path} is not there: set CUTAWAY_DATA to the folder that holds tinyshakespeare/input.txt.gz"
        )
    text = gzip.decompress(path.read_bytes()).decode()
    cut = int(0.9 * len(text))
    tokenizer = train(CharSettings(), [text[:cut]])
    learned, held = (np.array(tokenizer.encode(part), np.int64) for part in (text[:cut], text[cut:]))
    assert len(learned) + len(held) == len(text), "a character is one token"
    machine = device.known(device.pick("cpu"))
    dtype = device.compute_dtype("auto", device.pick("cpu"), machine)
    device.set_threads()
    figures = {}
    for seed in [int(s) for s in options.seeds.split(",")][: 1 if options.quick else None]:
        began = time.perf_counter()
        model = learn(learned, tokenizer.vocab_size, seed, dtype)
        seconds = time.perf_counter() - began
        figures[f"seed {seed}"] = {
            "nats_per_character": validation(model, held),
            "seconds": seconds,
            "parameters": sum(p.numel() for p in model.parameters()),
        }
    print(f"{'':<10}{'nats per character':>20}{'nanoGPT':>10}{'seconds':>10}")
    for name, row in figures.items():
        print(f"{name:<10}{row['nats_per_character']:>20.4f}{THEIRS:>10.2f}{row['seconds']:>10.0f}")
    ratios = {name: row["nats_per_character"] / THEIRS for name, row in figures.items()}
    print(
        json.dumps(
            {
                "name": "quality/tinyshakespeare",
                "figures": figures,
                "ratios": ratios,
                "targets": dict.fromkeys(ratios, 1.0),
                "better": "lower",
                "ok": all(r < 1 for r in ratios.values()),
                "machine": asdict(machine),
                "versions": records.environment()["versions"],
            }
        )
    )


if __name__ == "__main__":
    main()
