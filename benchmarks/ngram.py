"""N-gram models beside KenLM's (lmplz to fit, its Python module to score): the same probabilities, and at what speed.

How the comparison is made equal. lmplz reads lines of words, puts <s> before and </s> behind each and adds <unk>; ours
reads ids between bos and eos. lmplz spreads what single words give up evenly over its vocabulary without <s>, and
``--vocab_pad`` says how large that is: V - 1 for a vocabulary of V ids in which bos is the one that is never predicted.
With words, V counts the different words of the training text, bos, eos and one id that stands for every other word,
which is lmplz's own count, so nothing is padded; with a learned BPE, V is the tokenizer's, ids are written as numbers,
and ids that the training text does not hold share the fate of <unk>. Everything else is lmplz's default and so ours
(interpolated unigrams, its discounts where too few n-grams are seen). A document is a line. Equal means: every token's
log-probability, eos included, and the perplexity of all.

What is timed. Ours: ids in memory to a model, and to a folder on the disk; lmplz: text on the disk to an ARPA file on
the disk, which is what it offers. Ours runs on one thread, lmplz on those it starts. Scoring: all held-out tokens, in
memory, best of three; KenLM's ``score`` from its binary format (probing), a call a line. Contenders take turns.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from cutaway import device, records
from cutaway.data.shards import frame
from cutaway.text.tokenizer import SubwordSettings, train

HERE = Path(__file__).resolve().parent
Ints = NDArray[np.int64]
CASES = (  # corpus, units, order, pruning
    ("tinyshakespeare", "words", 3, (0,)),
    ("tinyshakespeare", "words", 3, (0, 0, 1)),
    ("tinyshakespeare", "words", 5, (0,)),
    ("pretrain_default", "words", 3, (0,)),
    ("pretrain_default", "words", 5, (0, 0, 1)),
    ("pretrain_default", "bpe", 3, (0,)),
    ("pretrain_default", "bpe", 3, (0, 0, 1)),
    ("pretrain_default", "bpe", 5, (0,)),
    ("gutenberg_large", "bpe", 5, (0,)),
)
QUICK = CASES[:2]
TARGETS = {"fit": 1.0, "score": 1.0}
DIFFERENCE = 1e-3  # of the perplexity; what is found is a thousandth of a thousandth of it


@dataclass
class Text:
    """Documents as rows of words or ids: to learn from, and held out; ``vocab_size`` and control ids are ours."""

    lines: list[str]
    held_lines: list[str]
    ids: dict[str, Ints] = field(repr=False)
    vocab_size: int
    bos_id: int
    bytes: int


def read(corpus: str) -> tuple[list[str], list[str]]:
    """Training and held-out documents of a corpus in CUTAWAY_DATA."""
    data = Path(os.environ.get("CUTAWAY_DATA", ""))
    path = data / corpus / ("input.txt.gz" if corpus == "tinyshakespeare" else "train.jsonl.gz")
    if not path.is_file():
        raise SystemExit(f"{path} is not there: set CUTAWAY_DATA to the folder that holds {corpus}")
    if corpus == "tinyshakespeare":
        lines = [t for t in gzip.decompress(path.read_bytes()).decode().split("\n\n") if t.strip()]
        return lines[: int(0.9 * len(lines))], lines[int(0.9 * len(lines)) :]
    if corpus == "gutenberg_large":
        lines = [*_jsonl(path), *_jsonl(data / "pretrain_default" / "train.jsonl.gz")]
    else:
        lines = _jsonl(path)
    return lines, _jsonl(data / "pretrain_default" / "valid.jsonl.gz")


def _jsonl(path: Path) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") as rows:
        return [json.loads(row)["text"] for row in rows]


def prepare(learned: list[str], held: list[str], units: str) -> Text:
    """Both forms of the same tokens."""
    if units == "words":
        rows = [text.split() for text in learned]
        known = {word: i for i, word in enumerate(sorted({w for row in rows for w in row}))}
        other = len(known)
        bos, eos, size = other + 1, other + 2, other + 3
        parts = [([known.get(w, other) for row in some for w in row], [len(row) for row in some])
                 for some in (rows, [text.split() for text in held])]  # fmt: skip
        lines = [[" ".join(text.split()) for text in some] for some in (learned, held)]
    else:
        tokenizer = train(SubwordSettings(vocab_size=4096, sample_bytes=4_000_000), learned)
        bos, eos, size = tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size
        flats = [tokenizer.encode_flat(some) for some in (learned, held)]
        parts = [(ids.tolist(), lengths.tolist()) for ids, lengths in flats]
        lines = [[" ".join(map(str, row.tolist())) for row in np.split(ids, np.cumsum(lengths)[:-1])]
                 for ids, lengths in flats]  # fmt: skip
    ids = {}
    for name, (flat, lengths) in zip(("", "held_"), parts, strict=True):
        ids[f"{name}tokens"], ids[f"{name}starts"] = frame(
            np.array(flat, np.uint32), np.array(lengths), bos, eos
        )
    return Text(*lines, ids, size, bos, sum(len(t.encode()) for t in learned))


def fit_kenlm(tools: Path, folder: Path, text: Text, order: int, prune: tuple[int, ...]) -> dict[str, float]:
    """Seconds and peak memory of lmplz, from the text to an ARPA file."""
    command = [str(tools / "lmplz"), "-o", str(order), "-S", "4G", "-T", str(folder), "--prune", *map(str, prune),
               "--vocab_pad", str(text.vocab_size - 1), "--discount_fallback"]  # fmt: skip
    with (folder / "text").open() as source, (folder / "arpa").open("w") as out, records.Stopwatch() as watch:
        done = subprocess.run(command, stdin=source, stdout=out, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"lmplz failed: {' | '.join(done.stderr.strip().splitlines()[-3:])}")
    words = done.stderr.replace("\t", " ").split()
    peak = int(next(w for w in words if w.startswith("RSSMax:")).removeprefix("RSSMax:")) * 1024
    return {"fit": watch.seconds, "peak_bytes": peak, "disk_bytes": (folder / "arpa").stat().st_size}


def worker(python: str, script: str, case: dict[str, Any]) -> dict[str, Any]:
    """One process of a contender; the JSON line it ends with."""
    done = subprocess.run([python, str(HERE / "peers" / script), json.dumps(case)], capture_output=True, text=True,
                          check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{script} failed: {' | '.join(done.stderr.strip().splitlines()[-3:])}")
    row: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return row


def contest(folder: Path, text: Text, order: int, prune: tuple[int, ...], options: Any) -> dict[str, Any]:
    """All rounds of one case: what each contender measured, and how far apart their probabilities are."""
    for name, lines in (("text", text.lines), ("held", text.held_lines)):
        (folder / name).write_text("".join(line + "\n" for line in lines), "utf-8")
    save_file({k: np.ascontiguousarray(v) for k, v in text.ids.items()}, folder / "ids.safetensors")
    python = Path(options.python)
    rounds: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for number in range(options.rounds):
        ours = worker(sys.executable, "ours_ngram.py", {
            "folder": str(folder), "vocab_size": text.vocab_size, "bos_id": text.bos_id, "order": order,
            "prune": prune, "repeats": 3})  # fmt: skip
        theirs: dict[str, Any] = fit_kenlm(python.parent, folder, text, order, prune)
        with records.Stopwatch() as watch:
            subprocess.run([str(python.parent / "build_binary"), str(folder / "arpa"), str(folder / "binary")],
                           capture_output=True, check=True)  # fmt: skip
        theirs |= {"build_binary": watch.seconds} | worker(str(python), "kenlm_query.py", {
            "model": str(folder / "binary"), "text": str(folder / "held"), "repeats": 3,
            "out": str(folder / "kenlm.safetensors")})  # fmt: skip
        rounds.append((ours, theirs))
        print(f"  round {number + 1} of {options.rounds}: fit {ours['fit']:.2f} and {theirs['fit']:.2f} s, score "
              f"{ours['score']:.3f} and {theirs['score']:.3f} s", file=sys.stderr, flush=True)  # fmt: skip
    return figures_of(rounds, text) | parity(folder, text)


def figures_of(rounds: list[tuple[dict[str, Any], dict[str, Any]]], text: Text) -> dict[str, Any]:
    """Medians over the rounds, and ratios paired round by round."""
    tokens, held = len(text.ids["tokens"]), len(text.ids["held_tokens"]) - len(text.ids["held_starts"]) + 1
    out: dict[str, Any] = {"tokens": tokens, "held_tokens": held, "bytes": text.bytes, "vocab_size": text.vocab_size}
    for name, at in (("ours", 0), ("kenlm", 1)):
        row = {k: statistics.median(r[at][k] for r in rounds) for k, v in rounds[0][at].items() if k != "ngrams"}
        row |= {"fit_tokens_per_second": tokens / row["fit"], "score_tokens_per_second": held / row["score"]}
        out[name] = row
    out["ngrams"] = rounds[0][0]["ngrams"]
    out["ratios"] = {k: statistics.median(b[k] / a[k] for a, b in rounds) for k in ("fit", "score")}
    out["ratios"]["fit and save"] = statistics.median(b["fit"] / (a["fit"] + a["save"]) for a, b in rounds)
    return out


def parity(folder: Path, text: Text) -> dict[str, float]:
    """Perplexities, their relative difference, and the largest difference of one token's log-probability."""
    ours = load_file(folder / "ours.safetensors")["logs"]
    predicted = np.ones(len(ours), bool)
    predicted[text.ids["held_starts"][:-1]] = False
    ours, theirs = ours[predicted], load_file(folder / "kenlm.safetensors")["logs"]
    if len(ours) != len(theirs):
        raise SystemExit(f"KenLM saw {len(theirs):,} tokens, ours {len(ours):,}: a control token in the text?")
    return {"perplexity": float(np.exp(-ours.mean())), "kenlm_perplexity": float(np.exp(-theirs.mean())),
            "relative_difference": float(abs(np.expm1(theirs.mean() - ours.mean()))),
            "largest_token_difference": float(np.abs(ours - theirs).max())}  # fmt: skip


