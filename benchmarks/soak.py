"""Half an hour of a server's worst clients: requests of every kind, three in ten given up, readers that stall, bodies
that are none; then its engine is killed while it writes, and the server is told to end.

Wanted: no answer of 5xx and no request without an end; memory in the last third within 2 % of the second; latency's p99
in the last third no worse than in the first two (intervals overlap); no page in use when all is over; after the engine
is killed every stream ends in an error event, /ready says 503 and then 200 by itself; after SIGTERM every stream that
was being written ends whole and the process exits with 0. Needs `cutaway pull smollm2-135m-instruct`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cutaway import device, records

HERE = Path(__file__).resolve().parent
MODEL = "smollm2-135m-instruct"
WORDS = (
    "river", "lamp", "seven", "under", "quick", "copper", "window", "garden", "music", "early", "paper",
    "seldom", "mountain", "yellow", "engine", "letter", "bridge", "winter", "ocean", "button", "silver",
    "travel", "pocket", "thunder", "market", "feather", "castle", "orange", "needle", "harbour")
SCHEMA = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer"}},
          "required": ["name", "age"], "additionalProperties": False}
ENDS = ("0", "2")  # the ids that end an answer: what is told not to end goes on to its limit
CACHE = 1 << 29  # bytes of keys and values, filled in the first minutes: what grows behind that is a leak
STALL = 60.0  # seconds for the slowest reader; a request that takes longer is stuck


@dataclass
class Tally:
    """What happened."""

    kinds: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    latencies: list[tuple[float, float]] = field(default_factory=list)  # when it was sent, seconds to its end
    memory: list[tuple[float, float]] = field(default_factory=list)  # when, bytes


def spoken(draw: random.Random, least: int, most: int) -> str:
    """A few words."""
    return " ".join(draw.choices(WORDS, k=draw.randint(least, most)))


def chat(draw: random.Random, **more: Any) -> dict[str, Any]:
    """A conversation; a third begin alike, so that prompts are found again."""
    told = [{"role": "system", "content": "You are a helpful assistant who answers in one sentence."}]
    asks = [{"role": "user", "content": spoken(draw, 3, 60)}]
    return {"model": MODEL, "messages": told * (draw.random() < 0.33) + asks, "max_tokens": draw.randint(4, 40), **more}


def asked(draw: random.Random) -> tuple[str, str, dict[str, Any]]:
    """What a client wants: its kind, the path, and the body."""
    body, path = chat(draw), "/v1/chat/completions"
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
    short = {"model": MODEL, "prompt": spoken(draw, 3, 80), "stream": True, "max_tokens": draw.randint(4, 40),
             "temperature": 0}
    kinds: dict[str, tuple[int, str, dict[str, Any]]] = {
        "stream": (40, path, {**body, "stream": True}), "whole": (15, path, body),
        "completion": (15, "/v1/completions", short),
        "logprobs": (10, path, {**body, "stream": True, "logprobs": True, "top_logprobs": 3}),
        "schema": (6, path, {**body, "max_tokens": 60, "response_format": form}),
        "several": (6, path, {**body, "n": 3, "stop": [".", "the"]}), "render": (5, "/render", body),
        "embed": (3, "/v1/embeddings", {"model": MODEL, "input": "a"})}  # it gives no vectors: 400
    kind = draw.choices(list(kinds), [weight for weight, _, _ in kinds.values()])[0]
    return kind, *kinds[kind][1:]


def malformed(draw: random.Random) -> bytes:
    """A request that is none, or whose body is none."""
    good = json.dumps(chat(draw)).encode()
    bodies = [good[: draw.randrange(len(good))], b"[" * 100_000, b"\xff\xfe" + good, b"null", b"",
              json.dumps({**chat(draw), "n": 10**9}).encode(), json.dumps({**chat(draw), "temprature": 1}).encode(),
              json.dumps({**chat(draw), "max_tokens": -1}).encode(), json.dumps({"model": "../../etc"}).encode(),
              json.dumps({**chat(draw), "messages": [{"role": "user", "content": "a " * 20_000}]}).encode(),
              json.dumps({**chat(draw), "response_format": {"type": "regex", "regex": "(a*)*" * 500}}).encode()]
    body = draw.choice(bodies)
    heads = [request("/v1/chat/completions", body), request("/v1/chat/completions", body, length=len(body) + 50),
             request("/v1/" + "x" * 9000, body), b"GARBAGE\r\n\r\n", request("/v1/chat/completions", body, host="evil"),
             b"POST / HTTP/1.1\r\n" + b"X: y\r\n" * 5000 + b"\r\n"]
    return draw.choices(heads, (10, 1, 1, 1, 1, 1))[0]


def request(path: str, body: bytes, *, length: int | None = None, host: str = "127.0.0.1",
            method: str = "POST") -> bytes:
    """The bytes of a request."""
    return (f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body) if length is None else length}\r\n\r\n").encode() + body


class Soak:
    """One server process and the clients it is given."""

    def __init__(self, process: subprocess.Popen[str], port: int, seed: int) -> None:
        self.process, self.port, self.tally = process, port, Tally()
        self.draw, self.began = random.Random(seed), time.monotonic()

    @contextlib.asynccontextmanager
    async def open(self, data: bytes) -> AsyncIterator[asyncio.StreamReader]:
        """A connection over which ``data`` was sent, closed rudely at the end."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 22)
        try:
            writer.write(data)
            with contextlib.suppress(ConnectionError):
                await writer.drain()
            yield reader
        finally:
            writer.transport.abort()

    async def get(self, path: str) -> tuple[int, bytes]:
        """Status and body of a small answer; status 0 where nobody listens."""
        try:
            async with asyncio.timeout(20), self.open(request(path, b"", method="GET")) as reader:
                head, _, body = (await reader.read()).partition(b"\r\n\r\n")
                return int(head.split(b" ", 2)[1]), body
        except (OSError, TimeoutError, IndexError, ValueError):
            return 0, b""

    async def client(self, number: int) -> None:
        """One request, of a kind drawn for it."""
        draw = random.Random(f"{self.draw.random()} {number}")
        manner = draw.choices(("plain", "abort", "slow", "malformed"), (50, 30, 8, 12))[0]
        if manner == "malformed":
            return await self.bad(draw)
        kind, path, body = asked(draw)
        self.tally.kinds[f"{manner} {kind}"] += 1
        try:
            async with asyncio.timeout(STALL), self.open(request(path, json.dumps(body).encode())) as reader:
                await self.read(reader, manner, kind, draw)
        except TimeoutError:
            self.wrong(f"{manner} {kind}: no end within {STALL:.0f} s")
        except (OSError, EOFError, IndexError, ValueError) as error:  # no status, or none that is a number
            self.wrong(f"{manner} {kind}: {type(error).__name__} {error}")

    async def bad(self, draw: random.Random) -> None:
        """A malformed request: refused with 4xx, or the connection ended."""
        self.tally.kinds["malformed"] += 1
        try:
            async with asyncio.timeout(STALL), self.open(malformed(draw)) as reader:
                status = (await reader.readline()).split(b" ", 2)
        except ConnectionError:
            status = []
        except TimeoutError:
            return self.wrong("malformed: no answer")
        code = int(status[1]) if len(status) > 1 and status[1].isdigit() else 0
        self.tally.ends[f"malformed {code}"] += 1
        if code >= 500 or code == 200:
            self.wrong(f"malformed: answered {code}")

    async def read(self, reader: asyncio.StreamReader, manner: str, kind: str, draw: random.Random) -> None:
        """The answer, or as much of it as this client waits for."""
        sent = time.monotonic()
        if manner == "abort":
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(draw.random() * 1.5):
                    while await reader.read(64):
                        pass
            self.tally.ends["aborted"] += 1
            return
        status = int((await reader.readline()).split(b" ", 2)[1])
        data = b""
        while piece := await reader.read(64 if manner == "slow" else 65_536):
            data += piece
            if manner == "slow":
                await asyncio.sleep(0.02)
        self.tally.ends[f"{kind} {status}"] += 1
        expected = 400 if kind == "embed" else 200
        if status not in (expected, 429):
            self.wrong(f"{kind}: {status} {data[-200:]!r}")
        elif status == 200 and kind in ("stream", "completion", "logprobs") and b"data: [DONE]" not in data:
            self.wrong(f"{kind}: a stream without its end: {data[-200:]!r}")
        elif status == 200 and manner == "plain" and kind in ("stream", "completion"):
            self.tally.latencies.append((sent, time.monotonic() - sent))

    def wrong(self, what: str) -> None:
        """Something that should not be."""
        self.tally.wrong.append(f"{time.monotonic() - self.began:.0f} s: {what}")

    async def watch(self) -> None:
        """Note the server's memory every second."""
        status = Path(f"/proc/{self.process.pid}/status")
        while True:
            line = next(row for row in status.read_text().splitlines() if row.startswith("VmRSS"))
            self.tally.memory.append((time.monotonic(), int(line.split()[1]) * 1024.0))
            await asyncio.sleep(1)

    async def run(self, requests: int, minutes: float, together: int) -> None:
        """All requests, evenly over the time, at most ``together`` at once."""
        room, watching = asyncio.Semaphore(together), asyncio.create_task(self.watch())
        running: set[asyncio.Task[None]] = set()

        async def one(number: int) -> None:
            async with room:
                await self.client(number)

        for number in range(requests):
            due = self.began + 60 * minutes * number / requests
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            while len(running) > 4 * together:
                await asyncio.sleep(0.01)
            task = asyncio.create_task(one(number))
            running.add(task)
            task.add_done_callback(running.discard)
            if number % 500 == 499:
                print(f"  {number + 1:,} requests, {time.monotonic() - self.began:.0f} s, "
                      f"{self.tally.memory[-1][1] / 2**20:.0f} MiB, {len(self.tally.wrong)} wrong", file=sys.stderr)
        await asyncio.gather(*running)
        watching.cancel()

    async def at_rest(self) -> dict[str, float]:
        """The server's own gauges once nothing runs any more."""
        for _ in range(100):
            _, body = await self.get("/metrics")
            found = {line.split("{")[0]: float(line.rsplit(" ", 1)[1]) for line in body.decode().splitlines()
                     if line.startswith(("vllm:num_requests", "vllm:kv_cache", "cutaway_engine"))}
            if found and not any(found[k] for k in found if "engine" not in k):
                break
            await asyncio.sleep(0.2)
        return found

    async def streams(self, count: int, tokens: int) -> list[str]:
        """How that many long streams end: "whole", "error event", or neither."""
        async def one() -> str:
            body = chat(self.draw, stream=True) | {"max_tokens": tokens, "logit_bias": dict.fromkeys(ENDS, -100)}
            async with asyncio.timeout(120), self.open(request("/v1/chat/completions", json.dumps(body).encode())) as r:
                data = await r.read()
            if not data.startswith(b"HTTP/1.1 200"):
                return f"never begun: {data[:100]!r}"
            return ("error event" if b'"error"' in data else "whole" if b"data: [DONE]" in data else
                    f"neither: {data[-100:]!r}")

        return list(await asyncio.gather(*(one() for _ in range(count))))

    async def killed(self) -> dict[str, Any]:
        """The engine fails while it writes eight streams."""
        writing = asyncio.create_task(self.streams(8, 400))
        await asyncio.sleep(2)
        self.process.send_signal(signal.SIGUSR1)
        began, seen, back = time.monotonic(), set[int](), math.inf
        while time.monotonic() - began < 60:
            seen.add(status := (await self.get("/ready"))[0])
            if status == 200 and 503 in seen:
                back = time.monotonic() - began
                break
            await asyncio.sleep(0.005)
        return {"ends": Counter(await writing), "not_ready_seen": 503 in seen, "back_after_s": back,
                "answers_again": (await self.streams(2, 10)).count("whole") == 2}

    async def drained(self) -> dict[str, Any]:
        """Told to end while it writes four streams."""
        writing = asyncio.create_task(self.streams(4, 300))
        await asyncio.sleep(1)
        self.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.5)
        taken = (await self.get("/health"))[0]
        ends = Counter(await writing)
        return {"ends": ends, "new_connection": taken, "exit": await asyncio.to_thread(self.process.wait, 60)}


