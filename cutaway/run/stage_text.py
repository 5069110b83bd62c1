"""Stage 1, text: learn the tokenizer, write the shards, make the conversations, set the held-out text aside."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from cutaway.data.conversations import Conversation, Conversations, Kind, make
from cutaway.data.documents import ConversationSettings, Corpus, read
from cutaway.data.shards import write_shards
from cutaway.errors import RunError, TrainingError
from cutaway.evaluate.compression import compression
from cutaway.evaluate.held import HeldOut, held_out
from cutaway.records import Stopwatch, atomic_write
from cutaway.run import lineage
from cutaway.run.folder import Run
from cutaway.run.recipe import Recipe
from cutaway.run.work import Text, Work
from cutaway.text.tokenizer import Tokenizer, train

STAGE = "tokenizer"
_KEEP = 20_000  # conversations of the training split; more than a run of this size can learn from


def text_stage(work: Work) -> None:
    """Everything later stages read; done once, by the first rank, then only read."""
    with work.alone() as mine, Stopwatch() as watch:
        if mine:
            _prepare(work, watch)


def _prepare(work: Work, watch: Stopwatch) -> None:
    recipe, run = work.recipe, work.run
    work.event(STAGE, "plan", {"basis": "once over the text"})
    corpus = read(recipe.data)
    if corpus.note:
        work.note(corpus.note)
    tokenizer = _tokenizer(work, corpus)
    with run.folder_for(run.folder / "tokenizer") as folder:
        tokenizer.save(folder)
    manifest = write_shards(run.folder / "data" / "shards", corpus, tokenizer)
    lineage.add_data(run, manifest, {"kind": tokenizer.kind, "sha256": tokenizer.digest,
                                     "vocab_size": tokenizer.vocab_size, "learned_from": tokenizer.learned_from})
    work.note(f"left out of the corpus: {corpus.skipped}")
    train_set, test_set = _conversations(work, corpus)
    other = other_text(recipe)  # that bits per byte are measured on
    held = held_out(corpus.split("test") if other is None else other, max_bytes=recipe.evaluate.bytes)
    if other is not None:
        work.note(f"left out of evaluate.text: {other.skipped}")
    write_text(run, train_set, test_set, held_out(corpus.split("valid"), max_bytes=recipe.evaluate.bytes // 4), held)
    run.write_json("evals/compression.json", {name: m.to_dict() for name, m in compression(work.text.held).items()})
    tokens = manifest.splits["train"].tokens
    work.note(f"{manifest.splits['train'].documents:,} documents to learn from, {tokens:,} tokens of "
              f"{tokenizer.vocab_size:,}; {len(work.text.train):,} + {len(work.text.test):,} held-out conversations")
    work.event(STAGE, "done", {"seconds": watch.seconds, "tokens": tokens})


def _tokenizer(work: Work, corpus: Corpus) -> Tokenizer:
    """The one that the model brings, or one learned from the training split."""
    settings = work.recipe.tokenizer
    return work.own_tokenizer() if settings is None else train(settings, corpus.split("train"))


def other_text(recipe: Recipe) -> Corpus | None:
    """The text of ``evaluate.text``, all of which is held out. Raises DataError where there is nothing to read."""
    text = recipe.evaluate.text
    return None if text is None else read(text.model_copy(update={"valid_share": 0.0, "test_share": 0.0}))


def _conversations(work: Work, corpus: Corpus) -> tuple[Conversations, Conversations]:
    finetune = work.recipe.finetune
    kind: Kind | Literal["auto"] = "auto" if finetune is None else finetune.conversations
    if isinstance(work.recipe.data, ConversationSettings):
        kind = "given"
    train_set = make(corpus.split("train"), kind, limit=_KEEP)
    test_set = make(corpus.split("test"), train_set.kind, limit=work.recipe.evaluate.requests * 20)
    train_set = train_set.without(test_set)
    if not len(train_set):
        raise TrainingError("every conversation of the training split also stands in the held-out split",
                            where=work.run.folder, way_out="give more varied text")
    work.note(f"training: {train_set}")
    work.note(f"held out: {test_set}")
    return train_set, test_set


def fits(conversation: Conversation, tokenizer: Tokenizer, context: int) -> bool:
    """Whether request and answer together are at most a context."""
    ids = tokenizer.encode(conversation.request), tokenizer.encode(conversation.answer)
    return len(ids[0]) + len(ids[1]) + 8 <= context


def write_text(run: Run, train_set: Conversations, test_set: Conversations, valid: HeldOut, held: HeldOut) -> None:
    """Keep the run's conversations and held-out text; ``text.json`` is written last."""
    folder = run.folder / "data"
    _write_rows(folder / "train.jsonl", train_set)
    _write_rows(folder / "test.jsonl", test_set)
    run.write_json("data/text.json", {
        "kind": train_set.kind, "train_left_out": dict(train_set.left_out), "test_left_out": dict(test_set.left_out),
        "valid": asdict(valid), "held": asdict(held)})


def _write_rows(path: Path, rows: Iterable[Conversation]) -> None:
    atomic_write(path, "".join(json.dumps(asdict(c), ensure_ascii=False) + "\n" for c in rows))


def _read_rows(path: Path) -> tuple[Conversation, ...]:
    try:
        lines: Sequence[str] = path.read_text("utf-8").split("\n")
        return tuple(Conversation(**json.loads(line)) for line in lines if line)
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"damaged or unreadable ({error})", where=path, way_out="begin the run again") from None


def read_text(run: Run) -> Text:
    """What ``write_text`` kept. Raises RunError naming the file that is missing or damaged."""
    facts = run.read_json("data/text.json")
    if facts is None:
        raise RunError("no such file", where=run.folder / "data" / "text.json", way_out="begin the run again")
    folder = run.folder / "data"
    return Text(_read_rows(folder / "train.jsonl"), _read_rows(folder / "test.jsonl"), facts["kind"],
                _held(facts["valid"]), _held(facts["held"]))


def _held(row: dict[str, object]) -> HeldOut:
    return HeldOut(**{**row, "texts": tuple(row["texts"])})  # type: ignore[arg-type]
