"""What a server lets anybody ask: fixed caps that stand in the schemas, and those that an operator sets."""

from __future__ import annotations

from pydantic import Field

from cutaway.settings import Settings

# Caps that every schema states. vLLM ran out of memory for want of one on n (CVE-2026-34756).
CHOICES, PROMPTS, MESSAGES, TOOLS = 8, 64, 1024, 128
STOPS, STOP_LETTERS, TOP_LOGPROBS, BIASES = 4, 256, 20, 1024
INPUTS, INPUT_TOKENS, DOCUMENTS = 2048, 300_000, 1024
NAME_LETTERS, SCHEMA_BYTES, SCHEMA_DEPTH = 256, 64 << 10, 32
JSON_DEPTH = 64


class Limits(Settings):
    """Sizes in bytes, times in seconds. What is beyond them is refused with the number, never cut."""

    body_bytes: int = Field(default=1 << 20, ge=1)
    header_bytes: int = Field(default=16 << 10, ge=256)
    connections: int = Field(default=512, ge=1)  # open at once
    waiting: int = Field(default=256, ge=0)  # requests of a model that have no token yet
    waiting_tokens: int = Field(default=1 << 20, ge=1)  # of their prompts
    per_key: int = Field(default=64, ge=1)  # requests of one key at once
    tokens_per_minute: int | None = Field(default=None, ge=1)  # of one key, asked and answered
    cache_bytes: int | None = Field(default=None, ge=1)  # for a model's keys and values; a quarter of memory
    head_seconds: float = Field(default=30, gt=0)  # until a connection has sent a request's head
    body_seconds: float = Field(default=30, gt=0)  # until its body is there
    send_seconds: float = Field(default=30, gt=0)  # that a reader may leave a stream unread
    answer_seconds: float = Field(default=600, gt=0)  # for a whole answer
    drain_seconds: float = Field(default=30, ge=0)  # for what is running when the server is told to end
    idle_seconds: float = Field(default=300, gt=0)  # after which an unused model is closed
    ping_seconds: float = Field(default=15, gt=0)  # between two signs of life of a stream that says nothing
