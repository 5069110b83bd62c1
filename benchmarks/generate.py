"""Answers beside a source: greedy and beam search, beside transformers' ``generate`` on the same T5 folder.

Weights are random, so no answer ends early and both sides do the same work; contenders take turns, ratios are paired.
Seconds are of processor time: one thread, which a neighbour on the machine may interrupt but not slow twofold.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from cutaway import device, records
from cutaway.generate.beam import Beam, search
from cutaway.generate.engine import Engine
from cutaway.generate.request import Request, Sampling
from cutaway.models.folder import save_model
from cutaway.models.model import build
from cutaway.models.transformer import TransformerConfig
from cutaway.text.tokenizer import ByteSettings, train

CONFIG = TransformerConfig(shape="encoder-decoder", vocab_size=8192, hidden_size=256, num_layers=5, num_heads=4,
                           num_kv_heads=4, intermediate_size=640, context_length=256)
ROWS, BOS, PAD = 32, 1, 0
TARGETS = {"greedy": 1.0, "beam 4": 1.0}
Answers = list[list[int]]


def contenders(folder: Path, longest: int) -> dict[str, tuple[Callable[[], Answers], Callable[[], Answers]]]:
    """Ours and theirs for each way to write ``longest`` tokens to 32 sources of 20 to 64 tokens."""
    import transformers

    model = build(CONFIG, seed=3).eval()
    save_model(folder, model, train(ByteSettings(), []))
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    draw = torch.Generator().manual_seed(0)
    sizes = torch.randint(20, 65, (ROWS,), generator=draw).tolist()
    sources = [tuple(torch.randint(0, 8000, (n,), generator=draw).tolist()) for n in sizes]
    ids = torch.full((ROWS, max(sizes)), PAD)
    real = torch.zeros_like(ids)
    for i, source in enumerate(sources):
        ids[i, : len(source)], real[i, : len(source)] = torch.tensor(source), 1
    requests = [Request((BOS,), longest, Sampling(temperature=0), source=s) for s in sources]

    def generate(width: int) -> Answers:
        out = theirs.generate(ids, attention_mask=real, num_beams=width, do_sample=False, eos_token_id=None,
                              max_new_tokens=longest, decoder_start_token_id=BOS, pad_token_id=PAD)
        return [row[1:] for row in out.tolist()]

    return {
        "greedy": (lambda: [list(c.tokens) for c in Engine(model).generate(requests)], lambda: generate(1)),
        "beam 4": (lambda: [list(f[0].tokens) for f in search(model, requests, Beam(width=4))], lambda: generate(4)),
    }


def main() -> None:
    """Table, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="2 rounds of short answers, within 60 s")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rounds, longest = (2, 24) if options.quick else (options.rounds, 64)
    figures: dict[str, Any] = {}
    ratios: dict[str, float] = {}
    print(f"{ROWS} sources, {longest} tokens each, one thread\n{'':<10}{'tokens/s':>10}{'transformers':>14}"
          f"{'ratio':>8}{'equal':>10}")
    with tempfile.TemporaryDirectory(prefix="cutaway-generate-") as name:
        for case, pair in contenders(Path(name) / "model", longest).items():
            seconds: list[list[float]] = [[], []]
            for _ in range(rounds + 1):
                answers = []
                for side, run in enumerate(pair):
                    before = time.process_time()
                    answers.append(run())
                    seconds[side].append(time.process_time() - before)
            seconds = [s[1:] for s in seconds]  # the first warms up
            equal = sum(a == b for a, b in zip(*answers, strict=True))
            ours, theirs = (ROWS * longest / statistics.median(s) for s in seconds)
            ratios[case] = statistics.median(t / o for o, t in zip(*seconds, strict=True))
            figures[case] = {"tokens_per_second": ours, "transformers": theirs, "equal_answers": equal}
            print(f"{case:<10}{ours:>10.0f}{theirs:>14.0f}{ratios[case]:>8.2f}{equal:>7}/{ROWS}")
    print(json.dumps({"name": "generate", "figures": figures, "ratios": ratios, "targets": TARGETS,
                      "ok": all(ratios[c] >= t for c, t in TARGETS.items()),
                      "machine": asdict(device.known(device.pick("cpu"))),
                      "versions": records.environment()["versions"]}))


if __name__ == "__main__":
    main()
