"""Text to tokens: documents on disk to finished shards, beside `tokenizers`' own encode_batch on the same texts.

The peer is given the texts as a list in memory and gives lists of ids; ours starts at a file and ends with files that
are hashed and synced. Both load their tokenizer anew each round (no cache stays warm) and take turns.
"""

from __future__ import annotations

import sys

if __name__ == "tokenize":  # imported for the standard library's module: a script's folder is searched first
    import importlib.util
    import sysconfig

    _spec = importlib.util.spec_from_file_location("tokenize", f"{sysconfig.get_path('stdlib')}/tokenize.py")
    assert _spec is not None and _spec.loader is not None
    sys.modules["tokenize"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["tokenize"])
else:
    import argparse
    import gzip
    import json
    import os
    import statistics
    import tempfile
    from collections.abc import Iterator
    from dataclasses import asdict
    from pathlib import Path
    from typing import Any

    import numpy as np

    from cutaway import device, records
    from cutaway.data.documents import PathSettings, StdlibSettings, read
    from cutaway.data.shards import Shards, frame, write_shards
    from cutaway.text.tokenizer import ByteSettings, SubwordSettings, Tokenizer, load, train

    BYTES = 20_000_000
    SHARDS, MEMORY = "documents to shards", "texts to ids in memory"
    TARGETS = {SHARDS: 8.0}


def texts_of(limit: int) -> tuple[str, list[str]]:
    """Where the text is from, and distinct texts of ``limit`` bytes together, or of all there is."""
    data = os.environ.get("CUTAWAY_DATA")
    path = Path(data) / "gutenberg_large" / "train.jsonl.gz" if data else None
    source = "gutenberg_large" if path and path.exists() else "python-stdlib"
    taken: dict[str, None] = {}
    size = 0
    for text in _books(path) if path and path.exists() else _stdlib():
        if size >= limit:
            break
        if text.strip() and text not in taken:
            taken[text] = None
            size += len(text.encode())
    return source, list(taken)


def _books(path: Path) -> Iterator[str]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from (json.loads(line)["text"] for line in lines)


def _stdlib() -> Iterator[str]:
    return (document.text for document in read(StdlibSettings(valid_share=0.0, test_share=0.0)))


def peer_round(folder: Path, texts: list[str]) -> tuple[float, list[list[int]]]:
    """Seconds that ``tokenizers`` takes for all texts at once, and its ids."""
    from tokenizers import Tokenizer as Peer

    peer = Peer.from_file(str(folder / "tokenizer.json"))
    peer.encode_special_tokens = True  # text stays text, as in ours
    with records.Stopwatch() as watch:
        encoded = peer.encode_batch(texts, add_special_tokens=False)
    return watch.seconds, [e.ids for e in encoded]


def shards_round(folder: Path, source: Path) -> tuple[float, Path]:
    """Seconds from the file of documents to verified shards on the disk, and where they are."""
    tokenizer, out = load(folder), Path(tempfile.mkdtemp(dir=folder)) / "shards"
    with records.Stopwatch() as watch:
        write_shards(out, read(PathSettings(path=str(source), valid_share=0.0, test_share=0.0)), tokenizer)
    return watch.seconds, out


def memory_round(folder: Path, texts: list[str]) -> float:
    """Seconds from the texts in memory to one array of ids."""
    tokenizer = load(folder)
    with records.Stopwatch() as watch:
        tokenizer.encode_flat(texts)
    return watch.seconds


def equal(tokenizer: Tokenizer, shards: Path, rows: list[list[int]]) -> bool:
    """Whether the shards hold the peer's ids, each document between bos and eos."""
    lengths = np.array([len(row) for row in rows])
    ids = np.fromiter((i for row in rows for i in row), np.uint32, int(lengths.sum()))
    expected, starts = frame(ids, lengths, tokenizer.bos_id, tokenizer.eos_id)
    found = Shards.open(shards)
    return bool(np.array_equal(found.tokens, expected) and np.array_equal(found.starts, starts))


def contest(folder: Path, texts: list[str], rounds: int) -> tuple[dict[str, list[float]], bool, str]:
    """Seconds of each contender in each round, whether every round's ids were equal, and which encoder ours used."""
    source = folder / "texts.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    settings = SubwordSettings(vocab_size=4096, sample_bytes=4_000_000)
    tokenizer = train(settings, texts)
    tokenizer.save(folder)
    train(ByteSettings(), ()).encode_documents(["imports are not timed"])
    seconds: dict[str, list[float]] = {"tokenizers": [], SHARDS: [], MEMORY: []}
    same, encoder = True, ""
    for number in range(rounds):
        spent, rows = peer_round(folder, texts)
        seconds["tokenizers"].append(spent)
        spent, out = shards_round(folder, source)
        seconds[SHARDS].append(spent)
        seconds[MEMORY].append(memory_round(folder, texts))
        encoder = Shards.open(out).manifest.encoder
        same = same and equal(tokenizer, out, rows)
        print(
            f"  round {number + 1} of {rounds}: {seconds['tokenizers'][-1]:.2f} s and {spent:.3f} s",
            file=sys.stderr,
        )
    return seconds, same, encoder


def training(texts: list[str]) -> dict[str, float]:
    """Seconds to learn 4,096 tokens of BPE from 10 MB."""
    with records.Stopwatch() as watch:
        learned = train(SubwordSettings(vocab_size=4096, sample_bytes=10_000_000), texts)
    return {"seconds": watch.seconds, "bytes": learned.learned_from["bytes"]}


def main() -> None:
    """Table, then one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="3 rounds, within 60 s")
    options = parser.parse_args()
    source, texts = texts_of(BYTES)
    size = sum(len(text.encode()) for text in texts)
    with tempfile.TemporaryDirectory(prefix="cutaway-tokenize-") as name:
        seconds, same, encoder = contest(Path(name), texts, 3 if options.quick else options.rounds)
    peer = seconds["tokenizers"]
    ratios = {
        case: statistics.median(p / s for p, s in zip(peer, seconds[case], strict=True))
        for case in (SHARDS, MEMORY)
    }
    learned = training(texts)
    print(
        f"{size / 1e6:.1f} MB in {len(texts):,} documents of {source}; bpe of 4,096 tokens; ids equal: {same}"
    )
    print(f"{'':<28}{'MB/s':>8}{'lowest':>9}{'highest':>9}{'x tokenizers':>14}{'wanted':>8}")
    figures: dict[str, Any] = {}
    for case, spent in seconds.items():
        rates = sorted(size / s / 1e6 for s in spent)
        figures[case] = {"megabytes_per_second": statistics.median(rates), "low": rates[0], "high": rates[-1]}
        print(
            f"{case:<28}{statistics.median(rates):>8.1f}{rates[0]:>9.1f}{rates[-1]:>9.1f}"
            f"{ratios.get(case, 1.0):>14.1f}{TARGETS.get(case, ''):>8}"
        )
    print(f"learning the vocabulary from {learned['bytes'] / 1e6:.1f} MB took {learned['seconds']:.2f} s")
    figures |= {
        "learning": learned,
        "bytes": size,
        "documents": len(texts),
        "source": source,
        "encoder": encoder,
        "ids_equal": same,
    }
    machine = asdict(device.known(device.pick("cpu")))
    print(
        json.dumps(
            {
                "name": "tokenize",
                "figures": figures,
                "ratios": ratios,
                "targets": TARGETS,
                "ok": same and all(ratios[c] >= t for c, t in TARGETS.items()),
                "machine": machine,
                "versions": records.environment()["versions"],
            }
        )
    )


if __name__ == "__main__":
    main()
