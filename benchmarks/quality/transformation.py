"""Texts written for texts: Tatoeba en→fr, WikiSQL, recipes as JSON and SciTLDR, by three encoder-decoders of at most
ten million parameters, from scratch, within the same seconds, beside copying and the nearest training pair (BM25).

A transformer (Vaswani 2017), a recurrent network with attention (Luong 2015) and ConvS2S (Gehring 2017), joint BPE of
8,000 tokens, greedy and by beam search of width 4, with paired tests. What is held out, which published figure stands
beside it and what differs from that is said in transformation_tasks.py and printed. Needs CUTAWAY_DATA with
tatoeba_en_fr/, wikisql/, recipes/ and scitldr/. Costs the task's seconds for each network and seed
(ninety minutes in all on two cores), or --seconds, and up to some minutes each for the answers. --device cuda and
--tokens give a GPU enough to do.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformation_tasks import TASKS, Parts, Scores, Task, measure, read

from cutaway import device, records
from cutaway.models.bm25 import fit_bm25
from cutaway.models.convolution import ConvolutionConfig
from cutaway.models.light import for_sampling
from cutaway.models.model import Architecture, build
from cutaway.models.recurrent import RecurrentConfig
from cutaway.models.transformer import TransformerConfig
from cutaway.run.compare_transformation import Nearest, Network
from cutaway.text.tokenizer import Tokenizer, train
from cutaway.text.vocabulary import SubwordSettings
from cutaway.train.fit import FitSettings, Fitted, fit_seq2seq
from cutaway.train.optimizer import OptimizerSettings

BASELINES, NETWORKS = ("copy", "nearest"), ("transformer", "rnn", "cnn")
BEAM = 4
MOST_PARAMETERS = 10_000_000
TOGETHER = 64  # queries of BM25 at once: each has a score for every training source
# In two minutes of one core Muon brought Tatoeba's transformer to 3.41 nats a token, in steps of 4,096 places to 3.56,
# at twice these rates to 3.47; AdamW at 1.5e-3 in steps of 4,096 to 3.93 (docs/lab/transformation.md).
OPTIMIZER = OptimizerSettings(kind="muon", learning_rate=2e-3, matrix_learning_rate=1e-2, betas=(0.9, 0.98), eps=1e-8)


@dataclass(frozen=True)
class Size:
    """What is spent: seconds of training a network (None: the task's own), tokens of the vocabulary, width, tokens of
    a step, the most pairs and items, and the device."""

    seconds: float | None
    vocab_size: int = 8_000
    width: int = 256
    tokens: int = 2_048
    pairs: int | None = None
    items: int | None = None
    longest: int | None = None  # tokens of an answer, where less than the task's
    on: device.Device = field(default_factory=lambda: device.pick("cpu"))


QUICK = Size(seconds=1.0, vocab_size=400, width=32, pairs=400, items=6, longest=12)


@dataclass
class Table:
    """The figures of one task as they come, printed and kept, and the scores that are compared in pairs."""

    task: str
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)
    scores: dict[str, Scores] = field(default_factory=dict)
    wanted: float | None = None

    def add(self, system: str, seed: int | None, scores: Scores, spent: dict[str, Any]) -> None:
        """One system's answers: a line for each measure."""
        first = next(iter(scores))
        self.scores.setdefault(system, scores)
        for name, score in scores.items():
            found = measure(score)
            key = f"{self.task}, {system}, {name}" + ("" if seed is None else f", seed {seed}")
            self.figures[key] = {**found.to_dict(), **spent}
            wanted = self.wanted if name == first and seed is not None else None
            print(line(key, found, wanted, spent), flush=True)

    def mean(self, system: str, name: str, seeds: Sequence[int]) -> float:
        """The mean over seeds, kept with its deviation where there are several."""
        values = [self.figures[f"{self.task}, {system}, {name}, seed {seed}"]["value"] for seed in seeds]
        if len(values) > 1:
            row = {"value": float(np.mean(values)), "sd": float(np.std(values, ddof=1)), "seeds": len(values)}
            self.figures[f"{self.task}, {system}, {name}"] = row
            scale = 1 if max(values) > 1 else 100
            print(f"{f'{self.task}, {system}, {name}, mean':<52}{scale * row['value']:>8.2f}  ± "
                  f"{scale * row['sd']:.2f} over {len(values)} seeds", flush=True)
        return float(np.mean(values))

    def compare(self, before: str, after: str) -> None:
        """What ``after`` has more than ``before`` on the same items, by the first seed of each."""
        if before in self.scores and after in self.scores:
            name = next(iter(self.scores[after]))
            change = self.scores[before][name].change(self.scores[after][name])
            self.figures[f"{self.task}, {after} less {before}, {name}"] = change.to_dict()
            print(f"  {after} less {before}: {change}, p = {change.conditions['bootstrap_p']:.3f}", flush=True)


def line(key: str, found: records.Measurement, wanted: float | None, spent: dict[str, Any]) -> str:
    """One line of the table; shares in percent."""
    scale = 100 if found.unit == "share" else 1
    value, low, high = (scale * (x if x is not None else float("nan")) for x in (found.value, found.low, found.high))
    beside = "" if wanted is None else f"{scale * wanted:.2f}"
    size = "" if spent.get("parameters") is None else f"{spent['parameters'] / 1e6:.2f}"
    return (f"{key:<52}{value:>8.2f}{f'{low:.1f} to {high:.1f}':>16}{beside:>8}{found.n or 0:>7}{size:>7}"
            f"{spent['seconds']:>9.1f}{spent['writing_seconds']:>9.1f}")


def network(system: str, vocab_size: int, task: Task, width: int) -> Architecture:
    """An encoder-decoder of each kind, of about one size (six to eight million parameters at a width of 256)."""
    if system == "transformer":
        return TransformerConfig(shape="encoder-decoder", vocab_size=vocab_size, hidden_size=width, num_layers=3,
                                 num_heads=4, num_kv_heads=4, intermediate_size=2 * width, context_length=task.context,
                                 dropout=task.dropout)
    if system == "rnn":
        return RecurrentConfig(shape="encoder-decoder", vocab_size=vocab_size, hidden_size=width * 3 // 2,
                               num_layers=2, context_length=task.context, dropout=task.dropout)
    return ConvolutionConfig(shape="encoder-decoder", vocab_size=vocab_size, hidden_size=width, num_layers=4,
                             context_length=task.context, dropout=task.dropout)


def settings(task: Task, size: Size) -> FitSettings:
    """How a network is trained; a text longer than the context is cut, and counted."""
    return FitSettings(seconds=size.seconds or task.seconds, rows=None, tokens=size.tokens, label_smoothing=0.1,
                       average=4, optimizer=OPTIMIZER, too_long="cut")


def baseline(system: str, task: Task, parts: Parts) -> Callable[[Sequence[str]], list[str]]:
    """Copying, or the target of the nearest training source."""
    if system == "copy":
        return lambda texts: [task.copied(text) for text in texts]
    sources, targets = zip(*parts.learn, strict=True)
    found = Nearest(fit_bm25(sources), targets)
    return lambda texts: [answer for at in range(0, len(texts), TOGETHER)
                          for answer in found.rewrite(texts[at : at + TOGETHER])]


def trained(system: str, task: Task, parts: Parts, tokenizer: Tokenizer, *, seed: int, size: Size) -> Fitted:
    """One network from its seed, in this machine's faster arithmetic."""
    config = network(system, tokenizer.vocab_size, task, size.width)
    start = build(config, seed=seed, compute_dtype=device.compute_dtype("auto", size.on)).to(size.on.torch)
    count = sum(p.numel() for p in start.parameters())
    if count > MOST_PARAMETERS:
        raise SystemExit(f"{system} has {count:,} parameters, more than {MOST_PARAMETERS:,}")
    return fit_seq2seq(start, tokenizer, parts.learn, valid=parts.valid, settings=settings(task, size), seed=seed)


def of_network(table: Table, system: str, seed: int, task: Task, parts: Parts, tokenizer: Tokenizer,
               size: Size) -> None:
    """Train once, answer greedily and by beam search."""
    with records.Stopwatch() as watch:
        made = trained(system, task, parts, tokenizer, seed=seed, size=size)
    light, last = for_sampling(made.model), made.history[-1]
    longest = min(size.longest or task.longest, task.longest)
    spent = {"parameters": sum(p.numel() for p in made.model.parameters()), "seconds": watch.seconds,
             "tokens": size.tokens, "steps": last.step, "best_step": made.best.step,
             "valid_nll": made.best.figures["nll"], "looks": [look.figures["nll"] for look in made.history],
             "learned_cut": len(made.cut), "valid_cut": len(made.valid_cut),
             "dtype": str(made.model.compute_dtype).removeprefix("torch."),
             "held_cut": sum(len(tokenizer.encode(s)) >= task.context for s in parts.sources), "held_out": parts.where}
    print(f"  {system}: {last.step:,} steps, best at {made.best.step:,}; valid nats a token "
          f"{' '.join(f'{x:.2f}' for x in spent['looks'][-8:])}; {spent['dtype']}; cut "
          f"{spent['learned_cut'] + spent['valid_cut']:,} pairs of {len(parts.learn) + len(parts.valid):,} and "
          f"{spent['held_cut']:,} of {len(parts.sources):,} held out", flush=True)
    for name, width in (("greedy", 1), (f"beam {BEAM}", BEAM)):
        writer = Network(light, tokenizer, width, longest)
        answer(table, f"{system} {name}", seed, writer.rewrite, task, parts, spent)


def answer(table: Table, system: str, seed: int | None, rewrite: Callable[[Sequence[str]], list[str]], task: Task,
           parts: Parts, spent: dict[str, Any]) -> None:
    """Score what a system gives to every held-out source."""
    with records.Stopwatch() as watch:
        given = rewrite(parts.sources)
    table.add(system, seed, task.score(given, parts.references), spent | {"writing_seconds": watch.seconds})
    if seed is not None and system.endswith(str(BEAM)):
        for i in range(min(2, len(given))):
            print(f"    {parts.sources[i][:70]!r} → {given[i][:90]!r} (wanted {parts.references[i][0][:90]!r})")


def of_task(name: str, root: Path, systems: Sequence[str], seeds: Sequence[int], size: Size) -> Table:
    """All systems on one table."""
    task, table = TASKS[name], Table(name)
    parts = read(root, task, items=size.items, pairs=size.pairs)
    several = sum(map(len, parts.references)) / len(parts.references)
    print(f"{name}: {len(parts.learn):,} pairs to learn from, {len(parts.valid):,} to choose by, {len(parts.sources):,}"
          f" sources of {parts.where} held out ({several:.1f} references each); {parts.left_out} pairs left out of "
          f"train because their source is held out\n  wanted: {task.by}", flush=True)
    table.wanted = task.published
    for system in (s for s in BASELINES if s in systems):
        with records.Stopwatch() as watch:
            rewrite = baseline(system, task, parts)
        answer(table, system, None, rewrite, task, parts, {"seconds": watch.seconds, "held_out": parts.where})
    first = table.scores and next(iter(next(iter(table.scores.values()))))
    reached = [scores[first].value for scores in table.scores.values()]
    table.wanted = max([*reached, *([task.published] if task.published else [])], default=None)
    networks = [s for s in NETWORKS if s in systems]
    if networks:
        tokenizer = train(SubwordSettings(vocab_size=size.vocab_size), (text for pair in parts.learn for text in pair))
        for system in networks:
            for seed in seeds:
                of_network(table, system, seed, task, parts, tokenizer, size)
        compare(table, networks)
    return table


def compare(table: Table, networks: Sequence[str]) -> None:
    """Beam against greedy, networks against the nearest pair and against the transformer, on the same items."""
    for system in networks:
        table.compare(f"{system} greedy", f"{system} beam {BEAM}")
        table.compare("nearest", f"{system} beam {BEAM}")
        if system != "transformer":
            table.compare(f"{system} beam {BEAM}", f"transformer beam {BEAM}")


def judged(tables: Sequence[Table], networks: Sequence[str], seeds: Sequence[int]) -> dict[str, float]:
    """The first network's mean over seeds, by beam search, over what is wanted, for every task that wants something."""
    ratios = {}
    for table in tables:
        for system in networks:
            for name in next(iter(table.scores.values())):
                found = table.mean(f"{system} beam {BEAM}", name, seeds)
                if system == networks[0] and table.wanted and name == next(iter(table.scores[f"{system} beam {BEAM}"])):
                    ratios[f"{table.task}, {system}"] = found / table.wanted
    return ratios


def chosen(text: str, known: Sequence[str]) -> list[str]:
    """Names from a list between commas. Raises SystemExit for one that is not known."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    wrong = [name for name in names if name not in known]
    if wrong or not names:
        raise SystemExit(f"no {wrong or 'name'} here: choose from {', '.join(known)}")
    return [name for name in known if name in names]


def main(arguments: Sequence[str] | None = None) -> None:
    """Every task, a table, one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--systems", default=",".join((*BASELINES, *NETWORKS)))
    parser.add_argument("--seconds", type=float, help="training of each network, looks included (the task's own)")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--device", default="cpu", help="auto, cpu or cuda")
    parser.add_argument("--tokens", type=int, default=Size.tokens, help="tokens of a step, padding and sources counted")
    parser.add_argument("--items", type=int, help="sources held out, at most (all of them)")
    parser.add_argument("--quick", action="store_true", help="tiny networks for a second each: no target is meant")
    options = parser.parse_args(arguments)
    root = Path(os.environ.get("CUTAWAY_DATA", ""))
    given = [f"--{name}" for name in ("seconds", "tokens", "items", "seeds")
             if getattr(options, name) != parser.get_default(name)]
    if options.quick and given:
        parser.error(f"--quick has sizes of its own: leave out {', '.join(given)}")
    on = device.pick(options.device)
    size = replace(QUICK, on=on) if options.quick else Size(seconds=options.seconds, items=options.items,
                                                            tokens=options.tokens, on=on)
    seeds = [0] if options.quick else [int(s) for s in options.seeds.split(",")]
    systems = chosen(options.systems, (*BASELINES, *NETWORKS))
    device.set_threads()
    print(f"{'':<52}{'figure':>8}{'95 %':>16}{'wanted':>8}{'n':>7}{'M par.':>7}{'train s':>9}{'write s':>9}")
    tables = [of_task(name, root, systems, seeds, size) for name in chosen(options.tasks, tuple(TASKS))]
    ratios = judged(tables, [s for s in NETWORKS if s in systems], seeds)
    figures = {key: row for table in tables for key, row in table.figures.items()}
    print(json.dumps({
        "name": "quality/transformation", "figures": figures, "ratios": ratios, "targets": dict.fromkeys(ratios, 1.0),
        "better": "higher", "published": {table.task: TASKS[table.task].by for table in tables},
        "ok": options.quick or all(r >= 1 for r in ratios.values()),
        "machine": asdict(device.known(on)), "versions": records.environment()["versions"]}))


if __name__ == "__main__":
    main()
