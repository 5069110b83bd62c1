"""A run folder made up for the report's tests: every file a finished run leaves, in small."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from cutaway.records import Measurement, wilson

CODE = {
    "random": "»\ttel‑ Ġself)_fr\x00om import 0x %s ]]]]ñ return\n\n\nhttps lambda<script>alert(1)</script>",
    "base": 'def parse(self, line):\n    """Return the line.\n\n    If the line is\n    not found, the\n    line is',
    "finetuned": "def split_header(line):\n    name, value = line.split(':')\n    return name.strip(",
    "aligned": "def split_header(line):\n    name, _, value = line.partition(':')\n"
    "    return name.strip(), value.strip()",
}
CHECKS = ("parses", "one_function", "ends", "words")
MET = {"random": 0, "base": 31, "finetuned": 84, "aligned": 171}
BITS = {"random": 4.212, "base": 1.583, "finetuned": 1.597, "aligned": 1.641}


def measure(name: str, value: float, unit: str, n: int, half: float) -> dict[str, Any]:
    """A Measurement's JSON with a symmetric interval."""
    return Measurement(name, value, unit, n, value - half, value + half).to_dict()


def share(name: str, met: int, n: int = 250) -> dict[str, Any]:
    """A share's JSON with Wilson's interval."""
    return Measurement(name, met / n, "share", n, *wilson(met, n)).to_dict()


def make_run(folder: Path, *, steps: int = 400) -> Path:
    """Write the folder and return it."""
    (folder / "evals").mkdir(parents=True)
    (folder / "data").mkdir()
    draw = random.Random(0)
    (folder / "recipe.toml").write_text(
        'name = "quickstart"\nseed = 0\ndtype = "bfloat16"\n[data]\nkind = "python-stdlib"\ntests = false\n'
        '[judge]\nkind = "program"\n[align]\nkind = "grpo"\n',
        "utf-8",
    )
    write(folder / "lineage.json", lineage())
    write(
        folder / "data" / "text.json",
        {
            "kind": "functions",
            "train_left_out": {"duplicate": 214, "too long": 1893},
            "test_left_out": {"duplicate": 3},
        },
    )
    lines(folder / "stages.jsonl", events())
    lines(folder / "log.jsonl", log(draw, steps))
    for i, model in enumerate(MET):
        write(folder / "evals" / f"{model}.json", evaluation(model, i))
    write(
        folder / "evals" / "compression.json",
        {
            k: Measurement(k, v, "bits per byte", 41).to_dict()
            for k, v in (("gzip -9", 2.051), ("xz -9", 1.612), ("xz -9e", 1.611))
        },
    )
    write(
        folder / "evals" / "reward.json", {"stage": "reward", "accuracy": share("reward_accuracy", 171, 206)}
    )
    lines(folder / "preferences.jsonl", preferences())
    return folder


def write(path: Path, value: object) -> None:
    """One JSON file."""
    path.write_text(json.dumps(value, ensure_ascii=False), "utf-8")


def lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """One JSON-lines file."""
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), "utf-8")


def lineage() -> dict[str, Any]:
    """Hashes, counts, versions, machine."""
    splits = {
        name: {"documents": d, "tokens": t, "bytes": b, "sha256": str(d % 10) * 64}
        for name, d, t, b in (
            ("train", 612, 2_871_402, 9_120_388),
            ("valid", 38, 160_111, 501_002),
            ("test", 41, 172_830, 544_310),
        )
    }
    hardware = {
        "cpu": "Example CPU",
        "cores": 2,
        "memory_bytes": 24 * 2**30,
        "accelerator": None,
        "gemm_fp32_flops": 3.8e11,
        "gemm_bf16_flops": 1.4e12,
        "read_bytes_per_s": 3.7e10,
        "copy_bytes_per_s": 3.1e10,
    }
    models = {
        m: {"sha256": c * 64, "steps": 400, "parent": p}
        for m, c, p in (
            ("base", "a", "random weights"),
            ("finetuned", "b", "base"),
            ("reward", "c", "finetuned"),
            ("aligned", "d", "finetuned"),
        )
    }
    return {
        "run": "quickstart",
        "models": models,
        "recipe_sha256": "e" * 64,
        "sessions": [
            {
                "versions": {"python": "3.11.7", "torch": "2.13.0"},
                "commit": "0123456789ab",
                "system": "Linux",
                "hardware": hardware,
            }
        ],
        "tokenizer": {"kind": "bpe", "sha256": "f" * 64, "vocab_size": 4096},
        "data": {
            "settings": {},
            "splits": splits,
            "skipped": {"duplicate": 7, "empty": 31, "undecodable": 2},
            "note": None,
        },
    }


