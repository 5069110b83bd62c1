"""One system of a comparison in a process of its own, so that its memory is its own: train, judge, time, write down."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from cutaway.device import peak_rss_bytes, seed_everything, set_threads
from cutaway.errors import CutawayError
from cutaway.models.features import Feature, HandMade
from cutaway.records import atomic_write
from cutaway.run import compare_classification, compare_language, compare_retrieval, compare_transformation
from cutaway.run.compare_parts import Bench, Judged, Outcome, Timing, Trained
from cutaway.run.compare_recipe import AnySystem, BagSystem, Comparison, reload

OPEN: dict[str, Callable[[Comparison, Path], Bench]] = {
    "language": compare_language.open_bench, "classification": compare_classification.open_bench,
    "transformation": compare_transformation.open_bench, "retrieval": compare_retrieval.open_bench}
UNFINISHED = ".training-"

CLASSIFIERS = {"logistic": "logistic regression", "svm": "linear SVM", "nbsvm": "NB-SVM"}


def work(folder: Path, name: str) -> Outcome:
    """Every seed of a system: models in ``systems/NAME/seed-N``, what came out in ``systems/NAME/outcome.json``."""
    comparison = reload(folder / "comparison.toml")
    set_threads(comparison.threads)
    system = comparison.systems[name]
    bench = OPEN[comparison.task.kind](comparison, folder)
    seeds = comparison.seeds if system.seeded else comparison.seeds[:1]
    done: list[tuple[Trained, Judged]] = []
    timing = Timing((), 0.0)
    for seed in seeds:
        seed_everything(seed)
        trained = _trained(bench, system, seed, folder / "systems" / name / f"seed-{seed}")
        done.append((trained, bench.judge(trained)))
        if seed == seeds[0]:
            timing = bench.time(trained)
    outcome = _outcome(name, system, seeds, done, timing)
    atomic_write(folder / "systems" / name / "outcome.json", json.dumps(outcome.to_dict(), ensure_ascii=False))
    return outcome


def _trained(bench: Bench, system: AnySystem, seed: int, target: Path) -> Trained:
    """Train into a folder that takes its name when it is whole; one left by an earlier attempt is made again."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        shutil.rmtree(target)
    for left in target.parent.glob(f"{UNFINISHED}*"):  # an attempt that was stopped had no time to clear away
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=target.parent) as temporary:
        trained = bench.train(system, seed, Path(temporary) / "model")
        (Path(temporary) / "model").rename(target)
    return trained


def _outcome(name: str, system: AnySystem, seeds: tuple[int, ...], done: list[tuple[Trained, Judged]],
             timing: Timing) -> Outcome:
    first, judged = done[0]
    return Outcome(
        name, system.kind, system.rank, described(system), tuple(seeds), tuple(tuple(j.scores) for _, j in done),
        tuple(judged.weights), tuple(t.seconds for t, _ in done), tuple(t.steps for t, _ in done),
        tuple(t.flops for t, _ in done), first.parameters, int(np.mean([t.disk_bytes for t, _ in done])),
        first.serving_bytes, peak_rss_bytes(), tuple(timing.latencies), timing.throughput, judged.more,
        tuple(judged.examples), tuple(dict.fromkeys(n for t, _ in done for n in t.notes)))


def described(system: AnySystem) -> str:
    """A system in a few words: its settings that are not defaults, or what a bag holds."""
    if isinstance(system, BagSystem):
        return f"{', '.join(_held(f) for f in system.bag.features)}; {CLASSIFIERS[system.bag.classifier]}"
    shown = system.architecture if system.kind == "neural" else system.model_dump(exclude_defaults=True)
    left = {k: v for k, v in shown.items() if k not in ("kind", "optimizer", "schedule", "context_length")}
    head = str(system.architecture.get("kind")) if system.kind == "neural" else system.kind
    return ", ".join([head, *(f"{k.replace('_', ' ')} {v}" for k, v in left.items())])


def _held(feature: Feature) -> str:
    if isinstance(feature, HandMade):
        return "hand-made features"
    what = "words" if feature.kind == "words" else "characters"
    if feature.low == feature.high:
        return f"single {what}" if feature.low == 1 else f"runs of {feature.low} {what}"
    return f"runs of {feature.low} to {feature.high} {what}"


def main() -> int:
    """``python -m cutaway.run.compare_worker FOLDER NAME``; an error stands in ``systems/NAME/error.json``."""
    folder, name = Path(sys.argv[1]), sys.argv[2]
    try:
        work(folder, name)
    except CutawayError as error:
        (folder / "systems" / name).mkdir(exist_ok=True)
        atomic_write(folder / "systems" / name / "error.json", json.dumps({"error": str(error)}))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
