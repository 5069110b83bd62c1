"""Damaged and hostile files for the readers of models: GGUF, safetensors, config.json, tokenizer.json, llama2.c,
sentence-transformers' modules, chat templates and archives.

Each case is a good file with bytes flipped, cut, doubled, spliced or with numbers and strings replaced by extreme ones.
A reader may give a model or refuse with a CutawayError of one line; anything else (another exception, a second longer
than five, a gigabyte more) is a finding. Every case is a function of its number and --seed. A chat
template that never ends costs five seconds. --quick runs five hundred.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import random
import resource
import struct
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from cutaway import device, records
from cutaway.errors import CutawayError
from cutaway.models import pull
from cutaway.models.folder import load_model, load_tokenizer, public_tensors, save_model
from cutaway.models.gguf_write import write_gguf
from cutaway.models.heads import Vector
from cutaway.models.model import Model, build
from cutaway.models.transformer import TransformerConfig
from cutaway.text.chat import Message, apply_template
from cutaway.text.tokenizer import SubwordSettings, Tokenizer, train

SLOW, MEMORY = 5.0, 1 << 30
EXTREME = (0, 1, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
JUNK: tuple[Any, ...] = (None, True, -1, 0, 2**63, 1e308, "", "\x00", "../../etc/passwd", "x" * 100_000, [], {},
                         [[]] * 50, {"a": {"b": {}}}, "{{ ''.__class__.__mro__ }}")
SIZES = {"vocab_size": 300, "hidden_size": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2,
         "intermediate_size": 32, "context_length": 32}
Reader = Callable[[Path], object]


def flipped(data: bytes, draw: random.Random) -> bytes:
    """Bytes changed here and there, more often near the beginning; or cut, doubled, spliced."""
    out = bytearray(data)
    kind = draw.randrange(6)
    if kind == 0:
        return bytes(out[: draw.randrange(len(out) + 1)])
    if kind == 1:
        at, size = draw.randrange(len(out)), draw.randrange(1, 200)
        return bytes(out[:at] + out[at : at + size] * draw.randrange(2, 9) + out[at + size :])
    for _ in range(draw.randrange(1, 9)):
        at = int(len(out) * draw.random() ** 3)
        if kind == 2 and at + 8 <= len(out):
            out[at : at + 8] = struct.pack("<Q", draw.choice(EXTREME))
        elif kind == 3 and at + 4 <= len(out):
            out[at : at + 4] = struct.pack("<I", draw.choice(EXTREME) % 2**32)
        else:
            out[min(at, len(out) - 1)] = draw.randrange(256)
    return bytes(out)


def twisted(data: bytes, draw: random.Random) -> bytes:
    """A JSON file with values replaced, removed or moved; now and then only its bytes."""
    if draw.random() < 0.2:
        return flipped(data, draw)
    tree = json.loads(data)
    for _ in range(draw.randrange(1, 4)):
        holders = [tree]
        for holder in holders[:2000]:
            inside = holder.values() if isinstance(holder, dict) else holder
            holders += [v for v in list(inside)[:50] if isinstance(v, dict | list) and v]
        holder = draw.choice(holders)
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        if not keys:
            continue
        key = draw.choice(keys)
        if draw.random() < 0.2:
            del holder[key]
        else:
            holder[key] = copy.deepcopy(draw.choice(JUNK))
    return json.dumps(tree).encode()


TEMPLATES = ("{% for m in messages %}{{ m['content'] }}{% endfor %}", "{{ messages }}", "{{ ''.__class__.__mro__[1] }}",
             "{{ messages.append(1) }}", "{% for i in range(10**9) %}x{% endfor %}", "{{ 'x' * 10**10 }}",
             "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "{{ cycler.__init__.__globals__ }}",
             "{% include '/etc/passwd' %}",
             "{{ messages[0]['content'] | map('upper') | list }}", "{{ lipsum() }}", "{{ namespace(x=1).x }}")


def archive(draw: random.Random, good: bytes) -> bytes:
    """A zip with hostile names, or a good one with bytes changed."""
    if draw.random() < 0.5:
        return flipped(good, draw)
    out = io.BytesIO()
    names = ["config.json", "../evil.json", f"{tempfile.gettempdir()}/evil.json", "a/../../evil.json", "..\\evil.json",
             "model.safetensors", ""]
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as made, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(draw.randrange(1, 6)):
            entry = zipfile.ZipInfo(draw.choice(names) or "x.json")
            entry.external_attr = draw.choice((0o100644, 0o120777, 0o040755)) << 16
            made.writestr(entry, bytes(draw.randrange(3) * 50_000))
    return out.getvalue()


def llama2c(model: Model) -> bytes:
    """Near enough to a checkpoint of llama2.c for its reader to look at it."""
    c = model.config
    head = struct.pack("<7i", c.hidden_size, c.intermediate_size, c.num_layers, c.num_heads, c.num_kv_heads,
                       c.vocab_size, c.context_length)
    return head + b"".join(t.numpy().tobytes() for t in public_tensors(model).values()) + bytes(
        4 * c.context_length * c.head_size)


class Files:
    """Good files of every kind in a folder of their own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        tokenizer = train(SubwordSettings(vocab_size=275), ["def add(a, b):\n    return a + b\n"] * 40)
        model = build(TransformerConfig(**SIZES), seed=1)
        save_model(root / "model", model, tokenizer)
        encoder = build(TransformerConfig(shape="encoder", **SIZES), head=Vector(), seed=1)
        save_model(root / "vectors", encoder, tokenizer)
        for folder in ("model", "vectors"):  # as somebody else's: no digests
            (root / folder / "cutaway.json").unlink()
        write_gguf(root / "m.gguf", model, tokenizer, kind="q8_0")
        (root / "m.bin").write_bytes(llama2c(model))
        (root / "public").mkdir()
        tree = json.loads(tokenizer.json)
        (root / "public" / "tokenizer.json").write_text(json.dumps(tree))
        (root / "public" / "tokenizer_config.json").write_text(json.dumps(
            {"eos_token": "<|eos|>", "bos_token": "<|bos|>", "chat_template": TEMPLATES[0]}))
        with zipfile.ZipFile(root / "model.zip", "w") as made:
            made.write(root / "model" / "config.json", "config.json")


