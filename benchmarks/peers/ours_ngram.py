"""Our n-gram model in the race of benchmarks/ngram.py: one process a round, ids in, a saved folder and scores out."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

from safetensors.numpy import load_file, save_file

from cutaway.models.kneser_ney import fit
from cutaway.models.ngram import NGramConfig
from cutaway.models.ngram_folder import load_ngram, save_ngram
from cutaway.records import Stopwatch


def main() -> None:
    """Fit, save, load, score; one JSON line of seconds, bytes and tokens."""
    case = json.loads(sys.argv[1])
    folder = Path(case["folder"])
    ids = load_file(folder / "ids.safetensors")
    held = {k: ids.pop(f"held_{k}") for k in ("tokens", "starts")}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    config = NGramConfig(
        vocab_size=case["vocab_size"], order=case["order"], bos_id=case["bos_id"], prune=tuple(case["prune"])
    )
    with Stopwatch() as fitting:
        model = fit(ids["tokens"], ids["starts"], config)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with Stopwatch() as saving:
        save_ngram(folder / "ours", model)
    with Stopwatch() as loading:
        model = load_ngram(folder / "ours")
    with Stopwatch() as scoring:
        logs = model.score(held["tokens"], held["starts"])
    seconds = [scoring.seconds]
    for _ in range(case["repeats"] - 1):
        with Stopwatch() as scoring:
            model.score(held["tokens"], held["starts"])
        seconds.append(scoring.seconds)
    save_file({"logs": logs}, folder / "ours.safetensors")
    print(
        json.dumps(
            {
                "fit": fitting.seconds,
                "save": saving.seconds,
                "load": loading.seconds,
                "score": min(seconds),
                "peak_bytes": peak,
                "before_bytes": before,
                "ngrams": [len(t.words) for t in model.tables],
                "disk_bytes": sum(p.stat().st_size for p in (folder / "ours").iterdir()),
            }
        )
    )


if __name__ == "__main__":
    main()
