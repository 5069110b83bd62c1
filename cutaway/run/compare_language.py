"""Language modelling in a comparison: bits per byte of held-out text for anything that can be scored."""

from __future__ import annotations

import copy
import json
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from cutaway.data.documents import read
from cutaway.data.loader import Loader
from cutaway.data.shards import Shards, write_shards
from cutaway.device import pick, release_memory
from cutaway.evaluate.bits import score
from cutaway.evaluate.compression import compression
from cutaway.evaluate.held import HeldOut, held_out
from cutaway.generate.engine import Engine
from cutaway.generate.request import Request, Sampling
from cutaway.models.folder import save_model
from cutaway.models.light import for_sampling
from cutaway.models.model import LanguageModel, build
from cutaway.objectives.likelihood import Likelihood
from cutaway.records import Screen, Stopwatch, atomic_write
from cutaway.run.compare_notes import write_notes
from cutaway.run.compare_parts import Judged, Timing, Trained, Yardstick, bytes_in, rate, timed
from cutaway.run.compare_recipe import AnySystem, Comparison, LanguageTask, NeuralSystem, NGramSystem, Text
from cutaway.run.compare_train import train_neural
from cutaway.text.tokenizer import Tokenizer, train
from cutaway.text.tokenizer import load as load_tokenizer

EXAMPLES, SHOWN = 8, 700
PROMPT = 32  # tokens a system has read before it is timed, where its context has room for twice as many
SAMPLE = 64  # tokens it writes by itself for the report


def prepare(comparison: Comparison, folder: Path, screen: Screen) -> None:
    """Learn the tokenizer, write the shards, set the held-out text aside: once, for every system."""
    task, data = comparison.task, comparison.data
    assert isinstance(task, LanguageTask) and isinstance(data, Text)
    corpus = read(data)
    tokenizer = train(comparison.tokenizer, corpus.split("train"))
    tokenizer.save(folder / "tokenizer")
    manifest = write_shards(folder / "data" / "shards", corpus, tokenizer)
    skipped = copy.deepcopy(corpus.skipped)  # of this pass, which is the whole corpus
    text = held_out(corpus.split("test"), max_bytes=task.bytes)
    others = {name: m.to_dict() for name, m in compression(text).items()}
    atomic_write(folder / "data" / "held.json", json.dumps({"held": asdict(text), "beside": others}))
    counts = manifest.splits["train"]
    notes = [*([corpus.note] if corpus.note else []), f"left out of the corpus: {skipped}",
             f"{counts.documents:,} documents to learn from, {counts.tokens:,} tokens of {tokenizer.vocab_size:,}; "
             f"{_held_words(text)}"]
    for note in notes:
        screen.note(note)
    write_notes(folder, notes, skipped)


def _held_words(text: HeldOut) -> str:
    """How much is scored, of how much, and whether ``task.bytes`` cut a document."""
    taken, size = len(text.texts), sum(text.bytes)
    if (taken, size) == (text.available_documents, text.available_bytes):
        return f"{taken:,} held-out documents, {size:,} bytes"
    return (f"{taken:,} of {text.available_documents:,} held-out documents are scored, {size:,} of "
            f"{text.available_bytes:,} bytes (task.bytes){', the last document cut' if text.cut else ''}")


def open_bench(comparison: Comparison, folder: Path) -> LanguageBench:
    """What ``prepare`` wrote."""
    row = json.loads((folder / "data" / "held.json").read_text("utf-8"))["held"]
    return LanguageBench(comparison, load_tokenizer(folder / "tokenizer"), Shards.open(folder / "data" / "shards"),
                         HeldOut(**{**row, "texts": tuple(row["texts"])}))


