"""Speed of serving: SmolLM2-135M-Instruct answering 1, 8 and 32 requests at once, reading a long prompt, and answering
by repeating its prompt, beside llama.cpp, OpenVINO GenAI, CTranslate2 and transformers on the same weights; and an
encoder-decoder of T5's shape (random numbers) beside CTranslate2 and transformers. Alternated as in ``train.py``.
"ordinary" is what proposals cost where nothing repeats.

Prompts are random ids, new ones at every step, 128 of them, and 128 tokens follow, greedy. A step answers prompts with
one token and others with all: "read" is the first, "write" what the second takes longer for the tokens behind the
first. All tokens of an encoder-decoder's answer are counted over its whole time. Everybody has the numbers of the file
that ``cutaway pull`` fetches (Q4_1), in a form of his own; what a form costs in quality is ``quality/precisions.py``'s
to say. Needs ``cutaway pull smollm2-135m-instruct`` and the peers'
environment (``make bench-engines``), and CUTAWAY_DATA.
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
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kernels
import torch
from train import Contender, Entry, race

from cutaway import device, records
from cutaway.models.folder import load_model, load_tokenizer, save_model
from cutaway.models.gguf_write import write_gguf
from cutaway.models.light import Precision
from cutaway.models.model import build
from cutaway.models.store import located
from cutaway.models.transformer import TransformerConfig
from cutaway.nn.linear import packs
from cutaway.text.chat import Message, render
from cutaway.text.tokenizer import train
from cutaway.text.vocabulary import SubwordSettings

HERE = Path(__file__).resolve().parent
MODEL, PARAMETERS, HEAD = "smollm2-135m-instruct", 134_515_008, 49_152 * 576
PLAIN: dict[str, Any] = {"num_layers": 0, "hidden_size": 0, "num_heads": 0, "vocab_size": 49_152}
BITS = {"q4_0": 4.5, "q4_1": 5.0, "q8_0": 8.5, "bf16": 16.0}  # a weight in GGUF, scales included
TASKS = ("Repeat this text with every number written in words:\n\n{}", "Correct the spelling of this text:\n\n{}",
         "Summarise this text in its own words:\n\n{}")
QUESTIONS = ("Why is the sky blue?", "Write a poem about winter.", "How do I bake bread?", "What is a database index?",
             "Tell me a story about a fox.", "Explain gravity to a child.", "Who was Ada Lovelace?",
             "Give me three tips for an interview.")
OTHERS = {"llama.cpp": "llama_cpp_python", "OpenVINO": "openvino_genai", "CTranslate2": "ctranslate2",
          "transformers": "transformers"}


@dataclass(frozen=True)
class Contest:
    """One race: how many requests at once, tokens of a prompt and of an answer, and which of our forms take part."""

    batch: int
    context: int
    inner: int
    figure: str  # "read" or "write": which of the two is compared; "whole": all tokens over all the time
    work: str = "write"


@dataclass(frozen=True)
class Claim:
    """A ratio that is wanted: the best of ours ÷ the best peer whose name begins so, paired by round."""

    contest: str
    peers: str
    wanted: float


OURS: dict[str, tuple[str, dict[str, Any]]] = {
    f"cutaway {p}": ("serve_ours.py", {"dtype": p}) for p in ("int4", "int8", "bfloat16", "float32")}
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"llama.cpp {kind}": ("serve_llama.py", {"dtype": kind}) for kind in BITS},
    **{f"OpenVINO {kind}": ("serve_openvino.py", {"dtype": kind}) for kind in ("q8_0", "q4_0")},
    **{f"CTranslate2 {p}": ("serve_ct2.py", {"dtype": p}) for p in ("int8", "float32")},
    "transformers bfloat16": ("serve_hf.py", {"dtype": "bfloat16"}),
    "transformers float32": ("serve_hf.py", {"dtype": "float32"})}
LOOKUP: dict[str, tuple[str, dict[str, Any]]] = {
    name + more: ("serve_ours.py", {"dtype": p, "attention": how})
    for p in ("int4", "int8", "float32") for name in (f"cutaway {p}",)
    for more, how in (("", ""), (" lookup", "lookup"))}
TRANSLATORS: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"cutaway {p}": ("serve_ours.py", {"dtype": p}) for p in ("int8", "float32")},
    **{f"CTranslate2 {p}": ("serve_ct2.py", {"dtype": p}) for p in ("int8", "float32")},
    "transformers float32": ("serve_hf.py", {"dtype": "float32"})}
ENTRIES = {"write": OURS | PEERS, "repeat": LOOKUP, "ordinary": LOOKUP, "translate": TRANSLATORS}
CONTESTS = {
    "1 request": Contest(1, 128, 128, "write"), "8 requests": Contest(8, 128, 128, "write"),
    "32 requests": Contest(32, 128, 128, "write"), "prompt of 512": Contest(1, 512, 1, "read"),
    "repeating": Contest(1, 0, 160, "whole", work="repeat"), "ordinary": Contest(1, 0, 160, "whole", work="ordinary"),
    "translate 1": Contest(1, 48, 48, "whole", work="translate"),
    "translate 16": Contest(16, 48, 48, "whole", work="translate")}
CLAIMS = {
    "1 request": Claim("1 request", "", 1.3), "8 requests": Claim("8 requests", "", 1.3),
    "32 requests": Claim("32 requests", "", 1.3), "prompt of 512": Claim("prompt of 512", "", 1.0),
    "prompt of 512, llama.cpp": Claim("prompt of 512", "llama.cpp", 2.0),
    "translate 1": Claim("translate 1", "CTranslate2", 1.0), "translate 16": Claim("translate 16", "CTranslate2", 1.0),
    "translate 1, int8": Claim("translate 1", "CTranslate2 int8", 1.0),
    "translate 16, int8": Claim("translate 16", "CTranslate2 int8", 1.0)}
T5 = TransformerConfig(shape="encoder-decoder", vocab_size=8192, hidden_size=512, num_layers=6, num_heads=8,
                       num_kv_heads=8, intermediate_size=1024, context_length=512)
LOOKED_UP = {"repeat": 1.5, "ordinary": 1.0}  # wanted of proposing from the prompt, beside our own plain writing


def material(root: Path, folder: Path, python: str, there: dict[str, bool]) -> Path:
    """The file that every case names: the weights in each form, and prompts whose answers repeat them."""
    source = located(MODEL)
    if source is None:
        raise SystemExit(f"fetch the model first: cutaway pull {MODEL}")
    model, tokenizer = load_model(source), load_tokenizer(source)
    save_model(folder / "model", model, tokenizer)
    files = {"q4_1": str(source)}
    for kind in ("q4_0", "q8_0", "bf16"):
        files[kind] = str(folder / f"{kind}.gguf")
        write_gguf(files[kind], model, tokenizer, kind=kind)
    words = " ".join(text for lead in leads(root)[:2000] for text in lead.split())
    save_model(folder / "t5", build(T5, seed=1), train(SubwordSettings(vocab_size=T5.vocab_size), [words]))
    converted = {model: {kind: str(folder / f"ct2-{model}-{kind}") for kind in ("int8", "float32")}
                 for model in ("model", "t5")} if there["CTranslate2"] else {}
    make = ("import sys; from ctranslate2.converters import TransformersConverter as C\n"
            "C(sys.argv[1]).convert(sys.argv[2], quantization=sys.argv[3])")
    for model_name, kinds in converted.items():
        for kind, place in kinds.items():
            subprocess.run([python, "-c", make, str(folder / model_name), place, kind], check=True)
            config = Path(place, "config.json")
            said = json.loads(config.read_text())  # it writes null for a token that a tokenizer has not, and reads none
            config.write_text(json.dumps({k: said["eos_token"] if v is None and k.endswith("_token") else v
                                          for k, v in said.items()}))
    path = folder / "asked.json"
    path.write_text(json.dumps({"folder": str(folder / "model"), "cutaway": str(source), "gguf": files,
                                "openvino": files, "t5": str(folder / "t5"), "ctranslate2": converted,
                                "repeat": repeating(root, tokenizer), "ordinary": asking(QUESTIONS, tokenizer),
                                "stop_ids": [tokenizer.end_id, tokenizer.eos_id]}))
    return path


def leads(root: Path) -> list[str]:
    """The first paragraphs of articles."""
    with gzip.open(root / "wiki_leads" / "en_train.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line, _ in zip(lines, range(20_000), strict=False)]


def repeating(root: Path, tokenizer: Any) -> list[list[int]]:
    """Prompts that ask for their own text again, of 12 leads of 60 to 140 words."""
    picked = [text for text in leads(root) if 60 <= len(text.split()) <= 140][:12]
    return asking([task.format(text) for text in picked for task in TASKS], tokenizer)


def asking(texts: Iterable[str], tokenizer: Any) -> list[list[int]]:
    """Each as the ids of a conversation that begins with it."""
    return [list(render([Message("user", text)], tokenizer, add_generation_prompt=True).ids) for text in texts]


def rates(racer: Contender, contest: Contest) -> list[float]:
    """Tokens a second of each round, of what the contest compares."""
    if contest.figure == "read":
        return [t["steps"] * contest.batch * contest.context / t["read_seconds"] for t in racer.turns]
    if contest.figure == "whole":
        return [t["written"] / t["whole_seconds"] for t in racer.turns]
    behind = contest.batch * (contest.inner - 1)
    return [t["steps"] * behind / (t["whole_seconds"] - t["read_seconds"]) for t in racer.turns]


def figure(racer: Contender, contest: Contest) -> dict[str, float]:
    """Median tokens a second with the quartiles of the rounds, of the whole answer too, and memory."""
    found = rates(racer, contest)
    low, middle, high = statistics.quantiles(found, n=4) if len(found) > 1 else found * 3
    whole = statistics.median(t["written"] / (t["whole_seconds"] or t["read_seconds"]) for t in racer.turns)
    return {"per_second": middle, "low": low, "high": high, "whole_per_second": whole, "rounds": len(found),
            "memory_bytes": racer.last["memory"], "load_seconds": racer.last["load_seconds"]}


def kept(claim: Claim, racers: dict[str, Contender], contest: Contest) -> tuple[float, str, str]:
    """The claim's ratio, paired by round, and between whom."""
    found = {name: rates(r, contest) for name, r in racers.items()}
    ours = max((n for n in found if n.startswith("cutaway")), key=lambda n: statistics.median(found[n]))  # there is one
    peers = [n for n in found if not n.startswith("cutaway") and n.startswith(claim.peers)]
    ratio, peer = min((statistics.median(o / p for o, p in zip(found[ours], found[n], strict=True)), n) for n in peers)
    return ratio, ours, peer


