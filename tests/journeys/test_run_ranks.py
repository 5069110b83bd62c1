"""``torchrun --nproc-per-node 2 -m cutaway run``: two ranks end where one does, and one goes on where two stopped."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from run_corpus import Trap, tiny, write_corpus
from safetensors.numpy import load_file

from cutaway.records import read_journal
from cutaway.run.pipeline import start
from cutaway.run.recipe import load


def test_two_ranks_equal_one(tmp_path: Path) -> None:
    # Muon orthogonalises in bfloat16, where a last bit of the summed gradient becomes 1e-5 of the loss
    words = tiny(write_corpus(tmp_path / "corpus"), "pretrain.optimizer.kind=adamw", "finetune.optimizer.kind=adamw",
                 "pretrain.optimizer.learning_rate=0.003")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "cutaway",
               "run", "debug", *words, "parallel.kind=fsdp2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("next:") == 1  # the first rank alone speaks
    start(load("debug", [*words, "name=one"]), tmp_path / "runs", Trap())
    one, two = (_before_sampling(tmp_path / "runs" / name) for name in ("one", "debug"))
    assert [(r["stage"], r["step"], r["tokens"]) for r in two] == [(r["stage"], r["step"], r["tokens"]) for r in one]
    np.testing.assert_allclose([r["loss"] for r in two], [r["loss"] for r in one], rtol=1e-5)
    for model in ("base", "finetuned"):
        files = [tmp_path / "runs" / run / "models" / model / "model.safetensors" for run in ("one", "debug")]
        alone, shared = (load_file(file) for file in files)
        for name in alone:
            np.testing.assert_allclose(shared[name], alone[name], atol=1e-4, err_msg=f"{model} {name}")


def _before_sampling(run: Path) -> list[dict[str, Any]]:
    """The log's rows up to where a last bit may change which token is drawn."""
    return [r for r in read_journal(run / "log.jsonl") if r["stage"] in ("pretrain", "finetune")]