@dataclass(frozen=True)
class LanguageBench:
    """The same shards, tokenizer and held-out text for every system."""

    comparison: Comparison
    tokenizer: Tokenizer
    shards: Shards
    held: HeldOut

    @property
    def yardstick(self) -> Yardstick:
        """Bits per byte; a token behind ``PROMPT`` others is what is timed."""
        return Yardstick("bits_per_byte", "bits per byte", "lower", "one token written", "tokens scored")

    def train(self, system: AnySystem, seed: int, folder: Path) -> Trained:
        """Fit or train one system and save it as a model folder."""
        if isinstance(system, NGramSystem):
            return self._counted(system, folder)
        assert isinstance(system, NeuralSystem)
        config = system.config(self.tokenizer.vocab_size)
        device = pick(self.comparison.device)
        dtype = torch.bfloat16 if self.comparison.dtype == "bfloat16" else torch.float32
        model = build(config, seed=seed, compute_dtype=dtype).to(device.torch)
        loader = Loader(self.shards, rows=system.rows, length=min(system.length, config.context_length), seed=seed)
        done = train_neural(model, lambda n: [loader.batch(n)], Likelihood(), system, self.comparison.budget, seed=seed,
                            flops_a_step=config.cost().train_flops(loader.length) * system.rows * loader.length)
        release_memory()
        save_model(folder, model, self.tokenizer)
        bill = config.cost()
        return Trained(for_sampling(model.eval()), done.seconds, done.steps, done.flops, bill.parameters,
                       bytes_in(folder), int(4 * bill.parameters + bill.state_bytes(loader.length)), folder, done.notes)

    def _counted(self, system: NGramSystem, folder: Path) -> Trained:
        from cutaway.models.kneser_ney import fit
        from cutaway.models.ngram import NGramConfig
        from cutaway.models.ngram_folder import save_ngram

        config = NGramConfig(vocab_size=self.tokenizer.vocab_size, order=system.order, prune=system.prune,
                             bos_id=self.tokenizer.bos_id)
        with Stopwatch() as watch, warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            model = fit(np.asarray(self.shards.tokens), np.asarray(self.shards.starts), config)
        save_ngram(folder, model, self.tokenizer)
        size = sum(a.nbytes for a in model.tensors().values())
        grams = sum(len(table.words) for table in model.tables)
        return Trained(model, watch.seconds, None, None, grams, bytes_in(folder), size, folder,
                       (f"{grams:,} n-grams are counted as its parameters", *(str(w.message) for w in said)))

    def judge(self, trained: Trained) -> Judged:
        """Bits and bytes of each held-out document; the dearest documents are the examples."""
        model: LanguageModel = trained.model
        found = score(model, self.tokenizer, self.held)
        bits = found.nats / np.log(2)
        worst = np.argsort(-(bits / found.bytes))[:EXAMPLES]
        examples = [{"item": int(i), "score": float(bits[i] / found.bytes[i]), "text": self.held.texts[i][:SHOWN],
                     "cut": len(self.held.texts[i]) > SHOWN} for i in worst]
        return Judged(bits.tolist(), found.bytes.tolist(), {"tokens": int(found.tokens.sum()),
                                                            "sample": self._written(model)}, examples)

    def _written(self, model: LanguageModel) -> str:
        prompt = (self.tokenizer.bos_id,)
        request = Request(prompt, min(SAMPLE, model.context_length - 1), Sampling(temperature=0.8), seed=0,
                          stop_ids=(self.tokenizer.eos_id,))
        return self.tokenizer.decode(Engine(model).generate([request])[0].tokens)

    def time(self, trained: Trained) -> Timing:
        """A token at a time behind a prompt, and the held-out text scored whole."""
        model: LanguageModel = trained.model
        task = self.comparison.task
        assert isinstance(task, LanguageTask)
        ids = [self.tokenizer.bos_id, *self.tokenizer.encode(self.held.texts[0])]
        before = min(PROMPT, model.context_length // 2)
        ids = (ids * -(-before // len(ids)))[:before]
        room = min(before + task.written + 1, model.context_length)
        with torch.inference_mode():
            state = model.new_state(1, capacity=room)
            model.logits(torch.tensor([ids]), state)
            spare = [state.copy()]

            def one() -> None:
                if int(spare[0].lengths[0]) >= room:
                    spare[0] = state.copy()
                model.logits(torch.tensor([[ids[-1]]]), spare[0])

            latencies = timed([one])
        some = HeldOut(self.held.texts[:8], 8, 0)
        tokens = sum(len(i) + 1 for i in self.tokenizer.encode_documents(some.texts))
        return Timing(latencies, rate(lambda: score(model, self.tokenizer, some), tokens))
