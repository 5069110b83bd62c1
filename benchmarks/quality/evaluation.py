"""Our evaluation beside lm-evaluation-harness: the same model, the same items, its own task files in its local mode.

SmolLM2-135M-Instruct is saved as a folder that transformers reads. The data of every task are written into files in
the form that lm-evaluation-harness's own YAML expects, which is then only told to read these; our packaged task files
read the same. Compared are the requests as text, every log-probability, every written answer and every figure; and
seconds of the processor an item (of all cores together), both in turn. Needs `cutaway pull smollm2-135m-instruct`,
CUTAWAY_DATA and the peers' environment.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cutaway import device, records
from cutaway.evaluate.items import Items, read_items
from cutaway.evaluate.outcome import Outcome, context_of, outcomes
from cutaway.evaluate.task import AnyTask, Generation, Perplexity, load_task
from cutaway.evaluate.task_scores import Scored, scored
from cutaway.models.folder import load_model, load_tokenizer, save_model
from cutaway.models.model import Model
from cutaway.models.store import located
from cutaway.text.tokenizer import Tokenizer

HERE = Path(__file__).resolve().parents[1]
CONTEXT = 512  # of both: windows of texts, and what a prompt may have


@dataclass(frozen=True)
class Case:
    """A task: our file, their YAML below ``lm_eval/tasks`` (none: the text below it is all), our settings, their
    additions, where the rows are, and how many are asked, quickly and at full."""

    name: str
    theirs: str | None
    rows: str
    quick: int
    full: int
    settings: tuple[str, ...] = ()
    extra: str = ""


CASES = (
    Case("arc_easy", "arc/arc_easy.yaml", "arc_easy/validation", 8, 60),
    Case("hellaswag", "hellaswag/hellaswag.yaml", "hellaswag/valid_2000", 3, 24),
    Case("piqa", "piqa/piqa.yaml", "piqa/validation", 8, 60),
    Case("blimp", "blimp/_template_yaml", "blimp/blimp_even", 12, 80),
    Case("lambada", "lambada/lambada_openai.yaml", "lambada/test_2000", 6, 40),
    Case("arc_easy", "arc/arc_easy.yaml", "arc_easy/validation", 2, 10, ("fewshot.count=3", "fewshot.pick=first"),
         "num_fewshot: 3\nfewshot_split: few\nfewshot_config:\n  sampler: first_n\n"),
    Case("text", None, "wiki_leads/en_valid", 2, 6),
    Case("gsm8k", "gsm8k/gsm8k.yaml", "gsm8k/train", 1, 3, ("fewshot.count=2", "max_tokens=64"),
         "num_fewshot: 2\nfewshot_split: few\nfewshot_config:\n  sampler: first_n\ngeneration_kwargs:\n"
         "  until: ['Question:', '</s>', '<|im_end|>']\n  do_sample: false\n  max_gen_toks: 64\n"))
TEXT = """output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
"""


def shaped(case: Case, row: dict[str, Any]) -> dict[str, Any]:
    """A row of our copies as the published files have it."""
    match case.name:
        case "hellaswag":  # these rows lack the label that the published ones have
            return {"activity_label": "Scene", **row}
        case "blimp":
            return {"sentence_good": row["good"], "sentence_bad": row["bad"]}
        case "lambada":
            return {"text": f"{row['context']} {row['target']}"}
        case "text":
            return {"text": row["text"]}
    return row


def written(case: Case, number: int, root: Path, folder: Path, own: str) -> tuple[str, Path, Path]:
    """Their name of the task, and the files of items and of solved items; spread over the data, which may be sorted."""
    with gzip.open(root / f"{case.rows}.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [shaped(case, json.loads(line)) for line in lines]
    few, rows = rows[:8], rows[8:]
    rows = rows[:: max(1, len(rows) // case.full)][: case.full]
    name = f"beside_{number}_{case.name}"
    paths = [folder / f"{name}_{kind}.jsonl" for kind in ("items", "few")]
    for path, some in zip(paths, (rows, few), strict=True):
        path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in some), "utf-8")
    base = TEXT if case.theirs is None else f"include: {Path(own) / case.theirs}\n"
    (folder / f"{name}.yaml").write_text(
        f"{base}task: {name}\ndataset_path: json\ndataset_name: null\ntraining_split: null\nvalidation_split: null\n"
        f"test_split: test\ndataset_kwargs:\n  data_files:\n    test: {paths[0]}\n    few: {paths[1]}\n{case.extra}"
        f"tag: null\n", "utf-8")
    return name, paths[0], paths[1]


class Peer:
    """lm-evaluation-harness in a process of its own environment."""

    def __init__(self, python: str, asked: dict[str, Any], cache: str) -> None:
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": cache, "HF_HOME": cache,
                                    "OMP_NUM_THREADS": str(asked["threads"]), "TOKENIZERS_PARALLELISM": "false"}
        self.log = (Path(cache) / "peer.log").open("w")
        self.process = subprocess.Popen([python, str(HERE / "peers" / "lm_eval_scores.py")], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=self.log, text=True, env=environment)
        self.about = self.ask(asked)

    def ask(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Its answer to one line."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(wanted) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            tail = Path(self.log.name).read_text().strip().splitlines()[-3:]
            raise SystemExit(f"the peer failed: {tail}; run `make bench-peers`")
        return dict(json.loads(line))

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        self.log.close()


def ours(model: Model, tokenizer: Tokenizer, task: AnyTask, items: Items) -> tuple[Scored, float]:
    """The figures and the processor seconds of the requests."""
    start = time.process_time()
    found: list[Outcome] = [o for part in outcomes(model, tokenizer, task, items.items) for o in part]
    seconds = time.process_time() - start
    return scored(task, items, found, context=context_of(model, task), tokenizer_sha256=tokenizer.digest), seconds


def compared(task: AnyTask, items: Items, mine: Scored, theirs: dict[str, Any]) -> dict[str, Any]:
    """Figures of both, requests that differ, the largest difference of a log-probability, answers that differ."""
    figures = {}
    for name, found in mine.figures.items():
        key = name if "," in name else f"{name},none"
        if key in theirs["results"]:
            figures[name] = {"ours": found.value, "theirs": theirs["results"][key]}
    rows = {row["doc"]: row for row in theirs["samples"]}
    asked = answers = 0
    apart = 0.0
    for outcome in mine.outcomes:
        item, row = items.items[outcome.item], rows[outcome.item]
        if isinstance(task, Perplexity):
            wanted = [[item.answers[0]]]
        elif isinstance(task, Generation):
            wanted = [[item.prompt]]
            answers += row["responses"][0] != outcome.text
        else:
            wanted = [[item.prompt, task.delimiter + answer] for answer in item.answers]
        asked += row["arguments"] != wanted
        if not isinstance(task, Generation):
            given = [r[0] if isinstance(r, list) else r for r in row["responses"]]
            apart = max(apart, *(abs(a - b) for a, b in zip(outcome.logprobs, given, strict=True)))
    return {"figures": figures, "requests_differ": asked, "answers_differ": answers, "logprob_apart": apart}


def main() -> None:
    """A table of figures, one of seconds, and one JSON line."""
    own = HERE.parent / ".venv-peers" / "bin" / "python"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=str(own) if own.exists() else sys.executable)
    parser.add_argument("--quick", action="store_true", help="a tenth of the items")
    parser.add_argument("--rounds", type=int, default=None, help="of every task, in turn (2, or 1 with --quick)")
    parser.add_argument("--batch-size", type=int, default=8, help="of lm-evaluation-harness")
    parser.add_argument("--only", help="one task's name")
    options = parser.parse_args()
    root, place = Path(os.environ.get("CUTAWAY_DATA", "")), located("smollm2-135m-instruct")
    if not (root / "arc_easy").is_dir():
        raise SystemExit("CUTAWAY_DATA does not name the folder with arc_easy/ and the others")
    if place is None:
        raise SystemExit("cutaway pull smollm2-135m-instruct")
    threads = device.set_threads()
    model, tokenizer = load_model(place).eval(), load_tokenizer(place)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        save_model(folder / "model", model, tokenizer)
        (folder / "tasks").mkdir()
        (folder / "cache").mkdir()
        peer = Peer(options.python, {"folder": str(folder / "model"), "tasks": str(folder / "tasks"),
                                     "threads": threads, "batch_size": options.batch_size, "max_length": CONTEXT},
                    str(folder / "cache"))
        found = raced(options, model, tokenizer, peer, folder / "tasks", root)
        peer.close()
    report(found, peer.about["lm_eval"])


def raced(options: argparse.Namespace, model: Model, tokenizer: Tokenizer, peer: Peer, folder: Path,
          root: Path) -> dict[str, Any]:
    """Every task by both, in turn, so many rounds."""
    found: dict[str, Any] = {}
    cases = [case for case in CASES if options.only in (None, case.name)]
    files = [written(case, i, root, folder, peer.about["own_tasks"]) for i, case in enumerate(cases)]
    for case, (name, path, few) in zip(cases, files, strict=True):
        limit = case.quick if options.quick else case.full
        settings = [*case.settings, f"path={json.dumps(str(path))}", f"limit={limit}", f"context={CONTEXT}"]
        settings += [f"fewshot.path={json.dumps(str(few))}"] if case.extra else []
        task = load_task(case.name, settings)
        items = read_items(task)
        times = []
        for turn in range(options.rounds or (1 if options.quick else 2)):
            for side in ((0, 1), (1, 0))[turn % 2]:
                if side == 0:
                    mine, took = ours(model, tokenizer, task, items)
                else:
                    theirs = peer.ask({"task": name, "limit": limit})
            times.append((took, theirs["seconds"]))
        shots = f", {task.fewshot.count} solved" if case.extra and not isinstance(task, Perplexity) else ""
        found[case.name + shots] = compared(task, items, mine, theirs) | {
            "n": len(items.items), "seconds": statistics.median(t for t, _ in times) / len(items.items),
            "their_seconds": statistics.median(t for _, t in times) / len(items.items),
            "ratio": statistics.median(b / a for a, b in times)}
        shown(case.name + shots, found[case.name + shots])
    return found


def shown(name: str, row: dict[str, Any]) -> None:
    """A task's lines of the table."""
    for figure, both in row["figures"].items():
        apart = both["ours"] - both["theirs"]
        print(f"{name:<20}{figure:<30}{row['n']:>5}{both['ours']:>12.6f}{both['theirs']:>12.6f}{apart:>10.1e}")
    print(f"{'':<20}{row['requests_differ']} requests and {row['answers_differ']} answers differ, log-probabilities at "
          f"most {row['logprob_apart']:.1e} apart; {1000 * row['seconds']:.0f} ms of the processor an item, theirs "
          f"{1000 * row['their_seconds']:.0f}: {row['ratio']:.2f} times as fast", flush=True)


def report(found: dict[str, Any], version: str) -> None:
    """Whether all is equal, and the JSON line. A perplexity may differ in its fifth digit: torch's float32 log_softmax,
    which the peer takes, is some 7e-6 nats a token above the exact sum on a CPU (``docs/lab/evaluation.md``)."""
    ok = all(row["requests_differ"] == row["answers_differ"] == 0 and row["logprob_apart"] < 5e-3
             and all(math.isclose(f["ours"], f["theirs"], rel_tol=2e-5) for f in row["figures"].values())
             for row in found.values())
    print(json.dumps({"name": "quality/evaluation", "figures": found, "ok": ok, "lm_eval": version,
                      "ratios": {name: row["ratio"] for name, row in found.items()},
                      "machine": asdict(device.known(device.pick("cpu"))),
                      "versions": records.environment()["versions"]}))


if __name__ == "__main__":
    main()
