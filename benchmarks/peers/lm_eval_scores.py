"""lm-evaluation-harness answering the tasks of ``quality/evaluation.py``: a JSON line in, a JSON line out, until the
input ends. Its model is loaded once; only its own requests (encoding included) are timed, not its reading of data."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import lm_eval
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

METHODS = ("loglikelihood", "loglikelihood_rolling", "generate_until")


def timed(model: HFLM, spent: list[float]) -> None:
    """Add the processor seconds of each of the model's three methods to ``spent``."""
    def clocked(own: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            try:
                return own(*args, **kwargs)
            finally:
                spent.append(time.process_time() - start)

        return run

    for name in METHODS:
        setattr(model, name, clocked(getattr(model, name)))


def sample(row: dict[str, Any]) -> dict[str, Any]:
    """An item's requests, in order, and what came of them."""
    arguments = [list(given) for given in row["arguments"]]
    return {"doc": row["doc_id"], "arguments": [[a for a in given if isinstance(a, str)] for given in arguments],
            "responses": [answers[0] for answers in row["resps"]], "filter": row.get("filter", "none")}


def main() -> None:
    """Serve until the input ends."""
    asked = json.loads(sys.stdin.readline())
    torch.set_num_threads(asked["threads"])
    logging.disable(logging.WARNING)
    with redirect_stdout(sys.stderr):
        model = HFLM(pretrained=asked["folder"], device="cpu", dtype="float32", batch_size=asked["batch_size"],
                     max_length=asked["max_length"])
    tasks, spent = None, list[float]()
    timed(model, spent)
    print(json.dumps({"lm_eval": lm_eval.__version__, "own_tasks": str(Path(lm_eval.__file__).parent / "tasks")}),
          flush=True)
    for line in sys.stdin:
        wanted = json.loads(line)
        tasks = tasks or TaskManager(include_path=asked["tasks"], include_defaults=False)
        spent.clear()
        with redirect_stdout(sys.stderr):
            found = lm_eval.simple_evaluate(model=model, tasks=[wanted["task"]], task_manager=tasks,
                                            limit=wanted["limit"], log_samples=True, bootstrap_iters=0)
        assert found is not None
        print(json.dumps({"results": found["results"][wanted["task"]], "seconds": sum(spent),
                          "samples": [sample(row) for row in found["samples"][wanted["task"]]]}), flush=True)


if __name__ == "__main__":
    main()
