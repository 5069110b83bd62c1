"""What a hostile client or a hostile model folder can do to ``cutaway serve``: every attack sent to a real server, how
it was answered, how long that took, what memory it cost, and what an honest client waited meanwhile.

Wanted: each is refused with a status of 4xx (or its connection ended), within its time, and the server goes on (a
schema that would explode elsewhere may be answered, if that takes less than a second and 64 MiB); an honest request
during the slow attacks is answered; the time of a wrong key says nothing of how wrong it is (the difference's interval
holds 0). Needs `cutaway pull smollm2-135m-instruct`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cutaway import device, records
from cutaway.models.folder import save_model
from cutaway.models.model import build
from cutaway.models.transformer import TransformerConfig
from cutaway.server.keys import hashed
from cutaway.text.tokenizer import train
from cutaway.text.vocabulary import ByteSettings

MODEL, KEY = "smollm2-135m-instruct", "a-key-that-is-long-enough-0123456789"
OTHER = "another-key-that-is-long-enough-98765"  # of the honest client
CHAT, LONGEST = "/v1/chat/completions", 10.0  # seconds that an attack may take to be answered, or an honest client
HANGS = 999  # in place of a status: no answer and no end within the time
TEMPLATES = {
    "template reaches for Python": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "template imports": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "template loops for ever": "{% for i in range(10**12) %}{{ i }}{% endfor %}",
    "template doubles a string": "{% set n = namespace(a='a' * 999) %}{% for i in range(99) %}"
                                 "{% set n.a = n.a ~ n.a %}{% endfor %}{{ n.a }}",
    "template asks for ten gigabytes": "{{ 'a' * 10**10 }}"}


@dataclass
class Outcome:
    """How an attack ended: status 0 is a connection that was closed."""

    name: str
    status: int
    seconds: float
    grown: float  # bytes of memory
    honest: float | None  # seconds an honest request took meanwhile
    alive: bool
    note: str = ""

    @property
    def held(self) -> bool:
        """Whether the server did what is wanted: it refused, or, of a bomb that is none to it, answered at no cost."""
        served = self.honest is None or self.honest < LONGEST
        harmless = self.name.startswith("schema") and self.status == 200 and self.seconds < 1 and self.grown < 64 << 20
        refused = self.status == 0 or 400 <= self.status < 500
        return self.alive and served and (refused or harmless) and "NOT" not in self.note


class Target:
    """A server process."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process, self.port = process, port

    def send(self, data: bytes, *, timeout: float = 40) -> tuple[int, bytes]:
        """Raw bytes, and the status and body that come back; 0 for a connection that ends without."""
        whole = b""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as made:
                with suppress(ConnectionError):
                    made.sendall(data)
                while piece := made.recv(65_536):
                    whole += piece
        except TimeoutError:
            return HANGS, b""
        except OSError:
            pass
        head, _, body = whole.partition(b"\r\n\r\n")
        return (int(head.split(b" ", 2)[1]) if head.startswith(b"HTTP/") else 0), body

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, bytes]:
        """A request with a JSON body, or bytes as they are."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.send(request("POST", path, data, **headers))

    def memory(self) -> float:
        """Resident bytes."""
        rows = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return int(next(r for r in rows if r.startswith("VmRSS")).split()[1]) * 1024.0

    def alive(self) -> bool:
        """Whether it still answers."""
        return self.send(request("GET", "/health", b""))[0] == 200

    def honest(self) -> float:
        """Seconds of an ordinary short chat; 999 where it is not answered."""
        began = time.perf_counter()
        status, _ = self.post(CHAT, chat(max_tokens=4), Authorization=f"Bearer {OTHER}")
        return time.perf_counter() - began if status == 200 else 999.0


def request(method: str, path: str, body: bytes, *, host: str = "127.0.0.1", **headers: str) -> bytes:
    """The bytes of a request."""
    more = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return (f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n{more}\r\n").encode() + body


def chat(**more: Any) -> dict[str, Any]:
    """A small conversation."""
    return {"model": MODEL, "messages": [{"role": "user", "content": "Say yes."}], "max_tokens": 4, **more}


def schema(tree: Any) -> dict[str, Any]:
    """A conversation whose answer is to be as the schema says."""
    return chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": tree}}, max_tokens=64)


def nested(depth: int) -> dict[str, Any]:
    """A schema within schemas."""
    tree: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        tree = {"type": "object", "properties": {"a": tree}, "required": ["a"]}
    return tree


def attacks() -> dict[str, bytes]:
    """Attacks of one request."""
    def post(body: Any, path: str = CHAT, **headers: str) -> bytes:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return request("POST", path, data, Authorization=f"Bearer {KEY}", **headers)

    fibonacci = {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i - 1}"}, {"type": "array", "items": {
        "$ref": f"#/$defs/d{i - 1}"}}] if i else [{"type": "null"}]} for i in range(60)}
    tricks = ("../../../etc/passwd", "/etc/passwd", "..\\..\\x", "smollm2-135m-instruct/../x", "a\x00b", "%2e%2e/x",
              "C:\\x", "~root", "https://evil.example/model", "a" * 100_000)
    return {
        "header of 100 kB": post(chat(), X_Much="a" * 100_000),
        "20,000 headers": b"GET /health HTTP/1.1\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
        "request line of 100 kB": request("GET", "/" + "a" * 100_000, b""),
        "body of 64 MiB": post(b"[" + b"1," * (32 << 20) + b"1]"),
        "body said to be of 10 GB": b"POST " + CHAT.encode() + b" HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
                                    b"Authorization: Bearer " + KEY.encode() + b"\r\nContent-Type: application/json\r\n"
                                    b"Content-Length: 10000000000\r\n\r\n{",
        "JSON 200,000 deep": post(b"[" * 200_000), "JSON of objects 5,000 deep": post(b'{"a":' * 5_000),
        "number of 300,000 digits": post(b'{"model": "x", "n": ' + b"9" * 300_000 + b"}"),
        "NaN": post(b'{"model": "x", "temperature": NaN}'), "the same key twice": post(
            b'{"model": "' + MODEL.encode() + b'", "model": "b", "messages": [{"role": "user", "content": "x"}]}'),
        "n of a billion": post(chat(n=10**9)), "max_tokens of 10**18": post(chat(max_tokens=10**18)),
        "100,000 stops": post(chat(stop=["a"] * 100_000)), "top_logprobs of 49,152": post(
            chat(logprobs=True, top_logprobs=49_152)),
        "20,000 messages": post(chat(messages=[{"role": "user", "content": "a"}] * 20_000)),
        "a prompt of 900 kB": post(chat(messages=[{"role": "user", "content": "river " * 150_000}])),
        "schema 60 deep of doubling definitions": post(schema({"$defs": fibonacci, "$ref": "#/$defs/d59"})),
        "schema with a pattern that explodes": post(schema({"type": "string", "pattern": "^((a?){60}){60}$"})),
        "schema with a counted pattern": post(schema({"type": "string", "pattern": "(((a{1,99}){1,99}){1,99}){1,99}"})),
        "schema of 20,000 properties": post(schema({"type": "object", "properties": {
            f"p{i}": {"type": "string"} for i in range(20_000)}, "required": [f"p{i}" for i in range(20_000)]})),
        "schema with a list of a billion": post(schema({"type": "array", "items": {"type": "null"},
                                                        "minItems": 10**9})),
        "schema 50 objects deep": post(schema(nested(50))),
        "schema that is its own": post(schema({"$ref": "#"})),
        "schema from another host": post(schema({"$ref": "http://169.254.169.254/latest/meta-data"})),
        "Host of a stranger": request("GET", "/v1/models", b"", host="evil.example", Authorization=f"Bearer {KEY}"),
        "Host that begins right": request("GET", "/v1/models", b"", host="127.0.0.1.evil.example"),
        "Origin of a stranger": post(chat(), Origin="https://evil.example"),
        "Origin null": post(chat(), Origin="null"), "no key": request("POST", CHAT, b"{}"),
        "key in the address": request("GET", f"/v1/models?key={KEY}", b""),
        "Transfer-Encoding and Content-Length": request("POST", CHAT, b"0\r\n\r\nGET /v1/models HTTP/1.1\r\n\r\n",
                                                        Transfer_Encoding="chunked"),
        "path out of the page": request("GET", "/../../../etc/passwd", b"", Authorization=f"Bearer {KEY}"),
        "path out, written in percents": request("GET", "/v1/models/..%2f..%2f..%2fetc%2fpasswd", b"",
                                                 Authorization=f"Bearer {KEY}"),
        **{f"model named {t[:30]!r}": post(chat(model=t)) for t in tricks}}


def once(target: Target, name: str, act: Callable[[], tuple[int, bytes]], *, beside: bool = False) -> Outcome:
    """Do it and look what became of the server; ``beside``: an honest client asks while it lasts."""
    before, honest = target.memory(), list[float]()
    asking = threading.Thread(target=lambda: (time.sleep(0.5), honest.append(target.honest())))
    if beside:
        asking.start()
    began = time.perf_counter()
    status, body = act()
    seconds = time.perf_counter() - began
    if beside:
        asking.join()
    note = "" if seconds <= LONGEST or beside else "NOT in time"
    if b"root:" in body or b"uid=" in body:
        note = "NOT kept secret"
    return Outcome(name, status, seconds, target.memory() - before, honest[0] if honest else None, target.alive(), note)


def slowly(target: Target, *, body: bool, count: int = 200) -> tuple[int, bytes]:
    """Slowloris: many connections, a byte at a time, in the head or in the body, until the server ends them."""
    start = request("POST", CHAT, b"x" * 1000, Authorization=f"Bearer {KEY}")
    start = start[: start.index(b"\r\n\r\n") + 4] if body else start[:20]
    made = [socket.create_connection(("127.0.0.1", target.port), timeout=60) for _ in range(count)]
    for connection in made:
        connection.sendall(start)
        connection.setblocking(False)
    end, left = time.monotonic() + 90, list(made)
    while left and time.monotonic() < end:
        for connection in list(left):
            try:
                connection.send(b"x")
                if not connection.recv(4096):
                    raise ConnectionError
                left.remove(connection)
            except BlockingIOError:
                pass
            except OSError:
                left.remove(connection)
        time.sleep(2)
    for connection in made:
        connection.close()
    return (0, b"") if not left else (200, b"")


def crowd(target: Target, count: int = 700) -> tuple[int, bytes]:
    """That many connections that say nothing, for five seconds."""
    made: list[socket.socket] = []
    with suppress(OSError):
        for _ in range(count):
            made.append(socket.create_connection(("127.0.0.1", target.port), timeout=5))
    time.sleep(5)
    for connection in made:
        connection.close()
    return 0, b""


def key_times(target: Target, count: int) -> dict[str, Any]:
    """Microseconds of refusing a key that is wrong in its first letter, less those of one wrong in its last; pairs in
    random order on one connection each."""
    wrong = {"first": "X" + KEY[1:], "last": KEY[:-1] + "X"}
    gaps: list[float] = []
    for _ in range(count):
        found = {}
        for which in random.sample(sorted(wrong), 2):
            data = request("GET", "/v1/models", b"", Authorization=f"Bearer {wrong[which]}")
            began = time.perf_counter()
            status, _ = target.send(data)
            found[which] = time.perf_counter() - began
            assert status == 401, status
        gaps.append(1e6 * (found["first"] - found["last"]))
    middle = sorted(gaps)[count // 20 : -(count // 20) or None]  # of a busy machine's worst moments none
    low, high = records.bootstrap(middle)
    return {"microseconds": statistics.mean(middle), "low": low, "high": high, "n": len(middle)}


@contextmanager
def serving(*models: str) -> Iterator[Target]:
    """``cutaway serve`` with a key for the attacker and one for the honest client."""
    with tempfile.TemporaryDirectory() as folder, Path(folder, "log").open("w") as log:
        keys = Path(folder, "keys")
        keys.write_text(f"honest {hashed(OTHER).hex()}\n")
        process = subprocess.Popen([sys.executable, "-m", "cutaway", "serve", *models, "--port", "0", "--json",
                                    "--precision", "int8", "--keys", str(keys)], stdout=subprocess.PIPE, stderr=log,
                                   text=True, env={**os.environ, "CUTAWAY_API_KEY": KEY})
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            if "address" not in said:
                raise SystemExit(f"the server did not start: {said} {Path(folder, 'log').read_text().strip()}")
            yield Target(process, int(json.loads(said)["address"].rsplit(":", 1)[1]))
        finally:
            process.kill()
            process.wait()


def hostile(folder: Path) -> list[str]:
    """Folders of a tiny model with templates that mean harm, as ``NAME=FOLDER``."""
    tokenizer, out = train(ByteSettings(), []), []
    config = TransformerConfig(vocab_size=tokenizer.vocab_size, hidden_size=32, num_layers=1, num_heads=2,
                               num_kv_heads=2, intermediate_size=32, context_length=256)
    for i, template in enumerate(TEMPLATES.values()):
        place = folder / f"hostile{i}"
        save_model(place, build(config, seed=1), tokenizer)
        (place / "cutaway.json").unlink()
        said = json.loads((place / "tokenizer_config.json").read_text())
        said.pop("cutaway")  # somebody else's tokenizer, whose template is the one that counts
        (place / "tokenizer_config.json").write_text(json.dumps({**said, "chat_template": template}))
        (place / "chat_template.jinja").write_text(template)
        out.append(f"hostile{i}={place}")
    return out


def main() -> None:
    """Attack, print what came of it, and end with one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=2000, help="of wrong keys")
    parser.add_argument("--quick", action="store_true", help="without the attacks that take half a minute")
    options = parser.parse_args()
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="cutaway-attacks-") as name, serving(MODEL, *hostile(Path(name))) as target:
        alone = [target.honest() for _ in range(6)][1:]
        for words, data in attacks().items():
            outcomes.append(once(target, words, lambda data=data: target.send(data)))  # type: ignore[misc]
        for i, words in enumerate(TEMPLATES):
            body = chat(model=f"hostile{i}")
            outcomes.append(once(target, words, lambda body=body: target.post(  # type: ignore[misc]
                CHAT, body, Authorization=f"Bearer {KEY}"), beside=True))
        if not options.quick:
            outcomes.append(once(target, "slowloris in 200 heads", lambda: slowly(target, body=False), beside=True))
            outcomes.append(once(target, "slowloris in 200 bodies", lambda: slowly(target, body=True), beside=True))
            outcomes.append(once(target, "700 silent connections", lambda: crowd(target), beside=True))
        keys = key_times(target, 200 if options.quick else options.pairs)
        after, grown = [target.honest() for _ in range(5)], target.memory()
    for o in outcomes:
        honest = "" if o.honest is None else f"  honest client {o.honest:.2f} s"
        print(f"  {'held' if o.held else 'NOT '}  {o.status or 'closed':>6}  {o.seconds:>6.2f} s"
              f"{o.grown / 2**20:>8.1f} MiB  {o.name}{honest} {o.note}")
    even = keys["low"] <= 0 <= keys["high"]
    print(f"key wrong in its first letter less in its last: {keys['microseconds']:.1f} µs [{keys['low']:.1f}, "
          f"{keys['high']:.1f}], n {keys['n']}; an honest client {statistics.median(alone):.2f} s before, "
          f"{statistics.median(after):.2f} s after; memory {grown / 2**20:.0f} MiB")
    held = sum(o.held for o in outcomes)
    print(f"{held} of {len(outcomes)} held")
    print(json.dumps({"name": "attacks", "outcomes": [asdict(o) for o in outcomes], "held": held, "keys": keys,
                      "honest_before_s": statistics.median(alone), "honest_after_s": statistics.median(after),
                      "ok": held == len(outcomes) and even and max(after) < LONGEST,
                      "machine": asdict(device.known(device.pick("cpu"))),
                      "versions": records.environment()["versions"]}))


if __name__ == "__main__":
    main()
