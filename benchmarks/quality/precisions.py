"""What a form of the weights costs in quality: SmolLM2-135M-Instruct in every precision we serve and in every GGUF
block that others do, beside float32, on the same held-out text.

Perplexity as a ratio to float32's (documents resampled, 95 %), how often the likeliest next token is float32's
(Wilson, 95 %), and the mean Kullback–Leibler divergence from float32 in nats. What is in a GGUF file is read back and
computed in float32; the file itself is Q4_1, so that our int4, which keeps such numbers, loses at the head and the
inputs alone, while Q4_0 rounds twice. llama.cpp rounds activations to 8 bits besides, as our int8 and int4 do, which is
in their figures. Needs `cutaway pull smollm2-135m-instruct` and CUTAWAY_DATA. Costs about ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from cutaway import device, records
from cutaway.batch import Batch
from cutaway.models.folder import load_model, load_tokenizer
from cutaway.models.gguf_write import write_gguf
from cutaway.models.model import LanguageModel
from cutaway.models.open import open_language_model
from cutaway.models.store import located

MODEL = "smollm2-135m-instruct"
OURS, BLOCKS = ("bfloat16", "int8", "int4"), ("bf16", "q8_0", "q4_0")  # the file itself is Q4_1: float32's numbers


@dataclass
class Sums:
    """Of each document: negative log-likelihood, tokens, agreements and divergence."""

    nll: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    agreed: list[int] = field(default_factory=list)
    divergence: list[float] = field(default_factory=list)

    def add(self, logs: torch.Tensor, wanted: torch.Tensor, row: list[int]) -> None:
        """One document's log-probabilities, float32's, and its ids."""
        self.nll.append(-float(logs.gather(1, torch.tensor(row[1:])[:, None]).sum()))
        self.tokens.append(len(row) - 1)
        self.agreed.append(int((logs.argmax(-1) == wanted.argmax(-1)).sum()))
        self.divergence.append(float((wanted.exp() * (wanted - logs)).sum()))

    def figures(self, plain: Sums) -> dict[str, float]:
        """Beside float32's sums."""
        n = sum(self.tokens)
        more = [a - b for a, b in zip(self.nll, plain.nll, strict=True)]
        low, high = (math.exp(x) for x in records.bootstrap(more, self.tokens))
        worst, best = records.wilson(sum(self.agreed), n)
        return {"perplexity": math.exp(sum(self.nll) / n), "ratio": math.exp(sum(more) / n), "ratio_low": low,
                "ratio_high": high, "agrees": sum(self.agreed) / n, "agrees_low": worst, "agrees_high": best,
                "divergence": sum(self.divergence) / n, "n": n, "documents": len(self.tokens)}


@torch.inference_mode()
def log_probabilities(model: LanguageModel, row: list[int]) -> torch.Tensor:
    """``(T - 1, V)``, of each next token."""
    return torch.log_softmax(model(Batch(torch.tensor([row])))[0, :-1].float(), -1)


def main() -> None:
    """A table, and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=100, help="of valid")
    parser.add_argument("--context", type=int, default=256, help="tokens of each that are read")
    options = parser.parse_args()
    root, place = Path(os.environ.get("CUTAWAY_DATA", "")), located(MODEL)
    if place is None or not (root / "pretrain_default").is_dir():
        raise SystemExit(f"needs `cutaway pull {MODEL}`, and CUTAWAY_DATA to name the folder with pretrain_default/")
    device.set_threads()
    tokenizer = load_tokenizer(place)
    with gzip.open(root / "pretrain_default" / "valid.jsonl.gz", "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line, _ in zip(lines, range(options.documents), strict=False)]
    rows = [row for text in texts if len(row := tokenizer.encode(text)[: options.context]) > 1]
    plain = load_model(place).eval()
    models: dict[str, LanguageModel] = {"float32": plain}
    with tempfile.TemporaryDirectory(prefix="cutaway-precisions-") as folder:
        for kind in BLOCKS:
            write_gguf(f"{folder}/{kind}.gguf", plain, tokenizer, kind=kind)
        models |= {p: open_language_model(place, precision=p) for p in OURS}  # type: ignore[arg-type]
        models |= {f"GGUF {k}": open_language_model(Path(folder) / f"{k}.gguf") for k in BLOCKS}
    sums = {name: Sums() for name in models}
    for row in rows:
        wanted = log_probabilities(plain, row)
        for name, model in models.items():
            sums[name].add(wanted if model is plain else log_probabilities(model, row), wanted, row)
    figures = {name: found.figures(sums["float32"]) for name, found in sums.items()}
    print(f"{'':<12}{'perplexity':>11}{'÷ float32':>11}{'':<18}{'same likeliest':>15}{'':<16}{'KL, nats':>9}")
    for name, f in figures.items():
        print(f"{name:<12}{f['perplexity']:>11.3f}{f['ratio']:>11.4f} [{f['ratio_low']:.4f}, {f['ratio_high']:.4f}]"
              f"{f['agrees']:>14.2%} [{f['agrees_low']:.2%}, {f['agrees_high']:.2%}]{f['divergence']:>9.4f}")
    print(f"n: {figures['float32']['n']:,.0f} tokens of {figures['float32']['documents']:.0f} documents")
    print(json.dumps({"name": "quality/precisions", "figures": figures, "ok": bool(np.isfinite(
        [f["perplexity"] for f in figures.values()]).all()), "machine": asdict(device.known(device.pick("cpu"))),
        "versions": records.environment()["versions"]}))


if __name__ == "__main__":
    main()
