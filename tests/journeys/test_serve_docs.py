"""docs/serve.md is true: its commands run as printed, with tiny models under the names that it uses."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from cutaway.models.folder import save_model
from cutaway.models.heads import Vector
from cutaway.models.model import build
from cutaway.models.store import Source, place_of, write_source
from cutaway.models.transformer import TransformerConfig
from cutaway.server.limits import Limits
from cutaway.text.tokenizer import ByteSettings, train

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "serve.md").read_text("utf-8")
BLOCKS = re.findall(r"```(console|bash|sh|python)\n(.*?)```", TEXT, re.DOTALL)


def fetched(name: str, shape: str) -> None:
    """A tiny model as if it had been pulled under this name."""
    config = TransformerConfig(shape=shape, vocab_size=263, hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=2,
                               intermediate_size=24, context_length=256)
    head = Vector("mean", unit=True) if shape == "encoder" else "tokens"
    save_model(place_of(name), build(config, head=head, seed=1), train(ByteSettings(), []))
    write_source(place_of(name), Source(name, "a test", "1"))


def test_everything_that_is_printed_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUTAWAY_MODELS", str(tmp_path / "models"))
    monkeypatch.delenv("CUTAWAY_API_KEY", raising=False)
    fetched("smollm2-135m-instruct", "decoder")
    fetched("all-minilm-l6-v2", "encoder")
    (command,) = [text.split() for kind, text in BLOCKS if kind == "console"]
    assert command[0] == "cutaway"
    with subprocess.Popen([sys.executable, "-m", *command, "--port", "0", "--json"], stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL, text=True, cwd=ROOT) as server:
        assert server.stdout is not None
        address = json.loads(server.stdout.readline())["address"]
        try:
            for kind, text in BLOCKS:
                if kind != "console":
                    assert "http://127.0.0.1:8000" in text
                    _run(kind, text.replace("http://127.0.0.1:8000", address), tmp_path)
        finally:
            server.terminate()
    assert server.returncode == 0


def _run(kind: str, text: str, home: Path) -> None:
    if kind == "sh":  # another program's command line, which lies beside this Python
        places = os.pathsep.join((sysconfig.get_path("scripts"), os.environ["PATH"]))
        done = subprocess.run(["bash", "-ec", text], capture_output=True, text=True, timeout=60, check=False,
                              env={**os.environ, "HOME": str(home), "PATH": places})
        assert done.returncode == 0 and done.stdout.strip(), done.stderr
        return
    if kind == "python":
        done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True, timeout=60)
        assert "16 numbers" in done.stdout and "prompt_tokens" in done.stdout
        return
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, check=True, timeout=60)
    assert "error" not in json.loads(done.stdout), done.stdout


def test_the_table_of_limits_is_the_code() -> None:
    table = TEXT.partition("## Limits")[2].partition("## When")[0]
    named = set(re.findall(r"`([a-z_]+)`", table))
    assert set(Limits.model_fields) - {"ping_seconds"} <= named
