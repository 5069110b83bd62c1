"""Two real models read here and by their own libraries: SmolLM2-135M-Instruct from GGUF beside transformers, and
all-MiniLM-L6-v2 beside sentence-transformers.

The same ids go into both language models: logits, 64 greedy tokens on 20 prompts, and perplexity on
pretrain_default/valid. The same sentences go into both encoders: Spearman's correlation on STS 2012 to 2014 with
published figures beside it (Reimers, sbert.net's table of pretrained models; 2012 here lacks MSRvid). Needs
`cutaway pull` of both, CUTAWAY_DATA, and the peers' environment. Costs about ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from scipy.stats import spearmanr

from cutaway import device, records
from cutaway.batch import Batch
from cutaway.generate.engine import Engine
from cutaway.generate.request import Request, Sampling
from cutaway.models.folder import load_model, load_tokenizer
from cutaway.models.light import Precision
from cutaway.models.model import Model
from cutaway.models.open import open_embedder
from cutaway.models.store import located
from cutaway.text.chat import Message, render

HERE = Path(__file__).resolve().parents[1]
QUESTIONS = (
    "What is the capital of France?", "Write a haiku about the sea.", "What is 17 + 25?", "Name three primary colours.",
    "Explain gravity to a child.", "Who wrote Hamlet?", "Translate 'good morning' into Spanish.",
    "What is photosynthesis?", "Give me a recipe for pancakes.", "What is the largest planet?",
    "Write a function that reverses a list in Python.",
    "Why is the sky blue?", "List the seasons.", "What does HTTP stand for?", "Tell me a joke.", "What is a noun?",
    "How many legs has a spider?", "Summarise the story of Cinderella.", "What is the boiling point of water?",
    "Say hello in five languages.")
LIGHTER: tuple[Precision, ...] = ("bfloat16", "int8", "int4")  # wanted of the first two: within 0.1 of float32
PEERS = ("sentence-transformers", "onnxruntime int8")
FORMS = (*LIGHTER, PEERS[1])
RESAMPLES = 300  # of the pairs of sentences, for an interval
PUBLISHED = {2012: 72.37, 2013: 80.60, 2014: 75.59}


def asked(python: str, request: dict[str, Any]) -> dict[str, Any]:
    """What a peer says, in a process of its own environment."""
    done = subprocess.run([python, str(HERE / "peers" / "hf_reads.py")], input=json.dumps(request), text=True,
                          capture_output=True, check=False)
    if done.returncode:
        raise SystemExit(f"the peer failed: {done.stderr.strip().splitlines()[-1:]}; run `make bench-peers`")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


@torch.no_grad()
def perplexity(model: Model, rows: list[list[int]]) -> float:
    """Over all tokens of the rows but each one's first."""
    nll = 0.0
    for row in rows:
        logs = torch.log_softmax(model(Batch(torch.tensor([row])))[0, :-1].double(), -1)
        nll -= float(logs.gather(1, torch.tensor(row[1:])[:, None]).sum())
    return math.exp(nll / sum(len(row) - 1 for row in rows))


