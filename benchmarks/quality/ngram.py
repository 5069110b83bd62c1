"""What counting alone reaches on tinyshakespeare: n-grams of characters, on the measure of quality/tinyshakespeare.py.

The last tenth is held out: nats a character in windows of 64 that each start without context, where nanoGPT's CPU
configuration gives 1.88, and read through. Needs CUTAWAY_DATA with tinyshakespeare/input.txt.gz in it.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import warnings
from pathlib import Path

import numpy as np

from cutaway import records
from cutaway.models.kneser_ney import fit
from cutaway.models.ngram import NGramConfig
from cutaway.text.tokenizer import CharSettings, train

THEIRS, CONTEXT = 1.88, 64
WANTED = 1.60  # of the best order


def main() -> None:
    """A table over orders, then one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="orders up to 7")
    options = parser.parse_args()
    path = Path(os.environ.get("CUTAWAY_DATA", "")) / "tinyshakespeare" / "input.txt.gz"
    if not path.is_file():
        raise SystemExit(f"{path} is not there: set CUTAWAY_DATA to the folder that holds it")
    text = gzip.decompress(path.read_bytes()).decode()
    cut = int(0.9 * len(text))
    tokenizer = train(CharSettings(), [text[:cut]])
    learned = np.array([tokenizer.bos_id, *tokenizer.encode(text[:cut])])
    held = np.array(tokenizer.encode(text[cut:]))
    rows = held[np.arange(0, len(held) - CONTEXT - 1, CONTEXT)[:, None] + np.arange(CONTEXT + 1)]
    warnings.filterwarnings("ignore", message="the discounts of")
    figures = {}
    print(f"{'order':<8}{'in windows':>12}{'read through':>14}{'n-grams':>12}{'seconds':>9}")
    for order in range(1, 8 if options.quick else 11):
        config = NGramConfig(vocab_size=tokenizer.vocab_size, order=order, bos_id=tokenizer.bos_id)
        with records.Stopwatch() as watch:
            model = fit(learned, np.array([0, len(learned)]), config)
        logs = model.score(rows.ravel(), np.arange(len(rows) + 1) * (CONTEXT + 1))
        figures[f"order {order}"] = row = {
            "nats_per_character": float(-logs.sum() / (CONTEXT * len(rows))),
            "read_through": float(-model.score(held, np.array([0, len(held)]))[1:].mean()),
            "ngrams": sum(len(t.words) for t in model.tables),
            "seconds": watch.seconds,
        }
        print(
            f"{order:<8}{row['nats_per_character']:>12.4f}{row['read_through']:>14.4f}{row['ngrams']:>12,}"
            f"{row['seconds']:>9.2f}",
            flush=True,
        )
    best = min(row["nats_per_character"] for row in figures.values())
    print(
        json.dumps(
            {
                "name": "quality/ngram",
                "figures": figures,
                "ratios": {"best order": best / THEIRS},
                "targets": {"best order": WANTED / THEIRS},
                "better": "lower",
                "ok": best < WANTED,
                "machine": {"cpu_count": os.cpu_count()},
                "versions": records.environment()["versions"],
            }
        )
    )


if __name__ == "__main__":
    main()
