"""Copy memory at T = 500, the task that shows a convolution's reach (TCN: Bai et al. 2018, arXiv 1803.01271, 5.2).

Ten symbols of eight, T blanks, eleven delimiters; then the ten symbols have to be said in order, and nothing before.
The loss is the mean cross-entropy of all T + 20 places, as in the paper; saying blanks and then guessing costs
10 ln 8 / (T + 20). The paper's networks have about 10,000 parameters (9 x 10 channels of kernel 6, or 8 x 10 of kernel
8), Adam at 2e-3 and gradients clipped to 0.3 to 1; its TCN goes below 1e-3 and its recurrent networks of the same size
stay at the guess. Here the plain (ungated) convolution has to (at another T: below a fortieth of the guess, which is
the same there), and Muon (Jordan 2024) trains the matrices of all models; the gated one and what recurrent networks
there are run beside it. Every step draws new sequences and the figure is over sequences never learned from. Seconds are
the processor's, so that a busy machine changes nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from cutaway import device, records
from cutaway.batch import Batch
from cutaway.models.architectures import CONFIGS
from cutaway.models.model import Model, build
from cutaway.objectives.likelihood import Likelihood
from cutaway.settings import decode
from cutaway.train.loop import steps
from cutaway.train.optimizer import OptimizerSettings, build_optimizer
from cutaway.train.schedule import Schedule

SYMBOLS, REMEMBERED, ROWS, HELD = 8, 10, 32, 256
GUESSES = 40  # 1e-3 is a fortieth of guessing at T = 500
BLANK, DELIMITER = 0, SYMBOLS + 1
CNN = {"kind": "convolution", "hidden_size": 14, "num_layers": 7, "kernel_sizes": [8], "tie_embeddings": False,
       "dilations": [1, 2, 4, 8, 16, 32, 64]}  # a receptive field of 890
RNN = {"kind": "recurrent", "num_layers": 1, "tie_embeddings": False}
# With the paper's Adam at 2e-3 the convolution stood at 3.6e-3 after 2,100 steps; with Muon it is there after 500.
OPTIMIZER = OptimizerSettings(kind="muon", learning_rate=2e-3, matrix_learning_rate=2e-2, weight_decay=0.0,
                              betas=(0.9, 0.999), eps=1e-8)
MODELS: dict[str, dict[str, Any]] = {
    "convolution": CNN | {"gated": False},
    "convolution, gated": CNN | {"gated": True, "hidden_size": 10},
    "vanilla": RNN | {"cell": "vanilla", "hidden_size": 90},
    "gru": RNN | {"cell": "gru", "hidden_size": 52},
    "lstm": RNN | {"cell": "lstm", "hidden_size": 45},
}


def sequences(blanks: int, rows: int, seed: list[int]) -> Batch:
    """``rows`` of the task, ``T + 20`` places each."""
    draw = torch.Generator().manual_seed(hash(tuple(seed)) % 2**63)
    said = torch.randint(1, SYMBOLS + 1, (rows, REMEMBERED), generator=draw)
    tokens = torch.full((rows, blanks + 2 * REMEMBERED), BLANK)
    targets = tokens.clone()
    tokens[:, :REMEMBERED], tokens[:, -REMEMBERED - 1 :] = said, DELIMITER
    targets[:, -REMEMBERED:] = said
    return Batch(tokens, targets)


def held_loss(model: Model, blanks: int) -> tuple[float, float]:
    """Mean cross-entropy a place over sequences never learned from, and the share of remembered symbols said right."""
    objective, total, weight, right = Likelihood(), 0.0, 0.0, 0
    model.eval()
    with torch.inference_mode():
        for at in range(0, HELD, ROWS):
            batch = sequences(blanks, ROWS, [1, at])
            loss = objective(model, batch)
            total, weight = total + float(loss.total), weight + loss.weight
            assert batch.targets is not None
            said = model(batch)[:, -REMEMBERED:].argmax(-1)
            right += int((said == batch.targets[:, -REMEMBERED:]).sum())
    return total / weight, right / (HELD * REMEMBERED)


def guessing(blanks: int) -> float:
    """Loss of saying blanks, and then any symbol."""
    return REMEMBERED * math.log(SYMBOLS) / (blanks + 2 * REMEMBERED)


def learn(settings: dict[str, Any], blanks: int, seed: int, *, seconds: float,
          say: Callable[[str], None]) -> dict[str, float]:
    """One model until its held-out loss is half of what is wanted, or its ``seconds`` of the processor are over."""
    config = decode(CONFIGS[settings["kind"]], {**settings, "vocab_size": SYMBOLS + 2,
                                                "context_length": blanks + 2 * REMEMBERED}, where="")
    model = build(config, seed=seed)
    optimizer = build_optimizer(model, OPTIMIZER)
    began, done = time.process_time(), 0
    batches = steps(model, lambda n: [sequences(blanks, ROWS, [0, seed, n])], Likelihood(), optimizer,
                    schedule=Schedule(kind="constant", warmup=0.0), total=1 << 30, clip=1.0)
    for step in batches:
        done = step.number
        over = time.process_time() - began > seconds
        if done % 100 == 0 or over:
            loss, _ = held_loss(model, blanks)
            say(f"step {done}: {loss:.2e} held out, {step.loss:.2e} learned")
            if loss < guessing(blanks) / GUESSES / 2 or over:
                break
    loss, right = held_loss(model, blanks)
    return {"loss": loss, "right": right, "symbols": HELD * REMEMBERED, "steps": done,
            "seconds": time.process_time() - began, "parameters": sum(p.numel() for p in model.parameters())}


def main() -> None:
    """Every model that there is and every seed, a table, one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blanks", type=int, help="T; 500, or 50 with --quick")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--models", default=";".join(MODELS), help="names from the table, between semicolons")
    parser.add_argument("--seconds", type=float, default=240.0, help="of the processor, a model and seed")
    parser.add_argument("--quick", action="store_true", help="T = 50, the first seed, ten seconds each")
    options = parser.parse_args()
    blanks = options.blanks or (50 if options.quick else 500)
    seeds = [int(s) for s in options.seeds.split(",")][: 1 if options.quick else None]
    seconds = 10.0 if options.quick else options.seconds
    device.set_threads()
    guess = guessing(blanks)
    target = guess / GUESSES
    figures: dict[str, dict[str, float]] = {}
    print(f"T = {blanks}; guessing: {guess:.2e}; wanted of the convolution: below {target:.1e}")
    print(f"{'':<28}{'loss':>10}{'of guess':>10}{'right':>8}{'steps':>7}{'seconds':>9}{'parameters':>12}")
    for name in options.models.split(";"):
        if MODELS[name]["kind"] not in CONFIGS:
            print(f"{name:<28}{'not there':>10}")
            continue
        for seed in seeds:
            key = f"{name}, seed {seed}"
            row = learn(MODELS[name], blanks, seed, seconds=seconds,
                        say=lambda line, key=key: print(f"  {key}, {line}", file=sys.stderr, flush=True))
            figures[key] = row
            print(f"{key:<28}{row['loss']:>10.2e}{row['loss'] / guess:>10.2f}{row['right']:>8.1%}{row['steps']:>7}"
                  f"{row['seconds']:>9.0f}{row['parameters']:>12,}", flush=True)
    ratios = {k: row["loss"] / target for k, row in figures.items() if k.startswith("convolution, seed")}
    print(json.dumps({"name": "quality/copy_memory", "figures": {"guessing": {"loss": guess}, **figures},
                      "ratios": ratios, "targets": dict.fromkeys(ratios, 1.0), "better": "lower",
                      "ok": all(r < 1 for r in ratios.values()),
                      "machine": asdict(device.known(device.pick("cpu"))),
                      "versions": records.environment()["versions"]}))


if __name__ == "__main__":
    main()