def arguments() -> argparse.Namespace:
    """The command line; a peers' environment made by ``make bench-peers`` is found by itself."""
    own = HERE.parent / ".venv-peers" / "bin" / "python"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", default="", help="numbers of the cases, from 0; default all")
    parser.add_argument("--quick", action="store_true", help="the two smallest cases, within 60 s")
    parser.add_argument(
        "--python", default=str(own), help="interpreter of the peers; lmplz is expected beside it"
    )
    return parser.parse_args()


def main() -> None:
    """A table, then one JSON line."""
    options = arguments()
    if not (Path(options.python).parent / "lmplz").exists():
        raise SystemExit(f"no lmplz beside {options.python}: run `make bench-peers`, or give --python")
    cases = [CASES[int(i)] for i in options.cases.split(",")] if options.cases else QUICK if options.quick else CASES
    figures: dict[str, Any] = {}
    print(f"{'':<40}{'tokens':>12}{'fit x':>8}{'score x':>9}{'ours fit/s':>13}{'score/s':>12}"
          f"{'perplexity':>12}{'apart':>10}{'token':>10}")  # fmt: skip
    prepared: dict[tuple[str, str], Text] = {}
    for corpus, units, order, prune in cases:
        name = f"{corpus} {units} {order}{' pruned' if any(prune) else ''}"
        key = (corpus, units)
        prepared = {key: prepared.get(key) or prepare(*read(corpus), units)}
        with tempfile.TemporaryDirectory(prefix="cutaway-ngram-") as folder:
            figures[name] = f = contest(Path(folder), prepared[key], order, prune, options)
        print(f"{name:<40}{f['tokens']:>12,}{f['ratios']['fit']:>8.2f}{f['ratios']['score']:>9.2f}"
              f"{f['ours']['fit_tokens_per_second']:>13,.0f}{f['ours']['score_tokens_per_second']:>12,.0f}"
              f"{f['perplexity']:>12.3f}{f['relative_difference']:>10.1e}{f['largest_token_difference']:>10.1e}",
              flush=True)  # fmt: skip
    ratios = {f"{name}, {k}": f["ratios"][k] for name, f in figures.items() for k in TARGETS}
    apart = max(f["relative_difference"] for f in figures.values())
    print(json.dumps({"name": "ngram", "figures": figures, "ratios": ratios,
                      "targets": {**TARGETS, "relative_difference": DIFFERENCE}, "relative_difference": apart,
                      "ok": apart <= DIFFERENCE and all(r >= 1 for r in ratios.values()),
                      "machine": asdict(device.known(device.pick("cpu"))),
                      "versions": records.environment()["versions"]}))  # fmt: skip


if __name__ == "__main__":
    main()
