"""Speed of two real models: all-MiniLM-L6-v2 giving vectors beside sentence-transformers and ONNX Runtime, and
SmolLM2-135M-Instruct writing, reading and being loaded beside transformers, alternated as in ``train.py``.

Everybody gets the same texts, in batches of 32, and tokenizes them; prompts are random tokens, others at every step.
What a form costs in quality is ``quality/real_models.py``'s to say of vectors, ``quality/precisions.py``'s of what is
written. Needs `cutaway pull` of both, CUTAWAY_DATA and the peers' environment.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from train import Contender, Entry, race

from cutaway import device, records
from cutaway.models.folder import load_model, load_tokenizer, save_model
from cutaway.models.store import located

HERE = Path(__file__).resolve().parent
ROWS, WORDS, LONGEST = 512, 20, 120
PLAIN: dict[str, Any] = {"num_layers": 0, "hidden_size": 0, "num_heads": 0, "vocab_size": 49_152, "dtype": "float32"}


@dataclass(frozen=True)
class Contest:
    """One race: what everybody's case has, units of a step, and who takes part: name -> (script, its own)."""

    case: dict[str, Any]
    unit: str
    each: int
    entries: dict[str, tuple[str, dict[str, Any]]]


@dataclass(frozen=True)
class Claim:
    """A ratio that is wanted: the best of ours ÷ the best of those peers, paired by round; of seconds and bytes, the
    peer's ÷ ours."""

    contest: str
    ours: tuple[str, ...]
    peers: tuple[str, ...]
    wanted: float


def _ours(*precisions: str) -> dict[str, tuple[str, dict[str, Any]]]:
    return {f"cutaway {p}": ("reads_ours.py", {"dtype": p}) for p in precisions}


ENCODERS = {
    **_ours("float32", "bfloat16", "int8", "int4"),
    "sentence-transformers": ("reads_hf.py", {}),
    "sentence-transformers bf16": ("reads_hf.py", {"dtype": "bfloat16"}),
    "sentence-transformers bf16 compiled": ("reads_hf.py", {"dtype": "bfloat16", "compiled": True}),
    "sentence-transformers compiled": ("reads_hf.py", {"compiled": True}),
    "onnxruntime": ("reads_hf.py", {"attention": "onnx"}),
    "onnxruntime int8": ("reads_hf.py", {"attention": "onnx", "dtype": "int8"}),
}
DECODERS = {**_ours("float32", "bfloat16", "int8", "int4"), "transformers": ("reads_hf.py", {}),
            "transformers bf16": ("reads_hf.py", {"dtype": "bfloat16"})}
FAST = ("cutaway bfloat16", "cutaway int8")
ANY = (*FAST, "cutaway int4")
SLOW = tuple(n for n in ENCODERS if n.startswith("sentence-transformers"))
THEIRS = tuple(n for n in ENCODERS if not n.startswith("cutaway"))
CONTESTS = {
    "20 words": Contest({"work": "sentences", "batch": 32}, "sentences", 32, ENCODERS),
    "mixed lengths": Contest({"work": "sentences mixed", "batch": 32}, "sentences", 32, ENCODERS),
    "write 1": Contest({"work": "write", "batch": 1, "context": 128, "inner": 128}, "tokens", 128, DECODERS),
    "write 32": Contest({"work": "write", "batch": 32, "context": 128, "inner": 128}, "tokens", 32 * 128, DECODERS),
    "read 512": Contest({"work": "read", "batch": 1, "context": 512, "inner": 1}, "tokens", 512, DECODERS),
    "load": Contest({"work": "load", "batch": 1}, "loads", 1,
                    {"cutaway float32": ("reads_ours.py", {}), "transformers": ("reads_hf.py", {})}),
}
PEERS = ("transformers", "transformers bf16")
CLAIMS = {
    "20 words, the default": Claim("20 words", FAST, SLOW[:1], 4.0),
    "20 words, bf16 and compiled": Claim("20 words", FAST, SLOW[1:], 1.3),
    "20 words, int8": Claim("20 words", FAST[1:], ("onnxruntime int8",), 1.0),
    "20 words, any form": Claim("20 words", ANY, THEIRS, 1.3),
    "mixed lengths, the default": Claim("mixed lengths", FAST, SLOW[:1], 4.0),
    "mixed lengths, bf16 and compiled": Claim("mixed lengths", FAST, SLOW[1:], 1.3),
    "mixed lengths, int8": Claim("mixed lengths", FAST[1:], ("onnxruntime int8",), 1.0),
    "mixed lengths, any form": Claim("mixed lengths", ANY, THEIRS, 1.3),
    "write 1": Claim("write 1", FAST, PEERS, 3.0),
    "write 32": Claim("write 32", FAST, PEERS, 2.0),
    "read 512": Claim("read 512", FAST, PEERS, 1.0),
    "load": Claim("load", ("cutaway float32",), ("transformers",), 1.0),
}


def material(root: Path, folder: Path) -> Path:
    """The file that every case names: both models, 512 pieces of 20 words and 512 of 3 to 120."""
    encoder, decoder = located("all-minilm-l6-v2"), located("smollm2-135m-instruct")
    if encoder is None or decoder is None:
        raise SystemExit("fetch the models first: cutaway pull all-minilm-l6-v2; cutaway pull smollm2-135m-instruct")
    with gzip.open(root / "wiki_leads" / "en_train.jsonl.gz", "rt", encoding="utf-8") as lines:
        words = [word for line in lines for word in json.loads(line)["text"].split()]
    draw, starts = random.Random(0), range(0, len(words) - LONGEST, LONGEST)
    picked = draw.sample(starts, ROWS)
    mixed = [" ".join(words[at : at + round(3 * (LONGEST / 3) ** draw.random())]) for at in picked]
    save_model(folder / "decoder", load_model(decoder), load_tokenizer(decoder))  # a folder that both can read
    path = folder / "asked.json"
    path.write_text(json.dumps({"encoder": str(encoder), "decoder": str(folder / "decoder"), "sentences mixed": mixed,
                                "sentences": [" ".join(words[at : at + WORDS]) for at in picked]}))
    return path