def readers(files: Files) -> dict[str, tuple[Path, Callable[[bytes, random.Random], bytes], Reader]]:
    """By name: the good file, how it is spoiled, and who reads it."""
    root = files.root

    def unpacked(path: Path) -> object:
        with tempfile.TemporaryDirectory() as folder, path.open("rb") as file:
            before = {*root.rglob("evil*"), *Path(tempfile.gettempdir()).glob("evil.json")}
            pull.unpack(file, Path(folder) / "in")
            if {*root.rglob("evil*"), *Path(tempfile.gettempdir()).glob("evil.json")} - before:
                raise AssertionError("an archive led out of its folder")
        return None

    def templated(path: Path) -> object:
        return apply_template([Message("user", "Hi")], path.read_text(errors="replace"))

    def spoiled_template(_: bytes, draw: random.Random) -> bytes:
        base = draw.choice(TEMPLATES)
        return flipped(base.encode(), draw) if draw.random() < 0.5 else base.encode()

    (root / "template.jinja").write_text(TEMPLATES[0])
    return {
        "gguf model": (root / "m.gguf", flipped, load_model),
        "gguf tokenizer": (root / "m.gguf", flipped, load_tokenizer),
        "llama2.c": (root / "m.bin", flipped, load_model),
        "safetensors": (root / "model" / "model.safetensors", flipped, lambda p: load_model(p.parent)),
        "config.json": (root / "model" / "config.json", twisted, lambda p: load_model(p.parent)),
        "modules.json": (root / "vectors" / "modules.json", twisted, lambda p: load_model(p.parent)),
        "tokenizer.json": (root / "public" / "tokenizer.json", twisted, lambda p: _used(load_tokenizer(p.parent))),
        "tokenizer_config.json": (root / "public" / "tokenizer_config.json", twisted,
                                  lambda p: _used(load_tokenizer(p.parent))),
        "archive": (root / "model.zip", lambda data, draw: archive(draw, data), unpacked),
        "chat template": (root / "template.jinja", spoiled_template, templated)}


def _used(tokenizer: Tokenizer) -> object:
    return tokenizer.decode(tokenizer.encode("def add(a, b): naïve 漢字"))


def tried(path: Path, data: bytes, read: Reader) -> str:
    """``read`` or ``refused``, or what is wrong with the reader. The good file is put back."""
    good = path.read_bytes()
    path.write_bytes(data)
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read(path)
        said = "read"
    except CutawayError as error:
        said = "refused" if "\n" not in str(error) else f"two lines: {str(error)[:80]!r}"
    except Exception as error:
        said = f"{type(error).__name__}: {str(error)[:80]}"
    finally:
        path.write_bytes(good)
    if time.monotonic() - began > SLOW:
        return f"slow, {time.monotonic() - began:.0f} s"
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return f"{more / 2**20:.1f} GiB more" if more > MEMORY / 1024 else said


def main() -> None:
    """A line a reader, every finding with its number, one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one reader, by its name")
    parser.add_argument("--quick", action="store_true", help="five hundred cases")
    options = parser.parse_args()
    cases = 500 if options.quick else options.cases
    torch.set_num_threads(1)
    figures: dict[str, dict[str, int]] = {}
    findings: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        known = readers(Files(Path(folder)))
        chosen = {n: r for n, r in known.items() if options.only in (None, n)}
        if not chosen:
            raise SystemExit(f"no reader is called {options.only!r}; there are {', '.join(known)}")
        for name, (path, spoil, read) in chosen.items():
            counts: Counter[str] = Counter()
            good = path.read_bytes()
            for number in range(cases // len(chosen)):
                draw = random.Random(f"{options.seed} {name} {number}")
                outcome = tried(path, spoil(good, draw), read)
                counts[outcome if outcome in ("read", "refused") else "found"] += 1
                if outcome not in ("read", "refused"):
                    findings.append(f"{name} {number}: {outcome}")
            figures[name] = dict(counts)
            print(f"{name:<24}{counts['read']:>7} read {counts['refused']:>7} refused {counts['found']:>7} found",
                  flush=True)
    for finding in findings[:40]:
        print("  " + finding, file=sys.stderr)
    print(json.dumps({"name": "fuzz", "figures": figures, "findings": len(findings), "cases": cases,
                      "ok": not findings, "machine": asdict(device.describe(device.pick("cpu"))),
                      "versions": records.environment()["versions"]}))
    raise SystemExit(bool(findings))


if __name__ == "__main__":
    main()
