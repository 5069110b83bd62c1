"""What one step of a decoder of SmolLM2-135M's shape takes on this processor, in each form of its weights, and how much
of that its products are: rows of some sequences that each write a token behind 190, and a prompt of 512 tokens.

Weights are random. "products" are the four of each of the thirty layers alone, one behind another, as a step has them;
"step" is all layers in one call (``csrc/step.c``); what is between the two is attention, norms and threads that wait.
Beside them the products of torch in float32 and bfloat16. Forms take turns; the least of the rounds counts.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cutaway  # noqa: F401  (first, as a user has it: it sets how long waiting threads spin)

# isort: split
import torch

from cutaway import device, records
from cutaway.models.light import Precision, for_reading
from cutaway.models.model import build
from cutaway.models.transformer import TransformerConfig
from cutaway.nn.linear import PackedLinear, packs
from cutaway.nn.paged import PAGE, PagedStack, Reading

CONFIG = TransformerConfig(vocab_size=512, hidden_size=576, num_layers=30, num_heads=9, num_kv_heads=3,
                           intermediate_size=1536, context_length=1024)
BYTES: dict[str, float] = {"int4": 20 / 32, "int8": 1, "bfloat16": 2, "float32": 4}  # of a weight
BEFORE, PROMPT = 190, 512


@dataclass
class Form:
    """The layers of a model in one form: its products, and the whole step, if it has one."""

    name: str
    products: Callable[[int], None]
    step: Callable[[int], None] | None


def ours(precision: Precision) -> Form:
    """Laid out for this processor."""
    model = for_reading(build(CONFIG, seed=1), precision)
    packed = [part for part in model.backbone.modules() if isinstance(part, PackedLinear)]
    pages = model.new_pages(40 * (1024 // PAGE))
    assert isinstance(pages, PagedStack) and pages.exact
    given = {rows: {p.inputs: torch.randn(rows, p.inputs).to(p.dtype) for p in packed} for rows in ROWS}

    def products(rows: int) -> None:
        for part in packed:
            part(given[rows][part.inputs])

    def step(rows: int) -> None:
        each, draw = 1024 // PAGE, random.Random(0)
        before, count, sequences = (0, rows, 1) if rows == PROMPT else (BEFORE, 1, rows)
        parts = [([draw.randrange(512) for _ in range(count)], before, range(i * each, (i + 1) * each))
                 for i in range(sequences)]
        pages.hidden(Reading.of(parts, [count * (i + 1) - 1 for i in range(sequences)]))

    return Form(precision, products, step)


def torchs(name: str) -> Form:
    """The library's product with the same weights, without what follows it."""
    dtype = getattr(torch, name)
    shapes = [(576, 960), (576, 576), (576, 3072), (1536, 576)]
    weights = [[torch.randn(o, i).to(dtype) for i, o in shapes] for _ in range(CONFIG.num_layers)]
    given = {rows: {i: torch.randn(rows, i).to(dtype) for i, _ in shapes} for rows in ROWS}

    def products(rows: int) -> None:
        for layer in weights:
            for weight in layer:
                torch.nn.functional.linear(given[rows][weight.shape[1]], weight)

    return Form(f"torch {name}", products, None)


ROWS = (1, 4, 8, 32, PROMPT)
WEIGHTS = CONFIG.num_layers * (576 * (960 + 576 + 3072) + 1536 * 576)


def measured(forms: list[Form], rounds: int) -> dict[str, dict[int, dict[str, float]]]:
    """Milliseconds of each form and number of rows."""
    found: dict[tuple[str, int, str], list[float]] = {}
    for number in range(rounds + 1):
        for form in forms[number % len(forms) :] + forms[: number % len(forms)]:
            for rows in ROWS:
                for what, call in (("products", form.products), ("step", form.step)):
                    if call is None:
                        continue
                    times = [timed(call, rows) for _ in range(1 if rows == PROMPT else 5)]
                    if number:  # the first round warms up
                        found.setdefault((form.name, rows, what), []).append(statistics.median(times))
    out: dict[str, dict[int, dict[str, float]]] = {}
    for (name, rows, what), times in found.items():
        out.setdefault(name, {}).setdefault(rows, {})[what] = 1e3 * min(times)
    return out


def timed(call: Callable[[int], None], rows: int) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    call(rows)
    return time.perf_counter() - began


def main() -> None:
    """Measure, print, and end with one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="two rounds")
    options = parser.parse_args()
    device.set_threads()
    with torch.inference_mode():
        kinds: tuple[Precision, ...] = ("int4", "int8", "bfloat16", "float32")
        forms = [ours(kind) for kind in kinds if packs(torch.zeros(1, 2), kind) is not None]
        if not forms:
            raise SystemExit("there are no kernels here: see `cutaway doctor`")
        forms += [torchs(name) for name in ("float32", "bfloat16") if name == "float32" or len(forms) == len(kinds)]
        found = measured(forms, 2 if options.quick else options.rounds)
    print(f"{'':<16}{'rows':>5}{'products':>11}{'':>11}{'':>11}{'step':>10}{'tokens/s':>10}")
    for name, by_rows in found.items():
        for rows, row in by_rows.items():
            seconds, each = row["products"] / 1e3, BYTES[name.rpartition(" ")[2]]
            row |= {"gops": 2 * WEIGHTS * rows / seconds / 1e9, "gbytes": WEIGHTS * each / seconds / 1e9}
            step = f"{row['step']:>7.2f} ms{rows / row['step'] * 1e3:>10,.0f}" if "step" in row else ""
            print(f"{name:<16}{rows:>5}{row['products']:>8.2f} ms{row['gops']:>6.0f} GOP/s{row['gbytes']:>6.1f} GB/s"
                  f"{step}")
    first = [n for n in found if not n.startswith("torch")]
    ratios: dict[str, Any] = {f"{rows} rows": max(found["torch float32"][rows]["products"] / found[n][rows]["products"]
                                                 for n in first) for rows in ROWS}
    print(json.dumps({"name": "kernels", "figures": found, "ratios": ratios, "targets": dict.fromkeys(ratios, 1.0),
                      "ok": all(r >= 1 for r in ratios.values()), "machine": device.describe(device.pick("cpu")).cpu,
                      "versions": records.environment()["versions"]}))


if __name__ == "__main__":
    main()
