"""What clients are answered: the public interface's objects, with ``timings``, the ``seed`` that was drawn with, and
whether that gives the same answer again in any company (``reproducible``)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Answer(BaseModel):
    """An object of the wire; nothing in it that is not written here."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), populate_by_name=True)


class ErrorDetail(Answer):
    """What is wrong, and where."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorAnswer(Answer):
    """The one error body."""

    error: ErrorDetail


class Timings(Answer):
    """Where the time went, in milliseconds, and tokens per second of decoding; null: did not happen."""

    queue_ms: float
    prefill_ms: float | None
    decode_ms: float | None
    tokens_per_second: float | None


class CachedDetails(Answer):
    """``cached_tokens`` of the prompt were not read again."""

    cached_tokens: int


class SpentDetails(Answer):
    """No hidden reasoning: always 0."""

    reasoning_tokens: int = 0


class Usage(Answer):
    """Tokens of all prompts and answers of a request; the token that ends an answer counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedDetails
    completion_tokens_details: SpentDetails = SpentDetails()


class TopLogprob(Answer):
    """One of the likeliest tokens."""

    token: str
    bytes: list[int]
    logprob: float


class TokenLogprob(TopLogprob):
    """A token that was drawn."""

    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(Answer):
    """Of the tokens of the content."""

    content: list[TokenLogprob]
    refusal: None = None


class CalledFunction(Answer):
    """``arguments`` is JSON in a string."""

    name: str
    arguments: str


class Called(Answer):
    """A call that the model asks for."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class AssistantMessage(Answer):
    """The assistant's turn."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    tool_calls: list[Called] | None = None


class ChatChoice(Answer):
    """One answer of several."""

    index: int
    message: AssistantMessage
    finish_reason: Literal["stop", "length", "tool_calls"]
    logprobs: ChoiceLogprobs | None


class ChatAnswer(Answer):
    """A chat completion."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str
    service_tier: None = None
    seed: int
    reproducible: bool
    timings: Timings


class TextLogprobs(Answer):
    """Of a completion, a list each; ``text_offset`` in letters. The first token of an echoed prompt has none."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class TextChoice(Answer):
    """One continuation."""

    index: int
    text: str
    finish_reason: Literal["stop", "length"] | None
    logprobs: TextLogprobs | None


class CompletionAnswer(Answer):
    """A text completion."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage
    system_fingerprint: str
    seed: int
    reproducible: bool
    timings: Timings


class ResponseUsage(Answer):
    """Tokens, in the Responses API's words."""

    input_tokens: int
    input_tokens_details: dict[str, int]
    output_tokens: int
    output_tokens_details: dict[str, int]
    total_tokens: int


class ResponseAnswer(Answer):
    """A response; what the request left out is answered with what was taken for it."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    error: dict[str, Any] | None = None
    incomplete_details: dict[str, str] | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    metadata: dict[str, str] = Field(default_factory=dict)
    model: str
    output: list[dict[str, Any]]
    parallel_tool_calls: bool = False
    temperature: float
    tool_choice: str = "none"
    tools: list[dict[str, Any]] = Field(default_factory=list)
    top_p: float
    truncation: Literal["disabled"] = "disabled"
    text: dict[str, Any]
    store: Literal[False] = False
    usage: ResponseUsage | None = None
    reproducible: bool | None = None
    timings: Timings | None = None