def figure(racer: Contender, each: int) -> dict[str, float]:
    """Median units a second with the quartiles of the rounds, and memory."""
    rates = [r * each for r in racer.rates]
    low, middle, high = statistics.quantiles(rates, n=4) if len(rates) > 1 else rates * 3
    return {"per_second": middle, "low": low, "high": high, "rounds": len(rates), "memory_bytes": racer.last["memory"],
            "first_seconds": racer.last["first_seconds"]}


def kept(claim: Claim, racers: dict[str, Contender]) -> tuple[float, float]:
    """The claim's ratio, paired by round, and how much less memory the leanest of ours takes than the leanest peer."""
    ours, peers = ([racers[n] for n in names if n in racers] for names in (claim.ours, claim.peers))
    best = max(ours, key=lambda r: statistics.median(r.rates))
    ratio = min(statistics.median(o / p for o, p in zip(best.rates, peer.rates, strict=True)) for peer in peers)
    lean, wide = (min(r.last["memory"] for r in some) for some in (ours, peers))
    return ratio, wide / lean


def present(python: str) -> dict[str, str]:
    """Versions of the peers' libraries."""
    probe = ("import json; from importlib.metadata import version, PackageNotFoundError as E\nv = {}\n"
             "for n in ('torch', 'transformers', 'sentence-transformers', 'onnxruntime'):\n"
             "    try: v[n] = version(n)\n    except E: pass\nprint(json.dumps(v))")
    done = subprocess.run([python, "-c", probe], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def arguments() -> argparse.Namespace:
    """The command line; a peers' environment made by ``make bench-peers`` is found by itself."""
    own = HERE.parent / ".venv-peers" / "bin" / "python"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contests", default="", help=f"of {', '.join(CONTESTS)}; default all")
    parser.add_argument("--python", default=str(own) if own.exists() else sys.executable, help="of the peers")
    parser.add_argument("--seconds", type=float, default=2.0, help="a contender's turn in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--without", default="", help="contenders whose names hold one of these words")
    parser.add_argument("--quick", action="store_true", help="three contests without what is compiled, within 90 s")
    return parser.parse_args()


def main() -> None:
    """Run every contest; tables on the way, one JSON line at the end."""
    options = arguments()
    root = Path(os.environ.get("CUTAWAY_DATA", ""))
    if not (root / "wiki_leads").is_dir():
        raise SystemExit("CUTAWAY_DATA does not name the folder with wiki_leads/")
    versions = present(options.python)
    left_out = [w for w in options.without.split(",") if w] + (["compiled", "float32"] if options.quick else [])
    left_out += [n for n in ("sentence-transformers", "onnxruntime") if n not in versions]
    wanted = [n.strip() for n in options.contests.split(",") if n.strip()] or list(CONTESTS)
    if options.quick:
        wanted, options.rounds, options.seconds = ["20 words", "write 1", "load"], 3, 1.0
    if unknown := [n for n in wanted if n not in CONTESTS]:
        raise SystemExit(f"no contest is called {unknown[0]!r}; there are: {', '.join(CONTESTS)}")
    figures: dict[str, Any] = {}
    ratios: dict[str, float] = {}
    memory: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="cutaway-inference-") as name:
        asked = str(material(root, Path(name)))
        for title in wanted:
            contest = CONTESTS[title]
            entries: dict[str, Entry] = {
                n: (sys.executable if script == "reads_ours.py" else options.python, script, own)
                for n, (script, own) in contest.entries.items()
                if (n == "cutaway float32" and title == "load") or not any(w in n for w in left_out)}
            case = {"context": 0, "inner": 0, **PLAIN, **contest.case, "network": asked, "device": "cpu",
                    "threads": device.cores()}
            print(f"{title}:", file=sys.stderr)
            raced = race(entries, case, options.seconds, options.rounds, time.monotonic() + 1e9)
            figures[title] = {r.name: figure(r, contest.each) for r in raced}
            print(f"\n{title}: {contest.unit} a second")
            for racer, f in sorted(figures[title].items(), key=lambda item: -item[1]["per_second"]):
                print(f"  {racer:<37}{f['per_second']:>9,.1f}  {f['low']:>8,.1f}–{f['high']:<8,.1f}"
                      f"{f['memory_bytes'] / 2**30:>6.2f} GiB   the first took {f['first_seconds']:.2f} s", flush=True)
            for words, claim in CLAIMS.items():
                if claim.contest == title and {r.name for r in raced} & set(claim.peers):
                    ratios[words], memory[words] = kept(claim, {r.name: r for r in raced})
    print()
    for words, ratio in ratios.items():
        print(f"{words}: {ratio:.2f}x the best peer (wanted {CLAIMS[words].wanted}x), "
              f"its memory {memory[words]:.2f}x ours")
    print(json.dumps({"name": "inference", "figures": figures, "ratios": ratios, "memory": memory,
                      "targets": {w: CLAIMS[w].wanted for w in ratios},
                      "ok": all(r >= CLAIMS[w].wanted for w, r in ratios.items()) and min(memory.values()) >= 1,
                      "left_out": left_out, "torch": torch.__version__,
                      "machine": {f: getattr(device.known(device.pick("cpu")), f)
                                  for f in ("device", "cpu", "cores", "gemm_fp32_flops", "gemm_bf16_flops")},
                      "versions": {"peers": versions, **records.environment()["versions"]}}))


if __name__ == "__main__":
    main()
