"""Damaged and hostile files for every reader of ``fuzz_files.py``.

Each case is a good file with bytes flipped, cut, doubled, spliced or with numbers and strings replaced by extreme ones,
or by values of another kind.
A reader may give a model or refuse with a CutawayError of one line; anything else is a finding: another exception, the
process's death, more than eight seconds, more than a gigabyte. Readers run in a process of their own whose memory is
bounded. Every case is a function of its number and --seed. --quick runs some of each; so does a test.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import math
import multiprocessing
import os
import random
import resource
import struct
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from fuzz_files import TEMPLATES, Reader, readers

from cutaway import device, records
from cutaway.errors import CutawayError
from cutaway.models import gguf_file

SLOW, HUNG, MEMORY = 8.0, 60.0, 1 << 30  # a template that never ends takes five seconds
EXTREME = (0, 1, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
JUNK: tuple[Any, ...] = (None, True, -1, 0, 1.5, 2**31, 2**63, 1e308, float("nan"), "", "\x00", "../../etc/passwd",
                         "x" * 100_000, [], {}, [[]] * 50, {"a": {"b": {}}}, "{{ ''.__class__.__mro__ }}")

# a value of GGUF's metadata: the number of its kind, and itself
TYPED: tuple[tuple[int, Any], ...] = (
    (0, 7), (1, -1), (4, 0), (4, 1), (4, 2**31), (4, 2**32 - 1), (5, -1), (5, 3), (6, 0.0), (6, 2.5), (6, math.nan),
    (6, math.inf), (7, True), (7, False), (8, ""), (8, "abc"), (8, "gpt2"), (8, "llama"), (10, 2**63), (11, -(2**63)),
    (12, 1e308), (12, -1.0), (9, (8, [])), (9, (8, ["a", "b"])), (9, (8, ["a"] * 400)), (9, (5, [1] * 400)),
    (9, (5, [-1, 300])), (9, (6, [math.nan] * 400)), (9, (6, [1.5])), (9, (7, [True] * 400)),
    (9, (9, [(5, [1]), (8, ["a"])])))


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


def spoiled_template(_: bytes, draw: random.Random) -> bytes:
    """A hostile template, as it is or with bytes changed."""
    base = draw.choice(TEMPLATES)
    return flipped(base.encode(), draw) if draw.random() < 0.5 else base.encode()


def packed(kind: int, value: Any) -> bytes:
    """A value of GGUF's metadata behind the number of its kind; of an array, (the kind inside, its values)."""
    if kind == 8:
        raw = value.encode()
        return struct.pack("<IQ", kind, len(raw)) + raw
    if kind == 9:
        inside, values = value
        return struct.pack("<IIQ", kind, inside, len(values)) + b"".join(packed(inside, v)[4:] for v in values)
    return struct.pack("<I", kind) + struct.pack(gguf_file._NUMBERS[kind], value)