def events() -> list[dict[str, Any]]:
    """stages.jsonl."""
    rows, elapsed = [], 0.0
    for stage, planned, seconds, facts in (
        ("tokenizer", None, 6.1, {"tokens": 2_871_402}),
        ("evaluate-random", None, 5.9, {}),
        (
            "pretrain",
            95.0,
            93.2,
            {"steps": 400, "tokens": 3_276_800, "flops": 2.6e13, "share_of_peak": 0.199},
        ),
        ("evaluate-base", None, 6.0, {}),
        ("finetune", 40.0, 41.8, {"steps": 160, "tokens": 655_360, "flops": 5.1e12, "share_of_peak": 0.087}),
        ("evaluate-finetuned", None, 5.1, {}),
        ("preferences", 20.0, 21.4, {"ties": 91, "pairs": 1020}),
        ("reward", 15.0, 14.1, {"steps": 90, "tokens": 300_100, "flops": 2.4e12, "share_of_peak": 0.121}),
        ("align", 50.0, 54.6, {"steps": 60, "tokens": 570_000, "flops": 4.6e12, "share_of_peak": 0.06}),
        ("evaluate-aligned", None, 5.4, {}),
    ):
        rows.append(
            {
                "stage": stage,
                "event": "plan",
                "elapsed": elapsed,
                "basis": "calibration",
                **({"seconds": planned, "seconds_by_configuration": 0.9 * planned} if planned else {}),
            }
        )
        elapsed += seconds
        rows.append(
            {
                "stage": stage,
                "event": "done",
                "elapsed": elapsed,
                "seconds": seconds,
                "peak_rss_bytes": 1.1e9,
                **facts,
            }
        )
    return rows


def log(draw: random.Random, steps: int) -> list[dict[str, Any]]:
    """log.jsonl, with curves of the usual shape and the usual noise."""
    rows: list[dict[str, Any]] = []

    def add(stage: str, count: int, each: int, loss: Any, extra: Any = lambda i: {}) -> None:
        rows.extend(
            {
                "stage": stage,
                "step": i + 1,
                "tokens": (i + 1) * each,
                "loss": loss(i / count),
                "learning_rate": 3e-3,
                "grad_norm": 0.7,
                "seconds": 0.2,
                **extra(i),
            }
            for i in range(count)
        )

    def look(i: int, count: int, level: float) -> dict[str, float]:
        return (
            {"valid_bits_per_byte": level + 2.2 * math.exp(-5 * i / count)}
            if (i + 1) % (count // 4) == 0
            else {}
        )

    add(
        "pretrain",
        steps,
        8192,
        lambda x: 3.0 + 5.3 * math.exp(-9 * x) - 0.4 * x + draw.gauss(0, 0.07),
        lambda i: look(i, steps, 1.55),
    )
    add(
        "finetune",
        160,
        4096,
        lambda x: 1.6 + 1.3 * math.exp(-6 * x) + draw.gauss(0, 0.16),
        lambda i: look(i, 160, 1.56),
    )
    add("reward", 90, 3300, lambda x: 0.32 + 0.4 * math.exp(-5 * x) + draw.gauss(0, 0.05))
    add(
        "align",
        60,
        9500,
        lambda x: draw.gauss(0, 0.02),
        lambda i: {
            "reward": 2.6 * (1 - math.exp(-i / 18)) + draw.gauss(0, 0.14),
            "kl": 0.11 * i / 60 + abs(draw.gauss(0, 0.004)),
            "judge": 0.34 + 0.42 * (1 - math.exp(-i / 12)) - 0.0022 * max(0, i - 30) + draw.gauss(0, 0.035),
            "answer_tokens": 44.0,
        },
    )
    return rows


def evaluation(model: str, i: int) -> dict[str, Any]:
    """One of evals/*.json."""
    met = MET[model]
    answers = {c: share(c, min(250, met + 12 * k)) for k, c in enumerate(CHECKS)} | {
        "satisfies": share("satisfies", met)
    }
    samples = [
        {
            "request": f"Write a function `split_header_{n}(line)`: split a line into its <b>name</b> and value.",
            "answer": CODE[model],
            "finished": i > 1,
            "verdict": {
                **{c: i > min(k, 2) for k, c in enumerate(CHECKS)},
                "satisfies": i == 3,
                "score": 0.2 * i,
            },
        }
        for n in range(5)
    ]
    change = measure("satisfies_change", 0.2, "share", 250, 0.06) if i else None
    return {
        "stage": model,
        "bits_per_byte": measure("bits_per_byte", BITS[model], "bits per byte", 41, 0.05),
        "answers": answers,
        "change": change,
        "forgetting": measure("forgetting", BITS[model] - BITS["base"], "bits per byte", 41, 0.006)
        if i > 1
        else None,
        "proxy_reward": measure("proxy_reward", i - 1.2, "reward", 250, 0.1),
        "kl": measure("kl_per_answer", 3.1, "nats", 250, 0.3) if i == 3 else None,
        "samples": samples,
    }


def preferences() -> list[dict[str, Any]]:
    """preferences.jsonl."""
    answers = [
        {"text": CODE[m], "tokens": [1, 2], "finished": True}
        for m in ("aligned", "finetuned", "base", "random")
    ]
    return [
        {
            "version": 1,
            "judge": "a program standing in for people",
            "stand_in": True,
            "request": f"Write `f{n}(x)`.",
            "answers": answers,
            "scores": [0.9, 0.6, 0.3, 0.1],
            "chosen": 0,
            "pairs": [[0, 3], [1, 2]],
            "held_out": n % 5 == 0,
        }
        for n in range(40)
    ]
