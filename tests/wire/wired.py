"""A real server on a loopback port with tiny models, and an engine whose tokens are a hash of what stands before them.

The engine can be told what to say, how slowly, and to break: what the wire does is tested without a model's moods.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from openai import OpenAI

from cutaway.generate.request import Alternative, Event, Request, Scores
from cutaway.models.folder import save_model
from cutaway.models.model import LanguageModel, build
from cutaway.models.transformer import TransformerConfig
from cutaway.server.app import build as build_app
from cutaway.server.guard import Guard
from cutaway.server.keys import Key
from cutaway.server.limits import Limits
from cutaway.server.serve import attend, listening, server_of
from cutaway.server.service import Service
from cutaway.server.shelf import Shelf
from cutaway.text.public import byte_level, made
from cutaway.text.tokenizer import ByteSettings, Tokenizer, train
from cutaway.text.vocabulary import added_token

BYTES: Tokenizer = train(ByteSettings(), [])
ID_OF = {BYTES.bytes_of([i]): i for i in range(BYTES.vocab_size) if BYTES.bytes_of([i])}
TOOL_TEMPLATE = (
    "{% if tools %}{{ '<|im_start|>system\ntools: ' + (tools | tojson) + ' answer in <tool_call></tool_call>"
    "<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['content'] %}{{ m['content'] }}{% endif %}"
    "{% for c in m['tool_calls'] or [] %}{{ '<tool_call>' + (c['function'] | tojson) + '</tool_call>' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")


def tool_tokenizer() -> Tokenizer:
    """Bytes and two control tokens, with a chat template that knows tools."""
    from tokenizers.pre_tokenizers import ByteLevel

    control = ["<|im_start|>", "<|im_end|>"]
    vocab = {letter: i for i, letter in enumerate([*control, *sorted(ByteLevel.alphabet())])}
    tree = byte_level(vocab, [], where="a test")
    tree["added_tokens"] = [added_token(i, name) for i, name in enumerate(control)]
    return made(tree, {"bos_token": control[0], "eos_token": control[1]}, template=TOOL_TEMPLATE, where="a test")


def write_model(folder: Path, tokenizer: Tokenizer = BYTES, *, context: int = 256, **more: Any) -> Path:
    """A tiny language model of random weights."""
    sizes: dict[str, Any] = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2,
                             "intermediate_size": 24, "context_length": context} | more
    save_model(folder, build(TransformerConfig(vocab_size=tokenizer.vocab_size, **sizes), seed=1), tokenizer)
    return folder


def write_embedder(folder: Path) -> Path:
    """A tiny encoder with a head of vectors."""
    from cutaway.models.heads import Vector

    config = TransformerConfig(shape="encoder", vocab_size=BYTES.vocab_size, hidden_size=16, num_layers=1, num_heads=2,
                               num_kv_heads=2, intermediate_size=24, context_length=64)
    save_model(folder, build(config, head=Vector("mean", unit=True), seed=2), BYTES)
    return folder


def write_classifier(folder: Path) -> Path:
    """A tiny encoder with a head of three classes."""
    from cutaway.models.heads import Classes

    config = TransformerConfig(shape="encoder", vocab_size=BYTES.vocab_size, hidden_size=16, num_layers=1, num_heads=2,
                               num_kv_heads=2, intermediate_size=24, context_length=64)
    save_model(folder, build(config, head=Classes(("bad", "fair", "good")), seed=3), BYTES)
    return folder


@dataclass
class Fake:
    """What fake engines do; a test changes it while the server runs. ``says``: the bytes of the answer to a prompt."""

    tokenizer: Tokenizer = BYTES
    says: Callable[[str], bytes] | None = None
    pause: float = 0.0
    broken: bool = False
    made: int = 0
    cancelled: int = 0
    alive: int = 0  # requests that an engine holds
    salts: list[str] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)


@dataclass(frozen=True)
class FakeStats:
    running: int
    waiting: int = 0
    pages_used: int = 0
    pages_cached: int = 0
    pages_free: int = 8
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0


class FakeEngine:
    """A token is a hash of all before it, so an answer depends on its prompt alone."""

    exact = True

    def __init__(self, model: LanguageModel, fake: Fake) -> None:
        self.vocab, self.context, self.fake = model.vocab_size, model.context_length, fake
        self.live: dict[int, tuple[Request, list[int]]] = {}
        self.known: set[tuple[str, tuple[int, ...]]] = set()
        self.tickets = self.generated = self.prompted = self.cached = 0
        self.alphabet = [i for data, i in _ids(fake.tokenizer).items() if data.isalnum() or data == b" "]
        fake.made += 1
        fake.alive = 0

    @property
    def idle(self) -> bool:
        return not self.live

    def submit(self, request: Request, *, salt: str = "") -> int:
        checked = request.checked(vocab_size=self.vocab, context_length=self.context,
                                  reads_source=request.source is not None)
        self.tickets += 1
        self.live[self.tickets] = (checked, [])
        self.fake.salts.append(salt)
        self.fake.requests.append(checked)
        self.fake.alive = len(self.live)
        return self.tickets

    def cancel(self, ticket: int) -> None:
        del self.live[ticket]
        self.fake.cancelled += 1
        self.fake.alive = len(self.live)

    def step(self) -> list[Event]:
        if self.fake.broken:
            raise RuntimeError("the engine broke, as the test wants it")
        if self.fake.pause:
            time.sleep(self.fake.pause)
        out = [self._event(ticket, request, said) for ticket, (request, said) in self.live.items()]
        for event in out:
            if event.finish is not None:
                del self.live[event.request]
        self.generated += len(out)
        self.fake.alive = len(self.live)
        return out

    def stats(self) -> FakeStats:
        return FakeStats(len(self.live), prompt_tokens=self.prompted, cached_tokens=self.cached,
                         generated_tokens=self.generated)

    def _event(self, ticket: int, request: Request, said: list[int]) -> Event:
        token = self._next(request, said)
        first = not said
        said.append(token)
        done = request.constraint is not None
        if done:
            request.constraint.accept(token)
            done = request.constraint.done
        finish = "stop" if token in request.stop_ids or done else "length" if len(said) == request.max_tokens else None
        logs = None if request.logprobs is None else -float(len(said) % 5) / 4
        best = tuple(Alternative((token + k) % self.vocab, -0.5 - k) for k in range(request.logprobs or 0))
        cached = 0
        if first:
            self.prompted += len(request.tokens)
            cached = len(request.tokens) - 1 if request.tokens in self.known else 0
            self.known.add(request.tokens)
            self.cached += cached
        prompt = None
        if first and request.prompt_logprobs is not None:
            prompt = Scores(tuple(-1.0 for _ in request.tokens[1:]),
                            tuple(tuple(Alternative(t, -1.0) for _ in range(request.prompt_logprobs))
                                  for t in request.tokens[1:]))
        return Event(ticket, token, finish, logs, best, cached=cached, prompt=prompt)

    def _next(self, request: Request, said: Sequence[int]) -> int:
        read = request.tokens if request.source is None else request.source
        if request.constraint is not None and (mask := request.constraint.mask()) is not None:
            bits = np.unpackbits(np.asarray(mask, "<u4").view(np.uint8), bitorder="little")[: self.vocab]
            allowed = bits.nonzero()[0].tolist()
            return int(allowed[self._hash(read, said) % len(allowed)])
        if self.fake.says is not None:
            text = self.fake.says(self.fake.tokenizer.decode(read))
            known = _ids(self.fake.tokenizer)
            return known[text[len(said):len(said) + 1]] if len(said) < len(text) else request.stop_ids[0]
        salt = request.seed if request.sampling.temperature else 0
        return self.alphabet[(self._hash(read, said) + salt) % len(self.alphabet)]

    def _hash(self, read: Sequence[int], said: Sequence[int]) -> int:
        return int.from_bytes(hashlib.blake2b(repr((tuple(read), tuple(said))).encode(), digest_size=4).digest(), "big")


def _ids(tokenizer: Tokenizer) -> dict[bytes, int]:
    return {tokenizer.bytes_of([i]): i for i in range(tokenizer.vocab_size) if tokenizer.bytes_of([i])}


@dataclass(eq=False)
class Wired:
    """A running server."""

    address: str
    service: Service
    app: Guard
    fake: Fake
    server: Any
    thread: threading.Thread
    clients: list[Any] = field(default_factory=list)

    def openai(self, key: str = "none-is-needed-here", **more: Any) -> OpenAI:
        """The official client."""
        made = OpenAI(base_url=f"{self.address}/v1", api_key=key, **({"max_retries": 0} | more))
        self.clients.append(made)
        return made

    def http(self, **more: Any) -> httpx.Client:
        """A plain client."""
        made = httpx.Client(base_url=self.address, timeout=30, **more)
        self.clients.append(made)
        return made

    def settled(self, what: Callable[[], bool], seconds: float = 10) -> bool:
        """Whether something becomes true in time."""
        end = time.monotonic() + seconds
        while not what() and time.monotonic() < end:
            time.sleep(0.01)
        return what()


@contextmanager
def serving(places: dict[str, Path], *, limits: Limits | None = None, keys: Sequence[Key] = (),
            fake: Fake | None = None, engine_for: Callable[[LanguageModel], Any] | None = None,
            hosts: frozenset[str] = frozenset(), origins: frozenset[str] = frozenset(),
            send_buffer: int | None = None) -> Iterator[Wired]:
    """A server in a thread, ended at the end; it must end by itself."""
    fake, limits = fake or Fake(), limits or Limits()
    shelf = Shelf(places, limits, engine_for or (lambda model: FakeEngine(model, fake)), "float32")
    service = Service(shelf, limits)
    shelf.closed = service.metrics.closed
    app = build_app(service, keys=keys, hosts=hosts, origins=origins)
    listener = listening("127.0.0.1", 0, keyed=bool(keys))
    if send_buffer is not None:  # or the kernel takes megabytes that nobody reads
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server, up = server_of(app, service), threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(attend(server, listener, limits, started=up.set)))
    thread.start()
    try:
        assert up.wait(20)
        wired = Wired(address, service, app, fake, server, thread)
        yield wired
        for client in wired.clients:
            client.close()
    finally:
        fake.broken = False
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()