def thirds(tally: Tally) -> dict[str, Any]:
    """Memory and latency early and late; the first third fills the cache of prompts."""
    start, end = tally.memory[0][0], tally.memory[-1][0]
    part = (end - start) / 3
    memory = [sorted(m for t, m in tally.memory if start + i * part <= t <= start + (i + 1) * part) for i in range(3)]
    middle = [m[len(m) // 2] for m in memory]
    out: dict[str, Any] = {"memory_bytes": middle, "memory_grows": middle[2] / middle[1] - 1}
    for name, (low, high) in {"early": (0, 2), "late": (2, 3)}.items():
        found = sorted(s for t, s in tally.latencies if start + low * part <= t < start + high * part)
        out[f"p99_{name}_s"] = found[int(0.99 * (len(found) - 1))]
        out[f"p99_{name}_interval"] = records.bootstrap_quantile([[s] for s in found], 0.99)
        out[f"p50_{name}_s"], out[f"n_{name}"] = found[len(found) // 2], len(found)
    return out


async def soaked(soak: Soak, options: argparse.Namespace) -> dict[str, Any]:
    """Everything, in order."""
    await soak.streams(2, 5)  # the model is opened
    soak.began = time.monotonic()
    await soak.run(options.requests, options.minutes, options.together)
    figures: dict[str, Any] = {"seconds": time.monotonic() - soak.began, "rest": await soak.at_rest(),
                               **thirds(soak.tally)}
    figures["killed"] = await soak.killed()
    figures["drained"] = await soak.drained()
    return figures


def judged(figures: dict[str, Any], tally: Tally) -> dict[str, bool]:
    """Each thing that is wanted, and whether it was so."""
    rest, killed, drained = figures["rest"], figures["killed"], figures["drained"]
    return {
        "every request ended, none in 5xx": not tally.wrong,
        "memory is flat (2 %)": abs(figures["memory_grows"]) <= 0.02,
        "p99 is stable": figures["p99_late_interval"][0] <= figures["p99_early_interval"][1],
        "no page and no request is left": not any(v for k, v in rest.items() if "engine" not in k) and bool(rest),
        "the engine never failed by itself": rest.get("cutaway_engine_restarts", 1) == 0,
        "killed: every stream ends in an error event": killed["ends"] == {"error event": 8},
        "killed: not ready, then ready again": killed["not_ready_seen"] and killed["back_after_s"] < 60,
        "killed: it answers again": killed["answers_again"],
        "SIGTERM: what was written ended whole": drained["ends"] == {"whole": 4} and drained["exit"] == 0}


def main() -> None:
    """Start the server, torment it, print what came of it, and end with one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--together", type=int, default=24, help="requests at once")
    parser.add_argument("--precision", default="stored")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="one minute, 300 requests")
    options = parser.parse_args()
    if options.quick:
        options.requests, options.minutes = 300, 1.0
    process = subprocess.Popen([sys.executable, str(HERE / "peers" / "soak_server.py"), MODEL, "--port", "0", "--json",
                                "--precision", options.precision, "--limit", f"cache_bytes={CACHE}"],
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        if not (said := process.stdout.readline()):
            raise SystemExit(f"the server did not start: cutaway pull {MODEL}")
        soak = Soak(process, int(json.loads(said)["address"].rsplit(":", 1)[1]), options.seed)
        figures = asyncio.run(soaked(soak, options))
    finally:
        process.kill()
    verdicts = judged(figures, soak.tally)
    for what, count in sorted(soak.tally.ends.items()):
        print(f"  {count:>6,}  {what}")
    print(f"{sum(soak.tally.kinds.values()):,} requests in {figures['seconds']:.0f} s; memory by thirds "
          f"{', '.join(f'{m / 2**20:.0f}' for m in figures['memory_bytes'])} MiB; p99 {figures['p99_early_s']:.2f} s "
          f"early, {figures['p99_late_s']:.2f} s late (p50 {figures['p50_early_s']:.2f}, {figures['p50_late_s']:.2f}); "
          f"killed: back after {figures['killed']['back_after_s']:.1f} s")
    for words, holds in verdicts.items():
        print(f"  {'yes' if holds else 'NO '}  {words}")
    for words in soak.tally.wrong[:20]:
        print(f"  wrong: {words}")
    print(json.dumps({"name": "soak", "figures": figures, "kinds": soak.tally.kinds, "ends": soak.tally.ends,
                      "wrong": len(soak.tally.wrong), "verdicts": verdicts, "ok": all(verdicts.values()),
                      "machine": asdict(device.known(device.pick("cpu"))),
                      "versions": records.environment()["versions"]}))


if __name__ == "__main__":
    main()
