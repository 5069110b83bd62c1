"""Report: the run as report.html and report.md, from the files of its folder alone (after nanochat's report card)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cutaway.records import Measurement, atomic_write
from cutaway.run.report_markdown import markdown
from cutaway.run.report_page import page
from cutaway.run.report_read import MODELS, read


def write_report(folder: str | Path) -> tuple[Path, Path]:
    """Write both files, each whole or not at all; returns their paths. Raises RunError naming a damaged file."""
    folder = Path(folder)
    evidence = read(folder)
    html, text = folder / "report.html", folder / "report.md"
    atomic_write(html, page(evidence))
    atomic_write(text, markdown(evidence))
    return html, text


def headline(folder: str | Path) -> dict[str, Any]:
    """The headline figures as plain JSON, each a Measurement or None; ``seconds`` and ``memory_bytes`` are numbers."""
    e = read(folder)
    found: dict[str, Measurement | None] = {
        "bits_per_byte": e.measured("base", "bits_per_byte"),
        "gzip": e.compression.get("gzip -9"),
        "xz": e.compression.get("xz -9"),
        **{f"satisfies_{m}": e.measured(m, "satisfies") for m in MODELS},
        "reward_accuracy": e.reward_accuracy,
        "forgetting": e.measured("aligned", "forgetting"),
        "forgetting_finetuned": e.measured("finetuned", "forgetting"),
        "kl": e.measured("aligned", "kl"),
        "proxy_reward": e.measured("aligned", "proxy_reward"),
    }
    return {
        **{k: None if m is None else m.to_dict() for k, m in found.items()},
        "seconds": e.seconds,
        "memory_bytes": e.memory,
    }
