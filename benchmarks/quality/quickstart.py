"""Quality of `cutaway run quickstart` over three seeds: what a stranger gets, and how much of it is luck.

Every run is the real command in a process of its own, one after the other. Acceptance: bits per byte at most 1.70 after
pre-training, reward model at least 0.70 on held-out pairs, fine-tuned above base and aligned at least 15 points above
fine-tuned with intervals that do not overlap (n >= 200), forgetting at most 0.10, 300 seconds, 3 GiB.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cutaway import device, records
from cutaway.run.report import headline

GIB = 2**30


def run(recipe: str, seed: int, folder: Path, settings: list[str]) -> dict[str, Any]:
    """One run; its headline figures, with the seconds and the memory of the whole process measured from outside."""
    name = f"{recipe}-seed-{seed}"
    command = [
        sys.executable,
        "-m",
        "cutaway",
        "run",
        recipe,
        f"name={name}",
        f"seed={seed}",
        *settings,
        "--runs",
        str(folder),
        "--json",
    ]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    out, err = process.communicate()
    seconds = time.perf_counter() - began
    if process.returncode:
        raise SystemExit(
            f"{' '.join(command)}\nended with {process.returncode}: {err.strip()[-2000:]}{out.strip()[-500:]}"
        )
    found = headline(folder / name)
    return {**found, "seconds": seconds, "folder": str(folder / name)}


def checks(f: dict[str, Any]) -> dict[str, tuple[float, float, bool]]:
    """Case -> (ours ÷ wanted, 1, reached); ``below`` cases are turned so that 1 or more is always reached."""
    base, tuned, aligned = (f[f"satisfies_{m}"] for m in ("base", "finetuned", "aligned"))
    gain = aligned["value"] - tuned["value"]
    apart = aligned["low"] > tuned["high"] and tuned["low"] > base["high"]
    values = {
        "bits per byte <= 1.70": (1.70, f["bits_per_byte"]["value"]),
        "reward accuracy >= 0.70": (f["reward_accuracy"]["value"], 0.70),
        "aligned - fine-tuned >= 15 points": (gain, 0.15),
        "forgetting <= 0.10": (1 + 0.10, 1 + f["forgetting"]["value"]),  # may be negative, so shifted
        "seconds <= 300": (300.0, f["seconds"]),
        "memory <= 3 GiB": (3 * GIB, f["memory_bytes"]),
        "intervals apart, n >= 200": (
            float(apart and min(m["n"] for m in (base, tuned, aligned)) >= 200),
            1.0,
        ),
    }
    return {case: (a / b, 1.0, a >= b) for case, (a, b) in values.items()}


def row(label: str, f: dict[str, Any]) -> str:
    """One seed for people."""

    def share(m: dict[str, Any] | None) -> str:
        return "–" if m is None else f"{100 * m['value']:.0f} [{100 * m['low']:.0f}, {100 * m['high']:.0f}]"

    bits = f"{f['bits_per_byte']['value']:.3f} ({f['gzip']['value']:.2f}, {f['xz']['value']:.2f})"
    asked = "".join(f"{share(f[f'satisfies_{m}']):>14}" for m in ("base", "finetuned", "aligned"))
    return (
        f"{label:<8}{bits:>22}{asked}{share(f['reward_accuracy']):>14}{f['forgetting']['value']:>+9.3f}"
        f"{f['seconds']:>7.0f}{f['memory_bytes'] / GIB:>7.2f}"
    )


def main() -> None:
    """Run the seeds, print the table and one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("settings", nargs="*", help="path=value, passed on to `cutaway run`")
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument(
        "--keep", help="the folder to make the runs in; default one that is deleted at the end"
    )
    parser.add_argument(
        "--quick", action="store_true", help="the debug recipe, one seed: that it runs, not how well"
    )
    options = parser.parse_args()
    recipe, seeds = (
        ("debug", [0]) if options.quick else (options.recipe, [int(s) for s in options.seeds.split(",")])
    )
    figures, reached = {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.keep or temporary)
        print(
            f"{recipe:<8}{'bits/byte (gzip, xz)':>22}{'base %':>14}{'fine-tuned %':>14}{'aligned %':>14}"
            f"{'reward %':>14}{'forgot':>9}{'s':>7}{'GiB':>7}",
            flush=True,
        )
        for seed in seeds:
            found = figures[f"seed {seed}"] = run(recipe, seed, folder, options.settings)
            print(row(f"seed {seed}", found), flush=True)
            reached |= {f"seed {seed}: {case}": value for case, value in checks(found).items()}
    judged = {} if options.quick else reached
    for case, (_, _, good) in judged.items():
        print(f"  {'reached' if good else 'MISSED '}  {case}")
    print(
        json.dumps(
            {
                "name": "quality/quickstart",
                "figures": figures,
                "ratios": {c: v[0] for c, v in judged.items()},
                "targets": {c: v[1] for c, v in judged.items()},
                "ok": all(v[2] for v in judged.values()),
                "recipe": recipe,
                "machine": asdict(device.known(device.pick("cpu"))),
                "versions": records.environment()["versions"],
                "load_average": os.getloadavg()[0],
            }
        )
    )


if __name__ == "__main__":
    main()