def retyped(data: bytes, draw: random.Random) -> bytes:
    """A GGUF file in which one value or two of the metadata are of another kind, or as extreme as theirs allows."""
    head: Any = gguf_file._Header(data, Path("good.gguf"))  # type: ignore[arg-type]
    head.at, pairs = 24, struct.unpack_from("<Q", data, 16)[0]
    values: list[list[bytes]] = []
    for _ in range(pairs):
        begin, _ = head.at, head._string()
        middle, _ = head.at, head._value(head._number(4), 0)
        values.append([data[begin:middle], data[middle : head.at]])
    infos = head.at
    for _ in range(struct.unpack_from("<Q", data, 8)[0]):
        head._string()
        dimensions = head._number(4)
        head.at += 8 * dimensions + 12
    for _ in range(draw.randrange(1, 3)):
        draw.choice(values)[1] = packed(*draw.choice(TYPED))
    out = data[:24] + b"".join(key + value for key, value in values) + data[infos : head.at]
    return out + bytes(-len(out) % 32) + data[-(-head.at // 32) * 32 :]


SPOIL: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "bytes": flipped, "gguf": retyped, "json": twisted, "zip": lambda data, draw: archive(draw, data),
    "template": spoiled_template}


def tried(path: Path, data: bytes, read: Callable[[Path], object]) -> str:
    """``read`` or ``refused``, or what is wrong with the reader. The good file is put back."""
    good = path.read_bytes()
    path.write_bytes(data)
    began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read(path)
        said = "read"
    except CutawayError as error:
        said = "refused" if "\n" not in str(error) else f"two lines: {str(error)[:80]!r}"
    except Exception as error:
        said = f"{type(error).__name__}: {str(error)[:80]}"
    except BaseException as error:  # the libraries' own panics are no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        said = f"{type(error).__name__}: {str(error)[:80]}"
    finally:
        path.write_bytes(good)
    if time.process_time() - began > SLOW:  # of its own: what else the machine does is no finding
        return f"slow, {time.process_time() - began:.0f} s"
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return f"{more / 2**20:.1f} GiB more" if more > MEMORY / 1024 else said


def _work(pipe: Connection, name: str, reader: Reader, numbers: Sequence[int], seed: int) -> None:
    """Try case after case in this process; before each its number is said, behind it what became of it."""
    if sys.platform == "linux":
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + 2 * MEMORY,) * 2)
    good = reader.path.read_bytes()
    for number in numbers:
        pipe.send((number, None))
        draw = random.Random(f"{seed} {name} {number}")
        pipe.send((number, tried(reader.path, SPOIL[reader.how](good, draw), reader.read)))
    pipe.close()
    os._exit(0)


def outcomes(name: str, reader: Reader, count: int, seed: int) -> Iterator[tuple[int, str]]:
    """Each case's number and what became of it. A process that dies or hangs is a finding, and another goes on."""
    good, at = reader.path.read_bytes(), 0
    context = multiprocessing.get_context("fork")
    while at < count:
        ours, theirs = context.Pipe()
        worker = context.Process(target=_work, args=(theirs, name, reader, range(at, count), seed))
        worker.start()
        theirs.close()
        try:
            while at < count and ours.poll(HUNG):
                number, said = ours.recv()
                if said is not None:
                    at = number + 1
                    yield number, said
        except EOFError:
            pass
        alive = worker.is_alive() and at < count
        worker.join(1) if not alive else worker.kill()
        worker.join()
        ours.close()
        reader.path.write_bytes(good)
        if at < count:
            yield at, f"hangs for {HUNG:.0f} s" if alive else f"its process died ({worker.exitcode})"
            at += 1


def main() -> None:
    """A line a reader, every finding with its number, one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one reader, by its name")
    parser.add_argument("--quick", action="store_true", help="a thousand cases")
    options = parser.parse_args()
    cases = 1000 if options.quick else options.cases
    figures: dict[str, dict[str, int]] = {}
    findings: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        known = readers(Path(folder))
        chosen = {n: r for n, r in known.items() if options.only in (None, n)}
        if not chosen:
            raise SystemExit(f"no reader is called {options.only!r}; there are {', '.join(known)}")
        for name, reader in chosen.items():
            counts: Counter[str] = Counter()
            if (said := tried(reader.path, reader.path.read_bytes(), reader.read)) != "read":
                findings.append(f"{name}: the good file is {said}")
            for number, said in outcomes(name, reader, -(-cases // len(chosen)), options.seed):
                counts[said if said in ("read", "refused") else "found"] += 1
                if said not in ("read", "refused"):
                    findings.append(f"{name} {number}: {said}")
            figures[name] = dict(counts)
            print(f"{name:<26}{counts['read']:>7} read {counts['refused']:>7} refused {counts['found']:>7} found",
                  flush=True)
    for finding in findings[:200]:
        print("  " + finding, file=sys.stderr)
    print(json.dumps({"name": "fuzz", "figures": figures, "findings": len(findings),
                      "cases": sum(sum(f.values()) for f in figures.values()), "ok": not findings,
                      "machine": asdict(device.describe(device.pick("cpu"))),
                      "versions": records.environment()["versions"]}))
    raise SystemExit(bool(findings))


if __name__ == "__main__":
    main()