def present(python: str) -> dict[str, str]:
    """Versions of the peers' libraries."""
    probe = ("import json; from importlib.metadata import version, PackageNotFoundError as E\nv = {}\n"
             "for n in ('torch', 'transformers', 'llama_cpp_python', 'openvino_genai', 'ctranslate2'):\n"
             "    try: v[n] = version(n)\n    except E: pass\nprint(json.dumps(v))")
    done = subprocess.run([python, "-c", probe], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def shares(name: str, contest: Contest, per_second: float, bounds: dict[str, float]) -> str:
    """What the rate is in bytes of weights (one request) or in operations (a prompt), as shares of what this machine's
    memory and its fastest products were measured to do."""
    layers = PARAMETERS - HEAD
    if contest.figure == "read":
        done = 2 * layers * per_second / 1e9
        return f"{done:.0f} GOP/s, {done / bounds['gops']:.0%}"
    if contest.batch > 1 or contest.work != "write":
        return ""
    form = name.rpartition(" ")[2]
    bits = {"int4": 5.0, "int8": 8.0, "bfloat16": 16.0, "float32": 32.0, **BITS}.get(form, 8.0)
    read = (layers * bits + HEAD * (8.0 if form == "int4" else bits)) / 8 * per_second / 1e9
    return f"{read:.1f} GB/s, {read / bounds['gbytes']:.0%}"


def bounded() -> dict[str, float]:
    """The most that our products of any form reach on this machine: GB/s at one row, GOP/s at many."""
    with torch.inference_mode():
        kinds: tuple[Precision, ...] = ("int4", "int8", "float32")
        found = kernels.measured([kernels.ours(k) for k in kinds if packs(torch.zeros(1, 2), k) is not None], 2)
    rows = [{**row, "count": count, "bytes": kernels.BYTES[name]}
            for name, by_rows in found.items() for count, row in by_rows.items()]
    return {"gbytes": max(kernels.WEIGHTS * r["bytes"] / r["products"] / 1e6 for r in rows if r["count"] == 1),
            "gops": max(2 * kernels.WEIGHTS * r["count"] / r["products"] / 1e6 for r in rows)}


def arguments() -> argparse.Namespace:
    """The command line; an environment made by ``make bench-engines`` is found by itself."""
    own = HERE.parent / ".venv-engines" / "bin" / "python"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contests", default="", help=f"of {', '.join(CONTESTS)}; default all")
    parser.add_argument("--python", default=str(own) if own.exists() else sys.executable, help="of the peers")
    parser.add_argument("--seconds", type=float, default=2.0, help="a contender's turn in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--without", default="", help="contenders whose names hold one of these words")
    parser.add_argument("--quick", action="store_true", help="one request and repeating, without float32, few rounds")
    return parser.parse_args()


def main() -> None:
    """Run every contest; tables on the way, one JSON line at the end."""
    options = arguments()
    root, versions = Path(os.environ.get("CUTAWAY_DATA", "")), present(options.python)
    if not (root / "wiki_leads").is_dir():
        raise SystemExit("CUTAWAY_DATA does not name the folder with wiki_leads/")
    there = {name: package in versions for name, package in OTHERS.items()}
    left_out = [w for w in options.without.split(",") if w] + [n for n, here in there.items() if not here]
    wanted = [n.strip() for n in options.contests.split(",") if n.strip()] or list(CONTESTS)
    if options.quick:
        wanted, options.rounds, options.seconds = ["1 request", "repeating"], 3, 1.0
        left_out += ["float32"]
    if unknown := [n for n in wanted if n not in CONTESTS]:
        raise SystemExit(f"no contest is called {unknown[0]!r}; there are: {', '.join(CONTESTS)}")
    figures: dict[str, Any] = {}
    ratios: dict[str, float] = {}
    bounds = bounded()
    print("products alone reach " + ", ".join(f"{v:.0f} {k.upper()}/s" for k, v in bounds.items()), file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="cutaway-serve-") as name:
        asked = material(root, Path(name), options.python, there)
        for title in wanted:
            contest = CONTESTS[title]
            racers = contested(contest, title, str(asked), left_out, options)
            figures[title] = {r.name: figure(r, contest) for r in racers.values()}
            print(f"\n{title}: tokens a second, {contest.figure}")
            for racer, f in sorted(figures[title].items(), key=lambda item: -item[1]["per_second"]):
                print(f"  {racer:<24}{f['per_second']:>9,.1f}  {f['low']:>8,.1f}–{f['high']:<8,.1f} whole"
                      f"{f['whole_per_second']:>8,.1f}{f['memory_bytes'] / 2**30:>6.2f} GiB  "
                      f"{shares(racer, contest, f['per_second'], bounds)}", flush=True)
            judge(title, contest, racers, ratios)
    targets = {n: CLAIMS[n].wanted if n in CLAIMS else LOOKED_UP[CONTESTS[n.partition(",")[0]].work] for n in ratios}
    print(json.dumps({"name": "serve", "figures": figures, "ratios": ratios, "targets": targets,
                      "ok": bool(ratios) and not left_out and all(r >= targets[n] for n, r in ratios.items()),
                      "left_out": left_out,
                      "machine": {"cpu": device.describe(device.pick("cpu")).cpu, "cores": device.cores(), **bounds},
                      "versions": {"peers": versions, **records.environment()["versions"]}}))


def contested(contest: Contest, title: str, asked: str, left_out: list[str],
              options: argparse.Namespace) -> dict[str, Contender]:
    """The race of one contest."""
    entries: dict[str, Entry] = {
        n: (sys.executable if script == "serve_ours.py" else options.python, script, own)
        for n, (script, own) in ENTRIES[contest.work].items()
        if not any(w in n for w in left_out)}
    vocabulary = {"vocab_size": T5.vocab_size} if contest.work == "translate" else {}
    case = {**PLAIN, **vocabulary, "context": contest.context, "inner": contest.inner, "batch": contest.batch,
            "work": contest.work, "network": asked, "device": "cpu", "threads": device.cores()}
    print(f"{title}:", file=sys.stderr)
    return {r.name: r for r in race(entries, case, options.seconds, options.rounds, time.monotonic() + 1e9)}


def judge(title: str, contest: Contest, racers: dict[str, Contender], ratios: dict[str, float]) -> None:
    """Say and keep what the contest's claims came to."""
    if contest.work in LOOKED_UP:
        wanted = LOOKED_UP[contest.work]
        for name in [n for n in racers if n + " lookup" in racers]:
            pairs = zip(rates(racers[name + " lookup"], contest), rates(racers[name], contest), strict=True)
            ratios[f"{title}, {name}"] = statistics.median(a / b for a, b in pairs)
            print(f"{title}, {name}: {ratios[f'{title}, {name}']:.2f}x without proposals (wanted {wanted}x)")
        return
    for words, claim in CLAIMS.items():
        ours = [n for n in racers if n.startswith("cutaway")]
        peers = [n for n in racers if n not in ours and n.startswith(claim.peers)]
        if claim.contest == title and ours and peers:
            ratios[words], best, peer = kept(claim, racers, contest)
            print(f"{words}: {best} is {ratios[words]:.2f}x {peer} (wanted {claim.wanted}x)")


if __name__ == "__main__":
    main()