def language(python: str, root: Path, documents: int, context: int) -> dict[str, float]:
    """The largest difference of logits, prompts whose greedy ids are equal, and both perplexities."""
    place = located("smollm2-135m-instruct")
    if place is None:
        raise SystemExit("cutaway pull smollm2-135m-instruct")
    model, tokenizer = load_model(place).eval(), load_tokenizer(place)
    prompts = [render([Message("user", q)], tokenizer, add_generation_prompt=True).ids for q in QUESTIONS]
    with gzip.open(root / "pretrain_default" / "valid.jsonl.gz", "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line, _ in zip(lines, range(documents), strict=False)]
    rows = [tokenizer.encode(text)[:context] for text in texts]
    rows = [row for row in rows if len(row) > 1]
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        theirs = asked(python, {"what": "language", "file": str(place), "prompts": prompts, "rows": rows, "tokens": 64,
                                "logits": f"{folder}/logits.safetensors"})
        found = load_file(f"{folder}/logits.safetensors")
        wanted = [found[str(i)] for i in range(len(prompts))]
        apart = max(float((model(Batch(torch.tensor([p])))[0] - w).abs().max())
                    for p, w in zip(prompts, wanted, strict=True))
        asks = [Request(tuple(p), 64, Sampling(temperature=0)) for p in prompts]
        same = sum(list(r.tokens) == w for r, w in zip(Engine(model).generate(asks), theirs["greedy"], strict=True))
    count = sum(len(row) - 1 for row in rows)
    return {"logits_apart": apart, "greedy_equal": same, "prompts": len(prompts), "tokens": count,
            "perplexity": perplexity(model, rows), "their_perplexity": math.exp(sum(theirs["nll"]) / count)}


def vectors(python: str, root: Path) -> dict[str, dict[str, Any]]:
    """Spearman's correlation of all on every year of STS that is there, and what each form adds to ours in float32."""
    place = located("all-minilm-l6-v2")
    if place is None:
        raise SystemExit("cutaway pull all-minilm-l6-v2")
    embedder, out = open_embedder(place, too_long="cut"), {}
    lighter = {p: open_embedder(place, too_long="cut", precision=p) for p in LIGHTER}
    for path in sorted((root / "sts").glob("sts*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            rows = [row for row in map(json.loads, lines) if row.get("split", "test") == "test"]
        texts = sorted({row[side] for row in rows for side in ("s1", "s2")})
        at = {text: i for i, text in enumerate(texts)}
        given = {"ours": embedder.vectors(texts), **{p: e.vectors(texts) for p, e in lighter.items()}}
        for peer in PEERS:
            with tempfile.TemporaryDirectory() as folder:
                asked(python, {"what": "vectors", "by": peer, "folder": str(place), "texts": texts,
                               "vectors": f"{folder}/v.safetensors"})
                given[peer] = load_file(f"{folder}/v.safetensors")["vectors"].double().numpy()
        # what differs by rounding alone is alike: equal texts have a cosine of 1 here and of 1 ± 6e-8 in float32
        alike = {name: np.array([round(float(v[at[r["s1"]]] @ v[at[r["s2"]]]), 6) for r in rows])
                 for name, v in given.items()}
        wanted = np.array([r["score"] for r in rows])
        found: dict[str, Any] = {name: correlation(of, wanted) for name, of in alike.items()}
        found["adds"] = {form: adds(alike[form], alike["ours"], wanted) for form in FORMS}
        found["int4 adds to ONNX"] = adds(alike["int4"], alike[PEERS[1]], wanted)
        out[path.name.removeprefix("sts")[:4]] = found | {
            "n": len(rows), "apart": float(np.abs(given["ours"] - given[PEERS[0]]).max())}
    return out


def correlation(alike: NDArray[np.float64], wanted: NDArray[np.float64]) -> float:
    """Spearman's, in hundredths."""
    return 100 * float(spearmanr(alike, wanted).statistic)


def adds(form: NDArray[np.float64], other: NDArray[np.float64], wanted: NDArray[np.float64]) -> tuple[float, float]:
    """The 95 % interval of what a form adds to another, of the pairs drawn again and again (the same for both)."""
    rng = np.random.default_rng(0)
    draws = (rng.integers(0, len(wanted), len(wanted)) for _ in range(RESAMPLES))
    low, high = np.quantile([correlation(form[d], wanted[d]) - correlation(other[d], wanted[d]) for d in draws],
                            (0.025, 0.975))
    return float(low), float(high)


def main() -> None:
    """Both tables, and one JSON line."""
    own = HERE.parent / ".venv-peers" / "bin" / "python"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=str(own) if own.exists() else sys.executable)
    parser.add_argument("--documents", type=int, default=40, help="of valid, for perplexity")
    parser.add_argument("--context", type=int, default=512, help="tokens of each that are read")
    parser.add_argument("--only", choices=("language", "vectors"))
    options = parser.parse_args()
    root = Path(os.environ.get("CUTAWAY_DATA", ""))
    if not (root / "sts").is_dir():
        raise SystemExit("CUTAWAY_DATA does not name the folder with sts/ and pretrain_default/")
    device.set_threads()
    figures: dict[str, Any] = {}
    ok = True
    if options.only != "vectors":
        found = figures["language"] = language(options.python, root, options.documents, options.context)
        near = abs(found["perplexity"] / found["their_perplexity"] - 1)
        ok &= found["logits_apart"] <= 1e-4 and found["greedy_equal"] == found["prompts"] and near < 1e-5
        print(f"SmolLM2-135M-Instruct, GGUF: logits at most {found['logits_apart']:.1e} apart; "
              f"{found['greedy_equal']:.0f} of {found['prompts']:.0f} prompts give the same 64 tokens; "
              f"perplexity {found['perplexity']:.6f}, "
              f"transformers {found['their_perplexity']:.6f} ({found['tokens']:,.0f} tokens)", flush=True)
    if options.only != "language":
        figures["vectors"] = vectors(options.python, root)
        print(f"{'all-MiniLM-L6-v2':<18}{'ours':>9}{'theirs':>9}{'published':>11}{'n':>7}{'vectors apart':>15}   "
              "adds to ours: a form's, with the 95 % interval")
        for year, row in figures["vectors"].items():
            ok &= round(row["ours"], 4) == round(row[PEERS[0]], 4)
            ok &= all(abs(row[p] - row["ours"]) <= 0.1 for p in LIGHTER[:2])
            published = PUBLISHED.get(int(year), math.nan)
            print(f"{'STS ' + year:<18}{row['ours']:>9.4f}{row[PEERS[0]]:>9.4f}{published:>11.2f}{row['n']:>7}"
                  f"{row['apart']:>15.1e}   " + "; ".join(
                      f"{form} {row[form] - row['ours']:+.2f} [{low:+.2f}, {high:+.2f}]"
                      for form, (low, high) in row["adds"].items())
                  + "; int4 beside ONNX Runtime's int8 [{:+.2f}, {:+.2f}]".format(*row["int4 adds to ONNX"]))
    print(json.dumps({"name": "quality/real_models", "figures": figures, "ok": bool(ok),
                      "machine": asdict(device.known(device.pick("cpu"))),
                      "versions": records.environment()["versions"]}))


if __name__ == "__main__":
    main()
