"""KenLM's Python module in the race of benchmarks/ngram.py: sentences in, log-probabilities out."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import kenlm
import numpy as np
from safetensors.numpy import save_file


def main() -> None:
    """Load, score each line; one JSON line of seconds. ``score`` gives a sentence's sum, ``full_scores`` each token."""
    case = json.loads(sys.argv[1])
    lines = Path(case["text"]).read_text("utf-8").split("\n")[:-1]
    began = time.perf_counter()
    model = kenlm.Model(case["model"])
    loaded = time.perf_counter() - began
    seconds = []
    for _ in range(case["repeats"]):
        began = time.perf_counter()
        for line in lines:
            model.score(line)
        seconds.append(time.perf_counter() - began)
    logs = np.array([p for line in lines for p, _, _ in model.full_scores(line)])
    save_file({"logs": logs * np.log(10)}, case["out"])
    print(json.dumps({"load": loaded, "score": min(seconds)}))


if __name__ == "__main__":
    main()
